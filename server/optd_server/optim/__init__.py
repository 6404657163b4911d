"""The algorithms: pure numerical code on flat numpy arrays, and the declarations that go with it.

Nothing here knows a job, a worker, a message, a clock or the environment; this package imports numpy and the
standard library only, and ``backends.compiled`` numba. What is where:

- ``option``, ``spelling``: options with their ranges, the checks, and the nearest valid name
- ``algorithm``: what an algorithm declares; ``algorithms``: a file for each, and ``registry``, their names
- ``arithmetic``: the few fused operations of torch that the algorithms are written in
- ``step``: the driver, one step on one flat segment; ``segment``: its state; ``assignment``: which options and state
  each parameter has; ``shared_coefficients``, ``runs``: how elementwise work is cut, and ``backends``, who does it;
  ``parameterwise``: those that take a parameter as a whole; ``iterative``: those that take all, and ask back, with
  ``line_search``; ``plain``: such a step as named arrays and texts
- ``masters``: float32 weights beside those of 16 bits; ``lookahead``: slow weights; ``averages``, ``clipping``,
  ``schedules``, ``rules``: what may be done before, after or with any algorithm; ``threads``: how several share work
- ``reduce``: many gradients into one; ``finite``, ``statistics``: what is in an array

An algorithm is one file that declares an ``Elementwise``, a ``Parameterwise`` or an ``Iterative``, one line in
``registry``, and one row in the table of ``tests/server/optim/test_torch.py``, or of ``test_lbfgs.py``.
"""

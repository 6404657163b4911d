"""The algorithms: pure numerical code on flat numpy arrays, and the declarations that go with it.

Nothing here knows a job, a worker, a message, a clock or the environment. This package imports numpy and the standard
library only; ``backends.compiled`` also imports numba. Open ``algorithm.py`` first, then ``algorithms/sgd.py``.

- ``option``, ``spelling``: options with their ranges, the checks, and the nearest valid name
- ``group_options``, ``job_options``: the options that every group has, and those of a job as a whole
- ``algorithm``, ``row_support``: the parts of a declaration; ``algorithms``: a file for each, and their names
- ``arithmetic``: the fused operations of torch that the algorithms are written in
- ``step``: one step on one flat segment; ``touched``: the same for the elements that have a gradient only
- ``segment``: the state of a segment; ``assignment``: which options and state each parameter has
- ``shared_coefficients``, ``runs``: how a step is cut into elementwise work; ``backends``: what does that work
- ``parameterwise``: steps that need each parameter as a whole
- ``iterative``, ``line_search``: steps that evaluate several weights; ``plain``: such a step as arrays and texts
- ``masters``: float32 weights beside those of 16 bits; ``lookahead``: slow weights; ``averages``, ``clipping``,
  ``scheduled``, ``schedules``, ``rules``: what a job or a group may add to any algorithm
- ``reduce``: many gradients into one; ``threads``: work on several threads
- ``finite``, ``statistics``, ``difference``: what is in an array

An algorithm is one file that declares an ``Elementwise``, a ``Parameterwise`` or an ``Iterative``, one line in
``registry``, and one row in the table of ``tests/server/optim/test_torch.py``, or of ``test_lbfgs.py``.
"""

"""The backends, which do the arithmetic: numpy, block by block, or numba's kernels, in one pass over memory.

Both give the same bits. ``blocked`` is numpy's and ``compiled`` is numba's; only ``compiled`` imports numba, so that a
server works without it. The formulas are not here but in ``optim/algorithms``. Open ``base.py`` first, the interface;
``registry`` chooses a backend.
"""

"""The backends, which do the arithmetic: numpy, block by block, or numba's kernels, in one pass over memory.

Both give the same bits. ``base`` says what a backend does, ``registry`` chooses one, ``blocked`` is numpy's and
``compiled`` numba's; nothing but ``compiled`` imports numba, so that a server without it works.
"""

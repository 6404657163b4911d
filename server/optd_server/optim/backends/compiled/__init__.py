"""The backend of kernels that numba compiles: `kernels.py` has their code, and `cache.py` keeps what was compiled.

Nothing else in `optd_server` imports numba. The algorithms' own loops are beside their declarations, in
`optim/algorithms`. Open `backend.py` first.
"""

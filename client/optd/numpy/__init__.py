"""The optimizer face for numpy arrays, and for all arrays that numpy can read.

Its counterpart for torch's tensors is `optd.torch`; what both share is in `optd.registration`. Open `optimizer` first.
"""

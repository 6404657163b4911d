"""The algorithms: one file each, all of one shape, and `registry`, which finds them by name. Start with `sgd.py`."""

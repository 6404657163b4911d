"""The algorithms: one file each, all of one shape, and `registry`, which finds them by name.

A file declares options and state, and has the formulas. Options that every group has, such as schedules and rules, are
in `optim/group_options.py`. Open `sgd.py` first.
"""

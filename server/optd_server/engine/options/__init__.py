"""Groups and their options: what a job may be told, what it has been told, and when.

Options are resolved against the declarations of their algorithm, in `optim`. Open `groups.py` first.
"""

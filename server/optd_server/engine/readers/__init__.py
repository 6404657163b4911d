"""What can be read of a job: weights by name, state, statistics, averages. Nothing here changes a job.

Open `selection.py` first.
"""

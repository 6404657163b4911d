"""Everything that can be read from a job, beyond a plain pull: weights by name, state, statistics, averages.

Nothing here changes a job. A plain pull reads a snapshot through `Job.reading` alone. Open `selection.py` first.
"""

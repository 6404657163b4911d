"""Options as functions of a job's version.

``curves`` has the functions, and ``text`` parses their written form. Open ``schedule.py`` first, which declares what a
schedule is. Which options of a group follow a schedule is in ``optim/scheduled.py``.

A schedule gives a factor for each version. The option keeps the value that people set, and a step takes that value
times the factor. So a schedule and a person do not overwrite each other, all workers of a job share one schedule, and a
job that is resumed continues the schedule where it was.
"""

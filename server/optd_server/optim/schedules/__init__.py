"""Options as functions of a job's version: ``curves`` has the functions, ``text`` reads how one is written.

A schedule gives a factor for each version; the option keeps the value that people set, and a step takes that value
times the factor. So a schedule and a person do not overwrite each other, all workers of a job share one, and a job that
is resumed goes on where it stood.
"""

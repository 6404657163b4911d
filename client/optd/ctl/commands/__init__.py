"""The commands of `optctl`, by topic. Each is a function of an `Invocation` and of its command line.

How a command finds its server, writes its answer and ends is in the files of `ctl`. Open `jobs.py` first.
"""

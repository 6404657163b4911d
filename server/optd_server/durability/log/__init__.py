"""The log of a job on disk: one record an event, in segments that follow one another.

`framing.py` is the form of a record, `segment.py` is one file, `scan.py` reads what a server left, `writer.py` appends
for a running job, and `syncer.py` syncs for all jobs together. What is in a record is no business of this folder.
"""

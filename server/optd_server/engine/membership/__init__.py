"""The workers of a job: their epochs and marks, which survive a restart, and their leases and rejections, which do not.

Joining, leaving and expiry, which tie these to pushes and shared memory, are in `engine/workers.py`. `activity.py` has
what people see of a worker; it decides nothing. Open `members.py` first.
"""

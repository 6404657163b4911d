"""One worker's part in one job: connecting, joining, pushing, pulling, retrying, and keeping the lease.

A session owns the epoch and the sequence of its pushes, and nothing else in the client retries. `round_watch.py` tells
people whom a push waits for. The arrays that an optimizer updates are in `optd.registration`. Open `session` first.
"""

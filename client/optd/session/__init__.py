"""One worker's part in one job: connecting, joining, pushing, pulling, retrying, and keeping the lease.

A session owns the epoch and the sequence of its pushes, and is the only one that retries. It knows nothing of arrays
that an optimizer updates; those are in `optd.registration`. Open `session` first.
"""

"""Jobs and what happens to them: one writer a job, admission, policies, leases.

Never reads a clock, a socket or the environment: moments are passed in, in seconds of a monotonic clock (`now`) or
of wall time (`wall`). Everything here lives on one event loop; only arithmetic on buffers runs in other threads.
"""

"""A server in memory, behind the same seam as gRPC. With it, everything above the transport is tested without sockets.

It behaves like a server: it keeps jobs, epochs, sequences, marks and leases, steps with plain SGD, and refuses what the
real server refuses. It has no policies, no optimizer state and no shared memory. Open `server` first.
"""

"""A server in memory, behind the same seam as gRPC: for tests of everything above the transport, without sockets.

It is a server and no mock: it keeps jobs, epochs, sequences, marks and leases, steps with plain SGD, and refuses what
the real server refuses. Policies, optimizer state and shared memory it does not have. Open `server` first.
"""

"""The gRPC side of the server: calls, limits, authentication, and the conversion of messages to plain values and back.

Only this folder knows gRPC and messages. It decides nothing about a job: it calls the engine's methods and sends their
results. The files here serve every RPC; `services/` has the RPCs themselves. Open `calls.py` first, which takes a gRPC
call to the method of a service and back, then `server.py`, which puts everything together.
"""

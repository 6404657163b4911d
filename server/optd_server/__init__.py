"""The server `optd`. It owns jobs (weights, groups, optimizer state) and applies the gradients that workers push.

`rpc` speaks gRPC, `engine` decides and keeps jobs, `optim` computes, `store` holds the numbers, `durability` stores
events. The files here turn flags into a running server. What workers and `optctl` do is in the package `optd`, and what
both sides speak is in `optd_wire`. Open `app.py` first: it puts the parts together.
"""

"""Optimizer state: read from the server and written to it, and as state dicts in torch's form.

Weights and gradients are in `optd.exchange`. Open `all_parameters` first.
"""

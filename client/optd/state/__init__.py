"""Optimizer state: read from the server, written to it, and converted to state dicts in torch's form.

Weights and gradients are in `optd.exchange`. Open `all_parameters` first.
"""

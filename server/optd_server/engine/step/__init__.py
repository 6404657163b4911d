"""The arithmetic from the gradients of a round to new weights: reduction, accumulation, clipping, the step itself.

Nothing here knows workers, policies or an event loop, and the algorithms are in `optim`. Open `reduced.py` first, then
`arithmetic.py`.
"""

"""From the gradients of a round to new weights: reduction, conditioning, accumulation, the arithmetic of a step.

Nothing here knows workers, policies or an event loop. Open `reduced.py` first, then `arithmetic.py`.
"""

"""The way of a push from its announcement to its answer, and the policies that decide which pushes form a round.

A push is admitted by its identity, waits until its policy begins a round, sends its gradient into the round, and is
answered after the round's step. The arithmetic of the step is in `engine/step`. Open `pushes.py` first.
"""

"""Which pushes become a step together: a push from its announcement to its answer.

A push is admitted by its identity, waits for what its policy wants, and is received in its round. What its gradient
does to the job is not here, but in `engine/step`. Open `pushes.py` first.
"""

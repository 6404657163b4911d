"""When pushes become a step: one file for each policy, all of the shape that `base.py` describes."""

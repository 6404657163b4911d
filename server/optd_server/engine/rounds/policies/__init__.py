"""The policies, which decide which pushes become a step together: one file for each.

A policy is pure: it sees identities and times, and carries nothing out. `rounds/waiting.py` does that. Open `base.py`
first; a new policy is one file and one line of `registry.py`.
"""

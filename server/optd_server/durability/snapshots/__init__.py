"""Snapshots of jobs on disk: tensors in safetensors files, and everything else in a JSON manifest.

`contents.py` says which tensors a state has, `tensors.py` reads and writes a file of them, `manifest.py` is the rest of
a state, and `folder.py` puts a snapshot in place as a whole and finds the ones there are. Open `folder.py` first.
"""

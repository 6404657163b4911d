"""Checkpoints where people keep them: in folders, and in whatever fsspec reaches.

`place.py` is a folder, here or elsewhere, that has a checkpoint whole or not at all; `files.py` reads what is in one;
`transfer.py` brings a job to a place and back to a server. Open `transfer.py` first. A checkpoint's files are described
in `optd_wire.checkpoint_format`.
"""

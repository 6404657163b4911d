"""Events as bytes. Logs, snapshots on disk and recovery belong here too, but do not exist yet.

The events themselves are in `engine/events.py`, and the messages are generated from `proto/optd/storage/v1`. Open
`records.py` first, then `numbers.py`.
"""

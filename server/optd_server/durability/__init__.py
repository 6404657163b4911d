"""Events as bytes. Logs, snapshots on disk and recovery belong here too; there are none yet.

The messages are generated from `proto/optd/storage/v1`. Open `records.py` first.
"""

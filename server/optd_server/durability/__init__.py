"""What a server keeps on its disk, and how it finds it again.

`log/` has the events of a job, one record each, and `snapshots/` the job at one version. `keepers.py` are the logs that
running jobs see, `snapshotter.py` writes snapshots as they become due, `recovery.py` makes a job of its files, and
`storage.py` brings these together for all jobs of a data directory. `checkpoints.py` sends the files of a job to a
client, and makes a job of them. What a job is, and what changes it, is in `engine`; nothing here decides that.

The messages are generated from `proto/optd/storage/v1`; `records.py` and `numbers.py` turn events into bytes. Open
`data_dir.py` first, then `storage.py`.
"""

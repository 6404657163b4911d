"""What both optimizer faces (`optd.numpy` and `optd.torch`) share: arrays that hold the weights of a job's groups.

Also how a worker attaches to a job that exists, and how it finds what a script has changed in its arrays. Nothing here
knows torch. Open `registration` first.
"""

"""The algorithms, a file each of one shape, and `registry`, which has them by name."""

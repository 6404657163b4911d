"""How the numbers of a frame are written: one file for each encoding, all of one shape. See `base`."""

"""The encodings of a frame's numbers, one file each. Open `base` first, the interface; `registry` lists them.

The frames themselves are in `optd_wire.frames`. What a lossy encoding leaves out, the client adds to its next gradient.
The layers: `base` <- `int8_blocks` <- `compiled` <- `kernels` <- `halves` and the encodings <- `registry`.
"""

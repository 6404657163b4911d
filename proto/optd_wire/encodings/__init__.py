"""The encodings of a frame's numbers, one file each. Start with `base`, the interface; `registry` lists them.

The layers: `base` <- `int8_blocks` <- `compiled` <- `kernels` <- `halves` and the encodings <- `registry`.
"""

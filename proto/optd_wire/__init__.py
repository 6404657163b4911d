"""What client and server both speak: generated stubs (`v1`), plain values, dtypes, encodings, layout, frames, errors.

Imports neither side, and no gRPC.
"""

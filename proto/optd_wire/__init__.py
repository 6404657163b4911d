"""The language of client and server: generated stubs (`v1`), plain values, dtypes, encodings, layout, frames, errors.

Imports neither side and no gRPC. Start with `values` for the nouns, `messages` for their way into generated messages,
`frames` for bulk numbers, and `errors` for what can go wrong.
"""

from pathlib import Path

_HERE = Path(__file__).resolve().parent
PROTO_DIR = _HERE / "proto" if (_HERE / "proto").is_dir() else _HERE.parent
"""The include path of `optd/v1/*.proto`, for other languages: in the package, or beside it in a checkout.

Its `README.md` says what holds for all RPCs.
"""

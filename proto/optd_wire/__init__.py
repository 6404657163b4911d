"""The language of client and server: generated stubs (`v1`), plain values, dtypes, encodings, layout, frames, errors.

It imports neither side and no gRPC. Open `values` first, which has the nouns. `messages` converts them to generated
messages, `frames` carries bulk numbers, and `errors` has what can go wrong.
"""

from pathlib import Path

_HERE = Path(__file__).resolve().parent
PROTO_DIR = _HERE / "proto" if (_HERE / "proto").is_dir() else _HERE.parent
"""The include path of `optd/v1/*.proto`, for other languages: in the package, or beside it in a checkout.

Its `README.md` says what holds for all RPCs.
"""

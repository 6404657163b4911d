"""What client and server both speak: generated stubs (`v1`), plain values, dtypes, encodings, layout, frames, errors.

Imports neither side, and no gRPC.
"""

from pathlib import Path

_HERE = Path(__file__).resolve().parent
PROTO_DIR = _HERE / "proto" if (_HERE / "proto").is_dir() else _HERE.parent
"""The include path of `optd/v1/*.proto`, for other languages: in the package, or beside it in a checkout.

`README.md` there tells what holds for all RPCs.
"""

"""All encodings, by name and by number."""

from typing import Any

import numpy as np

from optd_wire.dtypes import DTYPES
from optd_wire.encodings.base import Encoding
from optd_wire.encodings.bfloat16 import BFloat16
from optd_wire.encodings.exact import Float32, Float64
from optd_wire.encodings.float16 import Float16
from optd_wire.encodings.int8 import Int8
from optd_wire.encodings.topk import TopK
from optd_wire.errors import UnknownEncoding
from optd_wire.v1 import tensor_pb2

ENCODINGS: dict[str, Encoding] = {
    encoding.name: encoding for encoding in (Float32(), Float64(), BFloat16(), Float16(), Int8(), TopK())
}
BY_NUMBER: dict[int, Encoding] = {encoding.number: encoding for encoding in ENCODINGS.values()}
_EXACT = {dtype: ENCODINGS[name] for name, dtype in DTYPES.items()}

_IN_CONTRACT = {name: number for name, number in tensor_pb2.Encoding.items() if number}
if {f"ENCODING_{encoding.name.upper()}": encoding.number for encoding in ENCODINGS.values()} != _IN_CONTRACT:
    raise ImportError("the registry of encodings and the contract's Encoding differ")
if any(encoding.dtype != dtype for dtype, encoding in _EXACT.items()):
    raise ImportError("an encoding with the name of a dtype must carry it unchanged")


def exact_for(dtype: np.dtype[Any]) -> Encoding:
    """The encoding that carries elements of `dtype` unchanged."""
    return _EXACT[dtype]


def encoding_for(dtype: np.dtype[Any], wanted: Encoding | None) -> Encoding:
    """The encoding that carries numbers of `dtype` if a caller asks for `wanted` (None: unchanged).

    Numbers that are no wider than those of `wanted` travel unchanged too.
    """
    exact = _EXACT[dtype]
    if wanted is None or not wanted.converts:
        return exact
    return exact if wanted.dtype is not None and wanted.dtype.itemsize >= dtype.itemsize else wanted


def encoding_named(name: str) -> Encoding:
    """The encoding with this name; raises `UnknownEncoding`."""
    if name not in ENCODINGS:
        raise UnknownEncoding(encoding=name, encodings=", ".join(ENCODINGS))
    return ENCODINGS[name]

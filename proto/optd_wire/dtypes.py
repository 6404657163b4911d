"""The dtypes that parameters may have, and their numbers in the contract."""

from typing import Any

import ml_dtypes
import numpy as np

from optd_wire.errors import UnsupportedDtype
from optd_wire.v1.tensor_pb2 import Dtype

# A group's flat buffer is sorted in this order.
DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
COMPUTED: dict[str, str] = {**{name: name for name in DTYPES}, "float16": "float32", "bfloat16": "float32"}
"""For each dtype of a parameter, the dtype of its gradient, its state and all arithmetic on it."""
_COMPUTED = {DTYPES[name]: DTYPES[computed] for name, computed in COMPUTED.items()}
_NAME_OF_ENUM = {Dtype.Value(f"DTYPE_{name.upper()}"): name for name in DTYPES}
_ENUM_OF_NAME = {name: number for number, name in _NAME_OF_ENUM.items()}

if _NAME_OF_ENUM.keys() | {Dtype.DTYPE_UNSPECIFIED} != set(Dtype.values()):
    raise ImportError("DTYPES and the contract's Dtype differ")


def computed_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """`COMPUTED`, for numpy dtypes."""
    return _COMPUTED[dtype]


def check_dtype(parameter: str, dtype: str) -> str:
    """Returns `dtype`; raises `UnsupportedDtype` if parameters cannot have it."""
    if dtype not in DTYPES:
        raise UnsupportedDtype(parameter=parameter, dtype=dtype, supported=", ".join(DTYPES))
    return dtype


def dtype_to_enum(dtype: str) -> int:
    """The contract's number of a dtype; 0 (unspecified) if the contract does not have it."""
    return _ENUM_OF_NAME.get(dtype, 0)


def dtype_from_enum(number: int) -> str:
    """The name of a dtype; `"unspecified"` or `"dtype 17"` for other numbers, which a later check refuses."""
    return _NAME_OF_ENUM.get(number, "unspecified" if number == 0 else f"dtype {number}")

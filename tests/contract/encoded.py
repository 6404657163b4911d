"""Numbers to encode, and encodings to do it with."""

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optd_wire.dtypes import DTYPES
from optd_wire.encodings.base import Encoding
from optd_wire.encodings.int8 import BLOCK
from optd_wire.encodings.registry import ENCODINGS

FLOATS = {"float32": np.dtype("<f4"), "float64": np.dtype("<f8")}
MOST = float(np.finfo("f4").max)
HALVES = {name: DTYPES[name] for name in ("float16", "bfloat16")}
LOSSY = [encoding for encoding in ENCODINGS.values() if encoding.converts]
ALL = pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS)
ALL_LOSSY = pytest.mark.parametrize("encoding", LOSSY, ids=lambda encoding: encoding.name)

sizes = st.one_of(st.integers(0, 20), st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7]))


def numbers(dtype: np.dtype, most: float = MOST, *, special: bool = False) -> st.SearchStrategy[np.ndarray]:
    width = 8 * dtype.itemsize
    elements = st.floats(-most, most, width=width) | st.floats(-1, 1, width=width)
    if special:
        elements |= st.sampled_from([np.nan, np.inf, -np.inf])
    return hnp.arrays(dtype, sizes, elements=elements)


def back(encoding: Encoding, values: np.ndarray) -> np.ndarray:
    """Encoded and decoded again into the dtype that it was."""
    payload = encoding.encode(values)
    out = np.full_like(values, 7)
    encoding.decode_into(memoryview(payload), out)
    return out

"""Files of tensors that somebody has made up: refused with their name, without a crash and without much memory."""

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optd_server.durability.problems import Damage
from optd_server.durability.snapshots.tensors import LONGEST_HEADER, TensorFile, pieces_of

LARGEST = 8 << 20
"""Bytes that the refusal of a file may take."""


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def built(header: Any, data: bytes = bytes(8), *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"\1" * 7,
    "no header": (0).to_bytes(8, "little"),
    "length past the end": built({"w": entry()}, length=1 << 20),
    "length of all of memory": built({"w": entry()}, length=2**64 - 1),
    "length of 2^63": built({"w": entry()}, length=2**63),
    "header is a list": built([entry()]),
    "header is a number": built(b"7"),
    "header is text": built(b'"w"'),
    "header is null": built(b"null"),
    "header is no JSON": built(b"{"),
    "header is no UTF-8": built(b'{"\xff": 1}'),
    "header nests deeply": built(b"[" * 100_000),
    "entry nests deeply": built(b'{"w": ' + b'{"a":' * 100_000),
    "header has a huge number": built(
        b'{"w": {"dtype": "F32", "shape": [' + b"9" * 10_000 + b'], "data_offsets": [0, 8]}}'
    ),
    "entry is a list": built({"w": [1, 2]}),
    "entry is null": built({"w": None}),
    "entry lacks its shape": built({"w": {"dtype": "F32", "data_offsets": [0, 8]}}),
    "overlap": built({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "the same range twice": built({"a": entry(), "b": entry()}),
    "gap": built({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)),
    "begins behind the header": built({"w": entry(offsets=(4, 12))}, bytes(12)),
    "begins before its data": built({"w": entry(offsets=(-8, 0))}),
    "ends before it begins": built({"w": entry(offsets=(8, 0))}),
    "past the end": built({"w": entry(offsets=(0, 16), shape=(4,))}),
    "overflow of an offset": built({"w": entry(offsets=(2**64 - 8, 2**64))}),
    "overflow of a shape": built({"w": entry(shape=(2**62, 4), offsets=(0, 2**66))}),
    "a shape that wraps to its size": built({"w": entry(shape=(2**63, 2, 1), offsets=(0, 8))}),
    "terabytes": built({"w": entry(shape=(1 << 40,), offsets=(0, 1 << 42))}),
    "negative shape": built({"w": entry(shape=(-2,))}),
    "two negative sizes": built({"w": entry(shape=(-1, -2))}),
    "a shape of zero and more": built({"w": entry(shape=(0, -1), offsets=(0, 0))}, b""),
    "a million dimensions": built({"w": entry(shape=[1] * 1_000_000 + [2])}),
    "65 dimensions": built({"w": entry(shape=[1] * 64 + [2])}),
    "unknown dtype": built({"w": entry(dtype="F99")}),
    "an object as dtype": built({"w": entry(dtype="O")}),
    "a list as dtype": built({"w": entry(dtype=["F32"])}),
    "wrong size for the dtype": built({"w": entry(dtype="F64")}),
    "a shape that is text": built({"w": entry(shape="22", offsets=(0, 16))}, bytes(16)),
    "a fraction in the shape": built({"w": entry(shape=(2.5,))}),
    "a fraction in an offset": built({"w": entry(offsets=(0.5, 8.5))}),
    "true as a size": built({"w": entry(shape=(True, 2))}),
    "NaN as a size": built({"w": entry(shape=(float("nan"),))}),
    "infinity as a size": built({"w": entry(shape=(float("inf"),))}),
    "three offsets": built({"w": entry(offsets=(0, 4, 8))}),
    "one offset": built({"w": entry(offsets=(0,))}),
    "a name twice": built(
        b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},'
        b' "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
    ),
    "a key twice": built(b'{"w": {"dtype": "F64", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'),
    "trailing bytes": built({"w": entry()}, bytes(9)),
    "trailing bytes and no tensor": built({}, bytes(1)),
    "cut short": built({"w": entry()}, bytes(7)),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_34_a_hostile_file_is_refused(tmp_path, what):
    path = tmp_path / "weights-small.safetensors"
    path.write_bytes(HOSTILE[what])
    tracemalloc.start()
    try:
        with pytest.raises(Damage, match=re.escape(str(path))):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < LARGEST + 100 * len(HOSTILE[what])
    finally:
        tracemalloc.stop()


def test_34_a_header_longer_than_any_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write((LONGEST_HEADER + 1).to_bytes(8, "little"))
        file.truncate(LONGEST_HEADER * 2)
    tracemalloc.start()
    try:
        with pytest.raises(Damage, match="its header would have"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < LARGEST
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "out",
    [np.zeros(3, np.float32), np.zeros(2, np.float64), np.zeros(2, np.int32), np.zeros(1, np.float32)],
    ids=["longer", "wider", "another dtype", "shorter"],
)
def test_34_a_tensor_that_does_not_fit_is_refused_and_changes_nothing(tmp_path, out):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"".join(pieces_of({"w": np.ones(2, np.float32)})))
    with TensorFile(path) as file, pytest.raises(Damage, match="belong"):
        file.read_into("w", out)
    assert not out.any()


def test_metadata_and_empty_tensors_are_no_damage(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(
        built({"__metadata__": {"by": "somebody"}, "w": entry(), "none": entry(shape=(0,), offsets=(8, 8))})
    )
    assert {name: array.shape for name, array in read(path).items()} == {"w": (2,), "none": (0,)}


names = st.text(max_size=3)
numbers = st.one_of(st.integers(-9, 40), st.sampled_from([2**31, 2**32, 2**63, 2**64, -(2**63), 1.5, True, None, "1"]))
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F64", "BF16", "BOOL", "U8", "F8", "", None, 3]),
        "shape": st.one_of(st.lists(numbers, max_size=4), numbers),
        "data_offsets": st.one_of(st.lists(numbers, max_size=3), numbers),
    },
)


@given(
    st.one_of(
        st.binary(max_size=60),
        st.builds(built, st.dictionaries(names, st.one_of(entries, numbers), max_size=3), st.binary(max_size=40)),
    )
)
@settings(deadline=None, max_examples=300)
def test_34_whatever_a_file_holds_it_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("tensors") / "a.safetensors"
    path.write_bytes(data)
    try:
        found = read(path)
    except Damage as damage:
        assert damage.path == path
    else:
        assert sum(array.nbytes for array in found.values()) <= len(data)


def read(path: Path) -> dict[str, np.ndarray]:
    with TensorFile(path) as file:
        return {name: file.read(name) for name in file.entries}

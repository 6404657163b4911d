"""The loops of encodings: compiled and numpy ones give the same bits, those of torch."""

import numpy as np
import pytest
import torch
from contract.encoded import ALL_LOSSY, FLOATS, back, numbers
from hypothesis import given, settings

from optd_wire.encodings import bfloat16, float16, int8
from optd_wire.encodings.base import CHUNK, Encoding
from optd_wire.encodings.int8 import BLOCK
from optd_wire.encodings.registry import ENCODINGS

compiled = pytest.importorskip("optd_wire.encodings.compiled")

# The two implementations, and what they are measured by


def all_bits_of_interest() -> np.ndarray:
    """The bits of floats around every half, and many others."""
    halves = np.arange(1 << 16, dtype="u4")
    around = [halves << 16, (halves << 16) + 0x7FFF, (halves << 16) + 0x8000, (halves << 16) + 0x8001]
    exact = halves.astype("u2").view("f2").astype("f4").view("u4")
    around += [exact + np.uint32(step % 2**32) for step in (0, 1, -1, 0x0FFF, 0x1000, 0x1001)]
    around += [np.random.default_rng(0).integers(0, 2**32, 1 << 17, "u4")]
    return np.concatenate(around)


@pytest.mark.parametrize("module", [bfloat16, float16], ids=["bfloat16", "float16"])
def test_both_implementations_of_halves_give_the_same_bits(module):
    name = module.__name__.rpartition(".")[2]
    shorten, widen = getattr(compiled, f"{name}_shorten"), getattr(compiled, f"{name}_widen")
    bits = all_bits_of_interest()
    ours, theirs = np.empty(bits.size, "u2"), np.empty(bits.size, "u2")
    assert module.shorten(bits, ours) == shorten(bits, theirs)
    assert (ours == theirs).all()
    finite = np.abs(bits.view("f4")) <= ENCODINGS[name].largest
    assert module.shorten(bits[finite], ours[: finite.sum()]) == shorten(bits[finite], theirs[: finite.sum()]) == 0

    halves = np.arange(1 << 16).astype("u2")
    ours, theirs = np.empty(halves.size, "u4"), np.empty(halves.size, "u4")
    module.widen(halves, ours)
    widen(halves, theirs)
    assert (ours == theirs).all()


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_halves_are_those_of_torch(name: str, dtype: torch.dtype):
    values = all_bits_of_interest().view("f4")
    values = values[np.abs(values) <= ENCODINGS[name].largest]
    rounded = torch.from_numpy(values).to(dtype)
    payload = ENCODINGS[name].encode(values)
    assert (np.asarray(payload) == rounded.view(torch.int16).numpy().view("u2")).all()
    assert (back(ENCODINGS[name], values) == rounded.float().numpy()).all()


@given(numbers(FLOATS["float32"], special=True))
@settings(deadline=None)
def test_both_implementations_of_int8_give_the_same_bits(values: np.ndarray):
    results = []
    for shrink, grow in ((int8.shrink_blocks, int8.grow_blocks), (compiled.int8_shrink, compiled.int8_grow)):
        scales, integers = np.zeros(int8.blocks_of(values.size), "f4"), np.zeros(values.size, "i1")
        shrink(values, values.view("u4"), scales, integers)
        out = np.zeros_like(values)
        grow(scales, integers, out)
        results.append((scales.tobytes(), integers.tobytes(), np.isnan(out).tolist(), np.nan_to_num(out).tolist()))
    assert results[0] == results[1]


@ALL_LOSSY
def test_without_numba_there_are_the_same_payloads(encoding: Encoding, monkeypatch: pytest.MonkeyPatch):
    """Also over more than one chunk, with a part of one at the end."""
    rng = np.random.default_rng(1)
    values = {dtype: rng.normal(size=2 * CHUNK + 77).astype(dtype) for dtype in FLOATS.values()}
    with_numba = {dtype: (np.asarray(encoding.encode(v)).tobytes(), back(encoding, v)) for dtype, v in values.items()}
    for module in (bfloat16, float16, int8):
        monkeypatch.setattr(module, "kernels", lambda: None)
    for dtype, (payload, found) in with_numba.items():
        assert np.asarray(encoding.encode(values[dtype])).tobytes() == payload
        assert back(encoding, values[dtype]).tobytes() == found.tobytes()
        assert np.isfinite(found).all()


@ALL_LOSSY
def test_a_payload_may_lie_at_any_address(encoding: Encoding):
    values = np.linspace(-3, 3, 2 * BLOCK + 5, dtype="f4")
    payload = np.asarray(encoding.encode(values)).tobytes()
    for shift in range(1, 5):
        out = np.empty_like(values)
        encoding.decode_into(memoryview(b"x" * shift + payload)[shift:], out)
        assert out.tobytes() == back(encoding, values).tobytes()

"""The backends: which one there is, what they do beside steps and means, and what is kept between processes.

That steps and means have the same bits is in `test_step`, `test_torch` and `test_reduce`, which run both.
"""

import dataclasses
import os
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.server.optim.backends import BACKENDS, COMPILED, ELEMENTWISE

from optd_server.optim import option
from optd_server.optim.algorithms.registry import ALGORITHMS
from optd_server.optim.backends import registry
from optd_server.optim.backends.__main__ import main as compile_ahead
from optd_server.optim.backends.compiled import backend as compiled
from optd_server.optim.step import SegmentState, apply

EITHER = pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
VECTORS = hnp.arrays(st.sampled_from([np.float32, np.float64]), st.integers(0, 200))


@pytest.fixture
def no_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where numba cannot be imported."""
    monkeypatch.delitem(sys.modules, "optd_server.optim.backends.compiled.backend", raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)


def test_auto_is_numba_where_it_works() -> None:
    assert registry.choose("auto").name.startswith("numba ")
    assert registry.choose("auto").describe(2).endswith(", 2 threads")


def test_numpy_is_numpy() -> None:
    assert registry.choose("numpy").describe(1) == "numpy, 1 thread"


def test_auto_without_numba_is_numpy_and_knows_why(no_numba: None) -> None:
    backend = registry.choose("auto")
    assert backend.name == "numpy"
    assert backend.describe(2) == "numpy, 2 threads (numba: import of numba halted; None in sys.modules)"


def test_numba_that_cannot_be_had_is_an_error_with_the_reason(no_numba: None) -> None:
    with pytest.raises(registry.BackendUnavailable, match="^import of numba halted"):
        registry.choose("numba")


def test_a_compiler_that_fails_is_a_numba_that_cannot_be_had() -> None:
    failing = mock.Mock(side_effect=RuntimeError("no such instruction\nand more"))
    with mock.patch.object(compiled.kernels, "first_beyond", failing):
        assert registry.choose("auto").reason == "numba: no such instruction"


@EITHER
@given(values=VECTORS, seed=st.integers(0, 9))
def test_accumulate_sets_adds_and_finds_what_is_not_finite(backend, values, seed) -> None:
    target = np.random.default_rng(seed).standard_normal(len(values)).astype(values.dtype)
    with np.errstate(all="ignore"):
        total = target + values
    added = target.copy()
    assert backend.accumulate(added, values, add=True) == bool(np.isfinite(total).all())
    np.testing.assert_array_equal(added, total)
    assert backend.accumulate(target, values, add=False) == bool(np.isfinite(values).all())
    np.testing.assert_array_equal(target, values)


@EITHER
@DTYPES
def test_numbers_that_lie_unaligned_in_a_message_are_accumulated(backend, dtype) -> None:
    message = b"x" + np.arange(5, dtype=dtype).tobytes()
    target = np.ones(5, dtype)
    assert backend.accumulate(target, np.frombuffer(message, dtype, offset=1), add=True)
    assert target.tolist() == [1, 2, 3, 4, 5]


@EITHER
@given(values=VECTORS, factor=st.sampled_from([0.0, 1 / 3, 1e300]))
def test_scale_multiplies_by_the_rounded_factor(backend, values, factor) -> None:
    with np.errstate(all="ignore"):
        expected = values * values.dtype.type(factor)
    backend.scale(values, factor, threads=2)
    np.testing.assert_array_equal(values, expected)


@EITHER
@DTYPES
@pytest.mark.parametrize("streamed_bytes", [0, compiled.STREAMED_BYTES])
def test_copy_writes_all_and_nothing_else_wherever_lines_begin(backend, dtype, streamed_bytes) -> None:
    rng = np.random.default_rng(0)
    room = np.zeros(200_100, dtype)
    with mock.patch.object(compiled, "STREAMED_BYTES", streamed_bytes):
        for start in range(17):
            for count in (0, 1, 7, 16, 33, 200_000):
                source = rng.random(count).astype(dtype)
                room[:] = -1
                backend.copy(room[start : start + count], source, threads=2)
                assert (room[start : start + count] == source).all()
                assert (room[:start] == -1).all()
                assert (room[start + count :] == -1).all()


@DTYPES
@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
def test_weights_are_streamed_wherever_lines_begin(name, dtype) -> None:
    algorithm = ALGORITHMS[name]
    resolved = [option.resolve(algorithm.options, {"lr": 0.1} if algorithm.options else {})]
    gradient = np.random.default_rng(0).standard_normal(1000).astype(dtype)
    room = np.empty(1100, dtype)
    expected = np.empty(1000, dtype)
    given = {"weights": np.ones(1000, dtype), "gradient": gradient, "backend": COMPILED}
    apply(algorithm, resolved, SegmentState([1000], dtype), **given, out=expected)
    with mock.patch.object(compiled, "STREAMED_BYTES", 0):
        for start in range(17):
            room[:] = -7
            out = room[start : start + 1000]
            apply(algorithm, resolved, SegmentState([1000], dtype), **given, out=out)
            assert out.tobytes() == expected.tobytes()
            assert (room[:start] == -7).all()
            assert (room[start + 1000 :] == -7).all()


def test_an_algorithm_without_fused_and_a_dtype_without_kernels_go_to_numpy() -> None:
    sgd = dataclasses.replace(ALGORITHMS["sgd"], fused=None)
    COMPILED.prepare(sgd, np.float32)
    COMPILED.prepare(sgd, np.longdouble)
    for algorithm, dtype in ((sgd, np.float32), (ALGORITHMS["sgd"], np.longdouble)):
        out = np.empty(2, dtype)
        given = {"weights": np.ones(2, dtype), "gradient": np.ones(2, dtype), "backend": COMPILED}
        apply(algorithm, [option.resolve(sgd.options, {"lr": 0.5})], SegmentState([2], dtype), **given, out=out)
        assert out.tolist() == [0.5, 0.5]


# Compiles one small kernel, and tells where it came from.
ONE_KERNEL = """
from optd_server.optim.backends.compiled import kernels
from optd_server.optim.backends.compiled.backend import _stepper
from optd_server.optim.backends.registry import choose
from optd_server.optim.algorithms.registry import ALGORITHMS

backend = choose("numba")
sgd = ALGORITHMS["sgd"]
backend._compile_step(sgd, __import__("numpy").zeros(1, "f4"))
step = _stepper(sgd.fused)
print(sum(step.stats.cache_hits.values()), sum(step.stats.cache_misses.values()))
"""


def compile_one(**environment: object) -> str:
    given = os.environ | {name: str(value) for name, value in environment.items()}
    return subprocess.run(
        [sys.executable, "-c", ONE_KERNEL], env=given, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.slow
def test_what_one_process_has_compiled_the_next_one_loads(tmp_path) -> None:
    assert compile_one(OPTD_KERNEL_CACHE=tmp_path) == "0 1"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    tmp_path.chmod(0o555)  # as in an image
    assert compile_one(OPTD_KERNEL_CACHE=tmp_path) == "1 0"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.slow
def test_where_nothing_can_be_written_kernels_live_in_memory(tmp_path) -> None:
    (tmp_path / "file").touch()
    for _ in range(2):
        assert compile_one(OPTD_KERNEL_CACHE=tmp_path / "file") == "0 1"


def test_all_kernels_can_be_compiled_ahead(capsys) -> None:
    assert compile_ahead() == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ALGORITHMS:
        assert f"{COMPILED.name}: {name} float32" in lines


def test_compiling_ahead_without_a_compiler_says_so(no_numba: None, capsys) -> None:
    assert compile_ahead() == 1
    assert capsys.readouterr().err.startswith("no kernels: numba: import of numba halted")

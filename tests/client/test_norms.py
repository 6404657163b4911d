"""What `optimizer.last` and results tell of a step, beside what torch says of the same one."""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from contract.plain import Plain, frame, group, header, job_spec
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import optd
import optd.torch
from optd.local import LocalServer
from optd.transport.lane_choice import LaneName
from optd_server.optim.difference import difference_norm
from optd_wire.values import PushResult

SIZES = (70_000, 30)
LANES = pytest.mark.parametrize("lane", ["grpc", "shm"])


def told(result: PushResult | None) -> PushResult:
    assert result is not None
    return result


@LANES
@pytest.mark.parametrize("p", [2.0, 1.0, math.inf])
@pytest.mark.parametrize("clip_norm", [None, 50.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_norms_are_those_of_torch(
    server: LocalServer, name: str, lane: LaneName, p: float, clip_norm: float | None, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    named = {f"p{size}": torch.nn.Parameter(torch.randn(size).to(dtype)) for size in SIZES}
    groups = [{"name": f"of {name}", "params": [(name, parameter)]} for name, parameter in named.items()]
    gradients = optd.Gradients(clip_norm=clip_norm, clip_norm_type=p)
    with optd.connect(server.address, job=name, lane=lane, gradients=gradients) as session:
        optimizer = optd.torch.Adam(groups, lr=0.01, session=session, norms=clip_norm is None)
        assert optimizer.last is None
        for _ in range(3):
            before = [parameter.detach().double().clone() for parameter in named.values()]
            for parameter in named.values():
                parameter.grad = torch.randn_like(parameter)
            copies = [torch.nn.Parameter(old.clone()) for old in before]
            for copied, parameter in zip(copies, named.values(), strict=True):
                assert parameter.grad is not None
                copied.grad = parameter.grad.double().clone()
            optimizer.step()
            last = told(optimizer.last)
            norm = float(torch.nn.utils.clip_grad_norm_(copies, clip_norm or math.inf, norm_type=p))
            updates = [new.detach().double() - old for new, old in zip(named.values(), before, strict=True)]
            assert last.norm is not None
            assert last.norm.gradient == pytest.approx(norm, rel=1e-12)
            flat = torch.cat(updates)
            assert last.norm.update == pytest.approx(float(torch.linalg.vector_norm(flat, p)), rel=1e-12)
            assert list(last.group_norms) == [f"of {name}" for name in named]
            for found, update, parameter in zip(last.norms[1:], updates, named.values(), strict=True):
                assert parameter.grad is not None
                expected = torch.linalg.vector_norm(parameter.grad.double(), p)
                assert found.gradient == pytest.approx(float(expected), rel=1e-12)
                assert found.update == pytest.approx(float(torch.linalg.vector_norm(update, p)), rel=1e-12)
            assert last.clipped == (clip_norm is not None and norm > clip_norm)
            assert (last.version.version, last.staleness, last.skipped, last.accumulated, last.repeat) == (
                optimizer.version,
                0,
                False,
                0,
                False,
            )


@LANES
def test_elements_that_are_bounded_count_as_they_came(server: LocalServer, name: str, lane: LaneName) -> None:
    weights = {"w": np.zeros(70_000)}
    with optd.connect(server.address, job=name, lane=lane) as session:
        optimizer = optd.SGD(weights, lr=1.0, clip_value=1.0, session=session)
        result = optimizer.step({"w": np.full(70_000, 3.0)})
    assert result.clipped
    assert result.norm.gradient == pytest.approx(3 * math.sqrt(70_000), rel=1e-12)
    assert result.norm.update == pytest.approx(math.sqrt(70_000), rel=1e-12)


@LANES
def test_they_are_told_to_those_who_ask(server: LocalServer, name: str, lane: LaneName) -> None:
    weights = {"w": np.zeros(70_000)}
    with optd.connect(server.address, job=name, lane=lane) as session:
        optimizer = optd.SGD(weights, lr=0.5, session=session)
        gradient = {"w": np.ones(70_000)}
        assert optimizer.step(gradient).norms == ()
        assert optimizer.last.norm is None
        assert optimizer.last.group_norms == {}
        asked = optimizer.step(gradient, norms=True)
        assert (asked.norm.gradient, asked.norm.update) == pytest.approx([70_000**0.5, 0.5 * 70_000**0.5], rel=1e-12)
        assert optimizer.push(gradient, norms=True).norms == asked.norms
        assert optimizer.push(gradient).norms == ()


@pytest.mark.parametrize("lane", ["grpc", "shm"])
def test_rounds_windows_skips_and_repeats(server: LocalServer, name: str, lane: LaneName) -> None:
    """Of two workers one asks: it is told of the mean of both. Where there was no step, there is nothing to tell."""

    def train(number: int) -> list[PushResult]:
        how: dict[str, Any] = {"policy": optd.Sync(2), "worker": f"w{number}", "lane": lane}
        gradients = optd.Gradients(accumulate=2, nonfinite="skip")
        with optd.connect(server.address, job=name, gradients=gradients, **how) as session:
            optimizer = optd.SGD({"w": np.zeros(4)}, lr=1.0, session=session, norms=number == 0)
            results = [optimizer.step({"w": np.full(4, value + number)}) for value in (1.0, 2.0, math.nan, 3.0)]
            results.append(optimizer.flush())
            return [*results, optimizer.flush()]

    with ThreadPoolExecutor(2) as pool:
        asked, silent = pool.map(train, range(2))
    assert [result.norms for result in silent] == [()] * 6
    assert [bool(result.norms) for result in asked] == [False, True, False, False, True, False]
    assert (asked[1].norm.gradient, asked[1].norm.update) == (4.0, 4.0)  # of (1 + 2 + 2 + 3) / 4, four times
    assert asked[4].norm.gradient == 7.0


def test_rows_and_the_parameters_that_a_step_touches(server: LocalServer, name: str) -> None:
    rng = np.random.default_rng(0)
    table, dense = rng.standard_normal((50_000, 4)), rng.standard_normal(3)
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.SGD([{"params": {"t": table}}, {"params": {"d": dense}}], lr=0.5, session=session, norms=True)
        ids, rows = np.array([7, 3, 7]), rng.standard_normal((3, 4))
        for given in (
            [{"t": (ids, rows)}, {"d": None}],
            [{"t": None}, {"d": np.ones(3)}],
            [{"t": table}, {"d": dense}],
        ):
            before = [table.copy(), dense.copy()]
            result = optimizer.step(given)
            for found, new, old in zip(result.norms[1:], (table, dense), before, strict=True):
                assert found.update == pytest.approx(np.linalg.norm(new - old), rel=1e-9)
                assert found.gradient == pytest.approx(np.linalg.norm(new - old) / 0.5, rel=1e-9)


def test_lbfgs_tells_of_its_evaluations(server: LocalServer, name: str) -> None:
    parameter = torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.torch.LBFGS([parameter], lr=0.1, max_iter=1, session=session, norms=True)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = (parameter**2).sum() / 2
            loss.backward()
            return loss

        before = parameter.detach().clone()
        optimizer.step(closure)
        last = told(optimizer.last)
        assert last.norm is not None
        assert last.norm.gradient == pytest.approx(5.0)
        assert last.norm.update == pytest.approx(float((parameter.detach() - before).norm()))


@given(
    arrays.arrays(np.float32, st.integers(0, 300), elements=st.floats(-1e6, 1e6, width=32)),
    st.sampled_from([0.5, 1.0, 2.0, 3.0, math.inf]),
    st.integers(1, 3),
)
def test_the_norm_of_a_difference(new: np.ndarray, p: float, threads: int) -> None:
    old = new[::-1].copy()
    wide = new.astype(np.float64) - old.astype(np.float64)
    expected = np.linalg.norm(wide, p) if wide.size else 0.0
    assert difference_norm(new, old, p, threads) == pytest.approx(float(expected), rel=1e-9)


def test_as_any_language_has_them(server: LocalServer, name: str, plain: Plain) -> None:
    schedule = '{"weight_decay": "exponential(gamma=0.5)"}'
    groups = [group("one", {"a": ((2,), "float64")}), group("two", {"b": ((1,), "float64")}, schedules=schedule)]
    plain.create(job_spec(name, groups, lr=0.5, weight_decay=0.25), [frame(np.zeros(2)), frame(np.zeros(1), 1)])
    epoch = plain.join(name)
    frames = [frame(np.array([3.0, 4.0])), frame(np.array([12.0]), 1)]
    silent = plain.push(header(name, "w0", epoch, 1), frames)
    asked, _ = plain.step(header(name, "w0", epoch, 2, norms=True), frames)
    again, _ = plain.step(header(name, "w0", epoch, 2, norms=True), frames)
    assert [each.group for each in asked.norms] == ["", "one", "two"]
    assert [each.gradient for each in asked.norms] == [13.0, 5.0, 12.0]
    assert (len(silent.norms), again.repeat, list(again.norms)) == (0, True, list(asked.norms))
    assert [(each.group, each.options["weight_decay"].number) for each in asked.effective] == [("two", 0.0625)]
    assert [(each.group, each.options["weight_decay"].number) for each in silent.effective] == [("two", 0.125)]

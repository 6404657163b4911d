"""Gradients that the server clips before each step, through both faces and on both lanes, against torch."""

import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import optd
import optd.torch
from optd import errors
from optd.local import LocalServer
from optd.transport.lane_choice import LaneName
from optd_wire.values import GradientSummary

SIZES = (70_000, 300)  # more than a step's few elements, so that the auto lane shares memory


def summary(session: optd.Session) -> GradientSummary:
    jobs = session._transport.list_jobs(10)
    return next(job.gradients for job in jobs if job.name == session.job)


@pytest.mark.parametrize("lane", ["grpc", "shm"])
@pytest.mark.parametrize(("norm", "p"), [(0.5, 2.0), (0.01, math.inf), (None, 2.0)])
def test_training_as_torch_with_everything_clipped(
    server: LocalServer, name: str, lane: str, norm: float | None, p: float
) -> None:
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(size, dtype=torch.float64)) for size in SIZES]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    reference = torch.optim.SGD(theirs, lr=0.1, momentum=0.9)
    groups = [{"params": [ours[0]], "clip_value": 0.5}, {"params": [ours[1]], "clip_norm": 3.0}]
    gradients = optd.Gradients(clip_norm=norm, clip_norm_type=p)
    with optd.connect(server.address, job=name, lane=lane, gradients=gradients) as session:
        optimizer = optd.torch.SGD(groups, lr=0.1, momentum=0.9, session=session, zero_copy=lane == "shm")
        assert session.lane == lane
        assert "clip_value" not in optimizer.param_groups[1]
        for step in range(4):
            for parameter, other in zip(ours, theirs, strict=True):
                other.grad = torch.randn_like(other)
                parameter.grad = other.grad.clone()
            if step == 2:
                ours[1].grad = theirs[1].grad = None
            sent = [None if parameter.grad is None else parameter.grad.clone() for parameter in ours]
            optimizer.step()
            for before, parameter in zip(sent, ours, strict=True):
                assert before is None or torch.equal(before, parameter.grad)  # what a worker shares is only read
            torch.nn.utils.clip_grad_value_(theirs[:1], 0.5)
            torch.nn.utils.clip_grad_norm_(theirs[1:], 3.0, p)
            if norm is not None:
                torch.nn.utils.clip_grad_norm_(theirs, norm, p)
            reference.step()
            for parameter, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(parameter, other, rtol=1e-12, atol=1e-15)
        found = summary(session)
        assert found.clipped_steps == 4
        assert found.norm > 0


def test_rows_count_in_a_norm(server: LocalServer, name: str) -> None:
    table, bias = np.zeros((5, 2)), np.zeros(2)
    with optd.connect(server.address, job=name, gradients=optd.Gradients(clip_norm=2.5)) as session:
        optimizer = optd.SGD({"table": table, "bias": bias}, lr=1.0, session=session)
        optimizer.step({"table": ([4, 1], np.array([[3.0, 0.0], [0.0, 0.0]])), "bias": np.array([0.0, 4.0])})
        np.testing.assert_allclose(table[4], [-1.5, 0], rtol=1e-6)
        np.testing.assert_allclose(bias, [0, -2.0], rtol=1e-6)
        assert summary(session).norm == 5.0


def test_an_option_changes_in_mid_training_at_one_version(server: LocalServer, name: str) -> None:
    weights = np.zeros(2)
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.SGD({"w": weights}, lr=1.0, session=session)
        assert session.info().options.options["clip_norm"] is None
        optimizer.step({"w": np.array([3.0, 4.0])})
        found = session.set_options(clip_norm=1, expected_revision=0)
        assert (found.options["clip_norm"], found.revision, found.since_version) == (1.0, 1, 1)
        assert session.info().options == found
        optimizer.step({"w": np.array([3.0, 4.0])})
        np.testing.assert_allclose(weights, [-3.6, -4.8], rtol=1e-6)
        with pytest.raises(
            errors.JobOptionConflict, match=r"clip_norm was to become 2\.0, but .* to 1\.0 at version 1"
        ):
            session.set_options(clip_norm=2.0, expected_revision=0)
        session.set_options(clip_norm=1.0, expected_revision=0)  # which it is already
        with pytest.raises(errors.OptionOutOfRange, match=r"job: clip_norm must be in \(0, inf\), got -1"):
            session.set_options(clip_norm=-1)
        session.set_options(clip_norm=None)
        optimizer.step({"w": np.array([3.0, 4.0])})
        np.testing.assert_allclose(weights, [-6.6, -8.8], rtol=1e-6)


def test_who_attaches_learns_that_the_job_has_other_options(
    server: LocalServer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with optd.connect(server.address, job=name, worker="a", gradients=optd.Gradients(clip_norm=1.0)) as first:
        optd.SGD({"w": np.zeros(2)}, session=first)
        with (
            caplog.at_level(logging.WARNING, "optd"),
            optd.connect(server.address, job=name, worker="b", gradients=optd.Gradients(clip_norm=2.0)) as second,
        ):
            optd.SGD({"w": np.zeros(2)}, session=second).pull()
    assert f"job {name} exists already: it goes on with clip_norm=1.0, not 2.0" in caplog.text


def test_a_job_with_an_invalid_option_is_not_created(server: LocalServer, name: str) -> None:
    gradients = optd.Gradients(clip_norm_type=0)
    with (
        optd.connect(server.address, job=name, gradients=gradients) as session,
        pytest.raises(errors.OptionOutOfRange, match=r"job: clip_norm_type must be in \(0, inf\], got 0"),
    ):
        optd.SGD({"w": np.zeros(2)}, session=session)


def test_a_bound_of_a_group_that_comes_with_a_push_clips_that_push(server: LocalServer, name: str) -> None:
    weights = np.zeros(70_000)
    with optd.connect(server.address, job=name, lane="shm") as session:
        optimizer = optd.SGD({"w": weights}, lr=1.0, session=session)
        optimizer.param_groups[0]["clip_value"] = 0.25
        gradient = np.ones(70_000)
        optimizer.step({"w": gradient})
        assert (weights == -0.25).all()
        assert (gradient == 1).all()


def test_bounds_of_all_groups_are_arguments_of_both_faces(server: LocalServer, name: str) -> None:
    weights, tensor = np.zeros(2), torch.nn.Parameter(torch.zeros(2))
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.SGD({"w": weights}, lr=1.0, clip_value=0.5, clip_norm=0.5, session=session)
        optimizer.step({"w": np.array([3.0, 4.0])})
        np.testing.assert_allclose(weights, [-(0.125**0.5)] * 2, rtol=2e-6)
        assert optimizer.param_groups[0]["clip_value"] == 0.5
    with optd.torch.SGD([tensor], lr=1.0, clip_value=0.5, server=server.address, job=name + ".torch") as other:
        tensor.grad = torch.tensor([3.0, -4.0])
        other.step()
        assert tensor.tolist() == [-0.5, 0.5]
        assert set(other.state_dict()["param_groups"][0]) - {"clip_value", "name"} == set(
            torch.optim.SGD([tensor], lr=1.0).state_dict()["param_groups"][0]
        )


# Weights and scales of pushes


@pytest.mark.parametrize("lanes", [("grpc", "grpc", "grpc"), ("shm", "grpc", "shm"), ("shm", "shm", "shm")])
@pytest.mark.parametrize("weights", [(1, 1, 1), (2, 2, 2), (3, 1, 2.5)])
def test_a_round_is_the_mean_by_weight_of_those_that_have_a_parameter(
    server: LocalServer, name: str, lanes: tuple[LaneName, ...], weights: tuple[float, ...]
) -> None:
    numbers = np.random.default_rng(0)
    shapes = {"all": (60_000,), "some": (10_000,), "rows": (6, 2)}
    given = [{key: numbers.normal(size=shape) for key, shape in shapes.items()} for _ in lanes]
    given[1]["some"] = None
    for each, ids in zip(given, ([1, 2], [2, 5], [2]), strict=True):
        each["rows"] = (ids, each["rows"][ids]) if "shm" not in lanes else None
    scales = (None, 1024.0, 3.0)

    def train(number: int) -> dict[str, np.ndarray]:
        arrays = {key: np.zeros(shape) for key, shape in shapes.items()}
        how = {"policy": optd.Sync(len(lanes)), "lane": lanes[number], "worker": f"w{number}"}
        with optd.connect(server.address, job=name, **how) as session:
            optimizer = optd.SGD(arrays, lr=1.0, session=session)
            optimizer.step(given[number], weight=weights[number], loss_scale=scales[number])
        return arrays

    with ThreadPoolExecutor(len(lanes)) as pool:
        found = list(pool.map(train, range(len(lanes))))

    def dense(number: int, key: str) -> np.ndarray | None:
        array = given[number][key]
        if isinstance(array, tuple):
            array, (ids, rows) = np.zeros(shapes[key]), array
            array[ids] = rows
        return None if array is None else array * float(np.float32(1 / (scales[number] or 1)))

    for key in shapes:
        have = [number for number in range(len(lanes)) if dense(number, key) is not None]
        if not have:
            continue
        total = sum(weights[number] for number in have)
        expected = -sum(weights[number] * dense(number, key) for number in have) / total
        for arrays in found:
            np.testing.assert_allclose(arrays[key], expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("lane", ["grpc", "shm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loss_scale_divides_as_a_scaler_of_torch(
    server: LocalServer, name: str, lane: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    ours, theirs = (torch.nn.Parameter(torch.zeros(70_000, dtype=dtype)) for _ in range(2))
    scaled = torch.randn(70_000, dtype=dtype) * 3000
    scaler = torch.amp.GradScaler("cpu", init_scale=3000.0)
    scaler.scale(torch.zeros(1))  # which makes its scale
    reference = torch.optim.SGD([theirs], lr=1.0)
    theirs.grad = scaled.clone()
    scaler.unscale_(reference)
    reference.step()
    with optd.connect(server.address, job=name, lane=lane) as session:
        optimizer = optd.torch.SGD([ours], lr=1.0, session=session)
        ours.grad = scaled.clone()
        optimizer.step(loss_scale=torch.tensor(3000.0))
    assert torch.equal(ours, theirs)
    assert torch.equal(ours.grad, scaled)


@pytest.mark.parametrize("wrong", [0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("term", ["weight", "loss_scale"])
def test_a_weight_or_scale_that_is_none_is_refused(server: LocalServer, name: str, term: str, wrong: float) -> None:
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.SGD({"w": np.zeros(2)}, lr=1.0, session=session)
        bounds = r"\(0, inf\)" if term == "weight" else r"\[2\*\*-126, 2\*\*126\]"
        with pytest.raises(errors.InvalidRequest, match=rf"{term} of a push must be in {bounds}, got {wrong:g}"):
            optimizer.step({"w": np.ones(2)}, **{term: wrong})
        assert optimizer.step({"w": np.ones(2)}).applied_version == 1


# NaN and infinities


@pytest.mark.parametrize("lane", ["grpc", "shm"])
@pytest.mark.parametrize("nonfinite", ["reject", "skip", "zero"])
def test_what_becomes_of_a_gradient_that_is_not_finite(
    server: LocalServer, name: str, lane: str, nonfinite: str
) -> None:
    gradient, rows = np.ones(70_000), (np.array([2, 0]), np.array([[1.0, 1.0], [1.0, -np.inf]]))
    gradient[[5, 66_000]] = np.nan, np.inf
    weights, table = np.zeros(70_000), np.zeros((3, 2))
    with optd.connect(server.address, job=name, lane=lane, gradients=optd.Gradients(nonfinite=nonfinite)) as session:
        optimizer = optd.SGD({"w": weights, "t": table}, lr=1.0, session=session)
        optimizer.step({"w": np.ones(70_000)})
        for step, gradients in enumerate([{"w": gradient}, {"t": rows}]):
            if nonfinite == "reject":
                with pytest.raises(errors.NonfiniteGradient):
                    optimizer.step(gradients)
            else:
                result = optimizer.step(gradients)
                assert result.skipped == (nonfinite == "skip")
                assert result.version.version == (1 if result.skipped else 2 + step)
        assert np.isnan(gradient[5])
        assert session.info().version.version == optimizer.version
        expected, expected_table = np.full(70_000, -1.0), np.zeros((3, 2))
        if nonfinite == "zero":
            expected = -1.0 - np.where(np.isfinite(gradient), gradient, 0)
            expected_table[[2, 0]] = [-1, -1], [-1, 0]
        assert (weights == expected).all()
        assert (table == expected_table).all()
        found = summary(session)
        assert found.nonfinite == (2 if nonfinite == "reject" else 3)
        assert found.skipped_steps == (2 if nonfinite == "skip" else 0)
        last = (found.nonfinite_worker, found.nonfinite_parameter, found.nonfinite_version)
        assert last == (session.worker, "t", 2 if nonfinite == "zero" else 1)
        assert abs(found.nonfinite_unix_ms / 1000 - time.time()) < 60
        assert optimizer.step({"w": np.ones(70_000)}).applied_version == (4 if nonfinite == "zero" else 2)


def test_one_gradient_that_is_not_finite_skips_the_step_of_its_round(server: LocalServer, name: str) -> None:
    def train(worker: str, value: float) -> list[tuple[bool, int, float]]:
        weights = np.zeros(3)
        how = {"policy": optd.Sync(2), "gradients": optd.Gradients(nonfinite="skip")}
        with optd.connect(server.address, job=name, worker=worker, **how) as session:
            optimizer = optd.SGD({"w": weights}, lr=1.0, session=session)
            results = [optimizer.step({"w": np.full(3, each)}) for each in (1.0, value, 1.0)]
            return [(result.skipped, result.version.version, weights[0]) for result in results]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(train, ("a", "b"), (2.0, math.nan))
    assert first == second == [(False, 1, -2.0), (True, 1, -2.0), (False, 2, -2.0)]


def test_entries_of_one_worker_count_as_zeros_in_the_mean(server: LocalServer, name: str) -> None:
    def train(worker: str, gradient: list[float]) -> list[float]:
        weights = np.zeros(3)
        how = {"policy": optd.Sync(2), "gradients": optd.Gradients(nonfinite="zero")}
        with optd.connect(server.address, job=name, worker=worker, **how) as session:
            optd.SGD({"w": weights}, lr=1.0, session=session).step({"w": np.array(gradient)})
        return weights.tolist()

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(train, ("a", "b"), ([1.0, math.nan, 4.0], [1.0, 2.0, -math.inf])))
    assert found == [[-1.0, -1.0, -2.0]] * 2


@pytest.mark.parametrize("encoding", ["topk:0.5", "int8"])
def test_what_a_short_encoding_keeps_of_a_gradient_is_finite(server: LocalServer, name: str, encoding: str) -> None:
    weights = np.zeros(4)
    how = {"encoding": encoding, "gradients": optd.Gradients(nonfinite="zero")}
    with optd.connect(server.address, job=name, **how) as session:
        optimizer = optd.SGD({"w": weights}, lr=1.0, session=session)
        optimizer.step({"w": np.array([np.nan, 4.0, 2.0, 1.0])})
        for _ in range(6):
            optimizer.step({"w": np.zeros(4)})
        # All that was finite has arrived in the end.
        np.testing.assert_allclose(session.pull()["w"], [0, -4, -2, -1], rtol=1e-2)


def test_what_is_kept_of_a_scaled_gradient_counts_with_its_own_scale(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name, encoding="topk:0.5") as session:
        optimizer = optd.SGD({"w": np.zeros(4)}, lr=1.0, session=session)
        optimizer.step({"w": np.array([4.0, 3.0, 2.0, 1.0]) * 1024}, loss_scale=1024)
        optimizer.step({"w": np.zeros(4)}, loss_scale=0.25)
        for _ in range(3):
            optimizer.step({"w": np.zeros(4)})
        assert session.pull()["w"].tolist() == [-4, -3, -2, -1]

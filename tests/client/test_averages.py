"""Averages of the weights that the server keeps, pulled by name through both faces, against torch."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

import optd
import optd.torch
from optd import errors
from optd.local import LocalServer
from optd.transport.lane_choice import LaneName
from optd.transport.numbers import Sink
from optd_wire.frames import Frame
from optd_wire.values import AverageInfo, ReadStateResult, WriteStateHeader

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 1e-2}


def close(found: Any, expected: Any, dtype: torch.dtype) -> None:
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * 0.1)


@pytest.mark.parametrize("lane", ["grpc", "shm"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("kept", "name_of", "averaging", "enters"),
    [
        (optd.EMA(0.9), "ema", {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}, lambda version: True),
        (optd.EMA(0.3), "ema", {"avg_fn": get_ema_avg_fn(0.3)}, lambda version: True),
        (optd.SWA(2), "swa", {}, lambda version: version >= 2),
        (optd.SWA(0, every=3), "swa", {}, lambda version: version % 3 == 0),
    ],
)
def test_as_an_averaged_model_of_torch(
    server: LocalServer,
    name: str,
    lane: LaneName,
    dtype: torch.dtype,
    kept: optd.EMA | optd.SWA,
    name_of: str,
    averaging: dict[str, Any],
    enters: Callable[[int], bool],
) -> None:
    torch.manual_seed(0)
    ours = torch.nn.Linear(300, 300, dtype=dtype)
    theirs = torch.nn.Linear(300, 300, dtype=dtype)
    theirs.load_state_dict(ours.state_dict())
    averaged = AveragedModel(theirs, **averaging)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1)
    with optd.connect(server.address, job=name, lane=lane, averages=kept) as session:
        optimizer = optd.torch.SGD(ours.named_parameters(), lr=0.1, session=session, zero_copy=lane == "shm")
        with pytest.raises(errors.EmptyAverage, match=f"no version of the weights of job '{name}' has entered"):
            optimizer.pull(weights=name_of)
        for version in range(1, 8):
            for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
                parameter.grad = torch.randn_like(parameter)
                other.grad = parameter.grad.clone()
            if version == 4:
                ours.bias.grad = theirs.bias.grad = None
            optimizer.step()
            reference.step()
            # Of both the same weights, so that it is averages that are compared.
            with torch.no_grad():
                for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
                    close(parameter, other, dtype)
                    other.copy_(parameter)
            if enters(version):
                averaged.update_parameters(theirs)
        assert session.info().averages == (AverageInfo(name_of, int(averaged.n_averaged)),)
        assert optimizer.pull(weights=name_of)
        assert optimizer.version == 7
        for parameter, other in zip(ours.parameters(), averaged.parameters(), strict=True):
            close(parameter, other, dtype)
        found = session.pull(weights=name_of, parameters="bias")
        assert list(found) == ["bias"]
        assert (found["bias"].astype("f8") == ours.bias.detach().double().numpy()).all()
        rows = optimizer.pull_rows("weight", [5, 2], weights=name_of)
        assert torch.equal(rows, ours.weight[[5, 2]])
        assert optimizer.pull(only_if_newer=True)  # the tensors hold others
        for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(parameter, other)


def test_both_at_once_and_the_arrays_of_the_numpy_face(server: LocalServer, name: str) -> None:
    table = np.zeros((4, 2))
    with optd.connect(server.address, job=name, averages=[optd.EMA(0.5), optd.SWA(1)]) as session:
        optimizer = optd.SGD({"t": table}, lr=1.0, session=session)
        for _ in range(3):  # to -1, -2, -3
            optimizer.step({"t": np.ones((4, 2))})
        assert (optimizer.pull(weights="ema")["t"] == -2.25).all()
        assert (table == -2.25).all()
        assert (optimizer.pull(weights="swa")["t"] == -2).all()
        assert (session.pull_rows("t", [3], weights="ema") == -2.25).all()
        assert (session.pull_rows("t", [3]) == -3).all()
        # What comes back of a step of rows is everything, as the arrays hold an average.
        optimizer.step({"t": ([1], np.ones((1, 2)))})
        assert table[:, 0].tolist() == [-3, -4, -3, -3]
        with pytest.raises(errors.UnknownAverage, match="keeps no average 'mean' of its weights; it keeps ema, swa"):
            optimizer.pull(weights="mean")
        with pytest.raises(errors.UnknownAverage, match="keeps no average 'mean'"):
            session.pull_rows("t", [1], weights="mean")


def test_an_average_begins_and_ends_in_mid_training(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.SGD({"w": np.zeros(2)}, lr=1.0, session=session)

        def planned() -> int:
            return next(job.planned_bytes for job in session._transport.list_jobs(10) if job.name == name)

        with pytest.raises(errors.UnknownAverage, match="it keeps none"):
            session.pull(weights="ema")
        before = planned()
        session.set_options(ema_decay=0.5)
        assert planned() == before + 2 * 8
        optimizer.step({"w": np.ones(2)})
        optimizer.step({"w": np.ones(2)})
        assert session.pull(weights="ema")["w"].tolist() == [-1.5] * 2
        session.set_options(ema_decay=0.0)
        optimizer.step({"w": np.ones(2)})
        assert session.pull(weights="ema")["w"].tolist() == [-3] * 2
        session.set_options(ema_decay=None)
        assert planned() == before
        assert session.info().averages == ()
        with pytest.raises(errors.OptionOutOfRange, match=r"job: ema_decay must be in \[0, 1\], got 2"):
            session.set_options(ema_decay=2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"averages": "ema"}, r"averages must be optd.EMA\(...\), optd.SWA\(...\) or a list of them, got 'ema'"),
        ({"averages": [0.9]}, "averages must be .* got 0.9"),
        ({"gradients": {"clip_norm": 1.0}}, r"gradients must be optd.Gradients\(...\), got \{'clip_norm': 1.0\}"),
    ],
)
def test_what_is_no_average_is_refused_before_anything_is_asked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=message):
        optd.connect("127.0.0.1:1", **given)


def test_a_group_that_comes_later(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name, averages=optd.SWA(1)) as session:
        optimizer = optd.SGD([{"params": {"w": np.zeros(2)}}], lr=1.0, session=session)
        optimizer.step([[np.ones(2)]])
        optimizer.add_param_group({"params": {"v": np.full(2, 7.0)}})
        assert session.pull(weights="swa")["v"].tolist() == [7, 7]
        assert session.pull_rows("v", [0], weights="swa").tolist() == [7]
        optimizer.step([[np.ones(2)], [np.ones(2)]])
        optimizer.step([[np.ones(2)], [np.ones(2)]])
        found = session.pull(weights="swa")
        assert found["w"].tolist() == [-2, -2]
        # As if the group had been there from the beginning.
        np.testing.assert_allclose(found["v"], (7 + 6 + 5) / 3)


def read(session: optd.Session, *fields: str) -> tuple[ReadStateResult, list[Frame]]:
    """What a checkpoint of these fields has."""
    frames: list[Frame] = []

    def begin(result: ReadStateResult) -> Sink:
        frames.clear()
        return take

    def take(received: Sequence[Frame]) -> None:
        for each in received:
            numbers = np.empty(each.count)
            each.decode_into(numbers)
            frames.append(Frame.of(each.group, each.offset, numbers, each.field))

    return session.read_state(fields, into=begin), frames


def write(session: optd.Session, result: ReadStateResult, frames: list[Frame]) -> None:
    header = WriteStateHeader(session.job, session.worker, session.epoch, result.groups, result.averages)
    session.write_state(header, lambda: iter([frames]))


def test_a_checkpoint_has_them(server: LocalServer, name: str) -> None:
    kept = [optd.EMA(0.5), optd.SWA(2)]
    gradients = [np.array([1.0, 2.0, 4.0]) * step for step in range(1, 7)]

    def attach(job: str) -> tuple[optd.Session, optd.Optimizer]:
        session = optd.connect(server.address, job=job, averages=kept)
        params = [{"params": {"w": np.zeros(2), "b": np.zeros(1)}}]
        return session, optd.SGD(params, lr=0.1, momentum=0.9, session=session)

    def train(optimizer: optd.Optimizer, part: slice) -> None:
        for gradient in gradients[part]:
            optimizer.step({"w": gradient[:2], "b": gradient[2:]})

    first, straight = attach(name)
    second, resumed = attach(name + ".resumed")
    with first, second:
        train(straight, slice(0, 3))
        result, frames = read(first, "weights", "momentum_buffer", "ema", "swa")
        assert result.averages == (AverageInfo("ema", 3), AverageInfo("swa", 2))
        second.set_options(swa_start=0)  # versions begin anew, averages do not
        write(second, result, frames)
        assert second.info().averages == result.averages
        train(straight, slice(3, None))
        train(resumed, slice(3, None))
        for average in ("", "ema", "swa"):
            expected, found = first.pull(weights=average), second.pull(weights=average)
            for parameter, array in expected.items():
                np.testing.assert_array_equal(found[parameter], array)
        incomplete = [frame for frame in frames if (frame.field, frame.group) != ("ema", 0)]
        before = second.pull(weights="swa")
        with pytest.raises(errors.IncompleteParameter, match="ema"):
            write(second, result, incomplete)
        assert (second.pull(weights="swa")["w"] == before["w"]).all()
        second.set_options(swa_start=None)
        with pytest.raises(errors.UnknownAverage, match="keeps no average 'swa'.*it keeps ema"):
            write(second, result, frames)
        with pytest.raises(errors.UnknownField, match="swa"):
            read(second, "swa")
        write(second, replace(result, averages=(AverageInfo("ema", 0),)), [])
        with pytest.raises(errors.EmptyAverage):
            second.pull(weights="ema")


def test_what_is_pulled_is_of_one_version(server: LocalServer, name: str) -> None:
    size, stop = 400_000, threading.Event()
    with optd.connect(server.address, job=name, worker="w", averages=optd.EMA(0.0)) as session:
        optimizer = optd.SGD({"w": np.zeros(size, np.float32)}, lr=1.0, session=session)
        optimizer.step({"w": np.ones(size, np.float32)})
        found = []

        def read() -> None:
            with optd.connect(server.address, job=name, worker="r") as reader:
                while not stop.is_set() or len(found) < 3:
                    found.append(np.unique(reader.pull(weights="ema")["w"]))

        thread = threading.Thread(target=read)
        thread.start()
        for _ in range(30):
            optimizer.step({"w": np.ones(size, np.float32)})
        stop.set()
        thread.join()
    assert all(len(values) == 1 for values in found)


def test_a_count_of_updates_that_cannot_go_on_is_refused(server: LocalServer, name: str) -> None:
    with optd.connect(server.address, job=name, averages=optd.EMA(0.5)) as session:
        optd.SGD({"w": np.ones(2)}, session=session)
        too_many = (AverageInfo("ema", 1 << 62),)
        with pytest.raises(errors.InvalidRequest, match=r"updates of average 'ema' must be in \[0, 2\*\*62\), got 46"):
            write(session, ReadStateResult(session.info().version, (), too_many), [])
        assert session.info().averages == (AverageInfo("ema", 0),)

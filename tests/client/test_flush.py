"""The step of an accumulation window that is not full: by `flush()`, and by fewer pushes that make a step."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from contract.plain import Plain, frame, header, refused
from tests.client.test_conditioned_gradients import summary
from typer.testing import CliRunner

import optd
import optd.torch
from optd import errors
from optd.ctl.app import app
from optd.local import LocalServer
from optd.transport.lane_choice import LaneName

SIZES = (70_000, 30)
LANES = pytest.mark.parametrize("lane", ["grpc", "shm"])


@LANES
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("zero_copy", [False, True])
def test_the_last_window_of_an_epoch_as_in_torch(
    server: LocalServer, name: str, lane: LaneName, reduction: Any, zero_copy: bool
) -> None:
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(size, dtype=torch.float64)) for size in SIZES]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    reference = torch.optim.AdamW(theirs, lr=0.01)
    gradients = optd.Gradients(accumulate=4, reduction=reduction)
    with optd.connect(server.address, job=name, lane=lane, gradients=gradients) as session:
        optimizer = optd.torch.AdamW(ours, lr=0.01, session=session, zero_copy=zero_copy)
        for window in (4, 3, 4, 1):
            share = 1 / window if reduction == "mean" else 1.0
            for push in range(window):
                for parameter, other in zip(ours, theirs, strict=True):
                    parameter.grad = torch.randn_like(parameter)
                    other.grad = share * parameter.grad + (other.grad if push else 0)
                optimizer.step()
            if window < 4:
                result = optimizer.flush()
                assert (result.accumulated, result.nothing_pending) == (0, False)
                assert result.applied_version == result.version.version == optimizer.version
            reference.step()
            for parameter, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(parameter, other, rtol=1e-12, atol=1e-15)
        before = [parameter.detach().clone() for parameter in ours]
        nothing = optimizer.flush()
        assert (nothing.nothing_pending, nothing.applied_version, nothing.version.version) == (True, 0, 4)
        assert optimizer.last is nothing
        assert all(torch.equal(parameter, old) for parameter, old in zip(ours, before, strict=True))
        assert {int(state["step"]) for state in optimizer.state_dict()["state"].values()} == {4}


@LANES
def test_arrays_and_rows_and_what_another_worker_has_pushed(server: LocalServer, name: str, lane: LaneName) -> None:
    weights, table = np.zeros(3), np.zeros((4, 2))
    gradients = optd.Gradients(accumulate=9)
    with (
        optd.connect(server.address, job=name, worker="a", lane=lane, gradients=gradients) as session,
        optd.connect(server.address, job=name, worker="b", lane=lane) as other,
    ):
        optimizer = optd.SGD({"w": weights, "t": table}, lr=1.0, session=session)
        second = optd.SGD({"w": np.zeros(3), "t": np.zeros((4, 2))}, lr=1.0, session=other)
        second.push({"w": np.full(3, 4.0)})
        other.close()
        optimizer.push({"t": ([2], np.ones((1, 2)))})
        optimizer.param_groups[0]["lr"] = 2.0
        assert optimizer.flush().accumulated == 0
        assert weights.tolist() == [-8.0] * 3
        assert table[:, 0].tolist() == [0, 0, -2.0, 0]
        assert session.groups()[0].options.options["lr"] == 2.0
        assert summary(session).accumulated == 0
        optimizer.param_groups[0]["lr"] = 3.0  # which counts without a step, too
        assert optimizer.flush().nothing_pending
        assert session.groups()[0].options.options["lr"] == 3.0


def test_every_worker_of_a_round_flushes(server: LocalServer, name: str) -> None:
    def train(number: int) -> tuple[list[Any], list[float]]:
        weights = np.zeros(2)
        how = {"policy": optd.Sync(2), "gradients": optd.Gradients(accumulate=3), "worker": f"w{number}"}
        with optd.connect(server.address, job=name, **how) as session:
            optimizer = optd.SGD({"w": weights}, lr=1.0, session=session)
            results = [optimizer.step({"w": np.full(2, number + 1.0)}), optimizer.flush(), optimizer.flush()]
            return [(r.accumulated, r.applied_version, r.nothing_pending) for r in results], weights.tolist()

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(train, range(2)))
    assert found == [([(1, 1, False), (0, 1, False), (0, 0, True)], [-1.5, -1.5])] * 2


def test_a_worker_that_pushes_where_another_one_flushes_is_told(server: LocalServer, name: str) -> None:
    with (
        optd.connect(server.address, job=name, worker="a", policy=optd.Sync(2)) as one,
        optd.connect(server.address, job=name, worker="b") as two,
        ThreadPoolExecutor(1) as pool,
    ):
        first = optd.SGD({"w": np.zeros(2)}, lr=1.0, session=one)
        second = optd.SGD({"w": np.zeros(2)}, lr=1.0, session=two)
        for waits, comes, does in (
            (
                first.flush,
                lambda: second.step({"w": np.ones(2)}),
                "'a' waits for its round with a flush, and worker 'b' b",
            ),
            (
                lambda: first.step({"w": np.ones(2)}),
                second.flush,
                "'a' waits for its round with gradients, and worker 'b' f",
            ),
        ):
            waiting = pool.submit(waits)
            _until(lambda: any(worker.waiting for worker in one.workers()))
            with pytest.raises(errors.InvalidRequest, match=does):
                comes()
            second.flush() if waits == first.flush else second.step({"w": np.ones(2)})
            waiting.result(30)
        assert first.version == 1


def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        pass


@LANES
@pytest.mark.parametrize("change", ["set_options", "optctl"])
def test_fewer_that_make_a_step_make_it_at_once(server: LocalServer, name: str, lane: LaneName, change: str) -> None:
    weights, later = np.zeros(70_000), np.zeros(3)
    gradients = optd.Gradients(accumulate=5, clip_norm=1e6)
    with optd.connect(server.address, job=name, lane=lane, gradients=gradients, averages=optd.SWA()) as session:
        optimizer = optd.SGD([{"params": {"w": weights}}], lr=1.0, momentum=0.5, session=session)
        for value in (1.0, 3.0):
            optimizer.push([[np.full(70_000, value)]])
        optimizer.add_param_group({"params": {"later": later}, "lr": 2.0})

        def lower(accumulate: int) -> None:
            if change == "set_options":
                session.set_options(accumulate=accumulate)
            else:
                environment = {"OPTD_SERVER": server.address}
                done = CliRunner().invoke(app, ["set", name, f"accumulate={accumulate}"], env=environment)
                assert done.exit_code == 0, done.output

        lower(3)
        assert (summary(session).accumulated, session.info().version.version) == (2, 0)
        lower(2)
        assert (summary(session).accumulated, session.info().version.version) == (0, 1)
        optimizer.pull()
        assert (optimizer.version, set(weights.tolist()), later.tolist()) == (1, {-2.0}, [0.0] * 3)
        assert session.info().averages[0].updates == 1
        optimizer.push([[np.full(70_000, 5.0)], [np.full(3, 1.0)]])
        lower(1)
        optimizer.pull()
        assert (optimizer.version, set(weights.tolist()), later.tolist()) == (2, {-8.0}, [-2.0] * 3)
        assert optimizer.step([[np.ones(70_000)], [None]]).applied_version == 3
        assert optimizer.flush().nothing_pending


def test_a_flush_is_known_by_its_number(server: LocalServer, name: str, plain: Plain) -> None:
    """As it looks to any language: a repeat gets the first reply, and what is no flush is refused."""
    with optd.connect(server.address, job=name, worker="w", gradients=optd.Gradients(accumulate=3)) as session:
        optimizer = optd.SGD({"w": np.zeros(2)}, lr=1.0, session=session)
        optimizer.push({"w": np.ones(2)})
        asked = header(name, "w", session.epoch, 2, flush=True)
        first, again = (plain.push(asked, []) for _ in range(2))
        assert (first.applied_version, first.repeat, again.applied_version, again.repeat) == (1, False, 1, True)
        assert session.info().version.version == 1
        for problem, frames, more in (
            ("this one has 1 frames", [frame(np.ones(2))], {}),
            ("takes no weight, got 2", [], {"weight": 2.0}),
            ("takes no loss_scale, got 4", [], {"loss_scale": 4.0}),
            ("takes no loss, got 1", [], {"loss": 1.0}),
        ):
            wrong = header(name, "w", session.epoch, 3, flush=True, **more)
            with refused("INVALID_REQUEST", problem):
                plain.push(wrong, frames)
        assert session.info().version.version == 1


def test_lbfgs_adds_nothing_up(server: LocalServer, name: str) -> None:
    parameter = torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    with optd.connect(server.address, job=name) as session:
        optimizer = optd.torch.LBFGS([parameter], max_iter=2, session=session)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = (parameter**2).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        version = optimizer.version
        assert optimizer.flush().nothing_pending
        optimizer.step(closure)
        assert optimizer.version > version


def departures(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "leaves while" in record.getMessage()]


def test_who_could_lose_sight_of_gradients_is_told(
    server: LocalServer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    array = np.zeros(2)
    with (
        optd.connect(server.address, job=name, gradients=optd.Gradients(accumulate=3)) as session,
        optd.connect(server.address, job=f"{name}-n", gradients=optd.Gradients(accumulate=3)) as other,
    ):
        for optimizer in (
            optd.torch.Adam([parameter], session=session),
            optd.Adam({"w": array}, session=other),
        ):
            saved = optimizer.state_dict()
            optimizer.load_state_dict(saved)
            parameter.grad = torch.ones(2)
            optimizer.step(*([] if isinstance(optimizer, torch.optim.Optimizer) else [{"w": np.ones(2)}]))
            with pytest.warns(UserWarning, match="the state dict does not have them: call flush") as caught:
                optimizer.state_dict()
            assert caught[0].filename == __file__
            with pytest.warns(UserWarning, match=r"one push, or round of pushes, before this load_state_dict\(\)") as c:
                optimizer.load_state_dict(saved)
            assert c[0].filename == __file__
            optimizer.flush()
            optimizer.state_dict()
        assert array.tolist() != [0, 0]
        optimizer.push({"w": np.ones(2)})
    assert departures(caplog) == [
        f"job {name}-n: worker {other.worker} leaves while gradients are added up that no step has taken (pushes or "
        "rounds: 1); call flush() before you close, or from another worker"
    ]
    done = CliRunner().invoke(app, ["delete", f"{name}-n", "--yes"], env={"OPTD_SERVER": server.address})
    assert (
        done.output.replace("\n", " ").strip()
        == f"deleted {name}-n at version 1, with gradients added up (1) that no step was made of"
    )


@pytest.mark.parametrize("others", [1, 2])
def test_who_leaves_is_not_told_of_gradients_that_another_workers_push_has_made_a_step_of(
    server: LocalServer, name: str, caplog: pytest.LogCaptureFixture, others: int
) -> None:
    sessions = [
        optd.connect(server.address, job=name, worker=worker, gradients=optd.Gradients(accumulate=2)) for worker in "ab"
    ]
    first, other = (optd.SGD({"w": np.zeros(2)}, lr=1.0, session=session) for session in sessions)
    assert first.push({"w": np.ones(2)}).accumulated == 1
    for _ in range(others):
        other.push({"w": np.ones(2)})
    pending = sessions[0].pending()
    assert pending == others - 1
    sessions[0].close()
    told = f"job {name}: worker a leaves while gradients are added up that no step has taken (pushes or rounds: 1)"
    assert [each.startswith(told) for each in departures(caplog)] == [True] * pending
    sessions[1].close()


def test_who_leaves_while_the_server_is_away_is_told_what_it_knew(caplog: pytest.LogCaptureFixture) -> None:
    server = LocalServer()
    try:
        session = optd.connect(server.address, job="away", worker="a", gradients=optd.Gradients(accumulate=2))
        optd.SGD({"w": np.zeros(2)}, lr=1.0, session=session).push({"w": np.ones(2)})
    finally:
        server.stop()
    session.close()
    assert [each.startswith("job away: worker a leaves while") for each in departures(caplog)] == [True]

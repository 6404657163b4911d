"""`every="auto"`: workers of unequal speed arrive together. Their clocks are those of the test."""

from types import SimpleNamespace

import numpy as np
import pytest

import optd
from optd.local_steps import face
from optd.session.session import Session
from optd.transport.fake.connection import FakeConnection
from optd.transport.fake.server import FakeServer
from optd.transport.server_calls import ServerCalls
from optd_wire.messages import from_message
from optd_wire.values import PushHeader


class Timed:
    """A worker whose steps take `seconds`."""

    def __init__(
        self, server: FakeServer, name: str, seconds: float, monkeypatch: pytest.MonkeyPatch, **options
    ) -> None:
        self.now, self.seconds, self.syncs = 0.0, seconds, []
        monkeypatch.setattr(face, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.session = Session(ServerCalls(FakeConnection(server)), job="job", worker=name, timeout=5.0)
        self.weights = {"a": np.zeros(3), "b": np.zeros(3)}
        self.local = optd.LocalSteps(self.weights, session=self.session, **options)

    def step(self) -> None:
        self.now += self.seconds
        self.weights["a"] += 1
        before = self.local.version
        self.local.step()
        if self.local.version > before:
            self.syncs.append(self.now)


def run(workers: list[Timed], until: float) -> None:
    while (next_ := min(workers, key=lambda each: each.now)).now < until:
        next_.step()


@pytest.mark.parametrize("delay", [0, 1])
def test_the_slow_take_fewer_steps_so_that_all_arrive_together(monkeypatch, delay):
    server = FakeServer()
    options = {"every": "auto:12", "delay": delay, "outer": {"algorithm": "sgd", "lr": 0.1}}
    workers = [
        Timed(server, name, seconds, monkeypatch, **options)
        for name, seconds in (("fast", 0.1), ("slow", 0.3), ("slower", 0.6))
    ]
    run(workers, 40.0)
    assert [each.local.every for each in workers] == [12, 4, 2]
    lengths = [np.diff(each.syncs)[-5:] for each in workers]
    for each in lengths:
        assert each == pytest.approx(1.2), "the time between two syncs"
    for each in workers:
        each.local.close()
    speeds = {info.name: info.speed for info in workers[0].session.workers()}
    assert speeds == pytest.approx({"fast": 10.0, "slow": 1 / 0.3, "slower": 1 / 0.6})
    headers = [from_message(request.header, PushHeader) for name, request in server.handled if name == "Step"]
    last = {header.worker: header.weight for header in headers}
    assert last == {"fast": 12.0, "slow": 4.0, "slower": 2.0}, "in a mean each counts by its steps"


def test_a_worker_whose_speed_changes_follows(monkeypatch):
    server = FakeServer()
    workers = [Timed(server, name, 0.1, monkeypatch, every="auto:10") for name in ("a", "b")]
    run(workers, 10.0)
    assert [each.local.every for each in workers] == [10, 10]
    workers[1].seconds = 0.5
    run(workers, 40.0)
    assert [each.local.every for each in workers] == [10, 2]
    workers[0].session.close()
    run(workers[1:], 60.0)
    assert workers[1].local.every == 10, "now it is the fastest that takes part"


@pytest.mark.slow
def test_the_server_tells_speeds_while_workers_hold_a_lease(server, name):
    with optd.connect(server.address, job=name, worker="w0") as session:
        weights = np.zeros(2)
        local = optd.LocalSteps([weights], every=2, session=session)
        assert [worker.speed for worker in session.workers()] == [0.0]
        for _ in range(4):
            local.step()
        assert session.workers()[0].speed > 0
    with optd.connect(server.address, job=name, worker="w0") as session:
        optd.LocalSteps([weights], every=2, session=session)
        assert [worker.speed for worker in session.workers()] == [0.0], "of another process, perhaps"

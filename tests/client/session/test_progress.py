"""What people see while a large model is on its way."""

import io
import logging
import threading
import time

import numpy as np
import pytest

import optd
from optd import errors
from optd.session import environment, progress


class Frames:
    """A source whose batches take some time."""

    def __init__(self, batches: int, seconds: float) -> None:
        self.batches, self.seconds = batches, seconds

    def __call__(self):
        for _ in range(self.batches):
            time.sleep(self.seconds)
            yield [Sized(60), Sized(40)]


class Sized:
    def __init__(self, count: int) -> None:
        self.count = count


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PATIENCE_SECONDS", "TICK_SECONDS"):
        monkeypatch.setattr(progress, name, 0.05)
    monkeypatch.setattr(progress, "FIRST_INTERVAL_SECONDS", 0.1)
    monkeypatch.setattr(progress, "LEAST", 500)
    monkeypatch.delenv("OPTD_PROGRESS", raising=False)


def drain(total: int, seconds: float, *, enabled: bool = True) -> None:
    with progress.showing("sending", total, enabled=enabled) as count:
        assert sum(frame.count for batch in count.source(Frames(10, seconds))() for frame in batch) == 1000
        assert count.passed == 1000


def test_without_a_terminal_it_is_lines_of_the_log(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger="optd"):
        drain(1000, 0.05)
    first, *others, last = [record.getMessage() for record in caplog.records]
    assert first.startswith("sending: ") and first.endswith("this takes a while")
    assert 1 <= len(others) <= 3  # at growing intervals
    assert last.startswith("sending: ended after 0.")
    assert {record.name for record in caplog.records} == {"optd"}


def test_where_no_log_is_set_up_the_lines_go_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(logging.Logger, "hasHandlers", lambda _: False)
    drain(1000, 0.05)
    assert capsys.readouterr().err.startswith("sending: ")


def test_on_a_terminal_it_is_a_bar(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with caplog.at_level(logging.INFO, logger="optd"):
        drain(1000, 0.05)
    assert "sending" in terminal.getvalue()
    assert "━" in terminal.getvalue()
    assert not caplog.records


@pytest.mark.parametrize(("total", "seconds", "enabled"), [(1000, 0.0, True), (400, 0.02, True), (1000, 0.02, False)])
def test_nothing_is_said_of_what_is_quick_or_small_or_when_it_is_off(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    total: int,
    seconds: float,
    enabled: bool,
):
    if not seconds:
        monkeypatch.setattr(progress, "PATIENCE_SECONDS", 30)
    with caplog.at_level(logging.INFO, logger="optd"):
        drain(total, seconds, enabled=enabled)
    assert not caplog.records
    assert capsys.readouterr().err == ""
    assert "optd-progress" not in [thread.name for thread in threading.enumerate()]


def test_an_attempt_that_is_made_again_counts_anew_and_errors_pass():
    with pytest.raises(KeyError), progress.showing("sending", 1000, enabled=True) as count:
        source = count.source(Frames(3, 0))
        assert [len(list(source())), count.passed] == [3, 300]
        next(source())
        assert count.passed == 0
        raise KeyError("lost")


@pytest.mark.parametrize(
    ("given", "variable", "expected"),
    [(None, None, True), (None, "0", False), (None, "1", True), (True, "0", True), (False, "1", False)],
)
def test_the_argument_counts_before_the_environment(
    monkeypatch: pytest.MonkeyPatch, given: bool | None, variable: str | None, expected: bool
):
    if variable is not None:
        monkeypatch.setenv("OPTD_PROGRESS", variable)
    assert environment.progress(given) is expected


def test_a_variable_that_is_neither_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPTD_PROGRESS", "off")
    with pytest.raises(errors.InvalidRequest, match="OPTD_PROGRESS must be 0 or 1, got 'off'"):
        optd.connect("127.0.0.1:1")


@pytest.mark.parametrize("lane", ["grpc", "shm"])
def test_registration_first_step_and_pulls_are_shown_and_numbers_are_as_without(
    server, name, monkeypatch: pytest.MonkeyPatch, lane: str
):
    shown = []

    class Told(progress.Count):
        def __init__(self, total: int) -> None:
            super().__init__(total)
            shown.append(self)

    monkeypatch.setattr(progress, "Count", Told)
    weights = np.arange(100_000, dtype="f4")
    expected = weights - 1
    with optd.connect(server.address, job=name, worker="w", lane=lane) as session:
        optimizer = optd.SGD({"w": weights}, lr=1.0, session=session)
        optimizer.step({"w": np.ones(100_000, "f4")})
        assert np.array_equal(weights, expected)
        optimizer.step({"w": np.zeros(100_000, "f4")})
        optimizer.pull()
        assert np.array_equal(session.pull()["w"], expected)
    # Registration, first step, second step, the optimizer's pull and the session's.
    assert [each.total for each in shown] == [100_000, 200_000, 0, 100_000, 100_000]
    assert [each.passed for each in (shown[0], *shown[3:])] == [100_000] * 3
    assert shown[1].passed == (200_000 if lane == "grpc" else 0)


def test_optimizers_pass_it_to_the_session_that_they_open(server, name):
    torch = pytest.importorskip("torch")
    import optd.torch

    made = [
        optd.SGD({"w": np.ones(3)}, lr=1.0, server=server.address, job=name, progress=False),
        optd.torch.SGD(
            [torch.nn.Parameter(torch.ones(3))], lr=1.0, server=server.address, job=name + "t", progress=False
        ),
        optd.torch.Optimizer(
            "sgd", [torch.nn.Parameter(torch.ones(3))], server=server.address, job=name + "n", progress=False
        ),
        optd.SGD({"w": np.ones(3)}, lr=1.0, server=server.address, job=name + "o"),
    ]
    assert [each.session._progress for each in made] == [False, False, False, True]
    for each in made:
        each.close()

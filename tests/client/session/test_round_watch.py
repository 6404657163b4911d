"""What a worker says while its push waits for others."""

import gc
import logging
import threading
import weakref

import pytest
from faults.processes import wait_for

from optd import errors
from optd.session import round_watch
from optd.session.awaited import all_whom, at_the_latest, described, whom
from optd.session.round_watch import RoundWatch
from optd.session.saying import lasted, listed
from optd_wire.values import EXPIRED, LEFT, RoundInfo, WorkerInfo

NOW = 1_000_000


def worker(name: str, *, active: bool = True, **more: object) -> WorkerInfo:
    return WorkerInfo(name, 1, active, 0, 0, 0, 0, 0, False, "grpc", **more)  # type: ignore[arg-type]


W2 = worker("w2", host="b", pid=77, last_push_unix_ms=NOW - 14_000)
W3 = worker("w3", active=False, ended=EXPIRED, ended_unix_ms=NOW - 3_000)
OPEN = RoundInfo(NOW, 120, NOW - 5_000, ("w0", "w1"), (), (W2, W3), 1, 0, "a push of w2; a worker to replace w3")
ANOTHER = RoundInfo(NOW, 120, NOW, ("w7",), (), (W2,), 0, 0, "pushes of w2", fragment=2)
NAMES = "w2 (host b, pid 77, last push 14 s ago) and w3 (lease lost 3 s ago)"


class Server:
    """What is asked: the open rounds, or an error."""

    def __init__(self, answer: RoundInfo | Exception = OPEN) -> None:
        self.answer = answer
        self.asked = 0

    def ask(self) -> list[RoundInfo]:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return [ANOTHER, self.answer]

    def watch(self, timeout: float = 60.0, *, tells: bool = True) -> RoundWatch:
        return RoundWatch("rounds", "w0", weakref.WeakMethod(self.ask), timeout, tells=tells)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_watch, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(round_watch, "FIRST_INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr(round_watch, "WARNS_AFTER_SECONDS", 0.15)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_line_names_whom_it_waits_for_and_more_follow_at_growing_intervals(caplog: pytest.LogCaptureFixture):
    server = Server()
    watch = server.watch()
    with caplog.at_level(logging.INFO, logger="optd"), watch.watching():
        wait_for(lambda: len(caplog.records) >= 4, "it goes on saying so")
    watch.stop()
    assert all(line.startswith(f"job rounds: step 120 waits for {NAMES}; 0.") for line in lines(caplog)[:2])
    assert all(line.endswith(" s so far") for line in lines(caplog))
    times = [record.created for record in caplog.records]
    assert times[3] - times[2] > times[1] - times[0]
    assert caplog.records[0].levelno == logging.INFO
    assert caplog.records[3].levelno == logging.WARNING
    assert {record.name for record in caplog.records} == {"optd"}


def test_a_push_that_follows_one_that_waited_for_long_is_told_of_as_soon(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """After the first line the thread would sleep for minutes."""
    monkeypatch.setattr(round_watch, "FIRST_INTERVAL_SECONDS", 300.0)
    server = Server()
    watch = server.watch(600.0)
    with caplog.at_level(logging.INFO, logger="optd"):
        for count in (1, 2, 3):
            with watch.watching():
                wait_for(lambda count=count: len(caplog.records) >= count, "the push is told of")
    watch.stop()


def test_where_no_log_is_set_up_the_lines_go_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(logging.Logger, "hasHandlers", lambda _: False)
    server, said = Server(), ""
    watch = server.watch()
    with watch.watching():
        while not said:  # bounded by the time of the whole test
            said += capsys.readouterr().err
    watch.stop()
    assert said.startswith(f"job rounds: step 120 waits for {NAMES}; ")


def test_what_its_deadline_brings_is_told_too(caplog: pytest.LogCaptureFixture):
    server = Server(RoundInfo(NOW, 7, NOW, ("w0",), (), (W2,), 0, NOW + 2_100, "pushes of w2; or its time"))
    watch = server.watch()
    with caplog.at_level(logging.INFO, logger="optd"), watch.watching():
        wait_for(lambda: caplog.records, "a line")
    watch.stop()
    assert "last push 14 s ago); at the latest in 2.1 s; " in lines(caplog)[0]


@pytest.mark.parametrize(
    "answer",
    [
        RoundInfo(NOW, 7, NOW, ("w1",), ("w0",), (W2,)),  # its own gradient is still on its way
        RoundInfo(NOW, 7, NOW, ("w0", "w1")),  # it waits for nobody
        errors.ConnectionLost(address="here:1", rpc="GetRound", problem="cut"),
    ],
)
def test_nothing_is_said_if_it_waits_for_nobody_or_nobody_answers(caplog: pytest.LogCaptureFixture, answer):
    server = Server(answer)
    watch = server.watch()
    with caplog.at_level(logging.INFO, logger="optd"), watch.watching():
        wait_for(lambda: server.asked >= 3, "it goes on asking")
        assert watch.waited_for() == ""
    watch.stop()
    assert not caplog.records


def test_the_server_is_asked_in_time_for_a_deadline_and_what_it_said_of_an_earlier_push_does_not_count():
    server = Server()
    watch = server.watch(timeout=0.08, tells=False)
    with watch.watching():
        wait_for(lambda: server.asked >= 1, "it asks before the time is up")
        wait_for(lambda: watch.waited_for() == NAMES, "it remembers")
    assert watch.waited_for() == ""
    server.answer = errors.ShuttingDown()
    with watch.watching():
        assert watch.waited_for() == ""
    watch.stop()


@pytest.mark.slow
def test_the_thread_ends_with_its_session():
    for end in ("stop", "garbage"):
        server = Server()
        watch = server.watch(tells=False)
        with watch.watching():
            thread = watch._thread
            assert thread in threading.enumerate()
        if end == "stop":
            watch.stop()
        del server
        gc.collect()
        thread.join(10)
        assert not thread.is_alive(), end


def test_pushes_that_are_answered_soon_ask_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(round_watch, "PATIENCE_SECONDS", 30.0)
    server = Server()
    watch = server.watch()
    for _ in range(1000):
        with watch.watching():
            pass
    watch.stop()
    assert server.asked == 0


# Words


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (W2, "w2 (host b, pid 77, last push 14 s ago)"),
        (W3, "w3 (lease lost 3 s ago)"),
        (worker("w4"), "w4 (no push yet)"),
        (worker("w4", active=False, ended=LEFT, ended_unix_ms=NOW - 200_000, pid=1), "w4 (pid 1, left 3 min ago)"),
        (worker("w4", active=False), "w4 (lease ended)"),
    ],
)
def test_a_worker_that_is_waited_for(one: WorkerInfo, words: str):
    assert described(one, NOW) == words


def test_places_of_nobody_are_counted_and_the_worker_itself_is_not():
    assert whom(RoundInfo(NOW, missing=(W2, worker("w0")), places=1), "w0") == (
        "w2 (host b, pid 77, last push 14 s ago) and a worker that has not joined yet"
    )
    many = RoundInfo(NOW, missing=tuple(worker(f"w{number}") for number in range(9)))
    assert whom(many).endswith(" and 4 more")
    assert whom(RoundInfo(NOW, places=3)) == "3 workers that have not joined yet"
    assert all_whom(RoundInfo(NOW, arriving=("w1", "w0")), "w0") == "w1 (its gradient is on its way)"
    assert at_the_latest(OPEN) == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *[(-1, "0 s"), (0.04, "0 s"), (5, "5 s"), (5.26, "5.3 s"), (14.2, "14 s"), (119, "119 s")],
        *[(125, "2 min"), (7000, "117 min"), (9000, "2.5 h"), (4 * 86400, "4 d")],
    ],
)
def test_lengths_of_time(seconds: float, words: str):
    assert lasted(seconds) == words


def test_lists():
    assert [listed(list(names)) for names in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]
    assert listed(list("abcdef"), 2) == "a, b and 4 more"

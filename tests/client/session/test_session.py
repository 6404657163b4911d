"""What a session sends and when it sends it again, against a transport that a test plays."""

import threading

import pytest

from optd import EMA, Sync, connect, errors
from optd.session.session import Session
from optd_wire.values import Async, JobInfo, JobSpec, JobVersion, Membership, PullResult, PushResult

SPEC = JobSpec("job", "sgd", {}, ())
LOST = errors.ConnectionLost(address="fake:1", rpc="Push", problem="cut")
LATE = errors.DeadlineExceeded(rpc="Push", address="fake:1", seconds=1, hint="")
# As these, but the server had applied the push.
LOST_APPLIED = errors.ConnectionLost(address="fake:1", rpc="Push", problem="cut")
LATE_APPLIED = errors.DeadlineExceeded(rpc="Push", address="fake:1", seconds=1, hint="")
REFUSED = errors.NonfiniteGradient(parameter="w", value="nan", index=0)


class FakeTransport:
    """Plays a script of answers to pushes; notes every call."""

    address = "fake:1"

    def __init__(self, *script):
        self.script = list(script)
        self.calls = []
        self.epoch = 0
        self.applied = 0
        """The sequence number of the last push that the played server has applied under its epoch."""
        self.lock = threading.Lock()

    def beside(self):
        return FakeTransport()

    def close(self):
        self.calls.append("close")

    def leave(self, job, worker, epoch, timeout, *, returns):
        self.calls.append(("leave", epoch))

    def renew_lease(self, job, worker, epoch, timeout):
        pass

    def join(self, job, worker, spec, wait_seconds, timeout, **_):
        previous = (self.epoch, self.applied) if self.epoch else (0, 0)
        self.epoch, self.applied = self.epoch + 1, 0
        self.calls.append(("join", spec is not None))
        info = JobInfo("job", "sgd", {}, Async(), (), JobVersion())
        return Membership(self.epoch, 60_000, info, (), 1 << 20, *previous)

    def step(self, header, gradients, delivery, weights, timeout):
        assert delivery.none, "a push brings nothing back"
        with self.lock:
            self.calls.append((header.epoch, header.sequence))
            answer = self.script.pop(0) if self.script else None
            if answer is None or answer in (LATE_APPLIED, LOST_APPLIED):
                self.applied = header.sequence
        if answer is not None:
            raise answer
        version = JobVersion(header.sequence)
        return PushResult(version, header.sequence, 0, False), PullResult(version, False)


def session(*script):
    transport = FakeTransport(*script)
    opened = Session(transport, job="job", worker="w", timeout=30.0, policy=Async())
    opened.register(SPEC, lambda: iter(()))
    transport.calls.clear()
    return opened, transport


def push(opened, settle=lambda applied: None):
    return opened.push(lambda: iter(()), (), JobVersion(), lambda applied, _: settle(applied))


def test_sequences_count_up_and_a_lost_answer_is_asked_for_under_the_same_number():
    opened, transport = session(None, LOST, LOST, None)
    push(opened)
    push(opened)
    push(opened)
    assert transport.calls == [(1, 1), (1, 2), (1, 2), (1, 2), (1, 3)]
    opened.close()


def test_a_refused_push_leaves_its_number_to_the_next():
    opened, transport = session(REFUSED)
    with pytest.raises(errors.NonfiniteGradient):
        push(opened)
    push(opened)
    assert transport.calls == [(1, 1), (1, 1)]
    opened.close()


def test_after_a_push_whose_fate_is_unknown_a_new_epoch_fences_it():
    opened, transport = session(None, LATE)
    push(opened)
    with pytest.raises(errors.DeadlineExceeded):
        push(opened)
    push(opened)
    assert transport.calls == [(1, 1), (1, 2), ("join", False), (2, 1)]
    opened.close()


def test_a_push_that_is_interrupted_is_in_doubt_too():
    opened, transport = session(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        push(opened)
    push(opened)
    assert transport.calls == [(1, 1), ("join", False), (2, 1)]
    opened.close()


def test_pushes_of_several_threads_follow_one_another():
    opened, transport = session()
    threads = [threading.Thread(target=lambda: [push(opened) for _ in range(25)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert transport.calls == [(1, n) for n in range(1, 101)]
    opened.close()


def test_closing_leaves_once_and_ends_everything():
    opened, transport = session()
    with opened:
        pass
    opened.close()
    assert transport.calls == [("leave", 1), "close"]
    with pytest.raises(errors.SessionClosed, match="the session of job 'job' is closed"):
        push(opened)


def test_a_session_carries_one_optimizer_and_needs_one_to_push():
    opened, _ = session()
    with pytest.raises(errors.AlreadyRegistered):
        opened.register(SPEC, lambda: iter(()))
    opened.close()
    other = Session(FakeTransport(), job="job", worker="w", timeout=30.0, policy=Async())
    with pytest.raises(errors.UnknownWorker):
        push(other)
    other.close()


# What becomes of a push


def test_whoever_asks_is_told_what_became_of_a_push():
    opened, _ = session(None, REFUSED, LOST, None)
    told = []
    push(opened, told.append)
    with pytest.raises(errors.NonfiniteGradient):
        push(opened, told.append)
    push(opened, told.append)
    assert told == [True, False, True]
    opened.close()


@pytest.mark.parametrize(
    ("script", "applied"),
    [
        ([LATE], False),
        ([LATE_APPLIED], True),
        ([LOST, LATE], False),
        ([LOST_APPLIED, LATE], True),
        # A refusal of the second attempt says nothing of the first.
        ([LOST_APPLIED, REFUSED], True),
        ([LOST, REFUSED], False),
        ([KeyboardInterrupt()], False),
    ],
    ids=["late", "late applied", "lost", "lost applied", "refused applied", "refused", "interrupted"],
)
def test_where_nobody_can_know_the_next_join_tells(script, applied):
    opened, transport = session(None, *script)
    push(opened)
    told = []
    with pytest.raises((errors.OptdError, KeyboardInterrupt)):
        push(opened, told.append)
    assert told == []
    opened.find_out()
    assert told == [applied]
    opened.find_out()
    push(opened, told.append)
    assert told == [applied, True]
    assert transport.calls[-2:] == [("join", False), (2, 1)]
    opened.close()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"policy": "sync"}, "policy must be optd.Async(...), optd.Sync(...) or optd.Bounded(...), got 'sync'"),
        (
            {"policy": Sync},
            "policy must be optd.Async(...), optd.Sync(...) or optd.Bounded(...), got <class 'optd_wire.values.Sync'>",
        ),
        ({"timeout": -1}, "timeout must be more than 0 seconds, got -1"),
        ({"timeout": "a"}, "timeout must be more than 0 seconds, got 'a'"),
        ({"connect_timeout": float("nan")}, "connect_timeout must be more than 0 seconds, got nan"),
        ({"averages": 3}, "averages must be optd.EMA(...), optd.SWA(...) or a list of them, got 3"),
        ({"averages": [EMA(0.9), EMA(0.5)]}, "averages must be one of a kind, got several optd.EMA"),
    ],
)
def test_what_is_wrong_with_an_argument_is_said_before_anybody_is_asked(given, says):
    with pytest.raises(errors.InvalidRequest) as caught:
        connect("127.0.0.1:1", **given)
    assert str(caught.value) == says

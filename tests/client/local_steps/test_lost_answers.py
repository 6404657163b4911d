"""Calls that fail amid local steps: nothing that was computed is lost, and nothing counts twice. No sockets.

With one worker, and an outer optimizer that adds differences as they are, the global weights after a sync are those of
the same training without any server, whatever has failed before.
"""

import logging
import threading
from concurrent.futures import Future, wait

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.local_steps.problem import Inner, Weights, assert_equal, initial

import optd
from optd import errors
from optd.local_steps.outer import Answer
from optd.session.session import Session
from optd.transport import rpcs
from optd.transport.fake.connection import FakeConnection
from optd.transport.fake.server import FakeServer
from optd.transport.server_calls import ServerCalls

LATE = errors.DeadlineExceeded(rpc="Step", address="fake:1", seconds=1, hint="")
PLAIN = {"algorithm": "sgd", "lr": 1.0}
FAILURES = [None, (rpcs.STEP, True), (rpcs.STEP, False), (rpcs.PULL, True), (rpcs.PULL, False)]
EVERY = 3


def opened(server: FakeServer, worker: str = "w0", **how) -> Session:
    return Session(ServerCalls(FakeConnection(server)), job="job", worker=worker, timeout=5.0, **how)


def alone(steps: int) -> Weights:
    weights, inner = initial(), Inner(0)
    for _ in range(steps):
        inner.step(weights)
    return weights


def global_weights(server: FakeServer) -> Weights:
    with opened(server, "reader") as session:
        return session.pull()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(FAILURES), max_size=6), st.sampled_from([None, "float32"]))
def test_every_local_step_counts_once(failures, encoding):
    server = FakeServer()
    weights, inner = initial(), Inner(0)
    with (
        opened(server) as session,
        optd.LocalSteps(weights, every=EVERY, outer=PLAIN, session=session, encoding=encoding) as local,
    ):
        for failure in failures:
            for _ in range(EVERY - 1):
                inner.step(weights)
                local.step()
            inner.step(weights)
            if failure is None:
                local.step()
                continue
            server.fail(failure[0], LATE, is_handled=failure[1])
            with pytest.raises(errors.DeadlineExceeded):
                local.step()
        inner.step(weights)
        local.step()
        local.sync()
        assert local.unsent == 0
        steps = EVERY * len(failures) + 1
    assert_equal(weights, alone(steps))
    assert_equal(global_weights(server), alone(steps))


@pytest.mark.parametrize("is_handled", [True, False])
def test_an_error_of_a_transfer_is_raised_when_its_answer_is_due(is_handled):
    server = FakeServer()
    weights, inner = initial(), Inner(0)
    with opened(server) as session, optd.LocalSteps(weights, every=4, delay=2, outer=PLAIN, session=session) as local:
        for step in range(1, 6):
            if step == 4:
                server.fail(rpcs.STEP, LATE, is_handled=is_handled)
            inner.step(weights)
            local.step()
        inner.step(weights)
        with pytest.raises(errors.DeadlineExceeded):
            local.step()
        assert_equal(weights, alone(6))
        local.sync()
    assert_equal(weights, alone(6))
    assert_equal(global_weights(server), alone(6))


@pytest.mark.parametrize("syncs", [0, 1, 2])
def test_an_interrupt_while_a_worker_asks_for_speeds_loses_no_step(monkeypatch, syncs):
    """The difference counts by then, and the next one begins at the weights that came of it, or before both."""
    server = FakeServer()
    weights, inner = initial(), Inner(0)
    with opened(server) as session, optd.LocalSteps(weights, every="auto:1", outer=PLAIN, session=session) as local:
        for step in range(6):
            inner.step(weights)
            if step == syncs:
                with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                    patch.setattr(session, "workers", interrupt)
                    local.step()
            else:
                local.step()
        local.sync()
    assert_equal(weights, alone(6))
    assert_equal(global_weights(server), alone(6))


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("is_there", [True, False])
def test_an_answer_whose_wait_was_interrupted_is_applied_after_the_next_step(monkeypatch, is_there):
    """Also if it has come just when the interrupt did."""
    arrives, weights = threading.Event(), {"w": np.zeros(2)}

    def interrupted(future: Future[Answer]) -> None:
        if is_there:
            arrives.set()
            wait([future])
        raise KeyboardInterrupt

    with (
        opened(FakeServer()) as session,
        optd.LocalSteps(weights, every=3, delay=1, alpha=0, outer=PLAIN, session=session) as local,
    ):
        outer = local._worker.outer
        exchange = outer.exchange
        monkeypatch.setattr(outer, "exchange", lambda parcel: arrives.wait(30) and exchange(parcel))
        for step in range(1, 7):
            weights["w"] += 1
            if step == 4:
                with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                    patch.setattr(Future, "result", interrupted)
                    local.step()
                arrives.set()
            else:
                local.step()
            if step == 5:
                assert list(weights["w"]) == [3, 3], "as after each answer, without the steps amid the wait for it"
        local.sync()
        assert list(weights["w"]) == list(session.pull()["w"]) == [4, 4]


class Torn(FakeConnection):
    """Its next pull breaks off after a part of the weights."""

    breaks = False

    def download(self, rpc, request, timeout):
        for message, frames in super().download(rpc, request, timeout):
            if self.breaks and rpc is rpcs.PULL:
                self.breaks = False
                yield message, frames[:1]
                raise LATE
            yield message, frames


def test_a_pull_that_breaks_off_leaves_no_mixture_as_the_base():
    """Else the next difference would undo what others have done to the weights that had come."""
    server = FakeServer()
    ours = [{"params": {name: np.zeros(2)}} for name in "ab"]
    theirs = [{"params": {name: np.zeros(2)}} for name in "ab"]
    connection = Torn(server)
    with Session(ServerCalls(connection), job="job", worker="w0", timeout=5.0) as one, opened(server, "w1") as two:
        first = optd.LocalSteps(ours, every=1, outer=PLAIN, session=one)
        second = optd.LocalSteps(theirs, every=1, outer=PLAIN, session=two)
        for group in theirs:
            for array in group["params"].values():
                array[...] = 10
        second.step()
        for group in ours:
            for array in group["params"].values():
                array[...] = 1
        connection.breaks = True
        with pytest.raises(errors.DeadlineExceeded):
            first.step()
        assert not connection.breaks
        first.step()
        for name, array in one.pull().items():
            assert list(array) == [11, 11], name


def test_in_a_sync_job_a_failed_sync_does_not_change_the_order_of_the_fragments():
    """The next fragment is the one that failed, unless it counts."""
    for is_handled, expected in ((False, [1, 2, 3]), (True, [1, 2, 3, 1])):
        server, weights = FakeServer(), {name: np.zeros(2) for name in "abc"}
        transport, policy = ServerCalls(FakeConnection(server)), optd.Sync(workers=1)
        with Session(transport, job="job", worker="w0", timeout=5.0, policy=policy) as session:
            local = optd.LocalSteps(weights, every=3, fragments=3, outer=PLAIN, session=session)
            local.step()
            server.fail(rpcs.STEP, LATE, is_handled=is_handled)
            with pytest.raises(errors.DeadlineExceeded):
                local.step()
            local.step()
            local.step()
        assert [request.header.fragment for name, request in server.handled if name == "Step"] == expected


def test_a_difference_to_weights_that_are_gone_is_lost_and_that_is_said(caplog):
    """The server went back to a version without the weights that the difference belongs to."""
    server = FakeServer()
    weights, inner = initial(), Inner(0)
    with opened(server) as session, optd.LocalSteps(weights, every=2, outer=PLAIN, session=session) as local:

        def sync() -> None:
            for _ in range(2):
                inner.step(weights)
                local.step()

        sync()
        saved, at_1 = server.jobs["job"].saved(), global_weights(server)
        sync()
        server.jobs["job"].go_back(saved)
        with caplog.at_level(logging.WARNING, "optd"):
            sync()
        assert_equal(weights, at_1)
        assert "what worker w0 has computed in 2 local steps is lost (the server went back" in caplog.text
        assert local.version == local.last.version.version == 1
        assert local.last.dropped == "the server no longer has the weights that it was computed on"
        sync()
        assert not local.last.dropped
        assert_equal(global_weights(server), weights)


def test_a_difference_that_waits_while_the_worker_begins_again_is_not_sent(monkeypatch):
    """The first fragment learns that the server went back, and the second one is in the queue behind it."""
    server, weights = FakeServer(), {name: np.zeros(2) for name in "ab"}
    goes = threading.Event()
    options = {"every": 4, "fragments": 2, "delay": 3, "alpha": 0, "outer": PLAIN}
    with opened(server) as session, optd.LocalSteps(weights, session=session, **options) as local:

        def steps(count: int) -> None:
            for _ in range(count):
                for name in weights:
                    weights[name] += 1
                local.step()

        steps(1)
        local.sync()
        saved = server.jobs["job"].saved()
        steps(1)
        local.sync()
        server.jobs["job"].go_back(saved)
        outer = local._worker.outer
        exchange = outer.exchange
        monkeypatch.setattr(
            outer, "exchange", lambda parcel: (parcel.fragment == 0 or goes.wait(30)) and exchange(parcel)
        )
        steps(4)
        waiting = local._worker.fragments[1].answer
        steps(1)
        assert [list(array) for array in weights.values()] == [[1, 1], [1, 1]], "it has begun again"
        with opened(server, "w1") as other:
            counting = optd.LocalSteps({name: np.zeros(2) for name in "ab"}, every=1, outer=PLAIN, session=other)
            while counting.version < 4:  # else the server sees that the difference is one to a later version
                counting.step()
        goes.set()
        wait([waiting])
        assert [list(array) for array in session.pull().values()] == [[1, 1], [1, 1]]
        steps(1)
        local.sync()
        assert [list(array) for array in session.pull().values()] == [[2, 2], [2, 2]]
        assert [list(array) for array in weights.values()] == [[2, 2], [2, 2]]


def test_weights_that_another_worker_has_moved_come_with_each_sync():
    server = FakeServer()
    ours, theirs = {"w": np.zeros(2)}, {"w": np.zeros(2)}
    with opened(server) as one, opened(server, "w1") as two:
        first = optd.LocalSteps(ours, every=2, outer=PLAIN, session=one)
        second = optd.LocalSteps(theirs, every=1, outer=PLAIN, session=two)
        theirs["w"] += 1
        second.step()
        ours["w"] += 0.5
        first.step()
        assert list(ours["w"]) == [0.5, 0.5]
        first.step()
        assert list(ours["w"]) == [1.5, 1.5]
        assert first.last.staleness == 1
        assert (first.version, second.version) == (2, 1)


# States


def trained(local: optd.LocalSteps, weights: Weights, inner: Inner, steps: int) -> None:
    for _ in range(steps):
        inner.step(weights)
        local.step()


@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("before", [2, 3, 4, 7])
def test_a_training_goes_on_from_its_state(before, delay):
    """In another session of the same worker, amid a cycle, with an answer that is not applied yet."""
    ends = []
    for stops in (False, True):
        server, weights, inner = FakeServer(), initial(), Inner(0)
        options = {"every": 3, "delay": delay, "outer": {"algorithm": "sgd", "lr": 0.5}}
        with opened(server) as session:
            local = optd.LocalSteps(weights, session=session, **options)
            trained(local, weights, inner, before)
            if not stops:
                trained(local, weights, inner, 5)
                local.close()
                ends.append((weights, global_weights(server)))
                continue
            state, kept = local.state_dict(), {name: array.copy() for name, array in weights.items()}
        weights = initial()
        with opened(server) as session, optd.LocalSteps(weights, session=session, **options) as local:
            for name, array in kept.items():
                weights[name][...] = array
            assert local.load_state_dict(state)
            trained(local, weights, inner, 5)
            local.close()
            ends.append((weights, global_weights(server)))
    for one, other in zip(*ends, strict=True):
        assert_equal(one, other)


def test_what_counts_already_does_not_count_again(caplog):
    """The state is older than the last push of the worker: it begins anew from the job's weights."""
    server, weights, inner = FakeServer(), initial(), Inner(0)
    with opened(server) as session:
        local = optd.LocalSteps(weights, every=3, outer=PLAIN, session=session)
        trained(local, weights, inner, 2)
        state = local.state_dict()
        trained(local, weights, inner, 1)
    now = global_weights(server)
    again = initial()
    with opened(server) as session, optd.LocalSteps(again, every=3, outer=PLAIN, session=session) as local:
        for name in again:
            again[name] += 1
        with caplog.at_level(logging.WARNING, "optd"):
            assert not local.load_state_dict(state)
        assert "worker w0 begins anew from the job's weights of now" in caplog.text
        assert_equal(again, now)
        assert (local.unsent, local.version) == (0, 1)
        trained(local, again, inner, 3)
        assert_equal(again, global_weights(server))


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"delay": 1}, "has delay 0, and these have 1"),
        ({"params": {"w": np.zeros(2)}}, "has parameters .*, and these have {'w': .2,.}"),
    ],
)
def test_a_state_of_another_kind_is_refused(other, says):
    with opened(FakeServer()) as session:
        state = optd.LocalSteps(initial(), every=3, session=session).state_dict()
    options = {"params": initial(), "every": 3, **other}
    with opened(FakeServer()) as session:
        local = optd.LocalSteps(**options, session=session)
        with pytest.raises(errors.InvalidRequest, match=f"the state of local steps {says}"):
            local.load_state_dict(state)

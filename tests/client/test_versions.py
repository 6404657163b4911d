"""Readers that follow a job on a real server: `min_version`, `wait`, `versions`. None of them is a worker."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from faults.processes import in_background, wait_for

import optd
from optd import errors
from optd.local import LocalServer
from optd.session.session import Session
from optd.session.versions import Listening, Versions
from optd.transport.calls.training import VersionWatch

SIZE = 4
SECONDS = 30.0


@pytest.fixture
def reader(server: LocalServer, name: str):
    with optd.connect(server.address, job=name, timeout=SECONDS) as session:
        yield session


@pytest.fixture
def trainer(server: LocalServer, name: str):
    with optd.connect(server.address, job=name, worker="trainer", timeout=SECONDS) as session:
        yield Trainer(session)


class Trainer:
    """Its weights at version n are n."""

    def __init__(self, session: Session, size: int = SIZE) -> None:
        self.optimizer = optd.SGD({"w": np.zeros(size, "f4"), "b": np.zeros(2)}, lr=1.0, session=session)
        self.gradient = {"w": np.full(size, -1.0, "f4"), "b": np.full(2, -1.0)}

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.optimizer.step(self.gradient)


def take_until(versions: Versions, last: int) -> list[int]:
    found: list[int] = []
    for version in versions:
        found.append(version)
        if version >= last:
            break
    return found


# min_version and wait


def test_a_pull_waits_for_its_version(reader: Session, trainer: Trainer):
    pulled = in_background(lambda: reader.pull(min_version=3))
    waited = in_background(lambda: reader.wait(2))
    trainer.steps(2)
    assert waited.result(SECONDS) == 2
    assert not pulled.done()
    trainer.steps(1)
    weights = pulled.result(SECONDS)
    assert weights.version == 3
    assert {name: set(array.tolist()) for name, array in weights.items()} == {"w": {3.0}, "b": {3.0}}
    assert (reader.wait(0), reader.wait(1), reader.pull(min_version=2).version) == (3, 3, 3)


def test_parts_and_averages_wait_too(server: LocalServer, name: str, reader: Session):
    with optd.connect(server.address, job=name, worker="w", averages=optd.EMA(0.5)) as session:
        trainer = Trainer(session)
        part = in_background(lambda: reader.pull(parameters="w", min_version=1))
        average = in_background(lambda: reader.pull(weights="ema", min_version=2))
        trainer.steps(1)
        assert list(part.result(SECONDS)) == ["w"]
        trainer.steps(1)
        assert average.result(SECONDS)["w"][0] == pytest.approx(reader.pull(weights="ema")["w"][0])
        assert average.result().version == 2


@pytest.mark.parametrize("ask", ["pull", "wait", "optimizer"])
def test_a_wait_in_vain_names_both_versions(server: LocalServer, name: str, ask: str):
    with optd.connect(server.address, job=name, worker="w", timeout=0.3) as session:
        trainer = Trainer(session)
        trainer.steps(1)
        what = "Pull" if ask == "pull" else "waiting for version 7"
        message = (
            rf"^{what} at \S+ took longer than 0.3 s; version 7 of job '{name}' was asked for, and it is at version 1"
        )
        with pytest.raises(errors.DeadlineExceeded, match=message):
            if ask == "pull":
                session.pull(min_version=7)
            elif ask == "wait":
                session.wait(7)
            else:
                trainer.optimizer.pull(min_version=7)
        trainer.steps(1)


@pytest.mark.parametrize("version", [-1, 1.5, True, "2", None])
def test_what_is_no_version_is_refused(reader: Session, trainer: Trainer, version: object):
    for ask in (lambda: reader.wait(version), lambda: reader.pull(min_version=version)):
        with pytest.raises(errors.InvalidRequest, match="integer of at least 0"):
            ask()


@pytest.mark.parametrize("lane", ["grpc", "shm"])
def test_an_optimizer_pulls_the_version_that_another_thread_of_its_own_makes(server: LocalServer, name: str, lane: str):
    """It holds no lock while it waits, so a step on the same session can go on."""
    with optd.connect(server.address, job=name, worker="w", lane=lane, timeout=SECONDS) as session:
        trainer = Trainer(session)
        pulled = in_background(lambda: trainer.optimizer.pull(min_version=2))
        trainer.steps(2)
        assert set(pulled.result(SECONDS)["w"].tolist()) == {2.0}


def test_a_job_that_is_deleted_ends_every_wait(server: LocalServer, name: str, reader: Session, trainer: Trainer):
    waits = [in_background(lambda: reader.wait(5)), in_background(lambda: reader.pull(min_version=5))]
    versions = reader.versions()
    assert next(versions) == 0
    optd.delete_job(name, server=server.address)
    for each in waits:
        with pytest.raises(errors.UnknownJob, match=name):
            each.result(SECONDS)
    for _ in range(2):
        with pytest.raises(errors.UnknownJob, match=name):
            next(versions)


# versions


def test_versions_begin_with_the_current_one_and_end_with_the_newest(reader: Session, trainer: Trainer):
    trainer.steps(3)
    with reader.versions() as versions:
        assert next(versions) == 3
        following = in_background(lambda: take_until(versions, 103))
        trainer.steps(100)
        found = following.result(SECONDS)
        assert found == sorted(set(found)), "each version is told once, in order"
        assert versions.newest == found[-1] == 103
    with reader.versions(known=103) as versions:
        assert versions.newest == 103
        trainer.steps(1)
        assert next(versions) == 104


def test_a_slow_reader_skips_versions(reader: Session, trainer: Trainer):
    with reader.versions() as versions:
        assert next(versions) == 0
        trainer.steps(50)
        wait_for(lambda: versions.newest == 50, "the newest version")
        assert next(versions) == 50
        trainer.steps(1)
        assert next(versions) == 51


def test_closing_ends_an_iteration_that_blocks(reader: Session, trainer: Trainer):
    versions = reader.versions()
    assert next(versions) == 0
    rest = in_background(lambda: list(versions))
    versions.close()
    assert rest.result(SECONDS) == []
    versions.close()


def test_a_stream_that_is_lost_while_it_is_closed_is_no_error(reader: Session, trainer: Trainer):
    class Lost(Listening):
        """Its thread drops the stream just after `close` has seen it."""

        @property
        def _watch(self) -> VersionWatch | None:
            found, is_closing = self.found, threading.current_thread() is not self._thread
            if is_closing and found is not None:
                self.found = None
                found.cancel()
            return found

        @_watch.setter
        def _watch(self, watch: VersionWatch | None) -> None:
            self.found = watch

    watch = lambda known: reader._transport.watch_versions(reader.job, known)  # noqa: E731
    listening = Lost(watch, lambda: None, reader.address, SECONDS, lambda _: None, None)
    assert listening.next_after(0) == (0, 1)
    listening.close()
    listening._thread.join(SECONDS)
    assert not listening.is_alive


def test_an_iterator_that_is_dropped_ends_its_call_and_its_thread(
    server: LocalServer, reader: Session, trainer: Trainer
):
    before = reader._transport.server_status(SECONDS).requests
    for _ in reader.versions():
        break
    wait_for(lambda: reader._transport.server_status(SECONDS).requests == before, "the end of the stream")
    wait_for(lambda: not any(t.name == "optd-versions" for t in threading.enumerate()), "the end of its thread")


def test_closing_the_session_ends_the_iteration(server: LocalServer, name: str, trainer: Trainer):
    session = optd.connect(server.address, job=name)
    versions = session.versions()
    assert next(versions) == 0
    rest = in_background(lambda: next(versions))
    session.close()
    with pytest.raises(errors.SessionClosed):
        rest.result(SECONDS)
    with pytest.raises(errors.SessionClosed):
        session.versions()


def test_a_job_that_does_not_exist_has_no_versions(reader: Session, name: str):
    with pytest.raises(errors.UnknownJob, match=name):
        next(reader.versions())
    with pytest.raises(errors.UnknownJob, match=name):
        reader.wait(1)


# Readers beside workers


def test_readers_are_no_workers(reader: Session, trainer: Trainer):
    with reader.versions() as versions:
        next(versions)
        reader.pull()
        reader.wait(0)
        (worker,) = reader.workers()
        assert (worker.name, reader.epoch) == ("trainer", 0)
    reader.close()
    (worker,) = trainer.optimizer.session.workers()
    assert worker.active


def test_a_reader_waits_for_no_round_and_no_round_for_it(server: LocalServer, name: str, reader: Session):
    """A sync job of one worker goes on beside readers, which hold no lease."""
    policy = optd.Sync(workers=1)
    with optd.connect(server.address, job=name, worker="w", policy=policy, timeout=SECONDS) as session:
        trainer = Trainer(session)
        waited = in_background(lambda: reader.wait(3))
        trainer.steps(3)
        assert waited.result(SECONDS) == 3


@pytest.mark.slow
def test_each_pull_of_many_readers_is_of_one_version_while_steps_go_on(server: LocalServer, name: str):
    """More readers than there are snapshots; the weights of a version are all equal to it."""
    large = 300_000
    done = threading.Event()

    def read() -> int:
        pulls, last = 0, -1
        with optd.connect(server.address, job=name, timeout=SECONDS) as session:
            while not done.is_set():
                weights = session.pull(min_version=max(last, 0))
                for parameter, array in weights.items():
                    assert (array == weights.version).all(), f"{parameter} is torn at version {weights.version}"
                assert weights.version >= last
                pulls, last = pulls + 1, weights.version
        return pulls

    with optd.connect(server.address, job=name, worker="w", lane="grpc", timeout=SECONDS) as session:
        trainer = Trainer(session, large)
        with ThreadPoolExecutor(6) as pool:
            readers = [pool.submit(read) for _ in range(6)]
            try:
                trainer.steps(60)
            finally:
                done.set()
            assert min(each.result(SECONDS) for each in readers) > 0
        assert trainer.optimizer.version == 60

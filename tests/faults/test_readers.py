"""Readers and writers side by side: a reader sees one version and stops nobody, whatever becomes of it."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from contract.plain import Plain, frame, group, header, job_spec, refusal_of, refused
from faults.processes import SECONDS, in_background, wait_for
from faults.proxy import Proxy

import optd
from optd.local import LocalServer, local
from optd_wire.v1 import job_service_pb2, state_service_pb2, training_service_pb2

IDLE = 1.0
# A connection that takes no more than it must: what its reader does not ask for stays with the server.
NARROW = [("grpc.http2.lookahead_bytes", 65536), ("grpc.http2.bdp_probe", 0)]
LARGE = 4 << 20


@pytest.fixture(scope="module")
def impatient() -> Iterator[LocalServer]:
    """A server that gives up a reader after a second."""
    with local("--idle-seconds", str(IDLE)) as running:
        yield running


@pytest.fixture
def stubs(impatient: LocalServer) -> Iterator[Plain]:
    with Plain(impatient.address) as made:
        yield made


def create(plain: Plain, name: str, *counts: int, **more: Any) -> None:
    """A group a count, all zeros, lr 1."""
    groups = [group(f"g{index}", {f"w{index}": ((count,), "float32")}) for index, count in enumerate(counts)]
    frames = [
        frame(np.zeros(min(1 << 20, count - at), "f4"), group=index, offset=at)
        for index, count in enumerate(counts)
        for at in range(0, count, 1 << 20)
    ]
    plain.create(job_spec(name, groups, lr=1.0, **more), frames)


def ones(*counts: int) -> list[Any]:
    return [
        frame(np.ones(min(1 << 20, count - at), "f4"), group=index, offset=at)
        for index, count in enumerate(counts)
        for at in range(0, count, 1 << 20)
    ]


def begin_to_read(plain: Plain, name: str) -> Any:
    """A pull whose first message has been taken, and no other."""
    stream = plain.training.Pull(training_service_pb2.PullRequest(job=name), timeout=4 * SECONDS)
    next(stream)
    return stream


@pytest.mark.slow
def test_24_slow_readers_of_different_versions_do_not_stop_steps(impatient: LocalServer, stubs: Plain, name: str):
    """More of them than there are snapshots; each holds its version until the server gives it up."""
    create(stubs, name, LARGE)
    epoch = stubs.join(name)
    with Plain(impatient.address, options=NARROW) as slow:
        readers = []
        for sequence in range(1, 7):
            readers.append(begin_to_read(slow, name))
            began = time.monotonic()
            result = stubs.push(header(name, "w0", epoch, sequence), ones(LARGE), timeout=SECONDS)
            assert result.version.version == sequence
            assert time.monotonic() - began < IDLE + 5
        with refused("STALLED", f"{IDLE:g} s"):
            list(readers[0])
    # Whoever reads gets the whole of what he began with, or an error: here it is the last version.
    assert (stubs.weights(name)["w0"] == -6).all()


@pytest.mark.slow
def test_24_a_reader_on_a_slow_link_gets_one_version_and_costs_one(server: LocalServer, plain: Plain, name: str):
    """It reads without a pause, and the link carries 12 MB/s: the steps of others do not wait, nor does memory grow."""
    create(plain, name, LARGE)
    epoch = plain.join(name)
    with Proxy(server.address) as proxy:
        proxy.throttle(down=12e6)
        with Plain(proxy.address, options=NARROW) as slow:
            reader = begin_to_read(slow, name)
            rest = in_background(lambda: list(reader))
            for sequence in (1, 2, 3):  # after these, all memory that the job may use has been used
                plain.push(header(name, "w0", epoch, sequence), ones(LARGE))
            before = psutil.Process(server.process.pid).memory_info().rss
            while not rest.done():
                sequence += 1
                plain.push(header(name, "w0", epoch, sequence), ones(LARGE))
            grown = psutil.Process(server.process.pid).memory_info().rss - before
            messages = rest.result(0)
    assert sequence > 8, "steps went on while it read"
    assert grown < 3 * LARGE * 4, f"{grown / 2**20:.0f} MiB in {sequence} steps"
    values = [np.frombuffer(sent.payload, "f4") for message in messages for sent in message.frames]
    assert not any(array.any() for array in values), "of the version that it began with"
    assert sum(array.size for array in values) > LARGE // 2


@pytest.mark.slow
def test_readers_that_go_away_do_not_stop_steps(impatient: LocalServer, stubs: Plain, name: str):
    create(stubs, name, LARGE)
    epoch = stubs.join(name)
    for sequence in range(1, 9):
        with Plain(impatient.address, options=NARROW) as leaving:
            reader = begin_to_read(leaving, name)
            if sequence % 2:
                reader.cancel()
        began = time.monotonic()
        stubs.push(header(name, "w0", epoch, sequence), ones(LARGE), timeout=SECONDS)
        assert time.monotonic() - began < IDLE, "nobody reads any more, so there is nothing to wait for"


def test_a_slow_reader_gets_one_version_while_steps_go_on(server: LocalServer, plain: Plain, name: str):
    """It takes its time, but not too much of it; the weights that it gets are of the version it began with."""
    create(plain, name, LARGE)
    epoch = plain.join(name)
    with Plain(server.address, options=NARROW) as slow:
        reader = slow.training.Pull(training_service_pb2.PullRequest(job=name), timeout=SECONDS)
        messages = [next(reader)]
        for sequence in (1, 2):
            plain.push(header(name, "w0", epoch, sequence), ones(LARGE))
            messages.append(next(reader))
        messages += list(reader)
    assert messages[0].result.version.version == 0
    values = [np.frombuffer(sent.payload, "f4") for message in messages for sent in message.frames]
    assert sum(array.size for array in values) == LARGE
    assert not any(array.any() for array in values)


def test_a_slow_reader_of_rows_gets_one_version_while_steps_go_on(server: LocalServer, plain: Plain, name: str):
    create(plain, name, LARGE)
    epoch = plain.join(name)
    ids = np.arange(500_000, dtype="<u8")
    with Plain(server.address, options=NARROW) as slow:
        request = training_service_pb2.PullRowsRequest(job=name, parameter="w0", ids=ids.tobytes())
        reader = slow.training.PullRows(request, timeout=SECONDS)
        messages = [next(reader)]
        for sequence in (1, 2):
            plain.push(header(name, "w0", epoch, sequence), ones(LARGE))
            messages.append(next(reader))
        messages += list(reader)
    assert messages[0].version.version == 0
    assert not any(message.HasField("version") for message in messages[1:])
    told = [rows for message in messages for rows in message.rows]
    assert b"".join(rows.ids for rows in told) == ids.tobytes()
    assert not any(np.frombuffer(rows.payload, "f4").any() for rows in told)


@pytest.mark.slow
def test_24_slow_readers_of_rows_do_not_stop_steps(impatient: LocalServer, stubs: Plain, name: str):
    create(stubs, name, LARGE)
    epoch = stubs.join(name)
    ids = np.arange(1_000_000, dtype="<u8").tobytes()
    with Plain(impatient.address, options=NARROW) as slow:
        readers = []
        for sequence in range(1, 6):
            request = training_service_pb2.PullRowsRequest(job=name, parameter="w0", ids=ids)
            readers.append(slow.training.PullRows(request, timeout=SECONDS))
            next(readers[-1])
            began = time.monotonic()
            stubs.push(header(name, "w0", epoch, sequence), ones(LARGE), timeout=SECONDS)
            assert time.monotonic() - began < IDLE + 5
        with refused("STALLED", f"{IDLE:g} s"):
            list(readers[0])


@pytest.mark.slow
def test_24_a_slow_reader_of_state_is_given_up_and_its_copy_freed(impatient: LocalServer, stubs: Plain, name: str):
    create(stubs, name, LARGE)
    planned = stubs.status().planned_bytes
    with Plain(impatient.address, options=NARROW) as slow:
        request = state_service_pb2.ReadStateRequest(job=name, fields=["weights"])
        reader = slow.state.ReadState(request, timeout=SECONDS)
        next(reader)
        next(reader)
        assert stubs.status().planned_bytes > planned
        wait_for(lambda: stubs.status().planned_bytes == planned, "the copy is given up")
        with refused("STALLED"):
            list(reader)


def test_pulls_are_never_torn(server: LocalServer, name: str):
    """Every weight of the job is minus its version, at any version: three groups that are pulled and pushed by
    several threads at once."""
    counts = (120_000, 5_000, 40_000)
    with ExitStack() as stack:
        plain = stack.enter_context(Plain(server.address))
        create(plain, name, *counts)
        done = threading.Event()
        seen: list[set[int]] = []

        def read(rpc: str) -> int:
            """Pulls until all is pushed; returns how many times."""
            connection = stack.enter_context(Plain(server.address))
            versions: set[int] = set()
            seen.append(versions)
            pulls = 0
            while not done.is_set():
                if rpc == "Pull":
                    result, frames = connection.pull(name)
                else:
                    result, frames = connection.read_state(name, "weights")
                version = result.version.version
                for sent in frames:
                    found = np.frombuffer(sent.payload, "f4")
                    assert (found == -version).all(), f"{set(found.tolist())} at version {version}"
                assert sum(sent.count for sent in frames) == sum(counts)
                versions.add(version)
                pulls += 1
            return pulls

        def write(worker: str, epoch: int) -> None:
            connection = stack.enter_context(Plain(server.address))
            for sequence in range(1, 31):
                pushed, frames = connection.step(header(name, worker, epoch, sequence), ones(*counts))
                found = {float(value) for sent in frames for value in np.unique(np.frombuffer(sent.payload, "f4"))}
                assert len(found) == 1
                assert -found.pop() >= pushed.applied_version

        epochs = {worker: plain.join(name, worker) for worker in ("a", "b")}
        readers = [in_background(lambda rpc=rpc: read(rpc)) for rpc in ("Pull", "Pull", "ReadState")]
        writers = [in_background(lambda w=w, e=e: write(w, e)) for w, e in epochs.items()]
        for writer in writers:
            writer.result(4 * SECONDS)
        done.set()
        assert all(reader.result(SECONDS) > 0 for reader in readers)
        assert plain.info(name).version.version == 60
        assert max(len(versions) for versions in seen) > 5, "the readers should see versions come and go"


def test_our_client_is_never_torn_either(server: LocalServer, plain: Plain, name: str):
    """Two workers step, and each finds arrays of one version after every step."""
    shapes = [(300, 100), (7,), (50, 50)]

    def train(worker: str) -> None:
        weights = [np.zeros(shape, "f4") for shape in shapes]
        with optd.connect(server.address, job=name, worker=worker, timeout=SECONDS) as session:
            optimizer = optd.SGD(weights, lr=1.0, session=session)
            for _ in range(40):
                optimizer.step([np.ones(shape, "f4") for shape in shapes])
                assert {float(value) for array in weights for value in np.unique(array)} == {-session.version}

    for training in [in_background(lambda w=w: train(w)) for w in ("a", "b")]:
        training.result(4 * SECONDS)
    assert plain.info(name).version.version == 80


# Deletion


def create_round(plain: Plain, name: str, workers: int = 2) -> None:
    spec = job_spec(name, [group("g", {"w": ((4,), "float32")})], lr=1.0, workers=workers)
    plain.create(spec, [frame(np.zeros(4, "f4"))])


def test_deleting_a_job_answers_the_push_that_waits(server: LocalServer, plain: Plain, name: str):
    create_round(plain, name)
    plainly = in_background(lambda: plain.push(header(name, "a", plain.join(name, "a"), 1), [], timeout=SECONDS))
    wait_for(lambda: plain.list_workers(name).get("a") is not None, "it has joined")
    wait_for(lambda: plain.list_workers(name)["a"].waiting, "it waits")
    plain.delete(name)
    error = refusal_of(plainly.exception(SECONDS))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_JOB")
    assert name not in plain.job_names()


def test_deleting_a_job_answers_our_client(server: LocalServer, plain: Plain, name: str):
    policy = optd.Sync(workers=2)
    weights = np.zeros(4, "f4")
    with optd.connect(server.address, job=name, worker="a", policy=policy, timeout=SECONDS) as session:
        optimizer = optd.SGD([weights], session=session)
        stepping = in_background(lambda: optimizer.step([np.ones(4, "f4")]))
        wait_for(lambda: plain.list_workers(name)["a"].waiting, "it waits")
        plain.delete(name)
        with pytest.raises(optd.errors.UnknownJob, match=name):
            stepping.result(SECONDS)
        with pytest.raises(optd.errors.UnknownJob, match=name):
            optimizer.pull()
    assert weights.tolist() == [0] * 4


def test_deleting_a_job_answers_pushes_that_wait_and_those_on_their_way(server: LocalServer, plain: Plain, name: str):
    create_round(plain, name)
    heads = {worker: header(name, worker, plain.join(name, worker), 1) for worker in ("a", "b")}
    end = threading.Event()

    def unfinished() -> Iterator[training_service_pb2.PushRequest]:
        yield training_service_pb2.PushRequest(header=heads["b"])
        end.wait(SECONDS)
        yield training_service_pb2.PushRequest(last=True)

    waiting = in_background(lambda: plain.push(heads["a"], [], timeout=SECONDS))
    wait_for(lambda: plain.list_workers(name)["a"].waiting, "one waits in the round")
    on_its_way = plain.training.Push.future(unfinished(), timeout=SECONDS)
    wait_for(lambda: plain.list_workers(name)["b"].waiting, "one is on its way")
    plain.delete(name)
    assert refusal_of(waiting.exception(SECONDS)).reason == "UNKNOWN_JOB"
    assert refusal_of(on_its_way.exception(SECONDS)).reason == "UNKNOWN_JOB", "it learns so before its end"
    end.set()
    wait_for(lambda: plain.status().requests == 1, "nothing is left of them")


def test_a_job_that_takes_a_deleted_ones_name_keeps_its_memory(server: LocalServer, plain: Plain, name: str):
    """A deletion waits for the step that runs. Whatever it frees at its end is the old job's."""
    create(plain, name, LARGE)
    epoch = plain.join(name)
    with ExitStack() as stack:
        slow = stack.enter_context(Plain(server.address, options=NARROW))
        readers = []
        for sequence in (1, 2):
            readers.append(begin_to_read(slow, name))
            plain.push(header(name, "w0", epoch, sequence), ones(LARGE), timeout=SECONDS)
        # Both older snapshots are being read, so this step waits, and the deletion for it.
        blocked = in_background(lambda: plain.push(header(name, "w0", epoch, 3), ones(LARGE), timeout=SECONDS))
        wait_for(lambda: step_waits(plain, name), "the third step waits for a reader")
        deleting = plain.jobs.DeleteJob.future(job_service_pb2.DeleteJobRequest(job=name), timeout=SECONDS)
        wait_for(lambda: name not in plain.job_names(), "the name is free")
        create(plain, name, 1000)
        planned = plain.summary(name).planned_bytes
        assert planned >= 4 * 1000
        for reader in readers:
            reader.cancel()
        assert deleting.result(SECONDS).job.elements == LARGE
        blocked.exception(SECONDS)
        assert plain.summary(name).planned_bytes == planned
        assert plain.status().planned_bytes == sum(job.planned_bytes for job in plain.summaries())


def step_waits(plain: Plain, name: str) -> bool:
    """Whether the job is in a step: what has to be read between two steps is not answered then."""
    try:
        list(plain.state.ReadState(state_service_pb2.ReadStateRequest(job=name, fields=["gradient"]), timeout=0.3))
    except grpc.RpcError as error:
        return refusal_of(error).code is grpc.StatusCode.DEADLINE_EXCEEDED
    return False


def test_deleting_a_job_that_is_read_lets_the_reader_finish(server: LocalServer, plain: Plain, name: str):
    create(plain, name, LARGE)
    with Plain(server.address, options=NARROW) as slow:
        reader = begin_to_read(slow, name)
        plain.delete(name)
        rest = sum(sent.count for message in reader for sent in message.frames)
    assert rest == LARGE


def test_an_upload_into_a_job_that_is_deleted_is_refused(plain: Plain, name: str):
    create_round(plain, name, workers=1)
    head = header(name, "a", plain.join(name, "a"), 1)

    def requests() -> Iterator[training_service_pb2.PushRequest]:
        yield training_service_pb2.PushRequest(header=head)
        wait_for(lambda: plain.status().requests == 2, "the upload has begun")
        plain.delete(name)
        yield training_service_pb2.PushRequest(frames=[frame(np.ones(4, "f4"))], last=True)

    with refused("UNKNOWN_JOB", name):
        plain.training.Push(requests(), timeout=SECONDS)

"""What the server keeps within, whatever it is sent: messages, memory, requests, streams, and its temper."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from contract.plain import (
    ALL_RPCS,
    ENCODED,
    OWN_RPCS,
    SECONDS,
    Plain,
    Refusal,
    call,
    ending,
    frame,
    group,
    header,
    job_spec,
    push_requests,
    refusal_of,
    refused,
)
from google.protobuf.descriptor import MethodDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import optd
from optd.errors import MemoryExceeded, MessageTooLarge, TooManyRequests
from optd.local import LocalServer, local
from optd_wire.v1 import (
    inspection_service_pb2,
    job_pb2,
    job_service_pb2,
    option_pb2,
    state_service_pb2,
    tensor_pb2,
    training_service_pb2,
    worker_service_pb2,
)

MIB = 1 << 20
CREATE, ADD_GROUP, PUSH, STEP, WRITE_STATE = (
    next(method for method in OWN_RPCS if method.name == name)
    for name in ("CreateJob", "AddGroup", "Push", "Step", "WriteState")
)

every_own_rpc = pytest.mark.parametrize(
    "method", OWN_RPCS, ids=lambda method: method.full_name.removeprefix("optd.v1.")
)


def peak_memory(server: LocalServer) -> int:
    """The most bytes that the server has been resident with."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@contextmanager
def grows_by_less_than(server: LocalServer, most: int) -> Iterator[None]:
    # The peak from here on: 5 sets it back to what is resident now (man 5 proc).
    with suppress(PermissionError):
        Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
    before = peak_memory(server)
    yield
    grown = peak_memory(server) - before
    assert grown < most, f"the server's memory has grown by {grown / MIB:.1f} MiB"


def create_small(plain: Plain, name: str, **more: Any) -> None:
    """A job of 2 x 100 elements, all 1."""
    groups = [group("a", {"w": ((100,), "float32")}), group("b", {"v": ((100,), "float64")})]
    plain.create(job_spec(name, groups, lr=1.0, **more), [frame(np.ones(100, "f4")), frame(np.ones(100), group=1)])


def outcome_of(channel: grpc.Channel, method: MethodDescriptor, *requests: bytes, **more: Any) -> Refusal:
    try:
        call(channel, method, *requests, **more)
    except grpc.RpcError as error:
        return refusal_of(error)
    return Refusal(grpc.StatusCode.OK, "", {}, "")


def varint(value: int) -> bytes:
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])


def delimited(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


# Messages


@pytest.fixture(scope="module")
def narrow() -> Iterator[LocalServer]:
    """A server that takes messages of 64 KiB at most."""
    with local("--max-message-bytes", "65536") as running:
        yield running


@pytest.mark.slow
@every_own_rpc
def test_a_message_beyond_the_limit_is_refused(narrow: LocalServer, method: MethodDescriptor):
    with Plain(narrow.address) as plain:
        found = outcome_of(plain.channel, method, bytes(100_000))
    assert found.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in found.text
    assert "65536" in found.text


@pytest.mark.parametrize("method", [PUSH, CREATE, STEP], ids=lambda method: method.name)
def test_29_a_message_far_beyond_the_limit_takes_no_memory(narrow: LocalServer, method: MethodDescriptor):
    with Plain(narrow.address) as plain, grows_by_less_than(narrow, 10 * MIB):
        found = outcome_of(plain.channel, method, bytes(64 * MIB))
    assert found.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_the_limit_is_where_it_is_said_to_be(narrow: LocalServer, name: str):
    with Plain(narrow.address) as plain:
        plain.create(job_spec(name, [group("g", {"w": ((40_000,), "float32")})]), weights_in_pieces(40_000))
        epoch = plain.join(name)
        head = training_service_pb2.PushRequest(header=header(name, "w0", epoch, 1))
        room = 65536 - len(head.SerializeToString())
        most = (room - len(delimited(15, frame(np.ones(16_000, "f4")).SerializeToString()[:60]))) // 4
        head.frames.append(frame(np.ones(most, "f4")))
        assert 65000 < len(head.SerializeToString()) <= 65536
        with refused("INCOMPLETE_PARAMETER", f"{most} of its 40000"):
            plain.training.Push(ending([head]), timeout=SECONDS)


def weights_in_pieces(count: int, size: int = 8_000) -> list[tensor_pb2.Frame]:
    return [frame(np.zeros(min(size, count - at), "f4"), offset=at) for at in range(0, count, size)]


def test_our_client_raises_message_too_large(narrow: LocalServer, name: str):
    """What cannot be cut into several messages: the list of a job's parameters."""
    many = {f"{index:05}." + "x" * 100: np.zeros(1, "f4") for index in range(1000)}
    with optd.connect(narrow.address, job=name) as session:
        with pytest.raises(MessageTooLarge, match="65536") as caught:
            optd.SGD(many, session=session)
        assert "--max-message-bytes" in str(caught.value)
    with Plain(narrow.address) as plain:
        assert name not in plain.job_names()


def test_weights_of_any_size_pass_any_limit(narrow: LocalServer, name: str):
    """Frames can be cut, so our client cuts them to what the server accepts."""
    weights = np.zeros(50_000, "f4")
    with optd.connect(narrow.address, job=name) as session:
        optimizer = optd.SGD([weights], lr=1.0, session=session)
        optimizer.step([np.ones(50_000, "f4")])
    assert (weights == -1).all()


@pytest.mark.parametrize("method", ALL_RPCS, ids=lambda method: method.full_name.removeprefix("optd.v1."))
def test_30_gzip_is_refused(server: LocalServer, plain: Plain, method: MethodDescriptor):
    """8 MiB of zeros that travel as a few KiB."""
    with grows_by_less_than(server, 10 * MIB):
        found = outcome_of(plain.channel, method, bytes(8 * MIB), compression=grpc.Compression.Gzip)
    assert found.code is grpc.StatusCode.UNIMPLEMENTED
    assert plain.healthy()


def test_an_upload_in_many_messages_is_bounded_by_its_job_not_by_its_length(
    server: LocalServer, plain: Plain, name: str
):
    """A stream without end of frames that are sent twice is cut off at the first repeat."""
    create_small(plain, name)
    epoch = plain.join(name)
    sent = 0

    def endless() -> Iterator[training_service_pb2.PushRequest]:
        nonlocal sent
        yield training_service_pb2.PushRequest(header=header(name, "w0", epoch, 1))
        while True:
            sent += 1
            yield training_service_pb2.PushRequest(frames=[frame(np.ones(100, "f4"))])

    with refused("FRAME_OVERLAP", "'w'"):
        plain.training.Push(endless(), timeout=SECONDS)
    assert sent < 100_000


# Declared sizes


@pytest.mark.parametrize(
    ("count", "encoding"),
    [(1 << 62, 1), (1 << 61, 2), (2**64 - 1, 1), (1 << 40, 1), (2**32, 2)],
)
def test_28_a_frame_that_declares_more_than_it_holds_is_refused(
    server: LocalServer, plain: Plain, name: str, count: int, encoding: int
):
    create_small(plain, name)
    before = plain.everything(name)
    lie = tensor_pb2.Frame(count=count, encoding=encoding, payload=bytes(8))
    head = header(name, "w0", plain.join(name), 1)
    with grows_by_less_than(server, 10 * MIB):
        with refused("FRAME_LENGTH", count):
            plain.push(head, [lie])
        with refused("FRAME_LENGTH", count):
            plain.create(job_spec(name + ".new", [group("g", {"w": ((2,), "float32")})]), [lie])
    plain.push(head, [])
    assert plain.everything(name)["weights"] == before["weights"]
    assert name + ".new" not in plain.job_names()


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((1 << 40,), "MEMORY_EXCEEDED"),
        ((1 << 20, 1 << 20), "MEMORY_EXCEEDED"),
        ((2**64 - 1,), "INVALID_SHAPE"),
        ((2**63, 2), "INVALID_SHAPE"),
        ((2**32,) * 64, "INVALID_SHAPE"),
        ((1,) * 65, "INVALID_SHAPE"),
        ((0, 2**64 - 1), "INVALID_SHAPE"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_28_a_shape_that_no_memory_holds_is_refused_before_anything_is_allocated(
    server: LocalServer, plain: Plain, name: str, shape: tuple[int, ...], reason: str
):
    """The last one has no element, but no array can have its shape either."""
    planned = plain.status().planned_bytes
    with grows_by_less_than(server, 10 * MIB), refused(reason):
        plain.create(job_spec(name, [group("g", {"w": (shape, "float32")})]), [])
    assert plain.status().planned_bytes == planned
    assert name not in plain.job_names()


# Memory


LIMIT = 8 * MIB


@pytest.fixture(scope="module")
def poor() -> Iterator[LocalServer]:
    """A server that may plan 8 MiB."""
    with local("--max-memory-bytes", str(LIMIT)) as running:
        yield running


@pytest.fixture
def poor_plain(poor: LocalServer) -> Iterator[Plain]:
    """Stubs, and no job at the end."""
    with Plain(poor.address) as stubs:
        yield stubs
        for job in stubs.job_names():
            stubs.delete(job)
        assert stubs.status().planned_bytes == 0


@pytest.mark.slow
def test_39_a_job_beyond_the_memory_is_refused_and_leaves_nothing(poor: LocalServer, poor_plain: Plain, name: str):
    weights = np.zeros(MIB, "f4")
    with optd.connect(poor.address, job=name) as session:
        with pytest.raises(MemoryExceeded) as caught:
            optd.Adam([weights], session=session)
        assert all(part in str(caught.value) for part in (str(LIMIT), "--max-memory-bytes", name))
    assert poor_plain.job_names() == []
    assert poor_plain.status().planned_bytes == 0
    with optd.connect(poor.address, job=name) as session:
        optd.Adam([weights[:1000].copy()], session=session).step([np.ones(1000, "f4")])


@pytest.mark.slow
def test_39_all_jobs_together_stay_within_the_memory(poor_plain: Plain, name: str):
    made = 0
    with pytest.raises(grpc.RpcError) as caught:
        for made in range(1000):
            spec = job_spec(f"{name}.{made}", [group("g", {"w": ((50_000,), "float32")})])
            poor_plain.create(spec, [frame(np.zeros(50_000, "f4"))])
    assert refusal_of(caught.value).reason == "MEMORY_EXCEEDED"
    jobs = poor_plain.summaries()
    assert len(jobs) == made > 1
    assert poor_plain.status().planned_bytes == sum(job.planned_bytes for job in jobs) <= LIMIT


@pytest.mark.slow
def test_39_uploads_count_while_they_go_on(poor_plain: Plain, name: str):
    release = threading.Event()

    def slow() -> Iterator[job_service_pb2.CreateJobRequest]:
        spec = job_spec(name, [group("g", {"w": ((200_000,), "float32")})])
        yield job_service_pb2.CreateJobRequest(spec=spec)
        release.wait(SECONDS)
        yield job_service_pb2.CreateJobRequest(frames=[frame(np.zeros(200_000, "f4"))], last=True)

    creating = poor_plain.jobs.CreateJob.future(slow(), timeout=SECONDS)
    wait_for(lambda: poor_plain.status().planned_bytes > LIMIT // 2)
    with refused("MEMORY_EXCEEDED", name + ".second"):
        poor_plain.create(job_spec(name + ".second", [group("g", {"w": ((200_000,), "float32")})]), [])
    release.set()
    assert creating.result().job.name == name


@pytest.mark.slow
@pytest.mark.parametrize("grow", ["group", "option", "push", "state"])
def test_39_a_job_does_not_grow_beyond_the_memory(poor_plain: Plain, name: str, grow: str):
    """By a group, or by a state that a change of options brings along, alone or with a push."""
    count = next(
        count for count in range(300_000, 0, -10_000) if poor_plain_bytes(count) <= LIMIT < poor_plain_bytes(count, 1)
    )
    plain = poor_plain
    plain.create(job_spec(name, [group("g", {"w": ((count,), "float32")})]), [frame(np.ones(count, "f4"))])
    epoch = plain.join(name)
    before = outside_of(plain, name)
    with refused("MEMORY_EXCEEDED", LIMIT):
        match grow:
            case "group":
                added = group("h", {"v": ((count,), "float32")})
                plain.jobs.AddGroup(ending([job_service_pb2.AddGroupRequest(job=name, group=added)]), timeout=SECONDS)
            case "option":
                plain.update_group(name, "g", momentum=0.9)
            case "push":
                head = header(name, "w0", epoch, 1)
                head.updates.add(group="g").options["momentum"].number = 0.9
                plain.push(head, [frame(np.ones(count, "f4"))])
            case "state":
                head = state_service_pb2.WriteStateHeader(job=name, worker="w0", epoch=epoch)
                plain.state.WriteState(ending([state_service_pb2.WriteStateRequest(header=head)]), timeout=SECONDS)
    assert outside_of(plain, name) == before
    assert plain.push(header(name, "w0", epoch, 1), [frame(np.ones(count, "f4"))]).version.version == 1


def outside_of(plain: Plain, name: str) -> list[Any]:
    """What a job is, without a copy of its state, which would take memory too."""
    summary = plain.summary(name)
    weights = [sent.SerializeToString() for sent in plain.pull(name)[1]]
    return [plain.info(name), weights, summary.planned_bytes, summary.pushes, plain.list_workers(name)["w0"].sequence]


def poor_plain_bytes(count: int, state: int = 0) -> int:
    """What an asynchronous SGD job of float32 is planned with: three snapshots, four gradients, its state."""
    return count * 4 * (7 + state)


def test_state_that_is_written_counts(plain: Plain, name: str):
    """A job without momentum that is given a momentum buffer has one more array for every element."""
    create_small(plain, name)
    create_small(plain, name + ".momentum", momentum=0.9)
    head = state_service_pb2.WriteStateHeader(job=name, worker="w0", epoch=plain.join(name))
    for index in (0, 1):
        head.groups.add(group=index, steps=[1]).entries.add(field="momentum_buffer", present=[True])
    frames = [frame(np.ones(100, "f4"), field="momentum_buffer"), frame(np.ones(100), group=1, field="momentum_buffer")]
    requests = [state_service_pb2.WriteStateRequest(header=head), state_service_pb2.WriteStateRequest(frames=frames)]
    plain.state.WriteState(ending(requests), timeout=SECONDS)
    assert plain.summary(name).planned_bytes == plain.summary(name + ".momentum").planned_bytes


# Bytes in flight


@pytest.fixture(scope="module")
def tight() -> Iterator[LocalServer]:
    """A server that holds 1 MiB of requests at a time, and lets nothing stand still for more than a second."""
    with local("--max-inflight-bytes", str(MIB), "--idle-seconds", "1") as running:
        yield running


def push_all(server: LocalServer, name: str, count: int, workers: list[str], messages: int) -> list[int]:
    """Pushes of all workers at once, each over a connection of its own; returns the versions they became part of."""
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(len(workers)))
        connections = [stack.enter_context(Plain(server.address)) for _ in workers]
        heads = [header(name, worker, connections[0].join(name, worker), 1) for worker in workers]
        size = count // messages
        frames = [frame(np.ones(size, "f4"), offset=index * size) for index in range(messages)]
        pushes = [pool.submit(plain.push, head, frames) for plain, head in zip(connections, heads, strict=True)]
        return sorted(push.result().applied_version for push in pushes)


@pytest.mark.slow
def test_pushes_of_more_bytes_than_are_held_wait_for_one_another(tight: LocalServer, name: str):
    """Twelve times 1.6 MiB, in messages of 400 KiB: more pushes than a job has room for, too."""
    count = 400_000
    with Plain(tight.address) as plain:
        spec = job_spec(name, [group("g", {"w": ((count,), "float32")})], lr=1.0)
        plain.create(spec, weights_in_pieces(count, 100_000))
        versions = push_all(tight, name, count, [f"w{index}" for index in range(12)], messages=4)
        assert versions == list(range(1, 13))
        assert (plain.weights(name)["w"] == -12).all()


@pytest.mark.slow
def test_a_round_of_more_bytes_than_are_held_comes_about(tight: LocalServer, name: str):
    """A push that waits for its round has been received: its bytes are no longer in flight."""
    count = 100_000
    with Plain(tight.address) as plain:
        spec = job_spec(name, [group("g", {"w": ((count,), "float32")})], lr=1.0, workers=6)
        plain.create(spec, weights_in_pieces(count, 100_000))
        assert push_all(tight, name, count, [f"w{index}" for index in range(6)], messages=1) == [1] * 6
        assert (plain.weights(name)["w"] == -1).all()


# Requests and streams


@dataclass
class Watches:
    """Calls that last: watchers of a job, each read in a thread of its own."""

    plain: Plain
    job: str
    began: "queue.Queue[Any]" = field(default_factory=queue.Queue)
    calls: list[Any] = field(default_factory=list)

    def open(self) -> None:
        request = inspection_service_pb2.WatchJobRequest(job=self.job, interval_ms=60_000)
        stream = self.plain.inspection.WatchJob(request, timeout=30)
        self.calls.append(stream)
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def _read(self, stream: Any) -> None:
        with suppress(grpc.RpcError):
            next(stream)
            self.began.put(stream)
            next(stream)

    def close(self) -> None:
        for stream in self.calls:
            stream.cancel()


@contextmanager
def watching(plain: Plain, job: str) -> Iterator[Watches]:
    watches = Watches(plain, job)
    try:
        yield watches
    finally:
        watches.close()


def wait_for(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def busy() -> Iterator[LocalServer]:
    """A server that answers 4 requests at a time, on a connection 3."""
    with local("--max-requests", "4", "--max-streams", "3") as running:
        yield running


@pytest.mark.slow
def test_38_requests_beyond_the_limit_are_refused_and_health_still_answers(busy: LocalServer, name: str):
    with ExitStack() as stack:
        plain, second = (stack.enter_context(Plain(busy.address)) for _ in range(2))
        create_small(plain, name)
        epoch = plain.join(name)
        watches = [stack.enter_context(watching(stubs, name)) for stubs in (plain, plain, second, second)]
        for watch in watches:
            watch.open()
            watch.began.get(timeout=SECONDS)
        with Plain(busy.address) as third:
            with refused("TOO_MANY_REQUESTS", "4 requests", "--max-requests"):
                third.info(name)
            with pytest.raises(TooManyRequests, match="4"):
                optd.connect(busy.address, job=name, connect_timeout=1)
            assert all(third.healthy() for _ in range(10))
            # Nor does a worker lose its lease because others have taken all calls.
            renewal = worker_service_pb2.RenewLeaseRequest(job=name, worker="w0", epoch=epoch)
            third.workers.RenewLease(renewal, timeout=SECONDS)
            watches[0].close()
            wait_for(lambda: reason_of(lambda: third.info(name)) is None)
            optd.connect(busy.address, job=name).close()


@pytest.mark.slow
def test_38_health_answers_while_all_threads_compute(name: str):
    """Steps that take long, as many as there are threads and more; none of them ends before health has answered."""
    side, jobs = 700, 3
    matrix = frame(np.ones(side * side, "f4"))
    with local("--threads", "1", "--kernels", "numpy") as running, Plain(running.address) as plain:
        heads = []
        for index in range(jobs):
            job = f"{name}.{index}"
            spec = job_spec(job, [group("g", {"w": ((side, side), "float32")})], algorithm="muon")
            plain.create(spec, [matrix])
            heads.append(header(job, "w0", plain.join(job), 1))
        with ThreadPoolExecutor(jobs) as pool:
            steps = [pool.submit(plain.push, head, [matrix], timeout=60) for head in heads]
            answers = 0
            while not any(step.done() for step in steps):
                assert plain.healthy()
                answers += 1
            assert [step.result().applied_version for step in steps] == [1] * jobs
        assert answers > 1


def reason_of(function: Callable[[], object]) -> str | None:
    try:
        function()
    except grpc.RpcError as error:
        return refusal_of(error).reason
    return None


@pytest.mark.slow
def test_37_streams_of_one_connection_wait_for_one_another(busy: LocalServer, name: str):
    """The fourth call of a connection waits until one of the three ends; other connections do not notice."""
    with Plain(busy.address) as plain, Plain(busy.address) as other:
        create_small(plain, name)
        with watching(plain, name) as watches:
            for _ in range(6):
                watches.open()
            running = [watches.began.get(timeout=SECONDS) for _ in range(3)]
            # Six calls were sent; the server has three of them, and this one.
            assert [other.status().requests for _ in range(20)] == [4] * 20
            assert watches.began.empty()
            running[0].cancel()
            watches.began.get(timeout=SECONDS)
            assert watches.began.empty()


# What is no message


@every_own_rpc
@pytest.mark.parametrize(
    "garbage",
    [b"\xff" * 8, b"\x0a\xff\xff\xff\x7f", b"\x0b", b"\x0a", bytes(range(1, 200)), b"\x7a\x05abc", b"\x00"],
    ids=["ones", "long string", "group", "cut", "counting", "cut frame", "zero"],
)
def test_32_garbage_is_refused_as_malformed(plain: Plain, method: MethodDescriptor, garbage: bytes):
    found = outcome_of(plain.channel, method, garbage)
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")
    assert method.input_type.name in found.text
    assert plain.healthy()


FINE = {
    "FRAME_LENGTH",
    "FRAME_OUT_OF_RANGE",
    "FRAME_OVERLAP",
    "DTYPE_MISMATCH",
    "EMPTY_GROUP",
    "INCOMPLETE_PARAMETER",
    "INVALID_NAME",
    "INVALID_REQUEST",
    "MALFORMED_MESSAGE",
    "NONFINITE_GRADIENT",
    "SEQUENCE_GAP",
    "UNKNOWN_ALGORITHM",
    "UNKNOWN_FIELD",
    "UNKNOWN_GROUP",
    "UNKNOWN_JOB",
    "UNKNOWN_WORKER",
}

with_a_server = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@every_own_rpc
def test_32_random_bytes_are_refused_with_a_reason(plain: Plain, method: MethodDescriptor):
    @given(st.lists(st.binary(max_size=40), min_size=1, max_size=3))
    @settings(parent=with_a_server, max_examples=15)
    def are_refused(requests: list[bytes]) -> None:
        found = outcome_of(plain.channel, method, *requests)
        assert found.code is grpc.StatusCode.OK or found.reason in FINE, found

    are_refused()
    assert plain.healthy()


numbers = st.one_of(st.integers(0, 130), st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64 - 1]))
wild_frames = st.builds(
    tensor_pb2.Frame,
    group=st.integers(0, 3) | st.just(2**32 - 1),
    offset=numbers,
    count=numbers,
    encoding=st.integers(0, 7),
    field=st.sampled_from(["", "", "", "weights", "gradient", "momentum_buffer", "step", "\0"]),
    payload=st.binary(max_size=64),
)


@st.composite
def nearly_right_frames(draw: st.DrawFn) -> tensor_pb2.Frame:
    """A payload as long as it should be, so that it is looked at more closely; never a whole parameter."""
    sent = draw(wild_frames)
    if sent.encoding in ENCODED:
        sent.count = len(sent.payload) // ENCODED[sent.encoding].itemsize
        sent.payload = sent.payload[: sent.count * ENCODED[sent.encoding].itemsize]
    return sent


frame_lists = st.lists(st.one_of(wild_frames, nearly_right_frames()), max_size=6)


@dataclass
class Target:
    """A job that random frames are thrown at, and how it looked before."""

    plain: Plain
    name: str
    epoch: int
    before: list[bytes]
    sequence: int = 1

    def weights(self) -> list[bytes]:
        return [sent.SerializeToString() for sent in self.plain.pull(self.name)[1]]


@pytest.fixture
def target(plain: Plain, name: str) -> Target:
    create_small(plain, name)
    made = Target(plain, name, plain.join(name), [])
    made.before = made.weights()
    return made


@given(frame_lists, st.booleans())
@with_a_server
def test_27_random_frames_change_no_weight(target: Target, frames: list[tensor_pb2.Frame], stepping: bool):
    """None of them covers a parameter. Frames that touch none at all are a push without gradients, and a step."""
    head = header(target.name, "w0", target.epoch, target.sequence)
    try:
        if stepping:
            target.plain.step(head, frames)
        else:
            target.plain.push(head, frames)
        target.sequence += 1
    except grpc.RpcError as error:
        assert refusal_of(error).reason in FINE, refusal_of(error)
    assert target.weights() == target.before


@pytest.mark.slow
@given(frame_lists, st.sampled_from([CREATE, ADD_GROUP, WRITE_STATE]))
@settings(parent=with_a_server, max_examples=40)
def test_27_random_frames_make_no_job_no_group_and_no_state(
    target: Target, frames: list[tensor_pb2.Frame], method: MethodDescriptor
):
    before = target.plain.everything(target.name)
    fresh = group("fresh", {"x": ((100,), "float32")})
    match method.name:
        case "CreateJob":
            first = job_service_pb2.CreateJobRequest(spec=job_spec(target.name + ".new", [fresh]))
            following = job_service_pb2.CreateJobRequest(frames=frames, last=True)
        case "AddGroup":
            first = job_service_pb2.AddGroupRequest(job=target.name, group=fresh)
            following = job_service_pb2.AddGroupRequest(frames=frames, last=True)
        case _:
            head = state_service_pb2.WriteStateHeader(job=target.name, worker="w0", epoch=target.epoch)
            first = state_service_pb2.WriteStateRequest(header=head)
            following = state_service_pb2.WriteStateRequest(frames=frames, last=True)
    found = outcome_of(target.plain.channel, method, first.SerializeToString(), following.SerializeToString())
    after = target.plain.everything(target.name)
    if found.code is grpc.StatusCode.OK:
        # A write of nothing: it counts as a revision.
        assert method is WRITE_STATE
        after["info"].version.CopyFrom(before["info"].version)
        after["state"].version.CopyFrom(before["state"].version)
    else:
        assert found.reason in FINE, found
    assert after == before


# Messages that cost more to read than to send


HOSTILE = 1 << 17


def hostile_spec(content: bytes) -> bytes:
    return delimited(1, job_pb2.JobSpec(name="hostile", algorithm="sgd").SerializeToString() + content)


def hostile_messages(name: str, epoch: int) -> dict[str, tuple[MethodDescriptor, bytes]]:
    """Messages of at most 512 KiB with 131,072 parts, each of a few bytes."""
    head = header(name, "w0", epoch, 1)
    pushed = training_service_pb2.PushRequest(header=head).SerializeToString()
    empty_frame = delimited(15, tensor_pb2.Frame(encoding=1).SerializeToString())
    unnamed = job_pb2.GroupSpec(name="g").SerializeToString() + delimited(3, b"") * HOSTILE
    return {
        "frames": (PUSH, pushed + b"\x10\x01" + empty_frame * HOSTILE),
        "frames of a step": (STEP, pushed + b"\x10\x01" + empty_frame * HOSTILE),
        "updates": (PUSH, pushed + delimited(1, delimited(6, b"") * HOSTILE)),
        "groups": (CREATE, hostile_spec(delimited(4, b"") * HOSTILE)),
        "parameters": (CREATE, hostile_spec(delimited(4, unnamed))),
    }


@pytest.mark.parametrize("kind", ["frames", "frames of a step", "updates", "groups", "parameters"])
def test_38_health_answers_while_a_message_of_very_many_parts_is_read(server: LocalServer, name: str, kind: str):
    """And reading it takes memory in proportion."""
    with Plain(server.address) as plain, Plain(server.address) as other:
        create_small(plain, name)
        method, message = hostile_messages(name, plain.join(name))[kind]
        assert len(message) <= MIB
        answered: list[Refusal] = []
        attack = threading.Thread(
            target=lambda: answered.append(outcome_of(plain.channel, method, message, timeout=60))
        )
        longest = 0.0
        with grows_by_less_than(server, 32 * MIB):
            attack.start()
            while attack.is_alive():
                began = time.perf_counter()
                assert other.healthy()
                longest = max(longest, time.perf_counter() - began)
        assert longest < 1, f"health took {longest:.1f} s to answer"
        assert answered[0].code is grpc.StatusCode.OK or answered[0].reason


LONG = 100_000


@pytest.mark.parametrize("length", [2_000, 9_000, LONG])
@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("option", "UNKNOWN_OPTION"),
        ("algorithm", "UNKNOWN_ALGORITHM"),
        ("attached group", "JOB_MISMATCH"),
        ("attached parameter", "JOB_MISMATCH"),
        ("attached algorithm", "JOB_MISMATCH"),
        ("text", "INVALID_OPTION"),
        ("job", "UNKNOWN_JOB"),
        ("group", "UNKNOWN_GROUP"),
        ("field", "UNKNOWN_FIELD"),
        ("frame field", "INVALID_REQUEST"),
        ("worker", "UNKNOWN_WORKER"),
        ("new job", "INVALID_NAME"),
        ("new group", "INVALID_NAME"),
    ],
)
def test_what_is_too_long_to_repeat_is_a_clear_error_too(plain: Plain, name: str, where: str, reason: str, length: int):
    """An error travels in the trailers of a call, and clients refuse trailers of more than 8 KiB."""
    create_small(plain, name)
    long = "x" * length
    other = {
        "attached group": job_spec(name, [group(long, {"w": ((100,), "float32")})] * 2),
        "attached parameter": job_spec(name, [group("a", {long: ((100,), "float32")})] * 2),
        "attached algorithm": job_spec(name, [], algorithm=long),
    }
    with refused(reason):
        match where:
            case "option":
                plain.update_group(name, "a", **{long: 1.0})
            case "algorithm":
                plain.create(job_spec(name + ".new", [], algorithm=long), [])
            case "text":
                plain.update_group(name, "a", lr=long)
            case "job":
                plain.info(long)
            case "group":
                plain.update_group(name, long, lr=1.0)
            case "field":
                plain.read_state(name, long)
            case "frame field":
                plain.push(header(name, "w0", plain.join(name), 1), [frame(np.ones(1, "f4"), field=long)])
            case "worker":
                plain.push(header(name, long, 1, 1), [])
            case "new job":
                plain.create(job_spec(long, []), [])
            case "new group":
                plain.create(job_spec(name + ".new", [group(long, {"w": ((1,), "float32")})]), [])
            case _:
                plain.join(name, "w1", spec=other[where])


def test_a_job_of_many_groups_has_clear_errors_too(server: LocalServer, name: str):
    """200 layers, each a group of its own, are nothing special; a misspelt name is answered as in a small job."""
    groups = [
        {"name": f"encoder.layer.{index}.attention", "params": {f"encoder.layer.{index}.weight": np.zeros(1, "f4")}}
        for index in range(200)
    ]
    with optd.connect(server.address, job=name) as session:
        optd.SGD(groups, session=session)
        with pytest.raises(optd.errors.UnknownGroup, match=r"encoder\.layer\.200\.attention"):
            session.parameters("encoder.layer.200.attention")


def test_a_push_may_carry_many_frames(plain: Plain, name: str):
    """The bound that hostile messages need leaves room for honest ones: 4096 parameters, every other one pushed."""
    shapes = {f"p{index}": ((3,), "float32") for index in range(4096)}
    plain.create(job_spec(name, [group("g", shapes)], lr=1.0), [frame(np.zeros(3 * 4096, "f4"))])
    head = header(name, "w0", plain.join(name), 1)
    frames = [frame(np.ones(3, "f4"), offset=6 * index) for index in range(2048)]
    requests = push_requests(head, frames[:1])[:1]
    requests[0].frames.extend(frames)
    plain.training.Push(ending(requests), timeout=SECONDS)
    found = plain.weights(name)
    assert all((found[f"p{index}"] == (-1 if index % 2 == 0 else 0)).all() for index in range(4096))


def test_option_maps_may_not_be_longer_than_the_schema(plain: Plain, name: str):
    create_small(plain, name)
    update = option_pb2.GroupUpdate(group="a")
    for index in range(10_000):
        update.options[f"option{index}"].number = 1.0
    with refused("UNKNOWN_OPTION", "sgd", "option"):
        plain.jobs.UpdateGroup(job_service_pb2.UpdateGroupRequest(job=name, update=update), timeout=SECONDS)

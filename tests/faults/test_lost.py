"""Connections that break, before, in and after a push: each push counts once or not at all, and never in part.

What the server ends with is compared, bit by bit, with a model that replays the pushes in numpy.
"""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import numpy as np
import pytest
from contract.plain import (
    OWN_RPCS,
    Plain,
    ending,
    frame,
    group,
    header,
    job_spec,
    push_requests,
    refused,
)
from faults.processes import SECONDS, in_background, wait_for
from faults.proxy import Proxy

import optd
from optd.errors import DeadlineExceeded, StaleEpoch, Unreachable
from optd.local import LocalServer, local
from optd_wire.v1 import (
    checkpoint_service_pb2,
    job_service_pb2,
    state_service_pb2,
    training_service_pb2,
)

SIZE = 5


@pytest.fixture
def proxy(server: LocalServer) -> Iterator[Proxy]:
    with Proxy(server.address) as running:
        yield running


class Model:
    """SGD with momentum, as torch defines it, on float32; a step takes one gradient, or the mean of a round."""

    def __init__(self, lr: float = 0.5, momentum: float = 0.5, size: int = SIZE) -> None:
        self.lr, self.momentum = np.float32(lr), np.float32(momentum)
        self.weights = np.zeros(size, "f4")
        self.buffer: np.ndarray | None = None

    def step(self, *gradients: np.ndarray) -> None:
        gradient = sum(gradients[1:], start=gradients[0].copy()) / np.float32(len(gradients))
        self.buffer = gradient if self.buffer is None else self.buffer * self.momentum + gradient
        self.weights = self.weights - self.lr * self.buffer


def gradient(worker: int, step: int, size: int = SIZE) -> np.ndarray:
    """Numbers of few bits, so that sums are exact in whatever order."""
    return (np.arange(size) % 7 + 1 + 10 * worker + step).astype("f4")


def open_worker(
    stack: ExitStack, address: str, job: str, worker: str, policy: Any = None, size: int = SIZE, **more: Any
) -> tuple[optd.Optimizer, np.ndarray]:
    weights = np.zeros(size, "f4")
    # What is lost here is lost on the wire.
    session = optd.connect(address, job=job, worker=worker, policy=policy, lane="grpc", **{"timeout": SECONDS, **more})
    stack.enter_context(session)
    return optd.SGD([weights], lr=0.5, momentum=0.5, session=session), weights


# An answer that is lost


@pytest.mark.parametrize("act", ["push", "step"])
def test_13_a_push_whose_answer_is_lost_is_applied_once(proxy: Proxy, plain: Plain, name: str, act: str):
    model = Model()
    with ExitStack() as stack:
        optimizer, weights = open_worker(stack, proxy.address, name, "w0")
        for step, losses in enumerate([1, 0, 2]):
            proxy.lose_answers(losses)
            cuts = proxy.cuts
            result = getattr(optimizer, act)([gradient(0, step)])
            model.step(gradient(0, step))
            assert proxy.cuts == cuts + losses
            assert (result.repeat, result.applied_version) == (losses > 0, step + 1)
        if act == "push":
            optimizer.pull()
    assert weights.tobytes() == model.weights.tobytes()
    assert plain.info(name).version.version == 3
    assert plain.list_workers(name)["w0"].pushes == 3
    assert plain.summary(name).rejections == 0


def test_13_rows_whose_answer_is_lost_count_once_and_come_back_all_the_same(
    proxy: Proxy, server: LocalServer, name: str
):
    """The answer that arrives in the end has what has changed since the weights that the worker has."""
    expected = np.zeros((20_000, 3), "f4")
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(optd.connect(address, job=name, worker=worker, lane="grpc", timeout=SECONDS))
            for worker, address in (("w0", proxy.address), ("w1", server.address))
        ]
        tables = [expected.copy() for _ in sessions]
        mine, other = (
            optd.SGD([table], lr=0.5, session=session) for table, session in zip(tables, sessions, strict=True)
        )
        for step, losses in enumerate([1, 0, 2]):
            ids = np.array([step, 100 + step, step])
            rows = gradient(0, step, 9).reshape(3, 3)
            other.push([(ids[1:2], rows[:1])])
            proxy.lose_answers(losses)
            result = mine.step([(ids, rows)])
            assert (result.repeat, result.applied_version) == (losses > 0, 2 * step + 2)
            expected[ids[1]] -= np.float32(0.5) * rows[0]
            for number, row in zip(ids, rows, strict=True):
                expected[number] -= np.float32(0.5) * row
            assert tables[0].tobytes() == expected.tobytes()
        assert not tables[1].any()


@pytest.mark.parametrize(
    ("act", "lossy"), [("step", 0), ("push", 1)], ids=["the first loses a step", "the last loses a push"]
)
def test_13_a_round_in_which_an_answer_is_lost_is_applied_once(
    server: LocalServer, proxy: Proxy, plain: Plain, name: str, act: str, lossy: int
):
    model = Model()
    addresses = [server.address, server.address]
    addresses[lossy] = proxy.address
    with ExitStack() as stack:
        workers = [open_worker(stack, a, name, f"w{i}", optd.Sync(workers=2)) for i, a in enumerate(addresses)]
        for step, losses in enumerate([1, 0, 1]):
            proxy.lose_answers(losses)
            first = in_background(lambda s=step: getattr(workers[0][0], act)([gradient(0, s)]))
            wait_for(lambda: plain.list_workers(name)["w0"].waiting, "the first push waits for the second")
            getattr(workers[1][0], act)([gradient(1, step)])
            assert first.result(SECONDS).applied_version == step + 1
            model.step(gradient(0, step), gradient(1, step))
        for optimizer, weights in workers:
            optimizer.pull()
            assert weights.tobytes() == model.weights.tobytes()
    assert plain.info(name).version.version == 3
    assert proxy.cuts == 2


def test_a_push_that_waits_for_its_round_survives_its_connection(
    server: LocalServer, proxy: Proxy, plain: Plain, name: str
):
    """The wire is cut while the push waits; sent again, it is found waiting."""
    model = Model()
    with ExitStack() as stack:
        optimizer, weights = open_worker(stack, proxy.address, name, "w0", optd.Sync(workers=2))
        other, _ = open_worker(stack, server.address, name, "w1", optd.Sync(workers=2))
        stepping = in_background(lambda: optimizer.step([gradient(0, 0)]))
        wait_for(lambda: plain.list_workers(name)["w0"].waiting, "the push waits")
        proxy.cut_all()
        wait_for(lambda: plain.status().requests == 2, "it has been sent again, and waits for the first")
        other.step([gradient(1, 0)])
        assert stepping.result(SECONDS).applied_version == 1
    model.step(gradient(0, 0), gradient(1, 0))
    assert weights.tobytes() == model.weights.tobytes()
    assert plain.info(name).version.version == 1


# A request that breaks off

HALF = [frame(np.ones(4, "f4"))]
WHOLE = [frame(np.ones(4, "f4")), frame(np.ones(4, "f4"), offset=4)]


def create_two(plain: Plain, name: str) -> int:
    """A job of two parameters, all zeros; returns the epoch of the worker `w0`."""
    spec = job_spec(name, [group("g", {"w": ((4,), "float32"), "v": ((4,), "float32")})], lr=1.0)
    plain.create(spec, [frame(np.zeros(8, "f4"))])
    return plain.join(name)


def breaking(requests: Sequence[Any], sent: threading.Event) -> Iterator[Any]:
    """A stream that is about to break after these messages."""
    yield from requests
    sent.set()
    threading.Event().wait(SECONDS)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cancelled", "connection closed", "deadline"])
@pytest.mark.parametrize("rpc", ["Push", "Step", "WriteState", "CreateJob", "AddGroup", "RestoreJob"])
def test_an_upload_that_breaks_off_changes_nothing(server: LocalServer, plain: Plain, name: str, rpc: str, how: str):
    """A stream that breaks is not a stream that ends: half of a gradient must not become a step."""
    epoch = create_two(plain, name)
    before = plain.everything(name)
    requests = half_of(plain, rpc, name, epoch)
    with Plain(server.address) as broken:
        sent = threading.Event()
        stub = getattr(broken, SERVICES[rpc])
        stream = breaking(requests, sent)
        timeout = 0.3 if how == "deadline" else SECONDS
        if rpc == "Step":
            calling = broken.training.Step(stream, timeout=timeout)
        else:
            calling = getattr(stub, rpc).future(stream, timeout=timeout)
        assert sent.wait(SECONDS)
        wait_for(lambda: plain.status().requests == 2, "the upload has begun")
        match how:
            case "cancelled":
                calling.cancel()
            case "connection closed":
                broken.channel.close()
            case "deadline":
                assert calling.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_for(lambda: plain.status().requests == 1, "the server has noticed")
        assert plain.everything(name) == before
    # It is not known either: sent again, whole, it counts.
    result = plain.push(header(name, "w0", epoch, 1), WHOLE)
    assert (result.repeat, result.version.version) == (False, 1)
    assert {n: a.tolist() for n, a in plain.weights(name).items()} == {"w": [-1] * 4, "v": [-1] * 4}


SERVICES = {
    "Push": "training",
    "Step": "training",
    "WriteState": "state",
    "CreateJob": "jobs",
    "AddGroup": "jobs",
    "RestoreJob": "checkpoints",
}


def half_of(plain: Plain, rpc: str, name: str, epoch: int) -> list[Any]:
    head = header(name, "w0", epoch, 1)
    match rpc:
        case "Push":
            first = training_service_pb2.PushRequest(header=head)
            return [first, training_service_pb2.PushRequest(frames=HALF)]
        case "Step":
            return [training_service_pb2.StepRequest(header=head, frames=HALF)]
        case "WriteState":
            state = state_service_pb2.WriteStateHeader(job=name, worker="w0", epoch=epoch)
            first = state_service_pb2.WriteStateRequest(header=state)
            return [first, state_service_pb2.WriteStateRequest(frames=HALF)]
        case "CreateJob":
            return whole_of("CreateJob", name)
        case "RestoreJob":
            return restore_requests(plain, name)
        case _:
            return whole_of("AddGroup", name)


def restore_requests(plain: Plain, name: str) -> list[Any]:
    """All files of a checkpoint of the job, for another one; only the end of the stream is missing."""
    read = plain.checkpoints.ReadCheckpoint(checkpoint_service_pb2.ReadCheckpointRequest(job=name))
    files = [(each.file, each.data) for each in read if each.file]
    first = checkpoint_service_pb2.RestoreJobRequest(job=name + ".new")
    return [
        first,
        *(checkpoint_service_pb2.RestoreJobRequest(file=file, data=data) for file, data in sorted(files)),
    ]


def whole_of(rpc: str, name: str) -> list[Any]:
    """All that a new job or group needs; only the end of the stream is missing."""
    fresh = group("fresh", {"x": ((4,), "float32")})
    if rpc == "CreateJob":
        spec = job_spec(name + ".new", [fresh])
        return [job_service_pb2.CreateJobRequest(spec=spec), job_service_pb2.CreateJobRequest(frames=HALF)]
    weights = [frame(np.ones(4, "f4"), group=1)]
    return [
        job_service_pb2.AddGroupRequest(job=name, group=fresh),
        job_service_pb2.AddGroupRequest(frames=weights),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "count"), [("push", 1 << 18), ("step", 100_000)], ids=["between two parameters", "within a parameter"]
)
def test_13_a_push_that_is_cut_in_mid_upload_is_sent_again_whole(
    proxy: Proxy, plain: Plain, name: str, act: str, count: int
):
    """A gradient of several messages of 1 MiB, cut at different places of them."""
    model = Model(size=4 * count)
    with ExitStack() as stack:
        weights = [np.zeros(count, "f4") for _ in range(4)]
        session = stack.enter_context(optd.connect(proxy.address, job=name, worker="w0", lane="grpc", timeout=SECONDS))
        optimizer = optd.SGD(weights, lr=0.5, momentum=0.5, session=session)
        cuts = [
            lambda: proxy.cut_upload(1_000),
            lambda: proxy.cut_upload(1_300_000),
            lambda: proxy.cut_between(1),
        ]
        for step, cut in enumerate(cuts):
            pushed = gradient(0, step, 4 * count)
            cut()
            result = getattr(optimizer, act)(np.split(pushed, 4))
            model.step(pushed)
            assert (result.applied_version, result.repeat) == (step + 1, False)
        optimizer.pull()
    assert proxy.cuts == 3
    assert plain.info(name).version.version == 3
    assert np.concatenate(weights).tobytes() == model.weights.tobytes()


# The same push again


def test_14_the_same_push_at_the_same_time_is_applied_once(server: LocalServer, plain: Plain, name: str):
    """Over eight connections at once, large enough to be under way together."""
    count = 300_000
    plain.create(job_spec(name, [group("g", {"w": ((count,), "float32")})], lr=1.0), [frame(np.zeros(count, "f4"))])
    epoch = plain.join(name)
    with ExitStack() as stack:
        connections = [stack.enter_context(Plain(server.address)) for _ in range(8)]
        pool = stack.enter_context(ThreadPoolExecutor(8))
        for sequence in (1, 2, 3):
            together = threading.Barrier(8)
            requests = push_requests(header(name, "w0", epoch, sequence), [frame(np.ones(count, "f4"))])

            def push(connection: Plain, together: Any = together, requests: Any = requests) -> Any:
                together.wait(SECONDS)
                return connection.training.Push(ending(requests), timeout=SECONDS).result

            results = list(pool.map(push, connections))
            assert sorted(result.repeat for result in results) == [False] + [True] * 7
            for result in results:
                result.repeat = False
            assert all(result == results[0] for result in results)
    assert plain.info(name).version.version == 3
    assert (plain.weights(name)["w"] == -3).all()


def test_14_the_same_push_at_the_same_time_waits_for_its_round_together(server: LocalServer, plain: Plain, name: str):
    spec = job_spec(name, [group("g", {"w": ((4,), "float32")})], lr=1.0, workers=2)
    plain.create(spec, [frame(np.zeros(4, "f4"))])
    first, second = plain.join(name, "a"), plain.join(name, "b")
    ones = [frame(np.ones(4, "f4"))]
    waiting = [in_background(lambda: plain.push(header(name, "a", first, 1), ones)) for _ in range(3)]
    wait_for(lambda: plain.status().requests == 4, "all three wait")
    wait_for(lambda: plain.list_workers(name)["a"].waiting, "one of them is in the round")
    plain.push(header(name, "b", second, 1), [frame(np.full(4, 3, "f4"))])
    assert sorted(future.result(SECONDS).repeat for future in waiting) == [False, True, True]
    assert plain.weights(name)["w"].tolist() == [-2] * 4


def test_17_a_repeat_of_an_older_push_and_a_gap_are_refused(plain: Plain, name: str):
    epoch = create_two(plain, name)
    for sequence in (1, 2, 3):
        plain.push(header(name, "w0", epoch, sequence), WHOLE)
    before = plain.everything(name)
    for sequence in (1, 2, 5, 100):
        with refused("SEQUENCE_GAP", f"pushes sequence {sequence}; its last one was 3, so the next is 4"):
            plain.push(header(name, "w0", epoch, sequence), WHOLE)
        with refused("SEQUENCE_GAP", f"sequence {sequence}"):
            plain.step(header(name, "w0", epoch, sequence), WHOLE)
    assert plain.push(header(name, "w0", epoch, 3), WHOLE).repeat
    assert plain.step(header(name, "w0", epoch, 3), WHOLE)[0].repeat
    assert plain.everything(name) == before


def test_a_push_beside_another_one_of_its_worker_is_refused(plain: Plain, name: str):
    """While a push waits for its round, the worker has no other."""
    spec = job_spec(name, [group("g", {"w": ((4,), "float32")})], lr=1.0, workers=2)
    plain.create(spec, [frame(np.zeros(4, "f4"))])
    first, second = plain.join(name, "a"), plain.join(name, "b")
    waiting = in_background(lambda: plain.push(header(name, "a", first, 1), HALF))
    wait_for(lambda: plain.list_workers(name)["a"].waiting, "the first push waits")
    with refused("PUSH_PENDING", "'a'", "sequence 1"):
        plain.push(header(name, "a", first, 2), HALF)
    plain.push(header(name, "b", second, 1), HALF)
    assert waiting.result(SECONDS).version.version == 1


# Pushes whose fate is in doubt


def test_a_round_that_came_too_late_leaves_later_steps_right(server: LocalServer, plain: Plain, name: str):
    """The deadline passes while the push waits. The next step is another push, and the old one is not in it."""
    model = Model()
    with ExitStack() as stack:
        policy = optd.Sync(workers=2)
        late, weights = open_worker(stack, server.address, name, "w0", policy, timeout=0.5)
        other, other_weights = open_worker(stack, server.address, name, "w1", policy)
        with pytest.raises(DeadlineExceeded):
            late.step([gradient(0, 99)])
        late.session.timeout = SECONDS
        for step in (0, 1):
            stepping = in_background(lambda s=step: late.step([gradient(0, s)]))
            wait_for(lambda: waits_under(plain, name, "w0", 2), "the new push waits, under a new epoch")
            other.step([gradient(1, step)])
            assert not stepping.result(SECONDS).repeat
            model.step(gradient(0, step), gradient(1, step))
            assert weights.tobytes() == other_weights.tobytes() == model.weights.tobytes()
    assert plain.info(name).version.version == 2


def waits_under(plain: Plain, job: str, worker: str, epoch: int) -> bool:
    found = plain.list_workers(job)[worker]
    return found.waiting and found.epoch == epoch


def test_a_push_whose_deadline_passed_is_in_no_round_that_completes_later(server: LocalServer, plain: Plain, name: str):
    """The other worker comes before the late one goes on: its round waits for the new push."""
    model = Model()
    with ExitStack() as stack:
        policy = optd.Sync(workers=2)
        late, weights = open_worker(stack, server.address, name, "w0", policy, timeout=0.5)
        other, _ = open_worker(stack, server.address, name, "w1", policy)
        with pytest.raises(DeadlineExceeded):
            late.step([gradient(0, 7)])
        late.session.timeout = SECONDS
        wait_for(lambda: not plain.list_workers(name)["w0"].waiting, "the push is taken back")
        stepping = in_background(lambda: other.step([gradient(1, 0)]))
        wait_for(lambda: plain.list_workers(name)["w1"].waiting, "the other one waits")
        late.step([gradient(0, 1)])
        stepping.result(SECONDS)
        model.step(gradient(0, 1), gradient(1, 0))
    assert weights.tobytes() == model.weights.tobytes()
    assert plain.info(name).version.version == 1


def test_a_push_that_was_applied_before_its_retry_was_refused_is_not_taken_for_the_next(
    server: LocalServer, proxy: Proxy, plain: Plain, name: str
):
    """The answer is lost, and the retry is refused for another reason than the push. The push counts, though its
    caller has seen an error; so the next one must not get its sequence number."""
    with ExitStack() as stack:
        optimizer, weights = open_worker(stack, proxy.address, name, "w0")
        model = Model()
        optimizer.step([gradient(0, 0)])
        model.step(gradient(0, 0))
        proxy.lose_answers(1, before_cut=lambda: plain.leave(name, "w0", 1))
        with pytest.raises(StaleEpoch, match="it has left"):
            optimizer.step([gradient(0, 1)])
        model.step(gradient(0, 1))
        result = optimizer.step([gradient(0, 2)])
        model.step(gradient(0, 2))
        assert not result.repeat
        assert plain.info(name).version.version == 3
        assert weights.tobytes() == model.weights.tobytes()


@pytest.mark.slow
def test_a_deadline_is_told_as_it_was_given(server: LocalServer, proxy: Proxy, name: str):
    """Not what was left of it for the last one of several attempts."""
    with ExitStack() as stack:
        optimizer, _ = open_worker(stack, proxy.address, name, "w0", optd.Sync(workers=2), timeout=0.5)
        proxy.lose_answers()
        optimizer.session.info()
        assert proxy.cuts == 1
        with pytest.raises(DeadlineExceeded) as caught:
            optimizer.step([gradient(0, 0)])
        assert all(part in str(caught.value) for part in ("Step", proxy.address, "longer than 0.5 s"))


# No server any more


@pytest.mark.slow
def test_a_server_that_is_gone_is_named_with_the_time_that_was_tried(name: str):
    with ExitStack() as stack:
        server = stack.enter_context(local())
        optimizer, weights = open_worker(stack, server.address, name, "w0", timeout=0.6)
        optimizer.step([gradient(0, 0)])
        known = weights.copy()
        server.process.kill()
        server.process.wait()
        for act in (lambda: optimizer.step([gradient(0, 1)]), optimizer.pull, optimizer.session.info):
            with pytest.raises(Unreachable) as caught:
                act()
            assert server.address in str(caught.value)
            # For as long as it was told to, not until the first pause that would have been too long.
            assert float(caught.value.values["seconds"]) == pytest.approx(0.6, abs=0.2)
        assert weights.tobytes() == known.tobytes()


@pytest.mark.slow
def test_a_server_that_comes_back_without_the_job_says_so(name: str):
    """It keeps nothing on disk; a worker of a job that is gone learns that, and does not hang."""
    with ExitStack() as stack:
        first = stack.enter_context(local())
        optimizer, _ = open_worker(stack, first.address, name, "w0")
        optimizer.step([gradient(0, 0)])
        first.process.kill()
        first.process.wait()
        stepping = in_background(lambda: optimizer.step([gradient(0, 1)]))
        stack.enter_context(local("--port", first.address.rpartition(":")[2]))
        with pytest.raises(optd.errors.JobLost, match=f"'{name}'.*--data-dir.*recreate=True"):
            stepping.result(SECONDS)


def test_every_rpc_that_uploads_is_among_those_that_break_off():
    assert {method.name for method in OWN_RPCS if method.client_streaming} == set(SERVICES)

"""Every RPC, called with generated stubs and plain protobuf alone, as a client in another language would."""

import mmap
import os
import re
import socket
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from contract.plain import (
    ALL_RPCS,
    OWN_RPCS,
    SECONDS,
    Frames,
    Plain,
    arrays,
    ending,
    frame,
    group,
    header,
    job_spec,
    option,
    options,
    push_requests,
    refused,
)
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

import optd
from optd.local import LocalServer
from optd_wire.v1 import (
    inspection_service_pb2,
    job_service_pb2,
    option_pb2,
    state_service_pb2,
    tensor_pb2,
    training_service_pb2,
    worker_service_pb2,
)

BODY = {"w": ((2, 3), "float32"), "b": ((3,), "float32")}
HEAD = {"v": ((2,), "float64"), "u": ((4,), "float32")}  # u lies before v: float32 comes first in a flat buffer

W = np.arange(6, dtype="f4")
B = np.array([10, 20, 30], "f4")
U = np.array([-1, -2, -3, -4], "f4")
V = np.array([0.5, 0.25], "f8")

INITIAL = [
    frame(np.concatenate([W, B])[:4]),
    frame(U, group=1),
    frame(np.concatenate([W, B])[4:], offset=4),
    frame(V, group=1, offset=4),
]
GRADIENT = [
    frame(np.ones(9, "f4")),
    frame(np.full(4, 2, "f4"), group=1),
    frame(np.full(2, 3, "f8"), group=1, offset=4),
]


def create(plain: Plain, name: str, *, workers: int = 0, **defaults: object) -> None:
    groups = [group("body", BODY), group("head", HEAD, lr=0.25)]
    plain.create(job_spec(name, groups, workers=workers, **{"lr": 0.5, **defaults}), INITIAL)


def assert_weights(plain: Plain, name: str, *, steps: int) -> None:
    """The weights after steps of plain SGD with `GRADIENT`."""
    found = plain.weights(name)
    assert found["w"].tolist() == (W - 0.5 * steps).reshape(2, 3).tolist()
    assert found["b"].tolist() == (B - 0.5 * steps).tolist()
    assert found["u"].tolist() == (U - 0.5 * steps).tolist()
    assert found["v"].tolist() == (V - 0.75 * steps).tolist()


# Jobs


def create_job(plain: Plain, name: str) -> None:
    spec = job_spec(name, [group("body", BODY), group("head", HEAD, lr=0.25)], momentum=0.5, workers=3)
    info = plain.create(spec, INITIAL)
    assert (info.name, info.algorithm, info.policy.sync.workers) == (name, "sgd", 3)
    assert [(g.index, g.options.group) for g in info.groups] == [(0, "body"), (1, "head")]
    assert [(p.name, tuple(p.shape), p.offset) for p in info.groups[1].parameters] == [("v", (2,), 4), ("u", (4,), 0)]
    assert info.groups[0].options.options["lr"].number == 1e-3
    assert info.groups[1].options.options["lr"].number == 0.25
    assert all(g.options.options["momentum"].number == 0.5 for g in info.groups)
    assert_weights(plain, name, steps=0)


def get_job(plain: Plain, name: str) -> None:
    create(plain, name)
    info = plain.info(name)
    assert info.defaults["lr"].number == 0.5
    assert info.policy.WhichOneof("kind") == "async"
    assert info.version.version == 0
    with refused("UNKNOWN_JOB", "nobody"):
        plain.info("nobody")


def list_jobs(plain: Plain, name: str) -> None:
    create(plain, name)
    create(plain, name + ".a")
    jobs = plain.summaries()
    assert [job.name for job in jobs] == sorted(job.name for job in jobs)
    ours = next(job for job in jobs if job.name == name)
    assert (ours.groups, ours.parameters, ours.elements, ours.workers) == (2, 4, 15, 0)
    assert ours.planned_bytes > 15 * 4


def delete_job(plain: Plain, name: str) -> None:
    create(plain, name)
    assert plain.delete(name).job.elements == 15
    assert name not in plain.job_names()
    with refused("UNKNOWN_JOB", name):
        plain.pull(name)


def add_group(plain: Plain, name: str) -> None:
    create(plain, name)
    added = group("tail", {"t": ((2,), "float32")}, lr=0.125)
    requests = [
        job_service_pb2.AddGroupRequest(job=name, group=added),
        job_service_pb2.AddGroupRequest(frames=[frame(np.array([7, 8], "f4"), group=2)]),
    ]
    answer = plain.jobs.AddGroup(ending(requests), timeout=SECONDS)
    assert (answer.created, answer.group.index, answer.version.version) == (True, 2, 0)
    assert answer.group.options.options["lr"].number == 0.125
    again = plain.jobs.AddGroup(ending(requests), timeout=SECONDS)
    assert (again.created, again.group) == (False, answer.group)
    assert plain.weights(name)["t"].tolist() == [7, 8]


def update_group(plain: Plain, name: str) -> None:
    create(plain, name)
    answer = plain.update_group(name, "body", lr=0.125)
    assert answer.options.options["lr"].number == 0.125
    assert (answer.options.revision, answer.version.revision, answer.version.version) == (1, 1, 0)
    update = option_pb2.GroupUpdate(group="body", options=options({"lr": 3.0}), expected_revision=0)
    with refused("OPTION_CONFLICT", "body", "lr", "0.125", "3.0"):
        plain.jobs.UpdateGroup(job_service_pb2.UpdateGroupRequest(job=name, update=update), timeout=SECONDS)
    assert plain.info(name).groups[0].options.options["lr"].number == 0.125


def update_job(plain: Plain, name: str) -> None:
    create(plain, name)
    request = job_service_pb2.UpdateJobRequest(job=name, options=options({"clip_norm": 0.5}), expected_revision=0)
    answer = plain.jobs.UpdateJob(request, timeout=SECONDS)
    assert answer.options.options["clip_norm"].number == 0.5
    assert (answer.options.revision, answer.version.revision, answer.version.version) == (1, 1, 0)
    request.options["clip_norm"].number = 0.25
    with refused("JOB_OPTION_CONFLICT", name, "clip_norm", "0.25", "0.5"):
        plain.jobs.UpdateJob(request, timeout=SECONDS)
    assert plain.info(name).options == answer.options
    request.options["clip_norm"].number = -1
    with refused("OPTION_OUT_OF_RANGE", "job", "clip_norm", "-1"):
        plain.jobs.UpdateJob(request, timeout=SECONDS)


# Workers


def join(plain: Plain, name: str) -> None:
    create(plain, name)
    answer = plain.workers.Join(worker_service_pb2.JoinRequest(job=name, worker="w0"), timeout=SECONDS)
    assert (answer.epoch, answer.job.name) == (1, name)
    assert answer.lease_ms == 30_000
    assert answer.max_message_bytes == plain.status().limits.max_message_bytes
    (shard,) = answer.shards
    assert shard.address == ""
    assert [(r.group, r.offset, r.count) for r in shard.ranges] == [(0, 0, 9), (1, 0, 6)]
    assert plain.join(name, "w0") == 2


def renew_lease(plain: Plain, name: str) -> None:
    create(plain, name)
    plain.join(name)
    request = worker_service_pb2.RenewLeaseRequest(job=name, worker="w0", epoch=1)
    assert plain.workers.RenewLease(request, timeout=SECONDS).lease_ms == 30_000
    plain.join(name)
    with refused("STALE_EPOCH", "w0", name):
        plain.workers.RenewLease(request, timeout=SECONDS)


def leave(plain: Plain, name: str) -> None:
    create(plain, name)
    plain.leave(name, "w0", plain.join(name))
    assert not plain.list_workers(name)["w0"].active
    with refused("STALE_EPOCH", "it has left"):
        plain.push(header(name, "w0", 1, 1), GRADIENT)


def list_workers(plain: Plain, name: str) -> None:
    create(plain, name)
    plain.push(header(name, "b", plain.join(name, "b"), 1), GRADIENT)
    plain.join(name, "a")
    workers = plain.list_workers(name)
    assert list(workers) == ["a", "b"]
    assert (workers["a"].pushes, workers["a"].sequence) == (0, 0)
    assert (workers["b"].pushes, workers["b"].sequence, workers["b"].lane) == (1, 1, "grpc")
    assert workers["a"].active
    assert 0 < workers["a"].lease_remaining_ms <= 30_000


def open_shared_memory(plain: Plain, name: str) -> None:
    """A step whose numbers lie in shared memory, from its descriptors on."""
    create(plain, name)
    epoch = plain.join(name)
    who = {"job": name, "worker": "w0", "epoch": epoch}
    opened = plain.workers.OpenSharedMemory(worker_service_pb2.OpenSharedMemoryRequest(**who), timeout=SECONDS)
    places = {(s.range.group, s.range.offset): s.byte_offset for s in opened.extents[0].segments}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(opened.path)
        connection.sendall(opened.ticket)
        memory = mapped(connection, opened.extents[0].bytes)
        proof = worker_service_pb2.ConfirmSharedMemoryRequest(**who, token=bytes(memory[:32]))
        plain.workers.ConfirmSharedMemory(proof, timeout=SECONDS)
        assert plain.list_workers(name)["w0"].lane == "shm"
        for sent in GRADIENT:
            first = places[sent.group, sent.offset]
            memory[first : first + len(sent.payload)] = sent.payload
        shared = training_service_pb2.SharedGradient(
            ranges=[tensor_pb2.FlatRange(group=s.group, offset=s.offset, count=s.count) for s in GRADIENT]
        )
        head = header(name, "w0", epoch, 1)
        head.shared.CopyFrom(shared)
        wanted = training_service_pb2.Delivery(shared=True)
        step = training_service_pb2.StepRequest(header=head, last=True, delivery=wanted)
        (answer,) = plain.training.Step(iter([step]), timeout=SECONDS)
        assert (answer.last, answer.pushed.applied_version, len(answer.frames)) == (True, 1, 0)
        (region,) = answer.pulled.shared.regions
        connection.sendall(str(region).encode())
        weights = mapped(connection, opened.extents[0].bytes)
        _, frames = plain.pull(name)
        for told in frames:
            first = places[told.group, told.offset]
            assert weights[first : first + len(told.payload)] == told.payload
    assert_weights(plain, name, steps=1)


def mapped(connection: socket.socket, size: int) -> mmap.mmap:
    """The memory of the one descriptor that comes next."""
    _, (descriptor,), _, _ = socket.recv_fds(connection, 64, 1)
    try:
        try:
            return mmap.mmap(descriptor, size)  # the gradient's is for both to write to
        except PermissionError:
            return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)


def confirm_shared_memory(plain: Plain, name: str) -> None:
    create(plain, name)
    who = {"job": name, "worker": "w0", "epoch": plain.join(name)}
    plain.workers.OpenSharedMemory(worker_service_pb2.OpenSharedMemoryRequest(**who), timeout=SECONDS)
    wrong = worker_service_pb2.ConfirmSharedMemoryRequest(**who, token=bytes(32))
    with refused("SHARED_MEMORY_UNAVAILABLE", "token"):
        plain.workers.ConfirmSharedMemory(wrong, timeout=SECONDS)
    problem = worker_service_pb2.ConfirmSharedMemoryRequest(**who, problem="another host")
    plain.workers.ConfirmSharedMemory(problem, timeout=SECONDS)
    assert plain.list_workers(name)["w0"].lane == "grpc (another host)"


# Training


def push(plain: Plain, name: str) -> None:
    create(plain, name)
    epoch = plain.join(name)
    result = plain.push(header(name, "w0", epoch, 1), GRADIENT)
    assert (result.version.version, result.applied_version, result.staleness, result.repeat) == (1, 1, 0, False)
    again = plain.push(header(name, "w0", epoch, 1), GRADIENT)
    assert again.repeat
    again.repeat = False
    assert again == result
    assert plain.push(header(name, "w0", epoch, 2), GRADIENT).staleness == 1
    assert_weights(plain, name, steps=2)


def pull(plain: Plain, name: str) -> None:
    create(plain, name)
    result, _ = plain.pull(name)
    assert [told.group for told in result.options] == ["body", "head"]
    known = training_service_pb2.PullRequest(job=name, known_version=0, known_revision=0)
    (answer,) = plain.training.Pull(known, timeout=SECONDS)
    assert answer.result.not_modified
    assert not answer.frames
    plain.push(header(name, "w0", plain.join(name), 1), GRADIENT)
    answers = list(plain.training.Pull(known, timeout=SECONDS))
    assert (answers[0].result.not_modified, answers[0].result.version.version) == (False, 1)
    assert_weights(plain, name, steps=1)


def pull_rows(plain: Plain, name: str) -> None:
    create(plain, name)
    plain.push(header(name, "w0", plain.join(name), 1), GRADIENT)
    request = training_service_pb2.PullRowsRequest(job=name, parameter="w", ids=ids_bytes(1, 0, 1))
    (answer,) = plain.training.PullRows(request, timeout=SECONDS)
    assert answer.version.version == 1
    (told,) = answer.rows
    assert (told.group, told.parameter, told.count) == (0, 0, 3)
    assert (told.encoding, told.ids) == (tensor_pb2.ENCODING_FLOAT32, ids_bytes(1, 0, 1))
    assert told.payload == (W - 0.5).reshape(2, 3)[[1, 0, 1]].tobytes()


def ids_bytes(*ids: int) -> bytes:
    return np.array(ids, "<u8").tobytes()


def step(plain: Plain, name: str) -> None:
    """Three steps on one stream, one answered before the next is sent, its frames in three messages."""
    create(plain, name)
    epoch = plain.join(name)
    info = plain.info(name)

    def requests() -> object:
        for sequence in (1, 2, 3):
            first, *rest = GRADIENT
            head = header(name, "w0", epoch, sequence)
            yield training_service_pb2.StepRequest(header=head, frames=[first])
            for sent in rest:
                yield training_service_pb2.StepRequest(frames=[sent])
            yield training_service_pb2.StepRequest(last=True)

    steps = 0
    frames: list[object] = []
    for answer in plain.training.Step(requests(), timeout=SECONDS):
        frames += answer.frames
        if answer.HasField("pushed"):
            steps += 1
            assert answer.pushed.applied_version == answer.pulled.version.version == steps
        if answer.last:
            assert arrays(info, frames)["b"].tolist() == (B - 0.5 * steps).tolist()
            frames = []
    assert steps == 3
    assert_weights(plain, name, steps=3)


# State


def read_state(plain: Plain, name: str) -> None:
    create(plain, name, momentum=0.5)
    epoch = plain.join(name)
    plain.push(header(name, "w0", epoch, 1), GRADIENT)
    plain.push(header(name, "w0", epoch, 2), GRADIENT[:1])
    result, frames = plain.read_state(name)
    assert [list(g.steps) for g in result.groups] == [[2, 2], [1, 1]]
    assert {entry.field for g in result.groups for entry in g.entries} == {"momentum_buffer"}
    assert {sent.field for sent in frames} == {"momentum_buffer"}
    assert arrays(plain.info(name), frames)["b"].tolist() == [1.5, 1.5, 1.5]
    _, weights = plain.read_state(name, "weights")
    _, pulled = plain.pull(name)
    info = plain.info(name)
    assert all(np.array_equal(a, arrays(info, pulled)[n]) for n, a in arrays(info, weights).items())
    request = state_service_pb2.ReadStateRequest(job=name, fields=["gradient"], group="body", parameter="b")
    one = [sent for answer in plain.state.ReadState(request, timeout=SECONDS) for sent in answer.frames]
    assert [(sent.field, sent.offset, sent.count) for sent in one] == [("gradient", 6, 3)]
    # Which state there is, without the numbers.
    assert plain.read_state(name, "step") == (result, [])


def write_state(plain: Plain, name: str) -> None:
    create(plain, name, momentum=0.5)
    head = state_service_pb2.WriteStateHeader(job=name, worker="w0", epoch=plain.join(name))
    state = head.groups.add(group=0, steps=[5, 6])
    state.entries.add(field="momentum_buffer", present=[True, True])
    head.updates.add(group="head").options["lr"].number = 0.125
    requests = [
        state_service_pb2.WriteStateRequest(header=head),
        state_service_pb2.WriteStateRequest(frames=[frame(np.full(9, 4, "f4"), field="momentum_buffer")]),
        state_service_pb2.WriteStateRequest(frames=[frame(np.full(3, 9, "f4"), offset=6, field="weights")]),
    ]
    answer = plain.state.WriteState(ending(requests), timeout=SECONDS)
    assert (answer.version.version, answer.version.revision) == (0, 1)
    assert [(group.group, group.options["lr"].number) for group in answer.options] == [("body", 0.5), ("head", 0.125)]
    result, frames = plain.read_state(name)
    assert [list(g.steps) for g in result.groups] == [[5, 6], [0, 0]]
    found = plain.weights(name)
    assert found["b"].tolist() == [9, 9, 9]
    assert found["w"].ravel().tolist() == W.tolist()
    assert arrays(plain.info(name), frames)["w"].ravel().tolist() == [4] * 6


# Inspection


def get_server_status(plain: Plain, name: str) -> None:
    before = plain.status()
    create(plain, name)
    status = plain.status()
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", status.server_version)
    assert (status.serving, status.authentication, status.tls, status.durability) == ("SERVING", "none", False, "none")
    assert (status.jobs, status.requests) == (before.jobs + 1, 1)
    assert status.planned_bytes - before.planned_bytes == plain.summary(name).planned_bytes
    assert status.resident_bytes > 1 << 20
    assert status.limits.max_message_bytes == 16 << 20


def list_algorithms(plain: Plain, name: str) -> None:
    request = inspection_service_pb2.ListAlgorithmsRequest()
    known = {found.name: found for found in plain.inspection.ListAlgorithms(request, timeout=SECONDS).algorithms}
    assert {"sgd", "adam", "adamw"} <= set(known)
    lr, betas = (next(o for o in known["adam"].options if o.name == name) for name in ("lr", "betas"))
    assert (lr.kind, lr.default_value.number, lr.range) == ("float", 1e-3, "[0, inf)")
    assert (betas.kind, list(betas.default_value.numbers.numbers)) == ("floats", [0.9, 0.999])
    assert list(known["adam"].state) == ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]


def list_groups(plain: Plain, name: str) -> None:
    create(plain, name)
    plain.push(header(name, "w0", plain.join(name), 1), GRADIENT[:1])
    request = inspection_service_pb2.ListGroupsRequest(job=name)
    answer = plain.inspection.ListGroups(request, timeout=SECONDS)
    assert answer.version.version == 1
    assert [(g.options.group, g.parameters, g.elements, g.min_steps, g.max_steps) for g in answer.groups] == [
        ("body", 2, 9, 1, 1),
        ("head", 2, 6, 0, 0),
    ]
    assert len(answer.groups[1].dtypes) == 2


def inspect_group(plain: Plain, name: str) -> None:
    create(plain, name, momentum=0.5)
    plain.push(header(name, "w0", plain.join(name), 1), GRADIENT)
    request = inspection_service_pb2.InspectGroupRequest(job=name, group="body", statistics=True, bins=4)
    answers = list(plain.inspection.InspectGroup(request, timeout=SECONDS))
    assert (answers[0].group.options.group, answers[0].version.version) == ("body", 1)
    reports = {report.parameter.name: report for answer in answers for report in answer.parameters}
    assert (list(reports), reports["b"].steps) == (["w", "b"], 1)
    fields = {found.field: found.statistics for found in reports["b"].fields}
    assert set(fields) == {"weights", "gradient", "momentum_buffer"}
    weights = fields["weights"]
    assert (weights.min, weights.max, weights.count, weights.nonfinite) == (9.5, 29.5, 3, 0)
    assert (len(weights.histogram_edges), sum(weights.histogram_counts)) == (5, 3)
    one = inspection_service_pb2.InspectGroupRequest(job=name, group="head", parameter="v")
    reports = [r for answer in plain.inspection.InspectGroup(one, timeout=SECONDS) for r in answer.parameters]
    assert [report.parameter.name for report in reports] == ["v"]


def list_rejections(plain: Plain, name: str) -> None:
    create(plain, name)
    epoch = plain.join(name)
    with refused("NONFINITE_GRADIENT", "'b'"):
        plain.push(header(name, "w0", epoch, 1), [frame(np.full(3, np.nan, "f4"), offset=6)])
    with refused("OPTION_OUT_OF_RANGE", "lr"):
        plain.update_group(name, "body", lr=-1.0)
    answer = plain.rejections(name)
    assert dict(answer.counts) == {"NONFINITE_GRADIENT": 1, "OPTION_OUT_OF_RANGE": 1}
    assert [(r.worker, r.reason, r.version) for r in answer.recent] == [
        ("w0", "NONFINITE_GRADIENT", 0),
        ("", "OPTION_OUT_OF_RANGE", 0),
    ]
    assert plain.summary(name).rejections == 2


def list_option_changes(plain: Plain, name: str) -> None:
    create(plain, name)
    before = plain.update_group(name, "body", lr=0.125).options.since_version
    update = option_pb2.GroupUpdate(group="head", options={"lr": option_pb2.OptionValue(number=0.0625)})
    plain.push(header(name, "w0", plain.join(name), 1, updates=[update]), GRADIENT)
    request = inspection_service_pb2.ListOptionChangesRequest(job=name)
    answer = plain.inspection.ListOptionChanges(request, timeout=SECONDS)
    body, head = answer.changes
    assert (body.group, body.option, body.after.number, body.version, body.worker) == ("body", "lr", 0.125, before, "")
    assert (head.group, head.option, head.after.number, head.version, head.worker) == ("head", "lr", 0.0625, 0, "w0")
    assert body.before.number != 0.125
    assert answer.version.version == 1
    request.group = "head"
    assert list(plain.inspection.ListOptionChanges(request, timeout=SECONDS).changes) == [head]
    request.group = "nope"
    with refused("UNKNOWN_GROUP", "nope"):
        plain.inspection.ListOptionChanges(request, timeout=SECONDS)


def watch_job(plain: Plain, name: str) -> None:
    create(plain, name)
    epoch = plain.join(name)
    request = inspection_service_pb2.WatchJobRequest(job=name, interval_ms=50)
    stream = plain.inspection.WatchJob(request, timeout=SECONDS)
    first = next(stream)
    assert (first.job.version.version, len(first.groups), len(first.workers)) == (0, 2, 1)
    plain.push(header(name, "w0", epoch, 1), GRADIENT)
    assert next(stream).job.version.version == 1
    plain.delete(name)
    with refused("UNKNOWN_JOB", name):
        next(stream)


# Health and reflection


def check(plain: Plain, name: str) -> None:
    for service in ("", *{method.containing_service.full_name for method in OWN_RPCS}):
        answer = plain.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def watch(plain: Plain, name: str) -> None:
    stream = plain.health.Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS)
    assert next(stream).status == health_pb2.HealthCheckResponse.SERVING
    stream.cancel()


def server_reflection_info(plain: Plain, name: str) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="*")
    (answer,) = plain.reflection.ServerReflectionInfo(iter([request]), timeout=SECONDS)
    listed = {service.name for service in answer.list_services_response.service}
    assert listed == {method.containing_service.full_name for method in ALL_RPCS}


CALLS: Sequence[Callable[[Plain, str], None]] = [
    create_job,
    get_job,
    list_jobs,
    delete_job,
    add_group,
    update_group,
    update_job,
    join,
    renew_lease,
    leave,
    open_shared_memory,
    confirm_shared_memory,
    list_workers,
    push,
    pull,
    pull_rows,
    step,
    read_state,
    write_state,
    get_server_status,
    list_algorithms,
    list_groups,
    inspect_group,
    list_rejections,
    list_option_changes,
    watch_job,
    check,
    watch,
    server_reflection_info,
]
BY_NAME = {called.__name__.replace("_", ""): called for called in CALLS}


@pytest.mark.parametrize("method", ALL_RPCS, ids=lambda method: method.full_name.removeprefix("optd.v1."))
def test_every_rpc_serves_plain_stubs(method: MethodDescriptor, plain: Plain, name: str):
    """An RPC that is new in the contract fails here until there is a call of it above."""
    BY_NAME[method.name.lower()](plain, name)


def test_every_refused_push_counts(plain: Plain, name: str):
    """Every refused push counts: among those of its job, or of the server where the job is not known."""
    create(plain, name)
    epoch = plain.join(name)
    before = plain.status().rejections_without_job
    with refused("INVALID_REQUEST", "must have its header"):
        plain.push(None, GRADIENT)
    with refused("INVALID_REQUEST", "must have its header"):
        next(plain.training.Step(iter([training_service_pb2.StepRequest(last=True)]), timeout=SECONDS))
    with refused("UNKNOWN_JOB", "no-such-job"):
        plain.push(header("no-such-job", "w0", 1, 1), GRADIENT)
    assert plain.status().rejections_without_job == before + 3
    first = header(name, "w0", epoch, 1)
    delivery = training_service_pb2.Delivery(encoding="ENCODING_TOPK")
    with refused("INVALID_REQUEST", "cannot travel in"):
        step = training_service_pb2.StepRequest(header=first, delivery=delivery, frames=GRADIENT, last=True)
        next(plain.training.Step(iter([step]), timeout=SECONDS))
    with refused("FUTURE_VERSION", "of version 7"):
        plain.push(header(name, "w0", epoch, 1, base=7), GRADIENT)
    assert dict(plain.rejections(name).counts) == {"INVALID_REQUEST": 1, "FUTURE_VERSION": 1}
    assert [(r.worker, r.reason) for r in plain.rejections(name).recent][-1] == ("w0", "FUTURE_VERSION")
    assert plain.status().rejections_without_job == before + 3
    assert plain.push(first, GRADIENT).version.version == 1


# The same numbers as our client


def gradients(seed: int) -> dict[str, np.ndarray]:
    """Gradients of a step; some steps leave a parameter out."""
    random = np.random.default_rng(seed)
    made = {name: random.standard_normal(shape).astype(dtype) for name, (shape, dtype) in {**BODY, **HEAD}.items()}
    if seed % 3 == 1:
        del made["b"]
    if seed % 3 == 2:
        del made["v"]
    return made


def frames_of(given: dict[str, np.ndarray]) -> Frames:
    """A frame for each parameter, last one first; the places in the flat buffers are written down here by hand."""
    places = {"w": (0, 0), "b": (0, 6), "u": (1, 0), "v": (1, 4)}
    return [frame(given[name].ravel(), *places[name]) for name in reversed(places) if name in given]


@pytest.mark.parametrize(
    ("algorithm", "defaults"),
    [
        ("sgd", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
        ("adam", {"lr": 0.01, "betas": (0.8, 0.99), "amsgrad": True}),
        ("adamw", {"lr": 0.01, "weight_decay": 0.1}),
    ],
)
@pytest.mark.parametrize("rpc", ["Push", "Step"])
def test_weights_and_state_are_those_of_our_client(
    server: LocalServer, plain: Plain, name: str, algorithm: str, defaults: dict[str, object], rpc: str
):
    ours, theirs = f"{name}.client", f"{name}.plain"
    initial = {"w": W.reshape(2, 3).copy(), "b": B.copy(), "v": V.copy(), "u": U.copy()}
    groups = [
        {"name": "body", "params": {n: initial[n] for n in BODY}},
        {"name": "head", "params": {n: initial[n] for n in HEAD}, "lr": 0.05},
    ]
    spec = job_spec(theirs, [group("body", BODY), group("head", HEAD, lr=0.05)], algorithm=algorithm, **defaults)
    plain.create(spec, INITIAL)
    info = plain.info(theirs)
    epoch = plain.join(theirs)
    with optd.connect(server.address, job=ours, worker="w0") as session:
        optimizer = optd.Optimizer(algorithm, groups, session=session, **defaults)
        for sequence in range(1, 6):
            given = gradients(sequence)
            optimizer.step(given)
            head = header(theirs, "w0", epoch, sequence)
            if rpc == "Push":
                plain.push(head, frames_of(given))
                found = plain.weights(theirs)
            else:
                found = arrays(info, plain.step(head, frames_of(given))[1])
            for parameter, array in initial.items():
                assert found[parameter].tobytes() == array.tobytes(), parameter
    result, frames = plain.read_state(theirs)
    expected, expected_frames = plain.read_state(ours)
    assert result.groups == expected.groups
    assert [sent.SerializeToString() for sent in frames] == [sent.SerializeToString() for sent in expected_frames]


def test_a_push_in_one_message_and_in_many_are_the_same(plain: Plain, name: str):
    """Frames split to single elements, in any order, over any number of messages."""
    create(plain, name + ".one", momentum=0.9)
    create(plain, name + ".many", momentum=0.9)
    given = gradients(3)
    frames = frames_of(given)
    whole = [training_service_pb2.PushRequest(header=header(name + ".one", "w0", plain.join(name + ".one"), 1))]
    whole[0].frames.extend(frames)
    plain.training.Push(ending(whole), timeout=SECONDS)
    pieces = [
        frame(values, sent.group, sent.offset + place)
        for sent in frames
        for place, values in enumerate(np.frombuffer(sent.payload, "f8" if sent.encoding == 2 else "f4").reshape(-1, 1))
    ]
    np.random.default_rng(0).shuffle(pieces)
    many = push_requests(header(name + ".many", "w0", plain.join(name + ".many"), 1), pieces)
    plain.training.Push(ending(many), timeout=SECONDS)
    one, other = (plain.weights(name + end) for end in (".one", ".many"))
    assert {n: a.tobytes() for n, a in one.items()} == {n: a.tobytes() for n, a in other.items()}


def upper_halves(values: np.ndarray) -> bytes:
    """bfloat16 of numbers that need no rounding."""
    return b"".join(value.tobytes()[2:] for value in values.astype("<f4"))


def test_gradients_come_in_fewer_bytes(plain: Plain, name: str):
    """bfloat16 for both dtypes, int8 and topk, all in one push."""
    create(plain, name)
    sparse = np.array([1, 3], "<u4").tobytes() + np.array([8, 16], "<f4").tobytes()
    scaled = np.array([2], "<f4").tobytes() + np.array([1, -1, 2], "i1").tobytes()
    frames = [
        tensor_pb2.Frame(count=6, encoding=tensor_pb2.ENCODING_BFLOAT16, payload=upper_halves(W)),
        tensor_pb2.Frame(offset=6, count=3, encoding=tensor_pb2.ENCODING_INT8, payload=scaled),
        tensor_pb2.Frame(group=1, count=4, encoding=tensor_pb2.ENCODING_TOPK, payload=sparse),
        tensor_pb2.Frame(group=1, offset=4, count=2, encoding=tensor_pb2.ENCODING_BFLOAT16, payload=upper_halves(V)),
    ]
    plain.push(header(name, "w0", plain.join(name), 1), frames)
    found = plain.weights(name)
    assert found["w"].tolist() == (W - 0.5 * W).reshape(2, 3).tolist()
    assert found["b"].tolist() == [9, 21, 28]
    assert found["u"].tolist() == [-1, -4, -3, -8]
    assert found["v"].tolist() == (V - 0.25 * V).tolist()


@pytest.mark.parametrize(
    ("encoding", "payload"),
    [
        (tensor_pb2.ENCODING_BFLOAT16, upper_halves(np.array([0, np.inf]))),
        (tensor_pb2.ENCODING_INT8, np.array([np.nan], "<f4").tobytes() + b"\0\1"),
        (tensor_pb2.ENCODING_TOPK, np.array([1], "<u4").tobytes() + np.array([np.nan], "<f4").tobytes()),
    ],
)
def test_numbers_that_are_not_finite_are_seen_in_every_encoding(plain: Plain, name: str, encoding: int, payload: bytes):
    create(plain, name)
    sent = tensor_pb2.Frame(group=1, offset=4, count=2, encoding=encoding, payload=payload)
    with refused("NONFINITE_GRADIENT", "parameter 'v'"):
        plain.push(header(name, "w0", plain.join(name), 1), [sent])
    assert_weights(plain, name, steps=0)


def test_weights_do_not_come_as_topk(plain: Plain, name: str):
    sent = tensor_pb2.Frame(count=9, encoding=tensor_pb2.ENCODING_TOPK)
    with refused("INVALID_REQUEST", "weights cannot be sent in encoding topk"):
        plain.create(job_spec(name, [group("body", BODY)]), [sent])
    assert name not in plain.job_names()


def frames_pulled(plain: Plain, name: str, **wanted: object) -> list[tensor_pb2.Frame]:
    request = training_service_pb2.PullRequest(job=name, **wanted)
    return [told for answer in plain.training.Pull(request, timeout=SECONDS) for told in answer.frames]


def test_some_of_the_weights_are_read(plain: Plain, name: str):
    create(plain, name)
    places = [(told.group, told.offset, told.count) for told in frames_pulled(plain, name, groups=["head"])]
    assert places == [(1, 0, 4), (1, 4, 2)]
    places = [(told.group, told.offset, told.count) for told in frames_pulled(plain, name, parameters=["v", "b"])]
    assert places == [(0, 6, 3), (1, 4, 2)]
    both = frames_pulled(plain, name, groups=["head"], parameters=["u", "w"])
    assert [(told.group, told.offset, told.count) for told in both] == [(0, 0, 6), (1, 0, 4), (1, 4, 2)]
    assert b"".join(told.payload for told in both) == W.tobytes() + U.tobytes() + V.tobytes()
    with refused("UNKNOWN_GROUP", "'tail'", "body, head"):
        frames_pulled(plain, name, groups=["head", "tail"])
    with refused("UNKNOWN_PARAMETER", "'z'"):
        frames_pulled(plain, name, parameters=["z", "w"])


def test_weights_come_in_fewer_bytes(plain: Plain, name: str):
    create(plain, name)
    wanted = training_service_pb2.Delivery(encoding=tensor_pb2.ENCODING_BFLOAT16)
    told = frames_pulled(plain, name, groups=["body"], delivery=wanted)
    assert {each.encoding for each in told} == {tensor_pb2.ENCODING_BFLOAT16}
    assert b"".join(each.payload for each in told) == upper_halves(np.concatenate([W, B]))
    for refused_one in (tensor_pb2.ENCODING_TOPK, 99):
        wanted = training_service_pb2.Delivery(encoding=refused_one)
        with refused("INVALID_REQUEST", "weights cannot travel in"):
            frames_pulled(plain, name, delivery=wanted)
        step = training_service_pb2.StepRequest(header=header(name, "w0", 1, 1), last=True, delivery=wanted)
        with refused("INVALID_REQUEST", "weights cannot travel in"):
            list(plain.training.Step(iter([step]), timeout=SECONDS))


def test_steps_of_one_stream_are_delivered_each_as_it_asks(plain: Plain, name: str):
    """Nothing, fewer bytes, everything, and a release of what nobody holds between them."""
    create(plain, name)
    who = {"job": name, "worker": "w0", "epoch": plain.join(name)}
    wanted = [
        training_service_pb2.Delivery(none=True),
        training_service_pb2.Delivery(encoding=tensor_pb2.ENCODING_BFLOAT16),
        # Shared and in place, of a worker that shares no memory: then it is messages.
        training_service_pb2.Delivery(shared=True, in_place=True),
    ]

    def requests() -> object:
        for sequence, delivery in enumerate(wanted, 1):
            head = header(name, "w0", who["epoch"], sequence)
            yield training_service_pb2.StepRequest(header=head, frames=GRADIENT, last=True, delivery=delivery)
            yield training_service_pb2.StepRequest(release=training_service_pb2.Release(**who))

    told: list[list[tensor_pb2.Frame]] = [[]]
    for answer in plain.training.Step(requests(), timeout=SECONDS):
        told[-1] += answer.frames
        if answer.HasField("pushed"):
            assert answer.pushed.applied_version == answer.pulled.version.version == len(told)
            assert not answer.pulled.HasField("shared")
        if answer.last:
            told.append([])
    none, halves, whole, _ = told
    assert none == []
    assert {each.encoding for each in halves} == {tensor_pb2.ENCODING_BFLOAT16}
    assert arrays(plain.info(name), whole)["b"].tolist() == (B - 1.5).tolist()
    assert_weights(plain, name, steps=3)


def test_a_push_whose_gradient_is_shared_has_nothing_else(plain: Plain, name: str):
    create(plain, name)
    epoch = plain.join(name)
    head = header(name, "w0", epoch, 1, shared=training_service_pb2.SharedGradient(whole=True))
    with refused("INVALID_REQUEST", "without frames"):
        plain.push(head, GRADIENT)
    with refused("SHARED_MEMORY_UNAVAILABLE", "none open"):
        plain.push(head, [])
    plain.push(header(name, "w0", epoch, 1), GRADIENT)
    assert_weights(plain, name, steps=1)


def test_option_values_of_every_kind_are_read(plain: Plain, name: str):
    """A number may come as an integer, and a list of numbers as such; nothing set is torch's None."""
    spec = job_spec(name, [group("body", BODY)], algorithm="adam", betas=(0.5, 0.75), amsgrad=True)
    spec.defaults["lr"].CopyFrom(option(2))
    info = plain.create(spec, [frame(np.concatenate([W, B]))])
    resolved = info.groups[0].options.options
    assert (resolved["lr"].number, resolved["amsgrad"].flag) == (2.0, True)
    assert list(resolved["betas"].numbers.numbers) == [0.5, 0.75]
    with refused("INVALID_OPTION", "lr must be a number, got None"):
        plain.update_group(name, "body", lr=None)
    with refused("INVALID_OPTION", "lr must be a number", "'fast'"):
        plain.update_group(name, "body", lr="fast")


def test_rows_come_in_fewer_bytes_and_of_the_group_that_is_named(plain: Plain, name: str):
    create(plain, name)
    request = training_service_pb2.PullRowsRequest(
        job=name, group="head", parameter="v", ids=ids_bytes(1), encoding=tensor_pb2.ENCODING_BFLOAT16
    )
    (answer,) = plain.training.PullRows(request, timeout=SECONDS)
    (told,) = answer.rows
    assert (told.group, told.parameter, told.payload) == (1, 0, upper_halves(V[1:].astype("f4")))


def test_no_rows_are_an_answer_too(plain: Plain, name: str):
    create(plain, name)
    request = training_service_pb2.PullRowsRequest(job=name, parameter="w")
    (answer,) = plain.training.PullRows(request, timeout=SECONDS)
    assert [(told.count, told.ids, told.payload) for told in answer.rows] == [(0, b"", b"")]


@pytest.mark.parametrize(
    ("wanted", "reason", "parts"),
    [
        ({"parameter": "w", "ids": ids_bytes(0, 2)}, "ROW_OUT_OF_RANGE", ["'w'", "[0, 2)", "got 2"]),
        ({"parameter": "w", "ids": b"\xff" * 8}, "ROW_OUT_OF_RANGE", ["[0, 2)", 2**64 - 1]),
        ({"parameter": "w", "ids": b"1234567"}, "MALFORMED_MESSAGE", ["7 bytes", "multiple of 8"]),
        ({"parameter": "z"}, "UNKNOWN_PARAMETER", ["'z'"]),
        ({"parameter": "v", "group": "body"}, "UNKNOWN_PARAMETER", ["'v'", "'body'"]),
        ({"parameter": "w", "group": "tail"}, "UNKNOWN_GROUP", ["'tail'", "body, head"]),
        ({"parameter": "w", "encoding": tensor_pb2.ENCODING_TOPK}, "INVALID_REQUEST", ["topk"]),
        ({"parameter": "w", "encoding": 99}, "INVALID_REQUEST", ["encoding 99"]),
        ({"parameter": "w", "weights": "ema"}, "UNKNOWN_AVERAGE", ["'ema'", "none"]),
        ({"parameter": "w", "job": "nobody"}, "UNKNOWN_JOB", ["nobody"]),
    ],
)
def test_rows_that_cannot_be_had(plain: Plain, name: str, wanted: dict, reason: str, parts: list):
    create(plain, name)
    request = training_service_pb2.PullRowsRequest(**{"job": name, **wanted})
    with refused(reason, *parts):
        list(plain.training.PullRows(request, timeout=SECONDS))


def test_a_parameter_of_no_dimension_has_no_rows(plain: Plain, name: str):
    spec = job_spec(name, [group("body", {"scale": ((), "float32")})])
    plain.create(spec, [frame(np.ones(1, "f4"))])
    request = training_service_pb2.PullRowsRequest(job=name, parameter="scale", ids=ids_bytes(0))
    with refused("INVALID_REQUEST", "'scale'", "()"):
        list(plain.training.PullRows(request, timeout=SECONDS))


def test_a_push_has_terms_and_averages_are_pulled(plain: Plain, name: str) -> None:
    spec = job_spec(name, [group("body", BODY), group("head", HEAD)], lr=1.0)
    spec.options["ema_decay"].number = 0.5
    spec.options["accumulate"].integer = 2
    plain.create(spec, INITIAL)
    epoch = plain.join(name)
    first = plain.push(header(name, "w0", epoch, 1, weight=3.0, loss_scale=4.0), GRADIENT)
    assert (first.accumulated, first.applied_version, first.version.version) == (1, 1, 0)
    second = plain.push(header(name, "w0", epoch, 2), GRADIENT)
    assert (second.accumulated, second.version.version) == (0, 1)
    found = plain.weights(name)
    assert found["b"].tolist() == (B - (3 / 4 + 1) / 4).tolist()
    plain.push(header(name, "w0", epoch, 3), GRADIENT)
    plain.push(header(name, "w0", epoch, 4), GRADIENT)
    request = training_service_pb2.PullRequest(job=name, weights="ema", parameters=["b"])
    answers = list(plain.training.Pull(request, timeout=SECONDS))
    average = arrays(plain.info(name), [sent for answer in answers for sent in answer.frames])["b"]
    assert average.tolist() == (found["b"] - 0.5).tolist()
    assert [(each.name, each.updates) for each in plain.info(name).averages] == [("ema", 2)]
    request.weights = "swa"
    with refused("UNKNOWN_AVERAGE", name, "swa", "ema"):
        list(plain.training.Pull(request, timeout=SECONDS))

"""A call of every RPC of jobs and workers, with plain stubs."""

import mmap
import os
import socket

import numpy as np
from contract.plain import (
    SECONDS,
    Plain,
    ending,
    frame,
    group,
    header,
    job_spec,
    options,
    refused,
)
from contract.two_groups import BODY, GRADIENT, HEAD, INITIAL, assert_weights, create

from optd_wire.v1 import (
    job_pb2,
    job_service_pb2,
    option_pb2,
    tensor_pb2,
    training_service_pb2,
    worker_service_pb2,
)

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


def set_policy(plain: Plain, name: str) -> None:
    create(plain, name)
    policy = job_pb2.Policy(sync=job_pb2.SyncPolicy(live=True, quorum=2, grace_seconds=0.5))
    answer = plain.jobs.SetPolicy(job_service_pb2.SetPolicyRequest(job=name, policy=policy), timeout=SECONDS)
    assert answer.policy == policy
    assert plain.info(name).policy == policy
    with refused("INVALID_REQUEST", "must be async, sync or bounded"):
        plain.jobs.SetPolicy(job_service_pb2.SetPolicyRequest(job=name), timeout=SECONDS)
    wrong = job_pb2.Policy(sync=job_pb2.SyncPolicy(workers=2, quorum=3))
    with refused("INVALID_POLICY", "quorum must be in [1, 2], got 3"):
        plain.jobs.SetPolicy(job_service_pb2.SetPolicyRequest(job=name, policy=wrong), timeout=SECONDS)
    plain.jobs.SetPolicy(
        job_service_pb2.SetPolicyRequest(job=name, policy=job_pb2.Policy(**{"async": {}})), timeout=SECONDS
    )


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


def wait_durable(plain: Plain, name: str) -> None:
    create(plain, name)
    request = job_service_pb2.WaitDurableRequest(job=name)
    with refused("NOTHING_DURABLE", "--data-dir"):
        plain.jobs.WaitDurable(request, timeout=SECONDS)


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

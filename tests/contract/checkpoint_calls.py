"""A call of every RPC of checkpoints, with plain stubs. The server keeps nothing on a disk."""

from collections.abc import Iterator

import numpy as np
from contract.plain import SECONDS, Plain, header, refused
from contract.two_groups import GRADIENT, create

from optd_wire.v1 import checkpoint_service_pb2 as pb


def list_snapshots(plain: Plain, name: str) -> None:
    create(plain, name)
    with refused("NOTHING_DURABLE", "--data-dir"):
        plain.checkpoints.ListSnapshots(pb.ListSnapshotsRequest(job=name), timeout=SECONDS)
    with refused("UNKNOWN_JOB", "nobody"):
        plain.checkpoints.ListSnapshots(pb.ListSnapshotsRequest(job="nobody"), timeout=SECONDS)


def read_checkpoint(plain: Plain, name: str) -> None:
    create(plain, name)
    plain.push(header(name, "w0", plain.join(name), 1), GRADIENT)
    first, *pieces = plain.checkpoints.ReadCheckpoint(pb.ReadCheckpointRequest(job=name), timeout=SECONDS)
    assert first.version.version == 1
    files = list(dict.fromkeys(each.file for each in pieces))
    assert files[-1] == "manifest.json" and "weights-small.safetensors" in files
    assert sum(len(each.data) for each in pieces if each.file != "manifest.json") == first.bytes
    with refused("NOTHING_DURABLE"):
        list(plain.checkpoints.ReadCheckpoint(pb.ReadCheckpointRequest(job=name, version=0), timeout=SECONDS))


def restore_job(plain: Plain, name: str) -> None:
    create(plain, name)
    plain.push(header(name, "w0", plain.join(name), 1), GRADIENT)
    pieces = list(plain.checkpoints.ReadCheckpoint(pb.ReadCheckpointRequest(job=name), timeout=SECONDS))

    def messages() -> Iterator[pb.RestoreJobRequest]:
        yield pb.RestoreJobRequest(job=f"{name}.again", creation_id="mine")
        for each in sorted((each for each in pieces if each.file), key=lambda each: each.file != "manifest.json"):
            yield pb.RestoreJobRequest(file=each.file, data=each.data)
        yield pb.RestoreJobRequest(last=True)

    restored = plain.checkpoints.RestoreJob(messages(), timeout=SECONDS).job
    assert (restored.name, restored.version.version) == (f"{name}.again", 1)
    ours, theirs = plain.weights(name), plain.weights(f"{name}.again")
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    assert plain.checkpoints.RestoreJob(messages(), timeout=SECONDS).job.id == "mine"  # sent again, it changes nothing
    with refused("WRONG_CHECKPOINT", "it is no manifest"):
        plain.checkpoints.RestoreJob(
            iter([pb.RestoreJobRequest(job=f"{name}.x", file="manifest.json", data=b"{", last=True)]), timeout=SECONDS
        )


def roll_back_job(plain: Plain, name: str) -> None:
    create(plain, name)
    with refused("NOTHING_DURABLE"):
        plain.checkpoints.RollBackJob(pb.RollBackJobRequest(job=name, version=0), timeout=SECONDS)

"""Weights that are written by a worker that must be the only one, and must have the current ones, as plain stubs do."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from contract.plain import SECONDS, Plain, ending, frame, group, header, job_spec, refused

from optd_wire.v1 import job_pb2, state_service_pb2

W = {"w": ((3,), "float32"), "v": ((2,), "float32")}


@pytest.fixture
def epoch(plain: Plain, name: str) -> int:
    plain.create(job_spec(name, [group("g", W)], algorithm="sgd", lr=1.0), [frame(np.zeros(5, "f4"))])
    return plain.join(name)


def write(
    plain: Plain, name: str, epoch: int, base: Any, *, frames: Any = None, worker: str = "w0", **more: Any
) -> Any:
    head = state_service_pb2.WriteStateHeader(job=name, worker=worker, epoch=epoch, if_alone_at=base, **more)
    first = state_service_pb2.WriteStateRequest(header=head)
    numbers = [frame(np.full(2, 7, "f4"), offset=3, field="weights")] if frames is None else frames
    rest = [state_service_pb2.WriteStateRequest(frames=[each]) for each in numbers]
    return plain.state.WriteState(ending([first, *rest]), timeout=SECONDS).version


def at(version: int, revision: int = 0) -> job_pb2.JobVersion:
    return job_pb2.JobVersion(version=version, revision=revision)


def test_who_is_alone_writes_in_the_place_of_what_it_has(plain: Plain, name: str, epoch: int) -> None:
    plain.push(header(name, "w0", epoch, 1), [frame(np.ones(5, "f4"))])
    written = write(plain, name, epoch, at(1))
    assert plain.weights(name)["w"].tolist() == [-1, -1, -1]
    assert plain.weights(name)["v"].tolist() == [7, 7]
    assert (written.version, written.revision) == (1, 1)
    write(plain, name, epoch, written)


def test_who_is_not_alone_is_refused_until_it_is(plain: Plain, name: str, epoch: int) -> None:
    others = {worker: plain.join(name, worker) for worker in ("w2", "w1")}
    with refused("OTHER_WORKERS", "workers 'w1', 'w2' hold leases"):
        write(plain, name, epoch, at(0))
    for worker, other in others.items():
        plain.leave(name, worker, other)
    write(plain, name, epoch, at(0))
    assert plain.weights(name)["v"].tolist() == [7, 7]


def test_steps_and_writes_that_the_writer_does_not_have_are_not_undone(plain: Plain, name: str, epoch: int) -> None:
    plain.push(header(name, "w0", epoch, 1), [frame(np.ones(5, "f4"))])
    with refused("WEIGHTS_MOVED_ON", "the weights of version 0 of job", "but they are now of version 1"):
        write(plain, name, epoch, at(0))
    written = write(plain, name, epoch, at(1))
    with refused("WEIGHTS_MOVED_ON", f"but they are now others, written at revision {written.revision}"):
        write(plain, name, epoch, at(1))
    assert write(plain, name, epoch, None).revision == written.revision + 1, "unless it says nothing of that"


def test_it_is_refused_before_its_frames_are_read(plain: Plain, name: str, epoch: int) -> None:
    plain.join(name, "w1")
    with refused("OTHER_WORKERS"):
        write(plain, name, epoch, at(0), frames=[frame(np.ones(9, "f4"), offset=77, field="nothing")])


def test_it_is_looked_at_again_when_all_frames_are_there(plain: Plain, name: str, epoch: int) -> None:
    before = plain.status().planned_bytes

    def requests() -> Iterator[Any]:
        head = state_service_pb2.WriteStateHeader(job=name, worker="w0", epoch=epoch, if_alone_at=at(0))
        yield state_service_pb2.WriteStateRequest(header=head)
        deadline = time.monotonic() + SECONDS
        while plain.status().planned_bytes == before:  # until there is room for what comes
            assert time.monotonic() < deadline
        plain.join(name, "w1")
        yield state_service_pb2.WriteStateRequest(
            frames=[frame(np.ones(2, "f4"), offset=3, field="weights")], last=True
        )

    with refused("OTHER_WORKERS", "'w1'"):
        plain.state.WriteState(requests(), timeout=SECONDS)
    assert plain.weights(name)["v"].tolist() == [0, 0]


def test_workers_that_write_the_same_may_do_so_beside_each_other(plain: Plain, name: str, epoch: int) -> None:
    """As all ranks of a job do that load one checkpoint."""
    other = plain.join(name, "w1")
    first = write(plain, name, epoch, at(0), beside_others=True)
    assert write(plain, name, other, at(0), beside_others=True, worker="w1") == first, "nothing is written anew"
    different = [frame(np.full(2, 8, "f4"), offset=3, field="weights")]
    with refused("WEIGHTS_MOVED_ON", f"but they are now others, written at revision {first.revision}"):
        write(plain, name, other, at(0), beside_others=True, worker="w1", frames=different)
    plain.push(header(name, "w0", epoch, 1), [frame(np.ones(5, "f4"))])
    with refused("WEIGHTS_MOVED_ON", "but they are now of version 1"):
        write(plain, name, epoch, first, beside_others=True)


def test_a_write_that_is_repeated_counts_once_and_gets_the_first_answer(plain: Plain, name: str, epoch: int) -> None:
    first = write(plain, name, epoch, None, write_id="one")
    different = [frame(np.full(2, 8, "f4"), offset=3, field="weights")]
    assert write(plain, name, epoch, None, write_id="one", frames=different) == first
    assert plain.weights(name)["v"].tolist() == [7, 7]
    assert write(plain, name, epoch, None, write_id="two", frames=different).revision == first.revision + 1
    assert plain.weights(name)["v"].tolist() == [8, 8]
    with refused("INVALID_REQUEST", "write_id must have at most 64 characters, got 65"):
        write(plain, name, epoch, None, write_id="x" * 65)

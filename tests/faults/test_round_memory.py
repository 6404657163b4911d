"""The memory of a synchronous round."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from contract import plain as wire
from contract.plain import Plain
from e2e.programs import running
from faults.processes import in_background, wait_for

from optd_wire.v1 import tensor_pb2
from optd_wire.v1 import training_service_pb2 as training

pytestmark = pytest.mark.slow

MIB = 1 << 20
ELEMENTS = 8 * MIB
"""32 MiB of float32: several times what gRPC takes in on a connection before anybody asks for it."""
PIECE = MIB // 4


def highest(pid: int) -> int:
    """The most bytes that a process has had in memory."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def grown_by(folder: Path, workers: int) -> int:
    """How much more memory a server has had after a few rounds than before the first."""
    with running(folder, "--kernels", "numpy", "--no-shared-memory") as program:
        connections = [Plain(program.address) for _ in range(workers)]
        try:
            spec = wire.job_spec("job", [wire.group("g", {"w": ((ELEMENTS,), "float32")})], workers=workers, lr=1.0)
            frames = [deepcopy(frame) for frame in pieces(0)]
            connections[0].create(spec, frames)
            epochs = [plain.join("job", f"w{index}") for index, plain in enumerate(connections)]
            before = highest(program.process.pid)
            for sequence in (1, 2):
                pushes = [
                    in_background(
                        lambda plain=plain, index=index, sequence=sequence: plain.training.Push(
                            requests(wire.header("job", f"w{index}", epochs[index], sequence), index), timeout=60
                        )
                    )
                    for index, plain in enumerate(connections)
                ]
                for push in pushes:
                    assert push.result(60).result.applied_version == sequence
            used = highest(program.process.pid) - before
            weights = connections[0].weights("job")["w"]
            assert (weights == -2 * np.float32((workers - 1) / 2)).all()
            return used
        finally:
            for plain in connections:
                plain.channel.close()


def pieces(value: float, elements: int = ELEMENTS) -> Iterator[tensor_pb2.Frame]:
    frame = wire.frame(np.full(PIECE, value, "f4"))
    for offset in range(0, elements, PIECE):
        frame.offset = offset
        yield frame


def requests(head: training.PushHeader, value: float, elements: int = ELEMENTS) -> Iterator[training.PushRequest]:
    """Made one by one: only the server's memory is of interest here."""
    yield training.PushRequest(header=head)
    for frame in pieces(value, elements):
        yield training.PushRequest(frames=[frame])
    yield training.PushRequest(last=True)


def test_a_round_holds_a_gradient_of_each_worker_as_it_was_sent(tmp_path: Path) -> None:
    workers = 8
    (tmp_path / "two").mkdir()
    (tmp_path / "many").mkdir()
    few, many = grown_by(tmp_path / "two", 2), grown_by(tmp_path / "many", workers)
    # 32 MiB a worker, and what gRPC has taken in of each stream beyond that, which is about 10.
    assert many - few < (workers - 2) * 48 * MIB, (few / MIB, many / MIB)


def test_workers_on_one_connection_do_not_keep_each_other_from_their_turn(plain: Plain, name: str) -> None:
    """Who comes first in the round comes last to the server, when the others have filled all that is taken in."""
    workers, elements = 4, 3 * MIB
    groups = [wire.group("g", {"w": ((elements,), "float32")})]
    spec = wire.job_spec(name, groups, workers=workers, lr=1.0)
    plain.create(spec, [deepcopy(frame) for frame in pieces(0, elements)])
    heads = [wire.header(name, f"w{index}", plain.join(name, f"w{index}"), 1) for index in range(workers)]
    pushes = []
    for value, head in reversed(list(enumerate(heads))):
        sent = requests(head, value, elements)
        pushes.append(in_background(lambda sent=sent: plain.training.Push(sent, timeout=30)))
        wait_for(lambda head=head: announced(plain, name, head.worker), "the push to be announced")
    for push in pushes:
        assert push.result(30).result.applied_version == 1
    assert (plain.weights(name)["w"] == -1.5).all()


def announced(plain: Plain, job: str, worker: str) -> bool:
    # The last one of a round does not wait.
    return worker == "w0" or plain.list_workers(job)[worker].waiting

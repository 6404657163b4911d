"""Shared memory that goes wrong: strangers at the socket, processes that are killed, servers that have none to give."""

import mmap
import os
import resource
import shutil
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from contract import plain as wire
from contract.plain import Plain, refused
from e2e.programs import Program, running
from faults.processes import Worker, in_background, spawned, wait_for

import optd
from optd_wire.errors import SharedMemoryUnavailable
from optd_wire.v1 import training_service_pb2 as training
from optd_wire.v1 import worker_service_pb2 as workers

ELEMENTS = 1 << 16
NO_ACCESS = "no shared memory"


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A folder for sockets; short, as their paths have to be."""
    folder = Path(tempfile.mkdtemp(prefix="optd-test-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = Path(tempfile.mkdtemp(prefix="optd-test-"))
    with running(tmp_path_factory.mktemp("server"), "--shared-memory-dir", str(folder)) as started:
        yield started
    assert list(folder.iterdir()) == []
    folder.rmdir()


@pytest.fixture
def plain(program: Program) -> Iterator[Plain]:
    with Plain(program.address) as stubs:
        yield stubs
        # What a test leaves open would be given back in the middle of another one.
        for job in stubs.job_names():
            stubs.delete(job)


class Guest:
    """A worker of a job with shared memory, by hand."""

    def __init__(
        self, plain: Plain, job: str, worker: str = "w0", *, create: bool = True, sync_workers: int = 0
    ) -> None:
        self.plain, self.job, self.worker = plain, job, worker
        if create:
            groups = [wire.group("g", {"w": ((ELEMENTS,), "float32")})]
            spec = wire.job_spec(job, groups, workers=sync_workers, lr=1.0)
            plain.create(spec, [wire.frame(np.zeros(ELEMENTS, "f4"))])
        self.epoch = plain.join(job, worker)
        self.planned = plain.status().planned_bytes
        self.identity = {"job": job, "worker": worker, "epoch": self.epoch}
        self.memory = plain.workers.OpenSharedMemory(workers.OpenSharedMemoryRequest(**self.identity), timeout=10)
        self.connection: socket.socket | None = None

    def connect(self, ticket: bytes | None = None) -> tuple[bytes, list[int]]:
        """Shows a ticket; returns what comes."""
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.connection.settimeout(10)
        self.connection.connect(self.memory.path)
        return self.ask(self.memory.ticket if ticket is None else ticket)

    def ask(self, request: bytes) -> tuple[bytes, list[int]]:
        assert self.connection is not None
        self.connection.sendall(request)
        said, descriptors, _, _ = socket.recv_fds(self.connection, 64, 16)
        return said, descriptors

    def open(self) -> "Guest":
        """Maps the gradient and proves it."""
        (descriptor,) = self.connect()[1]
        self.gradient = mmap.mmap(descriptor, self.memory.extents[0].bytes)
        os.close(descriptor)
        self.confirm(bytes(self.gradient[:32]))
        return self

    def confirm(self, token: bytes = b"", problem: str = "") -> None:
        request = workers.ConfirmSharedMemoryRequest(**self.identity, token=token, problem=problem)
        self.plain.workers.ConfirmSharedMemory(request, timeout=10)

    def push(self, sequence: int) -> training.PushResult:
        head = wire.header(self.job, self.worker, self.epoch, sequence, shared=training.SharedGradient(whole=True))
        return self.plain.push(head, [])

    def pull(self, *, in_place: bool = True) -> training.PullResult:
        delivery = training.Delivery(shared=True, in_place=in_place)
        request = training.PullRequest(**self.identity, delivery=delivery)
        return next(iter(self.plain.training.Pull(request, timeout=10))).result

    @property
    def lane(self) -> str:
        return self.plain.list_workers(self.job)[self.worker].lane

    @property
    def given_back(self) -> bool:
        return self.plain.status().planned_bytes == self.planned


def array(mapped: mmap.mmap) -> np.ndarray:
    return np.frombuffer(mapped, "f4", ELEMENTS)


# Strangers at the socket


@pytest.mark.parametrize("ticket", [b"x" * 32, b"0", b"x" * 4096, b"1" * 64])
def test_a_wrong_ticket_gets_nothing_and_the_right_one_is_still_good(plain: Plain, name: str, ticket: bytes) -> None:
    guest = Guest(plain, name)
    assert guest.connect(ticket) == (b"", [])
    assert guest.connect(guest.memory.ticket + b"x") == (b"", [])
    guest.open()
    assert guest.lane == "shm"


def test_the_socket_is_for_this_user_alone(plain: Plain, name: str) -> None:
    mode = Path(Guest(plain, name).memory.path).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert mode & 0o077 == 0


def test_a_ticket_is_good_for_once(plain: Plain, name: str) -> None:
    guest = Guest(plain, name).open()
    first = guest.connection
    assert guest.connect() == (b"", [])
    guest.connection = first
    array(guest.gradient)[:] = 1
    assert guest.push(1).applied_version == 1
    assert guest.lane == "shm"


def test_a_wrong_token_ends_the_sharing(plain: Plain, name: str) -> None:
    guest = Guest(plain, name)
    guest.connect()
    with refused("SHARED_MEMORY_UNAVAILABLE", "token"):
        guest.confirm(b"y" * 32)
    wait_for(lambda: guest.given_back, "the memory to be given back")
    assert guest.lane.startswith("grpc (its token")
    with refused("SHARED_MEMORY_UNAVAILABLE", "none open"):
        guest.push(1)
    plain.push(wire.header(name, "w0", guest.epoch, 1), [wire.frame(np.ones(ELEMENTS, "f4"))])


def test_a_push_before_the_proof_is_refused(plain: Plain, name: str) -> None:
    guest = Guest(plain, name)
    guest.connect()
    with refused("SHARED_MEMORY_UNAVAILABLE"):
        guest.push(1)
    assert not guest.pull().HasField("shared")


@pytest.mark.parametrize("request_", [b"999999", b"-1", b"1.5", b"0x1", b"9" * 64, b"7" * 9000, "²".encode()])
def test_an_unknown_region_is_answered_and_the_next_one_is_handed_over(
    plain: Plain, name: str, request_: bytes
) -> None:
    guest = Guest(plain, name).open()
    assert guest.ask(request_) == (b"unknown", [])
    (number,) = guest.pull().shared.regions
    said, (descriptor,) = guest.ask(str(number).encode())
    assert said == b"weights"
    with pytest.raises(PermissionError):
        mmap.mmap(descriptor, guest.memory.extents[0].bytes)
    mapped = mmap.mmap(descriptor, guest.memory.extents[0].bytes, flags=mmap.MAP_PRIVATE)
    os.close(descriptor)
    assert not array(mapped).any()


def test_the_regions_of_another_job_are_unknown(plain: Plain, name: str) -> None:
    guest, other = Guest(plain, name).open(), Guest(plain, f"{name}-other").open()
    (number,) = other.pull().shared.regions
    assert guest.ask(str(number).encode()) == (b"unknown", [])


@pytest.mark.parametrize("confirmed", [False, True])
def test_when_the_connection_ends_everything_is_given_back(plain: Plain, name: str, confirmed: bool) -> None:
    guest = Guest(plain, name)
    if confirmed:
        guest.open()
        assert guest.pull().shared.in_place
    else:
        guest.connect()
    assert not guest.given_back
    guest.connection.close()
    wait_for(lambda: guest.given_back, "the memory to be given back")
    # Whoever comes now may hold weights in place, of whichever version.
    for sequence in range(1, 6):
        plain.push(wire.header(name, "w0", guest.epoch, sequence), [wire.frame(np.ones(ELEMENTS, "f4"))])
    assert Guest(plain, name, "w1", create=False).open().pull().shared.in_place
    plain.delete(name)


def test_a_push_by_messages_is_not_withdrawn_with_the_memory_that_its_worker_closes(plain: Plain, name: str) -> None:
    guest = Guest(plain, name, sync_workers=2).open()
    other = plain.join(name, "w1")
    gradient = [wire.frame(np.ones(ELEMENTS, "f4"))]
    push = in_background(lambda: plain.push(wire.header(name, "w0", guest.epoch, 1), gradient))
    wait_for(lambda: plain.list_workers(name)["w0"].waiting, "the push to wait")
    guest.connection.close()
    wait_for(lambda: guest.given_back, "the memory to be given back")
    assert plain.push(wire.header(name, "w1", other, 1), gradient).applied_version == 1
    assert push.result(10).applied_version == 1


def test_a_push_in_shared_memory_is_withdrawn_with_it(plain: Plain, name: str) -> None:
    guest = Guest(plain, name, sync_workers=2).open()
    push = in_background(lambda: guest.push(1))
    wait_for(lambda: plain.list_workers(name)["w0"].waiting, "the push to wait")
    guest.connection.close()
    with refused("PUSH_WITHDRAWN", "has closed the memory"):
        push.result(10)
    assert guest.given_back
    assert not plain.list_workers(name)["w0"].waiting


def test_connections_without_a_ticket_keep_nobody_out(plain: Plain, name: str) -> None:
    guest, silent = Guest(plain, name), []
    try:
        for number in range(200):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            silent.append(connection)
            connection.settimeout(10)
            connection.connect(guest.memory.path)
            if number % 2:
                connection.sendall(b"%d" % number)
        guest.open()
        assert guest.pull().shared.in_place
        assert all(connection.recv(64) == b"" for connection in silent[1::2])
    finally:
        for connection in silent:
            connection.close()


def test_a_worker_that_asks_and_never_listens_loses_its_memory_and_nobody_elses(plain: Plain, name: str) -> None:
    guest, other = Guest(plain, name).open(), Guest(plain, f"{name}-other").open()
    (number,) = guest.pull().shared.regions
    guest.connection.settimeout(0.2)
    with suppress(OSError):
        for _ in range(10_000):
            guest.connection.sendall(str(number).encode())
    wait_for(lambda: guest.lane == "grpc", "its connection to be ended")
    array(other.gradient)[:] = 1
    assert other.push(1).applied_version == 1
    assert plain.healthy()


@pytest.mark.slow
def test_a_server_without_descriptors_trains_by_messages_and_shares_memory_again_later(
    tmp_path: Path, sockets: Path, name: str
) -> None:
    with running(tmp_path, "--shared-memory-dir", str(sockets)) as program, Plain(program.address) as plain:
        first = Guest(plain, name).open()
        limits = resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE)
        descriptors = len(list(Path(f"/proc/{program.process.pid}/fd").iterdir()))
        resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE, (descriptors, limits[1]))
        spec = wire.job_spec(f"{name}-new", [wire.group("g", {"w": ((ELEMENTS,), "float32")})], lr=1.0)
        plain.create(spec, [wire.frame(np.zeros(ELEMENTS, "f4"))])
        epoch = plain.join(f"{name}-new")
        identity = {"job": f"{name}-new", "worker": "w0", "epoch": epoch}
        with refused("SHARED_MEMORY_UNAVAILABLE", "Too many open files"):
            plain.workers.OpenSharedMemory(workers.OpenSharedMemoryRequest(**identity), timeout=10)
        assert plain.list_workers(f"{name}-new")["w0"].lane == "grpc (Too many open files)"
        for sequence in range(1, 6):
            array(first.gradient)[:] = 1
            assert first.push(sequence).applied_version == sequence
            head = wire.header(f"{name}-new", "w0", epoch, sequence)
            plain.push(head, [wire.frame(np.ones(ELEMENTS, "f4"))])
        for job in (name, f"{name}-new"):
            assert (plain.weights(job)["w"] == -5).all()
            assert plain.summary(job).failure == ""
        resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE, limits)
        again = Guest(plain, f"{name}-new", create=False).open()
        for sequence in range(1, 4):
            array(again.gradient)[:] = 1
            again.push(sequence)
        assert again.pull().shared.in_place


def test_leaving_and_joining_again_give_it_back_as_well(plain: Plain, name: str) -> None:
    guest = Guest(plain, name).open()
    plain.join(name)
    assert guest.given_back
    with refused("STALE_EPOCH"):
        guest.push(1)
    again = Guest(plain, name, create=False).open()
    plain.leave(name, "w0", again.epoch)
    assert again.given_back


def test_a_hostile_worker_that_scribbles_while_it_is_read_harms_nobody_else(plain: Plain, name: str) -> None:
    guest, stop = Guest(plain, name).open(), threading.Event()

    def scribble() -> None:
        rng = np.random.default_rng(0)
        words = np.frombuffer(guest.gradient, "u4", ELEMENTS)
        while not stop.is_set():
            words[:] = rng.integers(0, 1 << 32, ELEMENTS, "u4") if rng.integers(2) else 0

    thread = threading.Thread(target=scribble)
    thread.start()
    sequence, outcomes = 1, set()
    try:
        with optd.connect(plain.address, job=f"{name}-good", worker="good", lane="shm") as session:
            weights = np.zeros(ELEMENTS, "f4")
            optimizer = optd.SGD([weights], lr=1.0, session=session)
            for number in range(1, 31):
                try:
                    guest.push(sequence)
                    sequence += 1
                    outcomes.add("applied")
                except grpc.RpcError as error:
                    outcomes.add(wire.refusal_of(error).reason)
                optimizer.step([np.ones(ELEMENTS, "f4")])
                assert (weights == -number).all()
    finally:
        stop.set()
        thread.join()
    assert outcomes <= {"applied", "NONFINITE_GRADIENT"}
    assert plain.healthy()
    plain.delete(name)


# Processes that are killed


@contextmanager
def sharer(address: str, job: str, worker: str, sync_workers: int = 0) -> Iterator[Worker]:
    arguments = [address, job, worker, str(ELEMENTS)] + ([str(sync_workers)] if sync_workers else [])
    with spawned("sharer.py", *arguments) as process:
        made = Worker(process)
        assert made.ask("look")["lane"] == "shm"
        yield made


@pytest.mark.slow
def test_what_a_worker_reads_in_place_stays_until_its_next_call(program: Program, plain: Plain, name: str) -> None:
    with sharer(program.address, name, "reader") as reader:
        assert reader.ask("step", gradient=1)["weights"] == [-1]
        with sharer(program.address, name, "other") as other:
            for number in range(2, 12):
                assert other.ask("step", gradient=1)["weights"] == [-number]
                seen = reader.ask("look")
                assert (seen["weights"], seen["own"]) == ([-1], False)
            assert reader.ask("step", gradient=1)["weights"] == [-12]


@pytest.mark.slow
def test_a_worker_that_is_killed_while_it_reads_in_place_gives_its_memory_back(
    program: Program, plain: Plain, name: str
) -> None:
    with sharer(program.address, name, "other") as other:
        planned = plain.status().planned_bytes
        with sharer(program.address, name, "killed") as killed:
            assert not killed.ask("step", gradient=1)["own"]
            assert plain.status().planned_bytes > planned
            other.ask("step", gradient=1)
            killed.process.kill()
            killed.process.wait()
            wait_for(lambda: plain.status().planned_bytes == planned, "the memory to be given back")
        outcome = [other.ask("step", gradient=1) for _ in range(5)][-1]
        assert outcome["weights"] == [-7]
        assert not outcome["own"]


@pytest.mark.slow
def test_a_worker_that_is_killed_in_a_round_breaks_it_off(program: Program, plain: Plain, name: str) -> None:
    with sharer(program.address, name, "a", 2) as first:
        with sharer(program.address, name, "b", 2) as killed:
            killed.tell("step", gradient=1)
            wait_for(lambda: plain.list_workers(name)["b"].waiting, "the push to wait")
            killed.process.kill()
            killed.process.wait()
            wait_for(lambda: not plain.list_workers(name)["b"].waiting, "the push to be withdrawn")
        first.tell("step", gradient=1)
        with sharer(program.address, name, "b", 2) as again:
            assert again.ask("step", gradient=3)["weights"] == [-2]
            assert first.outcome()["weights"] == [-2]


@pytest.mark.slow
def test_what_killed_servers_leave_the_next_one_removes_and_nothing_else(tmp_path: Path, sockets: Path) -> None:
    homes = [tmp_path / name for name in ("living", "killed", "next")]
    for home in homes:
        home.mkdir()
    flags = ("--shared-memory-dir", str(sockets))
    with running(homes[0], *flags) as living:
        (its,) = sockets.iterdir()
        with running(homes[1], *flags) as killed, sharer(killed.address, "job", "w") as worker:
            worker.ask("step", gradient=1)
            killed.process.kill()
            worker.process.kill()
            killed.process.wait()
        (dead,) = set(sockets.iterdir()) - {its}
        (sockets / "optd-note.sock").write_text("foreign")
        (sockets / "optd-link.sock").symlink_to(dead)
        other = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        other.bind(str(sockets / "other.sock"))
        other.close()
        foreign = {sockets / "optd-note.sock", sockets / "optd-link.sock", sockets / "other.sock"}
        with running(homes[2], *flags) as following:
            found = set(sockets.iterdir())
            assert dead not in found
            assert foreign < found
            assert its in found
            assert len(found) == len(foreign) + 2
            for server in (living, following):
                with sharer(server.address, "job", "w") as worker:
                    assert worker.ask("step", gradient=1)["weights"] == [-1]
        assert set(sockets.iterdir()) == foreign | {its}
    assert set(sockets.iterdir()) == foreign


# Servers that have none to give


def trains_by_messages(address: str) -> str:
    """Trains where there is no shared memory; returns what the server says about the lane."""
    with optd.connect(address, job="job", worker="w") as session:
        weights = np.zeros(ELEMENTS, "f4")
        optimizer = optd.SGD([weights], lr=1.0, session=session)
        optimizer.step([np.ones(ELEMENTS, "f4")])
        assert (weights == -1).all()
        assert session.lane == "grpc"
        said = session.workers()[0].lane
    with optd.connect(address, job="job2", worker="w", lane="shm") as session:
        with pytest.raises((SharedMemoryUnavailable, optd.OptdError)) as caught:
            optd.SGD([np.zeros(ELEMENTS, "f4")], lr=1.0, session=session)
        assert isinstance(caught.value, SharedMemoryUnavailable) or "memory" in str(caught.value)
    return said


@pytest.mark.slow
def test_a_server_without_shared_memory(tmp_path: Path, sockets: Path) -> None:
    with running(tmp_path, "--no-shared-memory", "--shared-memory-dir", str(sockets)) as program:
        assert list(sockets.iterdir()) == []
        assert trains_by_messages(program.address) == "grpc (it was started with --no-shared-memory)"


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["missing", "file", "long" * 40])
def test_a_folder_that_cannot_be_used_is_warned_of(tmp_path: Path, sockets: Path, folder: str) -> None:
    if folder == "file":
        (sockets / folder).touch()
    elif folder != "missing":
        (sockets / folder).mkdir()
    with running(tmp_path, "--shared-memory-dir", str(sockets / folder)) as program:
        assert NO_ACCESS in program.log
        assert "warning" in program.log
        # However long its path, the reason that is kept is not.
        reason = f"grpc (its --shared-memory-dir {sockets / folder} cannot be used: "[:206]
        assert trains_by_messages(program.address).startswith(reason)


@pytest.mark.slow
def test_a_worker_whose_memory_does_not_fit_is_told_so(tmp_path: Path, sockets: Path) -> None:
    # A job of this size is planned with seven times its weights.
    limit = 15 * ELEMENTS * 4
    with (
        running(tmp_path, "--shared-memory-dir", str(sockets), "--max-memory-bytes", str(limit)) as program,
        optd.connect(program.address, job="other", worker="w", lane="grpc") as session,
    ):
        optd.SGD([np.zeros(ELEMENTS, "f4")], lr=1.0, session=session)
        with optd.connect(program.address, job="first", worker="w") as first:
            optd.SGD([np.zeros(ELEMENTS, "f4")], lr=1.0, session=first)
            assert first.lane == "shm"
            with optd.connect(program.address, job="first", worker="x") as second:
                optimizer = optd.SGD([np.zeros(ELEMENTS, "f4")], lr=1.0, session=second)
                assert second.lane == "grpc"
                said = second.workers()[1].lane
                assert said.startswith("grpc (the shared memory of worker 'x'"), said
                optimizer.step([np.ones(ELEMENTS, "f4")])


@pytest.mark.slow
def test_a_worker_that_cannot_reach_the_socket_is_told_so(tmp_path: Path, sockets: Path) -> None:
    with running(tmp_path, "--shared-memory-dir", str(sockets)) as program, Plain(program.address) as plain:
        planned = plain.status().planned_bytes
        (path,) = sockets.iterdir()
        path.rename(path.with_name("elsewhere"))
        assert trains_by_messages(program.address).startswith(f"grpc (cannot connect to {path}: no such file")
        for job in plain.job_names():
            plain.delete(job)
        assert plain.status().planned_bytes == planned

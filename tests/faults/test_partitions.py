"""Networks that break without a word: no reset, no end of a connection, packets that do not arrive."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from contract.plain import Plain
from e2e.programs import Program, running
from faults.network import Cable, cable
from faults.processes import Worker, spawned, wait_for, worker

LEASE = 2.0


@pytest.fixture
def link() -> Iterator[Cable]:
    with cable() as made:
        yield made


@pytest.fixture
def program(tmp_path: Path, link: Cable) -> Iterator[Program]:
    """A server that both networks reach, and this process whatever becomes of the cable."""
    flags = (
        "--host",
        "0.0.0.0",
        "--insecure",
        "--lease-seconds",
        str(LEASE),
        "--idle-seconds",
        "1",
        "--grace-seconds",
        "1",
    )
    with running(tmp_path, *flags) as made:
        yield made


@pytest.fixture
def plain(program: Program) -> Iterator[Plain]:
    with Plain(f"127.0.0.1:{port(program)}") as stubs:
        yield stubs


def port(program: Program) -> int:
    return int(program.address.rpartition(":")[2])


def joined(stack: ExitStack, link: Cable, program: Program, job: str, **more: object) -> Worker:
    """A worker beyond the cable."""
    address = f"{link.host}:{port(program)}"
    return stack.enter_context(worker(address, job, "far", prefix=link.prefix, **more))


def is_active(plain: Plain, job: str) -> bool:
    return plain.list_workers(job)["far"].active


def connections(program: Program, link: Cable) -> int:
    """How many connections the server has with the far end."""
    found = psutil.Process(program.process.pid).net_connections("tcp")
    return sum(link.guest in each.raddr.ip for each in found if each.raddr)


@pytest.mark.slow
def test_22_a_step_over_a_short_partition_counts_once(link: Cable, program: Program, plain: Plain, name: str):
    with ExitStack() as stack:
        far = joined(stack, link, program, name)
        assert far.ask("step", gradient=1)["version"] == 1
        link.pull_out()
        far.tell("step", gradient=1)
        with worker(f"127.0.0.1:{port(program)}", name, "near") as near:
            assert near.ask("step", gradient=1)["version"] == 2  # nobody waits for those who cannot be reached
        assert plain.info(name).version.version == 2
        link.plug_in()
        outcome = far.outcome()
        # Whether its lease ran out meanwhile is a matter of time; either way the push counts once or not at all.
        version = plain.info(name).version.version
        assert version == (3 if "version" in outcome else 2), outcome
        assert plain.weights(name)["param0"].tolist() == [-version] * 4


@pytest.mark.slow
def test_22_a_partition_that_lasts_is_told_at_the_deadline(link: Cable, program: Program, plain: Plain, name: str):
    """The worker gives up when its time is up, and not before; what it had sent counts once or never."""
    timeout = 3.0
    with ExitStack() as stack:
        far = joined(stack, link, program, name, timeout=timeout)
        assert far.ask("step", gradient=1)["version"] == 1
        link.pull_out()
        outcome = far.ask("step", gradient=1)
        assert outcome["error"] in ("DeadlineExceeded", "Unreachable"), outcome
        assert outcome["seconds"] >= timeout * 0.9
        assert f":{port(program)}" in outcome["message"]
        wait_for(lambda: not is_active(plain, name), "the lease of who cannot be heard runs out")
        link.plug_in()
        wait_for(lambda: is_healthy_beyond(link, program), "packets get through")
        again = stack.enter_context(worker(f"{link.host}:{port(program)}", name, "far", prefix=link.prefix))
        assert again.ask("step", gradient=1)["version"] == plain.info(name).version.version
        version = plain.info(name).version.version
        assert version in (2, 3)
        assert plain.weights(name)["param0"].tolist() == [-version] * 4


def is_healthy_beyond(link: Cable, program: Program) -> bool:
    with Plain(f"{link.host}:{port(program)}") as stubs:
        return stubs.healthy()


@pytest.mark.slow
def test_23_a_peer_that_is_gone_without_a_word_keeps_nothing(link: Cable, program: Program, plain: Plain, name: str):
    """Its process dies behind the pulled cable: no reset comes. Its lease and its half of a push end all the same."""
    with worker(f"127.0.0.1:{port(program)}", name, "near") as near:
        with spawned("half_pusher.py", f"{link.host}:{port(program)}", name, "far", "4", prefix=link.prefix) as far:
            assert far.stdout is not None
            assert far.stdout.readline()
            wait_for(lambda: plain.status().requests > 1, "its push is on its way")
            link.pull_out()
            far.kill()
            wait_for(lambda: not is_active(plain, name), "its lease runs out")
            wait_for(lambda: plain.status().requests == 1, "its call is given up")
        assert connections(program, link) == 1, "the server was told, so nothing was half-open"
        assert near.ask("step", gradient=1)["weights"] == [-1] * 4


@pytest.mark.soak
def test_23_the_connection_of_a_half_open_peer_is_closed(link: Cable, program: Program, plain: Plain, name: str):
    """The server's keepalive finds out: after 20 s without data, and 10 s without an answer."""
    with ExitStack() as stack:
        far = joined(stack, link, program, name)
        assert far.ask("step", gradient=1)["version"] == 1
        assert connections(program, link) >= 1
        link.pull_out()
        far.signal(signal.SIGKILL)
        assert connections(program, link) >= 1, "the server was told, so nothing is half-open"
        wait_for(lambda: connections(program, link) == 0, "the server closes the connection", 60)

"""Training under each policy reaches what one process reaches, although a worker is killed and restarted in between."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from e2e.converging import BATCH, MOMENTUM, POLICIES, network

import optd
from optd.local import LocalServer, local

VERSIONS = 1500
KILLED_AT = 400
SECONDS = 120


@pytest.fixture(scope="module")
def brief() -> Iterator[LocalServer]:
    """A server whose leases are short, so that nobody waits long for the worker that is killed."""
    with local("--lease-seconds", "2") as running:
        yield running


@pytest.fixture(scope="module")
def alone() -> float:
    """The accuracy of one process that trains for as many steps, without a server."""
    examples, held_out = network.load()
    batches = network.batches(examples, BATCH, seed=1)
    weights = network.initial_weights()
    velocity = {name: values * 0 for name, values in weights.items()}
    for _ in range(VERSIONS):
        _, gradients = network.backward(weights, next(batches))
        for name in weights:
            velocity[name] = 0.9 * velocity[name] + gradients[name]
            weights[name] -= 0.1 * velocity[name]
    return network.accuracy(weights, held_out)


def start(stack: ExitStack, address: str, job: str, index: int, count: int, policy: str) -> "subprocess.Popen[str]":
    script = Path(__file__).with_name("converging.py")
    # Where each push is a step, a step has the examples of one worker alone.
    versions = VERSIONS * (2 if policy in MOMENTUM else 1)
    arguments = [address, job, f"w{index}", f"{index}/{count}", policy, str(versions)]
    process = subprocess.Popen([sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True)
    stack.callback(end, process)
    return process


def end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def accuracy_of(server: LocalServer, job: str, policy: str, workers: int) -> float:
    """Trains with so many processes, of which one is killed and restarted."""
    with ExitStack() as stack:
        processes = [start(stack, server.address, job, index, workers, policy) for index in range(1, workers + 1)]
        doomed = processes[-1]
        assert doomed.stdout is not None
        for line in doomed.stdout:
            if int(line) >= KILLED_AT:
                break
        doomed.kill()
        doomed.wait()
        processes[-1] = start(stack, server.address, job, workers, workers, policy)
        for process in processes:
            with suppress(BrokenPipeError):
                process.communicate(timeout=SECONDS)
            assert process.returncode == 0
        with optd.connect(server.address, job=job) as reader:
            weights = reader.pull()
        assert weights.version >= VERSIONS
        return network.accuracy(weights, network.load()[1])


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_two_workers_reach_the_accuracy_of_one_process(brief, alone, name, policy):
    assert accuracy_of(brief, name, policy, 2) >= alone - 0.01


@pytest.mark.soak
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("policy", POLICIES)
def test_so_do_one_and_four(brief, alone, name, policy, workers):
    assert accuracy_of(brief, name, policy, workers) >= alone - 0.01

"""A client that behaves badly until its input ends: run as a process of its own.

    python abuser.py ADDRESS never-reads|floods|sends-garbage

It has a job of its own, as anybody may. It prints a line when it has begun, and at the end how often it has done it.
"""

import random
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from contract.plain import OWN_RPCS, Plain, call, frame, group, header, job_spec

from optd_wire.v1 import training_service_pb2

NARROW = [("grpc.http2.lookahead_bytes", 65536), ("grpc.http2.bdp_probe", 0)]
ELEMENTS = 1 << 20
READERS = 4
FLOODERS = 6


def main() -> None:
    address, how = sys.argv[1:]
    job = f"abused.{how}"
    with Plain(address, options=NARROW) as plain:
        spec = job_spec(job, [group("g", {"w": ((ELEMENTS,), "float32")})], lr=1.0)
        plain.create(spec, [frame(np.zeros(ELEMENTS, "f4"))])
        run({"never-reads": never_reads, "floods": floods, "sends-garbage": sends_garbage}[how](plain, job))


def run(acts: list[Callable[[], None]]) -> None:
    """Do each of the acts again and again, in a thread of its own."""
    ended = threading.Event()
    begun = threading.Barrier(len(acts) + 1)
    done = [0] * len(acts)

    def repeat(index: int) -> None:
        while not ended.is_set():
            with suppress(grpc.RpcError, OSError):
                acts[index]()
            done[index] += 1
            if done[index] == 1:
                begun.wait()

    for index in range(len(acts)):
        threading.Thread(target=repeat, args=(index,), daemon=True).start()
    begun.wait()
    print("begun", flush=True)
    sys.stdin.read()
    ended.set()
    print(sum(done), flush=True)


def never_reads(plain: Plain, job: str) -> list[Callable[[], None]]:
    """Pulls whose answers nobody takes; when the server gives one up, there comes another."""
    held: dict[int, Any] = {}

    def act(index: int) -> None:
        if index in held:
            held[index].exception(timeout=60)
        held[index] = plain.training.Pull(training_service_pb2.PullRequest(job=job), timeout=60)
        next(held[index])

    return [lambda index=index: act(index) for index in range(READERS)]


def floods(plain: Plain, job: str) -> list[Callable[[], None]]:
    """Pushes of 4 MiB as fast as they go, and questions besides; nothing waits for a delay that it is told."""

    def push(index: int) -> Callable[[], None]:
        epoch = plain.join(job, f"w{index}")
        frames = [frame(np.ones(ELEMENTS, "f4"))]
        sequence = 0

        def act() -> None:
            nonlocal sequence
            plain.push(header(job, f"w{index}", epoch, sequence + 1), frames)
            sequence += 1

        return act

    return [push(index) for index in range(FLOODERS // 2)] + [lambda: plain.info(job)] * (FLOODERS // 2)


def sends_garbage(plain: Plain, _: str) -> list[Callable[[], None]]:
    """Noise instead of HTTP/2, and noise instead of messages."""
    chance = random.Random(0)
    host, port = plain.address.split(":")

    def connect() -> None:
        with socket.create_connection((host, int(port)), timeout=5) as raw:
            raw.sendall(chance.randbytes(10_000))
            raw.shutdown(socket.SHUT_WR)
            while raw.recv(4096):
                continue

    def send() -> None:
        call(plain.channel, chance.choice(OWN_RPCS), chance.randbytes(1000))

    return [connect, connect, send, send]


if __name__ == "__main__":
    main()

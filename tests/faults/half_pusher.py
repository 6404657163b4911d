"""A worker that sends half of a push and then nothing: run as a process of its own, to be killed.

    python half_pusher.py ADDRESS JOB WORKER ELEMENTS

It prints a line when the first half is on its way, and waits for the end of its input.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from contract.plain import Plain, frame, header

from optd_wire.v1 import training_service_pb2


def main() -> None:
    address, job, worker, elements = sys.argv[1:]
    with Plain(address) as plain:
        epoch = plain.join(job, worker)

        def half() -> Iterator[training_service_pb2.PushRequest]:
            yield training_service_pb2.PushRequest(header=header(job, worker, epoch, 1))
            yield training_service_pb2.PushRequest(frames=[frame(np.full(int(elements) // 2, 1000, "f4"))])
            print(json.dumps({"epoch": epoch}), flush=True)
            sys.stdin.read()

        plain.training.Push(half(), timeout=600)


if __name__ == "__main__":
    main()

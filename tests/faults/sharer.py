"""A worker that shares memory with its server, and does what it is told, line by line: a process to be killed.

    python sharer.py ADDRESS JOB WORKER ELEMENTS [SYNC_WORKERS]

It reads weights in place. Each line of its input is a command in JSON; each gets a line with its outcome.
"""

import json
import sys

import numpy as np

import optd


def main() -> None:
    address, job, worker, elements, *workers = sys.argv[1:]
    policy = optd.Sync(workers=int(workers[0])) if workers else optd.Async()
    params = [np.zeros(int(elements), "f4")]
    with optd.connect(address, job=job, worker=worker, policy=policy, timeout=20, lane="shm") as session:
        optimizer = optd.SGD(params, lr=1.0, session=session, zero_copy=True)
        (name,) = optimizer.weights
        for line in sys.stdin:
            command = json.loads(line)
            try:
                if command["do"] == "step":
                    optimizer.step([np.full(int(elements), command["gradient"], "f4")])
                weights = optimizer.weights[name]
                outcome = {
                    "weights": sorted({float(weights.min()), float(weights.max())}),
                    "own": optimizer.weights[name] is params[0],
                    "version": session.version,
                    "lane": session.lane,
                }
            except optd.OptdError as error:
                outcome = {"error": type(error).__name__, "message": str(error)}
            print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()

"""A worker that does what it is told, line by line: run as a process of its own, to be stopped and killed.

    python worker.py [--timeout SECONDS] [--elements N] [--lane LANE] ADDRESS JOB WORKER [SYNC_WORKERS]

Each line of its input is a command in JSON; each gets a line with its outcome.
"""

import argparse
import json
import sys
import time
from typing import Any

import numpy as np

import optd


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--timeout", type=float, default=20)
    parser.add_argument("--elements", type=int, default=4)
    parser.add_argument("--lane", default="auto")
    parser.add_argument("names", nargs=3)
    parser.add_argument("workers", nargs="?", type=int)
    given = parser.parse_args()
    address, job, worker = given.names
    policy = optd.Sync(workers=given.workers) if given.workers else None
    with optd.connect(
        address, job=job, worker=worker, policy=policy, timeout=given.timeout, lane=given.lane
    ) as session:
        obey(session, given.elements)


def obey(session: optd.Session, elements: int) -> None:
    weights = np.zeros(elements, "f4")
    optimizer: Any = None
    for line in sys.stdin:
        command = json.loads(line)
        began = time.monotonic()
        try:
            match command["do"]:
                case "register":
                    optimizer = optd.SGD([weights], lr=1.0, session=session)
                case "step":
                    optimizer.step([np.full(elements, command["gradient"], "f4")])
                case "push":
                    optimizer.push([np.full(elements, command["gradient"], "f4")])
                case "pull":
                    optimizer.pull()
            outcome = {
                "weights": weights[:4].tolist(),
                "version": session.version,
                "epoch": session.epoch,
                "lane": session.lane,
            }
        except optd.OptdError as error:
            outcome = {"error": type(error).__name__, "message": str(error)}
        outcome["seconds"] = time.monotonic() - began
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()

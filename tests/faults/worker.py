"""A worker that does what it is told, line by line: run as a process of its own, to be stopped and killed.

    python worker.py ADDRESS JOB WORKER LANE [SYNC_WORKERS]

Each line of its input is a command in JSON; each gets a line with its outcome.
"""

import json
import sys
from typing import Any

import numpy as np

import optd


def main() -> None:
    address, job, worker, lane, *workers = sys.argv[1:]
    policy = optd.Sync(workers=int(workers[0])) if workers else optd.Async()
    with optd.connect(address, job=job, worker=worker, policy=policy, lane=lane, timeout=20) as session:
        obey(session)


def obey(session: optd.Session) -> None:
    weights = np.zeros(4, "f4")
    optimizer: Any = None
    for line in sys.stdin:
        command = json.loads(line)
        try:
            match command["do"]:
                case "register":
                    optimizer = optd.SGD([weights], lr=1.0, session=session)
                case "step":
                    optimizer.step([np.full(4, command["gradient"], "f4")])
                case "push":
                    optimizer.push([np.full(4, command["gradient"], "f4")])
                case "pull":
                    optimizer.pull()
            outcome = {
                "weights": weights.tolist(),
                "version": session.version,
                "epoch": session.epoch,
                "lane": session.lane,
            }
        except optd.OptdError as error:
            outcome = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()

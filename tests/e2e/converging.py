"""A worker that trains on its part of the digits until its job has come to a version.

    python converging.py ADDRESS JOB WORKER I/N POLICY VERSION

It prints the job's version after each of its steps.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import optd

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import network

BATCH = 32
POLICIES: dict[str, Callable[[int], object]] = {
    "async": lambda _: optd.Async(),
    "async, scaled": lambda _: optd.Async(staleness="inverse", max_staleness=16),
    "bounded": lambda _: optd.Bounded(2),
    "sync": optd.Sync,
    "sync, quorum": lambda workers: optd.Sync(workers, quorum=max(1, workers - 1), grace="auto"),
    "sync, goes on": lambda workers: optd.Sync(workers, on_death="continue"),
    "live": lambda _: optd.Sync("live", round_seconds=5.0),
}

MOMENTUM = {"async": 0.7, "async, scaled": 0.85, "bounded": 0.7}


def main() -> None:
    address, job, worker, shard, policy, target = sys.argv[1:]
    index, count = map(int, shard.split("/"))
    examples, _ = network.load()
    batches = network.batches(network.shard(examples, index, count), BATCH, seed=index)
    weights = network.initial_weights()
    given = POLICIES[policy](count)
    with optd.connect(address, job=job, worker=worker, policy=given, timeout=60) as session:
        # Staleness acts as momentum does (Mitliagkas et al., 2016), so there is less of it where workers do not wait.
        momentum = MOMENTUM.get(policy, 0.9)
        optimizer = optd.SGD(weights, lr=0.1, momentum=momentum, session=session)
        while session.version < int(target):
            _, gradients = network.backward(weights, next(batches))
            optimizer.step(gradients)
            print(session.version, flush=True)


if __name__ == "__main__":
    main()

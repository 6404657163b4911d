"""One worker that learns to read handwritten digits, together with all others of its job.

    python examples/digits.py --server 127.0.0.1:50051 --worker w1

A single worker trains on all of the data. Two workers, in two terminals, share the data and step in rounds:

    python examples/digits.py --server 127.0.0.1:50051 --job pair --worker w1 --shard 1/2 --sync
    python examples/digits.py --server 127.0.0.1:50051 --job pair --worker w2 --shard 2/2 --sync
"""

import argparse
import json
import os
import signal
import sys
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import network
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import optd

BATCH = 32
STEPS = 300
LINES = 10
"""How many lines a worker prints if its output is no terminal."""

COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("{task.fields[where]}"),
)


class Report(NamedTuple):
    """The progress of a worker: its own steps, its loss (a running mean), and the job's version."""

    step: int
    steps: int
    loss: float
    version: int

    def __str__(self) -> str:
        return f"loss {self.loss:.3f}  version {self.version}"


def main() -> None:
    options = parse()
    signal.signal(signal.SIGTERM, stop)
    policy = optd.Sync(workers=options.shard[1]) if options.sync else None
    try:
        with optd.connect(options.server, job=options.job, worker=options.worker, policy=policy) as session:
            show = show_json if options.json else show_bar if sys.stdout.isatty() else show_lines
            show(session.worker, train(session, options.shard, options.steps))
            _, held_out = network.load()
            accuracy = network.accuracy(session.pull(), held_out)
        print(f"test accuracy: {accuracy:.2f}")
    except optd.OptdError as error:
        sys.exit(f"digits: {error}")
    except KeyboardInterrupt:
        stop(signal.SIGINT)


def train(session: optd.Session, shard: tuple[int, int], steps: int) -> Iterator[Report]:
    """Makes `steps` steps on this worker's part of the data, and reports each one."""
    examples, _ = network.load()
    batches = network.batches(network.shard(examples, *shard), BATCH, seed=zlib.crc32(session.worker.encode()))
    weights = network.initial_weights()
    optimizer = optd.SGD(
        [
            {"name": "hidden", "params": {"hidden.weight": weights["hidden.weight"]}, "lr": 0.05},
            {"name": "output", "params": {"output.weight": weights["output.weight"]}},
            {
                "name": "biases",
                "params": {name: weights[name] for name in ("hidden.bias", "output.bias")},
                "weight_decay": 0,
            },
        ],
        lr=0.1,
        momentum=0.9,
        weight_decay=1e-4,
        session=session,
    )
    running = None
    for step in range(1, steps + 1):
        loss, gradients = network.backward(weights, next(batches))
        optimizer.step(gradients)  # push, step on the server, pull: `weights` now holds the new ones
        running = loss if running is None else 0.9 * running + 0.1 * loss
        yield Report(step, steps, running, optimizer.version)


def show_bar(worker: str, reports: Iterator[Report]) -> None:
    """A progress bar, for a terminal."""
    with Progress(*COLUMNS) as progress:
        bar = progress.add_task(worker, total=None, where="starting")
        for report in reports:
            progress.update(bar, completed=report.step, total=report.steps, where=report)


def show_lines(worker: str, reports: Iterator[Report]) -> None:
    """A few plain lines, for a file or a log."""
    for report in reports:
        if report.step % max(1, report.steps // LINES) == 0:
            print_line(worker, report)


def print_line(worker: str, report: Report) -> None:
    print(f"{worker}  step {report.step:>4}/{report.steps}  {report}", flush=True)


def show_json(_worker: str, reports: Iterator[Report]) -> None:
    """A JSON object for every step, for a program."""
    for report in reports:
        print(json.dumps(report._asdict()), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="One worker that learns to read handwritten digits.",
        epilog="A server that asks for a token gets the one in OPTD_TOKEN, or in the file OPTD_TOKEN_FILE.",
    )
    parser.add_argument("--server", metavar="HOST:PORT", help="where the server is (default: OPTD_SERVER)")
    parser.add_argument(
        "--worker", metavar="NAME", help="this worker's name (default: OPTD_WORKER, or host and process)"
    )
    parser.add_argument(
        "--job",
        metavar="NAME",
        default=os.environ.get("OPTD_JOB", "digits"),
        help="the job (default: OPTD_JOB, or digits)",
    )
    parser.add_argument("--steps", type=positive, default=STEPS, help=f"steps of this worker (default: {STEPS})")
    parser.add_argument("--shard", type=part, default=(1, 1), metavar="I/N", help="train on part I of N of the data")
    parser.add_argument(
        "--sync", action="store_true", help="create the job so that each step takes a push from all N workers"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object for every step, instead of a bar")
    return parser.parse_args()


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def part(text: str) -> tuple[int, int]:
    """`I/N` with I from 1 to N."""
    index, count = (positive(number) for number in text.split("/"))
    if index > count:
        raise ValueError
    return index, count


def stop(number: int, _frame: object = None) -> None:
    """Ends this worker. It leaves its job first, so that no other worker waits for it."""
    sys.stderr.write("digits: stopped\n")
    sys.exit(128 + number)


if __name__ == "__main__":
    main()

"""A server and two workers that learn to read handwritten digits; `make demo` runs it.

The server is a real `optd` process on a free port, which keeps its job in a temporary folder. In the middle of the
training it is killed with SIGKILL and started again: no step is lost, and the accuracy is that of an undisturbed run.
The workers are two processes of digits.py, which has no code for this. The groups and weights that are shown at the end
are read from the server. Ctrl-C ends all processes.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory

try:
    import digits
    import network
    from processes import Server, Worker
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    import optd
except KeyboardInterrupt:  # this takes a second, and there is nothing to stop yet
    sys.stderr.write("demo: stopped\n")
    sys.exit(130)

JOB = "digits"
WORKERS = ("w1", "w2")
LINES = 6
KILLED_AT = digits.STEPS // 2
"""The step of the first worker at which the server is killed."""

Show = Callable[[str, digits.Report], None]


class Stopped(Exception):
    """A signal has arrived; its number is the argument."""


class Failed(Exception):
    """A worker or the server has ended too early."""


def main() -> None:
    for name in [name for name in os.environ if name.startswith("OPTD_")]:
        del os.environ[name]  # settings for another server than the demo's own
    # Signals wait in the queue. So none can interrupt `train` after a process has started and before it is registered.
    events: SimpleQueue = SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: events.put(number))
    console = Console(highlight=False)
    try:
        with TemporaryDirectory(prefix="optd-demo-") as folder, Server(folder) as server:
            console.print(f"server on {server.address}, job {JOB}, workers {' and '.join(WORKERS)}")
            train(server, events, console, KILLED_AT)
            with optd.connect(server.address, job=JOB) as session:
                console.print(groups(session))
                _, held_out = network.load()
                accuracy = network.accuracy(session.pull(), held_out)
    except Stopped as stopped:
        sys.stderr.write("demo: stopped\n")
        sys.exit(128 + stopped.args[0])
    except (Failed, optd.OptdError) as error:
        sys.exit(f"demo: {error}")
    print(f"test accuracy: {accuracy:.2f}")


def train(server: Server, events: SimpleQueue, console: Console, killed_at: int | None) -> None:
    """Runs the workers until they end. Raises `Stopped` or `Failed`. In any case no worker is left."""
    with ExitStack() as stack:
        running = set()
        for index, name in enumerate(WORKERS, 1):
            worker = Worker(name, f"{index}/{len(WORKERS)}", server.address, JOB, events)
            stack.callback(worker.stop)
            running.add(worker)
        show = stack.enter_context(display(console))
        while running:
            match next_event(server, events):
                case int(number):
                    raise Stopped(number)
                case worker, "":
                    if worker.process.wait() != 0:
                        raise Failed(
                            f"worker {worker.name} ended with {worker.process.returncode}: {worker.last_words}"
                        )
                    running.remove(worker)
                case worker, line if line.startswith("{"):
                    report = digits.Report(**json.loads(line))
                    show(worker.name, report)
                    if worker.name == WORKERS[0] and report.step == killed_at:
                        kill_and_restart(server, console)
                case worker, line:
                    worker.last_words = line.strip() or worker.last_words


def next_event(server: Server, events: SimpleQueue) -> int | tuple[Worker, str]:
    """The number of the next signal, or the next line of a worker."""
    while True:
        try:
            return events.get(timeout=1)
        except Empty:
            if server.process.poll() is not None:
                raise Failed("the server has ended") from None


def kill_and_restart(server: Server, console: Console) -> None:
    """Does to the server what a crash would do. The workers wait, and send again what was not answered."""
    with optd.connect(server.address, job=JOB) as session:
        console.print(f"server killed after version {session.info().version.version}")
        server.kill()
        server.restart()
        console.print(f"server back at version {session.info().version.version}, with all that it had acknowledged")


@contextmanager
def display(console: Console) -> Iterator[Show]:
    """A bar for each worker on a terminal, elsewhere a few lines."""
    if console.is_terminal:
        with Progress(*digits.COLUMNS, console=console) as progress:
            bars = {name: progress.add_task(name, total=digits.STEPS, where="starting") for name in WORKERS}
            yield lambda name, report: progress.update(bars[name], completed=report.step, where=report)
    else:
        yield print_seldom


def print_seldom(name: str, report: digits.Report) -> None:
    if report.step % (report.steps // LINES) == 0:
        digits.print_line(name, report)


def groups(session: optd.Session) -> Table:
    """The groups of the job as the server holds them: a row for each parameter."""
    table = Table(title=f"groups of job {session.job}, read over RPC")
    for column in ("group", "parameter", "shape"):
        table.add_column(column)
    for column in ("lr", "weight_decay", "steps", "norm"):
        table.add_column(column, justify="right")
    for group in session.groups():
        name, options = group.options.group, group.options.options
        for report in session.parameters(name):
            norm = next(field.statistics.norm for field in report.fields if field.field == "weights")
            table.add_row(
                name,
                report.parameter.name,
                " x ".join(map(str, report.parameter.shape)),
                *(f"{options[option]:g}" for option in ("lr", "weight_decay")),
                str(report.steps),
                f"{norm:.3f}",
            )
        table.add_section()
    return table


if __name__ == "__main__":
    main()

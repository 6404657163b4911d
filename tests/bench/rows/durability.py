"""What it costs to keep jobs on a disk, and how fast they are there again.

All data directories are on a disk (see `disk`), and are removed with their row.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np

from bench import disk, in_storage, ours
from bench.in_engine import in_engine
from bench.in_storage import InStorage
from bench.processes import CONTEXT, children
from bench.references import plain_files
from bench.row import GIGABYTES, MEGABYTES_PER_SECOND, MILLISECONDS, PER_SECOND, Row, Side, Sides, Wrong, seconds
from bench.rows.latency import together
from bench.sizes import Size, model, single

FLOAT32_BYTES = 4
SYNC_SECONDS = 1.0
"""The server's default for --fsync-interval-ms."""
NO_SNAPSHOTS = ("--snapshot-seconds", "86400")
DAY_STEPS = 1_000 * 86_400
"""Steps of a day at 1,000 a second."""
ONCE_IN = 100
"""Steps after which the size of the data directory is looked at again."""


def _steps_a_second(job: ours.Job, steps: int) -> Callable[[], float]:
    def work() -> None:
        for _ in range(steps):
            job.step()

    measure = seconds(work)
    return lambda: steps / measure()


def _steps(durability: str) -> Callable[[Size], AbstractContextManager[Sides]]:
    @contextmanager
    def build(size: Size) -> Iterator[Sides]:
        shapes = single(size.small)
        with (
            disk.folder() as folder,
            ours.server("--data-dir", str(folder), "--durability", durability) as keeps,
            ours.server() as forgets,
            ours.job(keeps.address, shapes) as mine,
            ours.job(forgets.address, shapes) as theirs,
        ):
            yield Sides(
                Side(_steps_a_second(mine, size.kept_steps), mine.weights),
                Side(_steps_a_second(theirs, size.kept_steps), theirs.weights),
            )

    return build


@contextmanager
def _commits(size: Size) -> Iterator[Sides]:
    with (
        disk.folder() as folder,
        _pushes(size, "--data-dir", str(folder / "jobs"), "--durability", "log", "--fsync", "commit") as mine,
        plain_files.committers(folder, size.clients, size.small * FLOAT32_BYTES) as committed,
    ):
        yield Sides(mine, Side(lambda: committed(size.push_seconds)))


@contextmanager
def _commits_or_not(size: Size) -> Iterator[Sides]:
    with (
        disk.folder() as folder,
        _pushes(size, "--data-dir", str(folder), "--durability", "log", "--fsync", "commit") as mine,
        _pushes(size) as theirs,
    ):
        yield Sides(mine, theirs)


@contextmanager
def _pushes(size: Size, *arguments: str) -> Iterator[Side]:
    """All workers together, each in a job of its own, on a server that is started with these arguments."""
    with ours.server(*arguments) as server:
        services = [(ours.pusher, server.address, size.small, f"bench-{number}") for number in range(size.clients)]
        with children(*services) as pushers:
            yield Side(together(pushers, size))


@contextmanager
def _log_bytes(size: Size) -> Iterator[Sides]:
    shapes, total = model(size.model), size.model * FLOAT32_BYTES * size.logged_steps
    payload = np.ones(size.model, np.float32)
    with (
        disk.folder() as folder,
        ours.server("--data-dir", str(folder / "jobs"), "--durability", "log") as server,
        ours.job(server.address, shapes, lane="shm", zero_copy=True) as mine,
    ):

        def log() -> None:
            for _ in range(size.logged_steps):
                mine.step()
            mine.wait_durable()

        def write() -> None:
            plain_files.write_in_sequence(folder / "plain", payload, size.logged_steps, SYNC_SECONDS)

        logging, writing = seconds(log), seconds(write)
        yield Sides(Side(lambda: total / logging(), mine.weights), Side(lambda: total / writing()))


@contextmanager
def _replay(size: Size) -> Iterator[Sides]:
    shapes = single(size.small)
    with disk.folder() as folder:
        with (
            ours.server("--data-dir", str(folder), "--durability", "log", *NO_SNAPSHOTS) as server,
            ours.job(server.address, shapes) as mine,
        ):
            for _ in range(size.replayed_steps):
                mine.step()
            expected = mine.weights()
            server.process.kill()  # in order it would write a snapshot, and there would be nothing to replay
        job = InStorage.of(folder)
        _check(job, expected)
        recover = seconds(job.recover)
        with in_engine(shapes, "adam") as live:
            yield Sides(
                Side(lambda: size.replayed_steps / recover()),
                Side(lambda: live.steps_a_second(size.replayed_steps), live.weights),
            )


def _load(*, from_disk: bool) -> Callable[[Size], AbstractContextManager[Sides]]:
    @contextmanager
    def build(size: Size) -> Iterator[Sides]:
        with disk.folder() as folder:
            with (
                ours.server("--data-dir", str(folder), *NO_SNAPSHOTS) as server,
                ours.job(server.address, model(size.plenty)) as mine,
            ):
                mine.step()
                mine.wait_durable()
                expected = mine.weights()
            job = InStorage.of(folder)
            _check(job, expected)
            del expected
            files = job.newest_snapshot()
            forgotten = files if from_disk else []
            yield Sides(
                Side(_after_forgetting(forgotten, seconds(job.recover))),
                Side(_after_forgetting(forgotten, seconds(lambda: plain_files.read(files)))),
            )

    return build


def _after_forgetting(files: list[Path], measure: Callable[[], float]) -> Callable[[], float]:
    """The same measure, of files that the system does not have in memory."""

    def measure_anew() -> float:
        disk.forget(files)
        return measure()

    return measure_anew


def _check(job: InStorage, expected: np.ndarray) -> None:
    if not np.array_equal(in_storage.weights(job.recover()), expected):
        raise Wrong("the recovered weights are not those of the worker")


@contextmanager
def _while_written(size: Size) -> Iterator[Sides]:
    ended = CONTEXT.Event()
    with (
        disk.folder() as folder,
        ours.server("--data-dir", str(folder), *NO_SNAPSHOTS) as server,
        ours.job(server.address, model(size.model), lane="shm", zero_copy=True) as mine,
        children((ours.snapshots, server.address, "bench", ended)) as (snapshots,),
    ):

        def beside_snapshots() -> float:
            ended.clear()
            snapshots.tell()
            try:
                return _p99(mine, size.snapshot_steps)
            finally:
                ended.set()
                if snapshots.answer() == 0:
                    raise Wrong("no snapshot was written meanwhile")

        yield Sides(
            Side(beside_snapshots, mine.weights),
            Side(lambda: _p99(mine, size.snapshot_steps), mine.weights),
            tolerance=None,  # both sides step one job
        )


def _p99(job: ours.Job, steps: int) -> float:
    measure = seconds(job.step)
    return float(np.quantile([measure() for _ in range(steps)], 0.99))


@contextmanager
def _day(size: Size) -> Iterator[Sides]:
    with (
        disk.folder() as folder,
        ours.server("--data-dir", str(folder), "--durability", "log") as server,
        ours.job(server.address, single(size.small)) as mine,
    ):
        largest = 0

        def written() -> float:
            nonlocal largest
            before = disk.written_bytes(server.process.pid)
            for step in range(size.day_steps):
                mine.step()
                if step % ONCE_IN == 0:
                    largest = max(largest, disk.bytes_in(folder))
            mine.wait_durable()
            return (disk.written_bytes(server.process.pid) - before) / size.day_steps * DAY_STEPS

        yield Sides(Side(written), Side(lambda: float(largest)))


def _steps_row(durability: str, aim: float) -> Row:
    return Row(
        name=f"steps of {{small}} elements, durability {durability}",
        reference="durability none",
        build=_steps(durability),
        unit=PER_SECOND,
        aim=aim,
        better="more",
    )


ROWS = (
    _steps_row("snapshot", 0.95),
    _steps_row("log", 0.85),
    Row(
        name="pushes of {small} elements, {clients} workers in {clients} jobs, log, commit",
        reference="{clients} threads that append as many bytes, one fdatasync each time",
        build=_commits,
        unit=PER_SECOND,
        aim=0.7,
        better="more",
    ),
    Row(
        name="pushes of {small} elements, {clients} workers in {clients} jobs, log, commit",
        reference="durability none",
        build=_commits_or_not,
        unit=PER_SECOND,
        better="more",
    ),
    Row(
        name="log of a job of {model}, Adam",
        reference="a file written in sequence, same fsync",
        build=_log_bytes,
        unit=MEGABYTES_PER_SECOND,
        aim=0.8,
        better="more",
    ),
    Row(
        name="recovery from a log, steps of {small} elements",
        reference="live steps, no transport",
        build=_replay,
        unit=PER_SECOND,
        aim=1.0,
        better="more",
    ),
    Row(
        name="recovery from a snapshot, {plenty}, Adam, from disk",
        reference="reading the same files",
        build=_load(from_disk=True),
        unit=MILLISECONDS,
        aim=1.5,
    ),
    Row(
        name="recovery from a snapshot, {plenty}, Adam, from the page cache",
        reference="reading the same files",
        build=_load(from_disk=False),
        unit=MILLISECONDS,
        aim=1.5,
    ),
    Row(
        name="step(), {model}, same host, shared views, p99 while snapshots are written",
        reference="p99 without",
        build=_while_written,
        unit=MILLISECONDS,
        aim=1.5,
    ),
    Row(
        name="bytes written in a day of 1,000 steps/s, {small} elements, durability log",
        reference="the most that the data directory takes",
        build=_day,
        unit=GIGABYTES,
        once=True,
    ),
)

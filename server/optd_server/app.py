"""Start a server from a configuration, and stop it again."""

import asyncio
import ctypes
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import structlog

from optd_server import plugins
from optd_server.clock import SystemClock
from optd_server.config import Config, ConfigError
from optd_server.durability.checkpoints import Checkpoints
from optd_server.durability.levels import Levels
from optd_server.durability.problems import StorageProblem
from optd_server.durability.recovery import GivenUp
from optd_server.durability.storage import Storage
from optd_server.engine.byte_budget import ByteBudgets
from optd_server.engine.catalog import Catalog, nothing_kept
from optd_server.engine.memory import Memory
from optd_server.engine.offload import Offload
from optd_server.optim.backends.base import Backend
from optd_server.optim.backends.registry import BackendUnavailable, choose
from optd_server.rpc.handover import Handover, remove_dead
from optd_server.rpc.security import secure
from optd_server.rpc.server import Server, expire_leases
from optd_wire.errors import OptdError

log = structlog.get_logger("optd")

CALLS_SECONDS = 1.0
M_ARENA_MAX = -8
"""From glibc's malloc.h."""


async def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT; raise `ConfigError` if the server cannot start."""
    _share_heaps()
    security = secure(config)
    added = _algorithms()
    offload = Offload(config.threads, _kernels(config))
    storage = _storage(config)
    catalog = Catalog(
        memory=Memory(config.max_memory_bytes, config.max_message_bytes, copies=0 if storage is None else 1),
        offload=offload,
        clock=SystemClock(),
        lease_seconds=config.lease_seconds,
        ephemeral_seconds=config.ephemeral_seconds,
        budgets=ByteBudgets(config.max_inflight_bytes, config.max_job_inflight_bytes),
        log_of=nothing_kept if storage is None else storage.log_of,
        epochs=({}, 0) if storage is None else storage.epochs,
    )
    handover = _handover(config, catalog)
    server = Server(catalog, Checkpoints(catalog, storage), config, security, handover)
    stop = _stop_on_signal()
    if config.stop_with_stdin:
        await _stop_on_end_of_stdin(stop)
    address = await server.start()
    _tell_what_is_kept(config)
    leases: asyncio.Task[None] | None = None
    try:
        if await _recovered(server, storage, catalog, config, stop):
            catalog.resume()
            leases = asyncio.create_task(expire_leases(catalog, config.lease_seconds))
            await server.serve()
            if storage is not None:
                storage.begin_snapshots(catalog)
            log.info(
                "serving",
                address=address,
                authentication=security.authentication,
                tls=config.tls,
                kernels=offload.kernels.name,
            )
            _tell_more(address, added, is_open=security.authentication == "none" and config.insecure)
            if config.address_file:
                _write_whole(config.address_file, address + "\n")
            await stop.wait()
        log.info("stopping", grace_seconds=config.grace_seconds)
        await server.stop(config.grace_seconds)
    finally:
        if leases is not None:
            leases.cancel()
        await _end(config, catalog, storage, handover, offload)
    log.info("stopped")


async def _end(
    config: Config, catalog: Catalog, storage: Storage | None, handover: Handover | str, offload: Offload
) -> None:
    """End all parts of the server, each one whatever became of those before it."""
    async with AsyncExitStack() as ending:  # what is pushed last comes first
        if config.address_file:
            ending.callback(config.address_file.unlink, missing_ok=True)
        ending.push_async_callback(_calls_to_end)
        ending.callback(offload.close)
        if isinstance(handover, Handover):
            ending.push_async_callback(handover.close)
        if storage is not None:
            ending.callback(storage.close)
        ending.push_async_callback(catalog.close)
        if storage is not None:
            ending.push_async_callback(storage.end_snapshots, catalog)


def _storage(config: Config) -> Storage | None:
    """Open the data directory, if there is one to keep jobs in; raise `ConfigError`."""
    if config.level == "none":
        return None
    assert config.data_dir is not None
    levels = Levels(
        durability=config.level,
        fsync=config.fsync,
        fsync_interval_seconds=config.fsync_interval_ms / 1000,
        snapshot_seconds=config.snapshot_seconds,
        snapshot_versions=config.snapshot_versions,
        keep_snapshots=config.keep_snapshots,
    )
    try:
        return Storage.open(config.data_dir, levels)
    except StorageProblem as problem:
        raise ConfigError(f"data_dir: {problem}") from None
    except OSError as problem:
        raise ConfigError(
            f"data_dir: {config.data_dir} cannot be used: {(problem.strerror or str(problem)).lower()}"
        ) from None


async def _recovered(
    server: Server, storage: Storage | None, catalog: Catalog, config: Config, stop: asyncio.Event
) -> bool:
    """Recover the jobs of the data directory; return whether they are all there, and not `stop` is set before.

    Raise `ConfigError`, with the server stopped, if a job is damaged and may not be skipped.
    """
    if storage is None:
        return True
    asked = asyncio.create_task(stop.wait())
    asked.add_done_callback(lambda task: None if task.cancelled() else storage.give_up())
    try:
        await storage.recover(catalog, catalog.offload.kernels, config.threads, skip=config.recover == "skip")
    except GivenUp:
        return False
    except (StorageProblem, OptdError) as problem:
        await server.stop(0)
        advice = "" if config.recover == "skip" else ". To start without the jobs that are damaged, add --recover skip"
        raise ConfigError(f"data_dir: {problem}{advice}") from None
    except OSError as problem:
        await server.stop(0)
        words = (problem.strerror or str(problem)).lower()
        raise ConfigError(f"data_dir: {config.data_dir} cannot be written: {words}") from None
    finally:
        asked.cancel()
    return not stop.is_set()


def _tell_what_is_kept(config: Config) -> None:
    if config.level != "none":
        fsync = {"fsync": config.fsync} if config.level == "log" else {}
        log.info("jobs are kept", data_dir=str(config.data_dir), durability=config.level, **fsync)
    elif config.data_dir is None:
        log.warning("nothing is kept: jobs end with this server. --data-dir makes it keep them")
    else:
        log.warning(
            "nothing is kept: jobs end with this server. Durability is none, so the data directory is not even read",
            data_dir=str(config.data_dir),
        )


def _tell_more(address: str, added: tuple[str, ...], *, is_open: bool) -> None:
    if added:
        log.info("algorithms of other packages", names=", ".join(added))
    if is_open:
        log.warning("anyone who reaches this server can change every job", address=address)


def _share_heaps() -> None:
    """Let all threads share two heaps.

    By default glibc gives each thread a heap of its own, and memory that is free in one cannot be used in another. With
    100 million parameters and four workers, that wastes 60 to 200 MB. Other C libraries have no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 2)


def _handover(config: Config, catalog: Catalog) -> Handover | str:
    """Open the socket over which workers of this host get shared memory, or return why they get none."""
    if not config.shared_memory:
        return "it was started with --no-shared-memory"
    try:
        remove_dead(config.shared_memory_dir)
        return Handover(config.shared_memory_dir, catalog)
    except OSError as error:
        problem = (error.strerror or str(error)).lower()
        log.warning(
            "no shared memory: workers of this host send messages, too",
            folder=str(config.shared_memory_dir),
            problem=problem,
        )
        return f"its --shared-memory-dir {config.shared_memory_dir} cannot be used: {problem}"


def _algorithms() -> tuple[str, ...]:
    """Register the algorithms of other packages; return their names."""
    try:
        return plugins.load()
    except plugins.PluginError as error:
        raise ConfigError(str(error)) from error


def _kernels(config: Config) -> Backend:
    try:
        return choose(config.kernels)
    except BackendUnavailable as unavailable:
        raise ConfigError(f"kernels: {config.kernels} does not work here: {unavailable}") from None


async def _calls_to_end() -> None:
    """Wait a moment for cancelled calls to finish, before the event loop ends."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=CALLS_SECONDS)


def _stop_on_signal() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _stop_on_end_of_stdin(stop: asyncio.Event) -> None:
    class Watcher(asyncio.Protocol):
        def eof_received(self) -> None:
            stop.set()

        def connection_lost(self, problem: Exception | None) -> None:
            stop.set()

    await asyncio.get_running_loop().connect_read_pipe(Watcher, sys.stdin)


def _write_whole(path: Path, text: str) -> None:
    """Write a file by renaming a finished one, so that nobody ever reads half of it."""
    scratch = path.with_name(path.name + ".new")
    scratch.write_text(text)
    scratch.replace(path)

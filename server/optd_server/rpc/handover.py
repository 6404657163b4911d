"""Hand shared memory to workers of this host: file descriptors, over a Unix socket in a folder that both can reach.

A worker shows the ticket that it was given over gRPC, and thereby has passed the authentication of gRPC. It gets the
regions for its gradients, and then, one by one, the regions of weights that it is told to read. The connection stays
open as long as the worker shares memory. When it ends, the server closes the worker's share and releases what it held.
"""

import asyncio
import os
import secrets
import socket
import stat
import time
from contextlib import suppress
from pathlib import Path

import structlog

from optd_server.engine.catalog import Catalog
from optd_server.engine.job import Job
from optd_server.engine.sharing import Share

log = structlog.get_logger("optd.handover")

PREFIX = "optd-"
SUFFIX = ".sock"
UNFINISHED = ".new"
UNFINISHED_SECONDS = 60.0
# Bytes: longer than a ticket or the number of a region.
MAX_REQUEST = 64
# A message of a Unix socket holds at most 253 descriptors (SCM_MAX_FD).
MAX_DESCRIPTORS = 250
TICKET_SECONDS = 10.0


class Handover:
    """The Unix socket of one server. Lives on one event loop."""

    def __init__(self, folder: Path, catalog: Catalog) -> None:
        self._catalog = catalog
        self._path = folder / f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}"
        self._socket = _listen(self._path)
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    @property
    def path(self) -> str:
        """The path of the socket."""
        return str(self._path)

    async def close(self) -> None:
        """Accept no more workers, end all connections, and remove the socket."""
        self._accepting.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(self._accepting, *self._tasks, return_exceptions=True)
        self._socket.close()
        self._path.unlink(missing_ok=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._socket)
            except OSError as error:  # no descriptors left, or the worker is already gone
                log.warning("shared memory: a worker could not connect", problem=str(error))
                await asyncio.sleep(1)
                continue
            connection.setblocking(False)
            task = loop.create_task(self._serve(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            async with asyncio.timeout(TICKET_SECONDS):
                ticket = await asyncio.get_running_loop().sock_recv(connection, MAX_REQUEST)
            found = self._find(ticket)
            if found is None:
                return
            job, share = found
            try:
                await self._hand_over(connection, job, share)
            finally:
                if not share.closed:
                    job.pushes.withdraw_shared(share.worker, "its worker has closed the memory that it shared")
                    job.sharing.close(share.worker)

    def _find(self, ticket: bytes) -> tuple[Job, Share] | None:
        for job in self._catalog:
            share = job.sharing.with_ticket(ticket)
            if share is not None:
                return job, share
        return None

    async def _hand_over(self, connection: socket.socket, job: Job, share: Share) -> None:
        loop = asyncio.get_running_loop()
        if len(share.descriptors) > MAX_DESCRIPTORS:
            return
        socket.send_fds(connection, [b"gradient"], share.descriptors)
        while True:
            request = await loop.sock_recv(connection, MAX_REQUEST)
            if not request or share.closed:
                return
            region = job.sharing.region(int(request)) if request.isdigit() else None
            if region is None:
                await loop.sock_sendall(connection, b"unknown")
            else:
                socket.send_fds(connection, [b"weights"], [region.descriptor])
            del region  # the next request may take long, and the memory must go if the job ends meanwhile


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    scratch = path.with_suffix(UNFINISHED)
    before = os.umask(0o177)
    try:
        # Renamed only when it listens, because another server would take it for a dead one until then.
        listener.bind(str(scratch))
        # All workers of a host may connect at once, and a full backlog would turn some away.
        listener.listen(socket.SOMAXCONN)
        scratch.rename(path)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    listener.setblocking(False)
    return listener


def remove_dead(folder: Path) -> None:
    """Remove the sockets of servers that were killed, on which nobody listens."""
    for path in _sockets(folder):
        with suppress(OSError):
            if not stat.S_ISSOCK(path.lstat().st_mode) or path.lstat().st_uid != os.getuid():
                continue
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
                # Does not wait: a live server with a full backlog must not keep this one from starting.
                probe.setblocking(False)
                try:
                    probe.connect(str(path))
                except ConnectionRefusedError:
                    path.unlink()


def _sockets(folder: Path) -> list[Path]:
    """Return the sockets of servers: finished ones, and unfinished ones too old to belong to a server that starts."""
    since = time.time() - UNFINISHED_SECONDS
    found = [*folder.glob(f"{PREFIX}*{SUFFIX}")]
    for path in folder.glob(f"{PREFIX}*{UNFINISHED}"):
        with suppress(FileNotFoundError):  # it was renamed meanwhile
            if path.lstat().st_mtime < since:
                found.append(path)
    return found

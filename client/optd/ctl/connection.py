"""The connection of a command: made from settings and environment, and used with retries."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

from optd.ctl.exits import BadUsage
from optd.ctl.settings import DEFAULT_SECONDS, Settings
from optd.session import connect as connections
from optd.session import environment
from optd.session.retry import with_retries
from optd.session.session import Session
from optd.transport.server_calls import ServerCalls
from optd.transport.tls import TLS
from optd_wire.errors import InvalidRequest

T = TypeVar("T")


class Connection:
    """One server; calls are repeated until they are answered or the timeout has passed."""

    def __init__(self, transport: ServerCalls, timeout: float) -> None:
        self.transport = transport
        self.timeout = timeout

    def ask(self, attempt: Callable[[ServerCalls, float], T]) -> T:
        """Calls `attempt(transport, seconds left)`, which must be safe to repeat, until the server has answered.

        Raises `Unreachable` or `DeadlineExceeded` after the timeout, or what the server raised.
        """
        return with_retries(
            lambda left: attempt(self.transport, left),
            address=self.transport.address,
            timeout=self.timeout,
        )

    def close(self) -> None:
        """Ends the connection."""
        self.transport.close()


def connect(settings: Settings) -> Connection:
    """A connection, which opens with its first call; raises `BadUsage` for settings that cannot be used."""
    try:
        address = environment.server_or_local(settings.server)
        transport = ServerCalls.over_grpc(address, token=_token(settings), tls=_tls(settings))
    except InvalidRequest as error:
        raise BadUsage(str(error)) from None
    return Connection(transport, settings.timeout or DEFAULT_SECONDS)


def open_session(settings: Settings, job: str, **how: Any) -> Session:
    """A session of a worker with the server of `connect`; `how` is for `optd.connect`."""
    timeout = settings.timeout or DEFAULT_SECONDS
    return connections.connect(
        environment.server_or_local(settings.server),
        job=job,
        token=_token(settings),
        tls=_tls(settings),
        timeout=timeout,
        connect_timeout=timeout,
        progress=False,  # a command prints only its answer
        **how,
    )


def _token(settings: Settings) -> str | None:
    if settings.token_file and not settings.token:
        return environment.token(environment.read_token("--token-file", settings.token_file))
    return environment.token(settings.token)


def _tls(settings: Settings) -> TLS | None:
    if not (settings.tls_ca or settings.tls_cert or settings.tls_key):
        return environment.tls(None)
    return TLS(
        ca=settings.tls_ca or os.environ.get("OPTD_TLS_CA"),
        cert=settings.tls_cert or os.environ.get("OPTD_TLS_CLIENT_CERT"),
        key=settings.tls_key or os.environ.get("OPTD_TLS_CLIENT_KEY"),
    )

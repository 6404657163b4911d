"""From settings and environment to a connection, and calls on it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from optd import environment
from optd.ctl.exits import BadUsage
from optd.ctl.settings import DEFAULT_SECONDS, DEFAULT_SERVER, Settings
from optd.retry import with_retries
from optd.tls import TLS
from optd.transport.base import Transport
from optd.transport.grpc import GrpcTransport
from optd_wire.errors import InvalidRequest

T = TypeVar("T")


class Connection:
    """One server, asked as often as it takes to get an answer in time."""

    def __init__(self, transport: Transport, timeout: float) -> None:
        self.transport = transport
        self.timeout = timeout

    def ask(self, attempt: Callable[[Transport, float], T]) -> T:
        """Calls `attempt(transport, seconds left)`, which must be safe to repeat, until the server has answered.

        Raises `Unreachable` or `DeadlineExceeded` after the timeout, or what the server raised.
        """
        return with_retries(
            lambda left: attempt(self.transport, left),
            address=self.transport.address,
            timeout=self.timeout,
        )

    def close(self) -> None:
        """Ends it."""
        self.transport.close()


def connect(settings: Settings) -> Connection:
    """A connection that is made with its first call; raises `BadUsage` for settings that cannot be used."""
    address = _address(settings.server or os.environ.get("OPTD_SERVER") or DEFAULT_SERVER)
    try:
        transport = GrpcTransport(address, token=_token(settings), tls=_tls(settings))
    except InvalidRequest as error:
        raise BadUsage(str(error)) from None
    return Connection(transport, settings.timeout or DEFAULT_SECONDS)


def _address(given: str) -> str:
    host, _, port = given.rpartition(":")
    # gRPC takes 99999 for a port, and calls another one.
    if not host or not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise BadUsage(f"the server must be HOST:PORT, got {given!r}")
    return given


def _token(settings: Settings) -> str | None:
    token = _read(settings.token_file) if settings.token_file and not settings.token else None
    token = token or environment.token(settings.token)
    if token is not None and not (token.isascii() and token.isprintable()):
        raise BadUsage("the token has characters that cannot be sent: only printable ASCII can")
    return token


def _read(token_file: str) -> str:
    try:
        lines = [line.strip() for line in Path(token_file).read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        problem = getattr(error, "strerror", None) or "it is no text"
        raise BadUsage(f"--token-file: cannot read {token_file}: {problem}") from None
    token = next((line for line in lines if line and not line.startswith("#")), None)
    if token is None:
        raise BadUsage(f"--token-file: no token in {token_file}")
    return token


def _tls(settings: Settings) -> TLS | None:
    if not (settings.tls_ca or settings.tls_cert or settings.tls_key):
        return environment.tls(None)
    return TLS(
        ca=settings.tls_ca or os.environ.get("OPTD_TLS_CA"),
        cert=settings.tls_cert or os.environ.get("OPTD_TLS_CLIENT_CERT"),
        key=settings.tls_key or os.environ.get("OPTD_TLS_CLIENT_KEY"),
    )

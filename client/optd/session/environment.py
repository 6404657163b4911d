"""What the environment says where an argument is left out."""

import os
import socket
from pathlib import Path
from typing import cast, get_args

import psutil

from optd.session.job_names import launch
from optd.session.join import IfExists
from optd.transport.tls import TLS
from optd_wire.errors import InvalidRequest, NoAddress

DEFAULT_PORT = 50051
"""Where a server listens unless it is told otherwise."""


def server(given: str | None) -> str:
    """HOST:PORT from the argument or OPTD_SERVER; raises `NoAddress`, or `InvalidRequest` if it is something else."""
    address = given or os.environ.get("OPTD_SERVER")
    if not address:
        raise NoAddress()
    host, _, port = address.rpartition(":")
    if "/" in address:
        raise InvalidRequest(problem=f"the server must be HOST:PORT, without a scheme or path, got {address!r}")
    if not host or not _is_port(port):
        raise InvalidRequest(problem=f"the server must be HOST:PORT, got {address!r}")
    return address


def server_or_local(given: str | None) -> str:
    """As `server`; if neither names one, that of this host, at the port that a server takes from OPTD_PORT or 50051."""
    if given or os.environ.get("OPTD_SERVER"):
        return server(given)
    port = os.environ.get("OPTD_PORT") or str(DEFAULT_PORT)
    if not _is_port(port):
        problem = f"no server named, and OPTD_PORT must be in [1, 65535] to find one on this host, got {port!r}"
        raise InvalidRequest(problem=problem)
    return f"127.0.0.1:{port}"


def _is_port(text: str) -> bool:
    # gRPC takes 99999 for a port, and calls another one.
    return text.isascii() and text.isdecimal() and 0 < int(text) < 65536


def job(given: str | None) -> str | None:
    """The job's name from the argument or OPTD_JOB; None where nobody has named it."""
    return given or os.environ.get("OPTD_JOB") or None


def worker(given: str | None) -> str:
    """The worker's name from the argument, OPTD_WORKER, the rank, or host and process: unique, so that none is fenced.

    A rank's name begins with the rank, so that rounds are added up in the order of the ranks.
    """
    named = given or os.environ.get("OPTD_WORKER")
    if named:
        return named
    launched = launch()
    return f"{socket.gethostname()[:150]}-{os.getpid()}" if launched is None else launched.worker


def has_ended(worker: str) -> bool:
    """Whether a worker that is named after host and process ran on this host, and its process has ended."""
    host, _, process = worker.rpartition("-")
    if not host.endswith(socket.gethostname()[:150]) or not process.isdecimal():
        return False
    return not psutil.pid_exists(int(process))


def if_exists(given: str | None) -> IfExists:
    """What to do if a job exists: from the argument, OPTD_IF_EXISTS, or "attach"."""
    setting, wanted = (
        ("if_exists", given) if given is not None else ("OPTD_IF_EXISTS", os.environ.get("OPTD_IF_EXISTS"))
    )
    if not wanted and given is None:
        return "attach"
    if wanted in get_args(IfExists):
        return cast(IfExists, wanted)
    raise InvalidRequest(problem=f"{setting} must be 'attach', 'fail' or 'replace', got {wanted!r}")


TERM_SECONDS = 10.0
"""How long a process that gets SIGTERM waits for the end of its step. Launchers kill after 30 s."""


def term_seconds() -> float:
    """How long a step may go on after SIGTERM, from OPTD_TERM_SECONDS."""
    said = os.environ.get("OPTD_TERM_SECONDS") or str(TERM_SECONDS)
    try:
        seconds = float(said)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise InvalidRequest(problem=f"OPTD_TERM_SECONDS must be a number of seconds, 0 or more, got {said!r}")
    return seconds


def progress(given: bool | None) -> bool:
    """Whether progress is shown: from the argument, OPTD_PROGRESS (0 or 1), or True."""
    return _switch("progress", given, default=True)


def durable(given: bool | None) -> bool:
    """Whether pushes wait until they survive a power cut: from the argument, OPTD_DURABLE (0 or 1), or False."""
    return _switch("durable", given, default=False)


def recreate(given: bool | None) -> bool:
    """Whether a job that the server has lost is created anew: from the argument, OPTD_RECREATE (0 or 1), or False."""
    return _switch("recreate", given, default=False)


def _switch(name: str, given: bool | None, *, default: bool) -> bool:
    if isinstance(given, bool):
        return given
    if given is not None:
        raise InvalidRequest(problem=f"{name} must be True or False, got {given!r}")
    variable = f"OPTD_{name.upper()}"
    said = os.environ.get(variable) or str(int(default))
    if said not in ("0", "1"):
        raise InvalidRequest(problem=f"{variable} must be 0 or 1, got {said!r}")
    return said == "1"


def token(given: str | None) -> str | None:
    """The token from the argument, OPTD_TOKEN, or the first one of the file OPTD_TOKEN_FILE."""
    token = given or os.environ.get("OPTD_TOKEN")
    file = os.environ.get("OPTD_TOKEN_FILE")
    if not token and file:
        token = read_token("OPTD_TOKEN_FILE", file)
    if token and not (token.isascii() and token.isprintable()):
        raise InvalidRequest(problem="the token has characters that cannot be sent: only printable ASCII can")
    return token


def read_token(setting: str, file: str) -> str:
    """The first token of a file; raises `InvalidRequest`, which names the setting, if there is none."""
    try:
        lines = [line.strip() for line in Path(file).read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        problem = getattr(error, "strerror", None) or "it is no text"
        raise InvalidRequest(problem=f"{setting}: cannot read {file}: {problem}") from None
    found = next((line for line in lines if line and not line.startswith("#")), None)
    if found is None:
        raise InvalidRequest(problem=f"{setting}: no token in {file}")
    return found


def tls(given: TLS | bool | None) -> TLS | None:
    """TLS from the argument (True: trusting the authorities that gRPC includes), or from OPTD_TLS_CA."""
    if isinstance(given, TLS):
        return given
    authority = os.environ.get("OPTD_TLS_CA")
    if given is False or (given is None and not authority):
        return None
    return TLS(
        ca=authority,
        cert=os.environ.get("OPTD_TLS_CLIENT_CERT"),
        key=os.environ.get("OPTD_TLS_CLIENT_KEY"),
    )

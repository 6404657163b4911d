"""What the environment says where an argument is left out."""

import os
import socket
from pathlib import Path

from optd.tls import TLS
from optd_wire.errors import InvalidRequest, NoAddress

DEFAULT_JOB = "default"


def server(given: str | None) -> str:
    """HOST:PORT from the argument or OPTD_SERVER; raises `NoAddress`."""
    address = given or os.environ.get("OPTD_SERVER")
    if not address:
        raise NoAddress()
    return address


def job(given: str | None) -> str:
    """The job's name from the argument, OPTD_JOB, or `default`."""
    return given or os.environ.get("OPTD_JOB") or DEFAULT_JOB


def worker(given: str | None) -> str:
    """The worker's name from the argument, OPTD_WORKER, or host and process: unique, so that no other is fenced."""
    return given or os.environ.get("OPTD_WORKER") or f"{socket.gethostname()[:150]}-{os.getpid()}"


def token(given: str | None) -> str | None:
    """The token from the argument, OPTD_TOKEN, or the first one of the file OPTD_TOKEN_FILE."""
    if given or os.environ.get("OPTD_TOKEN"):
        return given or os.environ["OPTD_TOKEN"]
    file = os.environ.get("OPTD_TOKEN_FILE")
    if not file:
        return None
    try:
        lines = [line.strip() for line in Path(file).read_text().splitlines()]
    except OSError as error:
        raise InvalidRequest(problem=f"OPTD_TOKEN_FILE: cannot read {file}: {error.strerror}") from None
    return next((line for line in lines if line and not line.startswith("#")), None)


def tls(given: TLS | bool | None) -> TLS | None:
    """TLS from the argument (True: with the authorities that gRPC brings along), or from OPTD_TLS_CA."""
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

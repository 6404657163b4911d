"""Lists and deletes the jobs of a server, for scripts. `optctl` does the same for people."""

from collections.abc import Iterator
from contextlib import contextmanager

from optd.session import environment
from optd.session.retry import with_retries
from optd.transport.server_calls import ServerCalls
from optd.transport.tls import TLS
from optd_wire.values import JobSummary

SECONDS = 10.0


def jobs(
    *, server: str | None = None, token: str | None = None, tls: TLS | bool | None = None, timeout: float = SECONDS
) -> tuple[JobSummary, ...]:
    """Lists the jobs of a server in the order of their names, one `JobSummary` each.

    `server`, `token` and `tls` are those of `optd.connect`. Blocks for up to `timeout` seconds; raises `Unreachable`,
    `MissingToken` or `WrongToken`.
    """
    with calls_of(server, token, tls) as transport:
        return with_retries(transport.list_jobs, address=transport.address, timeout=timeout)


def delete_job(
    name: str,
    *,
    server: str | None = None,
    token: str | None = None,
    tls: TLS | bool | None = None,
    timeout: float = SECONDS,
) -> JobSummary:
    """Deletes a job with its weights and state, whether workers take part in it or not; returns what it was.

    Its workers get `UnknownJob` from their next call. Arguments and errors are those of `jobs`; raises `UnknownJob`
    if there is no job of this name.
    """
    with calls_of(server, token, tls) as transport:
        # Not repeated: if the answer is lost, the name may belong to another job already.
        return transport.delete_job(name, timeout)


@contextmanager
def calls_of(server: str | None, token: str | None, tls: TLS | bool | None) -> Iterator[ServerCalls]:
    """The calls of a server, while the block runs; the arguments are those of `optd.connect`."""
    transport = ServerCalls.over_grpc(
        environment.server(server), token=environment.token(token), tls=environment.tls(tls)
    )
    try:
        yield transport
    finally:
        transport.close()

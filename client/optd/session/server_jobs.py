"""The jobs of a server, listed and deleted by scripts that take part in none. `optctl` does the same for people."""

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
    """The jobs of a server in the order of their names, one `JobSummary` each.

    `server`, `token` and `tls` are those of `optd.connect`. Blocks for up to `timeout` seconds; raises `Unreachable`,
    `MissingToken` or `WrongToken`.
    """
    with _transport(server, token, tls) as transport:
        return with_retries(transport.list_jobs, address=transport.address, timeout=timeout)


def delete_job(
    name: str,
    *,
    server: str | None = None,
    token: str | None = None,
    tls: TLS | bool | None = None,
    timeout: float = SECONDS,
) -> JobSummary:
    """Deletes a job with its weights and state, whoever takes part in it; returns what it was.

    Its workers get `UnknownJob` with their next call. Arguments and errors are those of `jobs`; raises `UnknownJob`
    where there is none of the name.
    """
    with _transport(server, token, tls) as transport:
        # Not repeated: where the answer is lost, another job may have the name by then.
        return transport.delete_job(name, timeout)


@contextmanager
def _transport(server: str | None, token: str | None, tls: TLS | bool | None) -> Iterator[ServerCalls]:
    transport = ServerCalls.over_grpc(
        environment.server(server), token=environment.token(token), tls=environment.tls(tls)
    )
    try:
        yield transport
    finally:
        transport.close()

"""The server as a whole: `status`, `health`."""

import time

import typer

from optd.ctl import output, text
from optd.ctl.connection import Connection
from optd.ctl.exits import Exit
from optd.ctl.invocation import Invocation
from optd.ctl.tables import facts
from optd_wire.errors import ConnectionLost, OptdError, Unreachable
from optd_wire.values import ServerStatus


def status(invocation: Invocation) -> None:
    """Show the server at a glance: version, load, memory, limits."""
    found = invocation.server.ask(lambda server, left: server.server_status(left))
    invocation.answer(found, facts(_facts(found, invocation.server.transport.address)))


def _facts(found: ServerStatus, address: str) -> list[tuple[str, str]]:
    limits = found.limits
    return [
        ("server", f"optd {found.server_version} at {address}"),
        ("state", f"{found.serving} for {text.duration(found.uptime_ms / 1000)}"),
        ("jobs", text.count(found.jobs)),
        ("workers", text.count(found.workers)),
        ("refused", f"{text.count(found.rejections_without_job)} pushes of no known job"),
        ("requests", f"{text.count(found.requests)} of at most {text.count(limits.max_requests)}"),
        ("memory planned", f"{text.size(found.planned_bytes)} of at most {text.size(limits.max_memory_bytes)}"),
        ("memory resident", text.size(found.resident_bytes)),
        (
            "requests held",
            f"at most {text.size(limits.max_inflight_bytes)}, of one job {text.size(limits.max_job_inflight_bytes)}",
        ),
        ("largest message", text.size(limits.max_message_bytes)),
        ("streams", f"at most {text.count(limits.max_streams_per_connection)} a connection"),
        ("authentication", found.authentication),
        ("tls", text.yes(found.tls)),
        ("kernels", found.kernels),
        ("durability", found.durability),
    ]


def health(invocation: Invocation) -> None:
    """Ask once whether the server serves: exit 0 if it says SERVING, else 1."""
    try:
        serving = _serving(invocation.server)
    except OptdError as error:
        # One question, one answer: whoever cannot be asked is not healthy.
        output.complain(error)
        raise typer.Exit(Exit.REFUSED) from None
    word = "SERVING" if serving else "NOT_SERVING"
    if invocation.json:
        invocation.answer({"status": word})
    else:
        output.write(word + "\n")
    if not serving:
        raise typer.Exit(Exit.REFUSED)


def _serving(server: Connection) -> bool:
    began = time.monotonic()
    try:
        return server.transport.health(server.timeout)
    except ConnectionLost as error:
        seconds = f"{time.monotonic() - began:.1f}"
        raise Unreachable(address=server.transport.address, seconds=seconds, problem=error.values["problem"]) from error

"""When the pushes of a job become a step: `policy`."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

from optd.ctl import text
from optd.ctl.commands.arguments import Job
from optd.ctl.exits import BadUsage
from optd.ctl.invocation import Invocation
from optd_wire.values import Async, Bounded, Exponential, JobVersion, OnDeath, Policy, Sync


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """A policy, the one before it, and the job's version at which it took effect."""

    policy: Policy
    previous: Policy
    version: JobVersion


def policy(
    invocation: Invocation,
    job: Job,
    kind: Annotated[
        Literal["async", "sync", "bounded"] | None,
        typer.Argument(metavar="[async|sync|bounded]", help="The new policy; left out: show the present one."),
    ] = None,
    workers: Annotated[str | None, typer.Option(help="sync: workers in a round, or 'live'.")] = None,
    quorum: Annotated[int | None, typer.Option(help="sync: so many pushes are enough after the grace window.")] = None,
    grace: Annotated[str | None, typer.Option(help="sync: the grace window in seconds, or 'auto'.")] = None,
    round_seconds: Annotated[float | None, typer.Option(help="sync: how long a round takes at most.")] = None,
    on_death: Annotated[OnDeath | None, typer.Option(help="sync: what a round does without a lost worker.")] = None,
    staleness: Annotated[
        str | None,
        typer.Option(help="async: 'inverse', or ALPHA or ALPHA:CUTOFF of the exponential scale; bounded: steps."),
    ] = None,
    max_staleness: Annotated[int | None, typer.Option(help="async: staler gradients are refused.")] = None,
) -> None:
    """Show the policy of a job, which says when pushes become a step, or change it: also for pushes that wait now."""
    previous = invocation.server.ask(lambda transport, left: transport.get_job(job, left)).policy
    given = {
        "workers": workers,
        "quorum": quorum,
        "grace": grace,
        "round_seconds": round_seconds,
        "on_death": on_death,
        "staleness": staleness,
        "max_staleness": max_staleness,
    }
    named = {name: value for name, value in given.items() if value is not None}
    if kind is None:
        if named:
            raise BadUsage(f"--{_option(next(iter(named)))} is of a new policy: say async, sync or bounded before it")
        invocation.answer(previous, f"{job}: {text.policy(previous)}")
        return
    wanted = _policy(kind, named)
    now, version = invocation.server.ask(lambda transport, left: transport.set_policy(job, wanted, left))
    change = PolicyChange(now, previous, version)
    at = f"from version {text.count(version.version)} on"
    invocation.answer(change, f"{job}: {text.policy(now)} {at} (before: {text.policy(previous)})")


_OPTIONS = {
    "async": ("staleness", "max_staleness"),
    "sync": ("workers", "quorum", "grace", "round_seconds", "on_death"),
    "bounded": ("staleness",),
}


def _policy(kind: str, given: dict[str, Any]) -> Policy:
    for name in given:
        if name not in _OPTIONS[kind]:
            known = ", ".join(f"--{_option(each)}" for each in _OPTIONS[kind])
            raise BadUsage(f"policy {kind} has no --{_option(name)}; it has {known}")
    match kind:
        case "async":
            return Async(_scale(given.get("staleness")), given.get("max_staleness"))
        case "bounded":
            if "staleness" not in given:
                raise BadUsage("policy bounded needs --staleness, the steps that a worker may be ahead")
            return Bounded(_whole("staleness", given["staleness"]))
        case _:
            return _sync(**given)


def _sync(*, workers: str | None = None, grace: str | None = None, **more: Any) -> Sync:
    if workers is None:
        raise BadUsage("policy sync needs --workers, a number or 'live'")
    window: Any = grace if grace in (None, "auto") else _number("grace", grace, "a number of seconds or 'auto'")
    return Sync("live" if workers == "live" else _whole("workers", workers), grace=window, **more)


def _scale(given: str | None) -> Any:
    if given is None or given == "inverse":
        return given
    alpha, colon, cutoff = given.partition(":")
    wanted = "'inverse', ALPHA or ALPHA:CUTOFF"
    return Exponential(_number("staleness", alpha, wanted), _number("staleness", cutoff, wanted) if colon else None)


def _whole(name: str, given: str) -> int:
    if not given.isdecimal():
        raise BadUsage(f"--{_option(name)} must be a number, got {given!r}")
    return int(given)


def _number(name: str, given: str | None, wanted: str) -> float:
    try:
        return float(given or "")
    except ValueError:
        raise BadUsage(f"--{_option(name)} must be {wanted}, got {given!r}") from None


def _option(name: str) -> str:
    return name.replace("_", "-")

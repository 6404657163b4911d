"""The arguments of `optd.connect` that optimizers take: for the session that an optimizer opens for itself."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Self

from optd.options.job_options import Averages, Gradients
from optd.session import environment
from optd.session.connect import connect
from optd.session.job_names import JobName, job_name
from optd.session.join import IfExists
from optd.session.session import Session
from optd.transport.lane_choice import LaneName
from optd_wire.errors import InvalidRequest
from optd_wire.values import Policy

ONLY_CONNECT = frozenset(inspect.signature(connect).parameters) - {
    *("address", "job", "worker", "if_exists", "policy", "gradients", "averages", "progress", "durable", "recreate")
}
"""Arguments of `connect` that no optimizer takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionArguments:
    """Arguments of `optd.connect` as an optimizer gets them; None: left out."""

    server: str | None = None
    job: str | None = None
    worker: str | None = None
    if_exists: IfExists | None = None
    policy: Policy | None = None
    gradients: Gradients | None = None
    averages: Averages | None = None
    progress: bool | None = None
    durable: bool | None = None
    recreate: bool | None = None

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> Self:
        """Removes these arguments from an optimizer's keyword arguments; the others are options of its groups.

        Raises `InvalidRequest` for an argument that only `optd.connect` takes.
        """
        for name in ONLY_CONNECT & options.keys():
            problem = f"{name}= is an argument of optd.connect(): open a session with it, and pass session= here"
            raise InvalidRequest(problem=problem)
        return cls(**{field.name: options.pop(field.name) for field in fields(cls) if field.name in options})

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """The arguments, for a signature."""
        return list(inspect.signature(cls).parameters.values())

    def session(
        self,
        given: Session | None,
        unnamed: Callable[[], JobName | None] = lambda: None,
        *,
        lane: LaneName = "auto",
    ) -> tuple[Session, bool]:
        """The session to use, and whether it was opened here, so that the optimizer must close it.

        `unnamed` returns a name for a job without one, or None; `lane` is that of a session that is opened. Raises
        `InvalidRequest` if a session is given together with arguments for opening one, or what `optd.connect` raises.
        """
        if given is None:
            name = job_name(environment.job(self.job))
            named = unnamed() if name.unnamed else None
            more = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("server", "job")}
            return (connect(self.server, job=named or name, lane=lane, **more), True)
        late = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        if late:
            problem = (
                f"{', '.join(f'{name}=' for name in late)} must be given to optd.connect(), which opened the session"
            )
            raise InvalidRequest(problem=problem)
        return given, False

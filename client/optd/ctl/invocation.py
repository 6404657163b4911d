"""One call of `optctl`: its settings, its connection, its answer. Every command is a function of one."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, Concatenate, ParamSpec

import typer
from rich.console import RenderableType

from optd.ctl import output
from optd.ctl.connection import Connection, connect, open_session
from optd.ctl.documents import dump
from optd.ctl.settings import Output, Settings
from optd.session.session import Session

P = ParamSpec("P")


class Invocation:
    """What a command works with."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def json(self) -> bool:
        """Whether the answer is JSON, for programs."""
        return self.settings.output is Output.JSON

    @cached_property
    def server(self) -> Connection:
        """The connection, which opens when it is first used."""
        return connect(self.settings)

    def session(self, job: str, **how: Any) -> Session:
        """A session of a worker with the same server; `how` is for `optd.connect`."""
        return open_session(self.settings, job, **how)

    def answer(self, value: Any, *views: RenderableType) -> None:
        """Prints a value as JSON, or its views for people."""
        if self.json:
            output.write(dump(value) + "\n")
        else:
            output.show(*views)

    def close(self) -> None:
        """Ends the connection, if there is one."""
        if "server" in vars(self):
            self.server.close()


def command(function: Callable[Concatenate[Invocation, P], None]) -> Callable[..., None]:
    """A function of an `Invocation` as a command that takes the options of `Settings` too.

    What is said after the command counts over what was said before it.
    """

    def called(context: typer.Context, settings: Settings, **given: Any) -> None:
        invocation = Invocation(settings.over(context.obj))
        try:
            function(invocation, **given)  # type: ignore[call-arg]
        finally:
            invocation.close()

    return with_settings(called, list(_parameters(function).values())[1:], function.__doc__)


def with_settings(
    function: Callable[..., None], own: Iterable[inspect.Parameter], doc: str | None
) -> Callable[..., None]:
    """`function(context, settings, ...)` as typer takes it: its own parameters, then one for each of `Settings`."""
    shared = _parameters(Settings)

    def called(context: typer.Context, **given: Any) -> None:
        settings = Settings(**{name: given.pop(name) for name in shared})
        function(context, settings, **given)

    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [context, *[one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*own, *shared.values())]]
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    called.__doc__ = doc
    return called


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function, eval_str=True).parameters

"""The options of every command: the server's address, credentials, and the form of the answer."""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Annotated

import typer

from optd.session.environment import DEFAULT_PORT

DEFAULT_SECONDS = 10.0
LONGEST_SECONDS = 86400.0
_PANEL = "Options of every command"


class Output(StrEnum):
    """How to answer."""

    TABLE = "table"
    JSON = "json"


def seconds(value: float | None) -> float | None:
    """Checks a length of time in seconds; refuses NaN."""
    if value is not None and not 0.001 <= value <= LONGEST_SECONDS:
        raise typer.BadParameter(f"must be in [0.001, {LONGEST_SECONDS:g}] seconds, got {value:g}.")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of every command as given; None: not given."""

    server: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help=f"The server; else OPTD_SERVER, else 127.0.0.1 at the port OPTD_PORT, else {DEFAULT_PORT}.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            help="What the server accepts. Others on this machine can see it here: better use --token-file, "
            "OPTD_TOKEN or OPTD_TOKEN_FILE.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    token_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The file with the token on its first line; else OPTD_TOKEN_FILE.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    tls_ca: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Speak TLS, and trust these authorities; else OPTD_TLS_CA.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    tls_cert: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Our certificate, if asked for; else OPTD_TLS_CLIENT_CERT.", rich_help_panel=_PANEL
        ),
    ] = None
    tls_key: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Its private key; else OPTD_TLS_CLIENT_KEY.", rich_help_panel=_PANEL),
    ] = None
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help=f"How long to try before giving up; else {DEFAULT_SECONDS:g}.",
            callback=seconds,
            rich_help_panel=_PANEL,
        ),
    ] = None
    output: Annotated[
        Output | None,
        typer.Option("--output", "-o", help="A table for people, or JSON for programs.", rich_help_panel=_PANEL),
    ] = None
    debug: Annotated[
        bool | None,
        typer.Option("--debug", help="Show where an error comes from.", rich_help_panel=_PANEL),
    ] = None

    def over(self, earlier: "Settings") -> "Settings":
        """These settings, completed by the earlier ones."""
        names = [field.name for field in fields(self)]
        given = {name: getattr(self, name) for name in names}
        return Settings(**{name: getattr(earlier, name) if value is None else value for name, value in given.items()})

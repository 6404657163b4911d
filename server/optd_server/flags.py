"""Show the settings in `optd --help`: in groups, each with a placeholder for its value and its default."""

import inspect
from argparse import ArgumentParser
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, CliSettingsSource

from optd_server import byte_sizes

SECTIONS = {
    "config": "settings file",
    "host": "address",
    "insecure": "security",
    "max_message_bytes": "limits",
    "data_dir": "durability",
    "kernels": "arithmetic",
    "shared_memory": "shared memory",
    "lease_seconds": "time",
    "log_level": "log",
}
"""The title of each group of settings, by the first setting in it; in the order of the settings."""
_BY_ENDING = {"host": "ADDRESS", "port": "PORT", "bytes": "BYTES", "seconds": "SECONDS", "ms": "MILLISECONDS"}


def source(settings: type[BaseSettings]) -> CliSettingsSource[ArgumentParser]:
    """Return the source that reads `settings` from flags; it raises `SettingsError` for a wrong flag."""
    fields = settings.model_fields
    groups: dict[str, Any] = {}

    def add(parser: ArgumentParser, *names: str, **arguments: Any) -> None:
        field = arguments.get("dest", "")
        if field in fields:
            title = _section(list(fields), field)
            if title not in groups:
                groups[title] = parser.add_argument_group(title)
            shown = {"help": _help(field, fields[field])}
            if "metavar" in arguments:
                shown["metavar"] = placeholder(field, fields[field])
            groups[title].add_argument(*names, **arguments | shown)
        else:
            parser.add_argument(*names, **arguments)

    found: CliSettingsSource[ArgumentParser] = CliSettingsSource(
        settings, cli_exit_on_error=False, add_argument_method=add
    )
    found.root_parser.add_argument(
        "--version",
        action="version",
        version=f"optd {metadata.version('optd')}",
        help="show the program's version and exit",
    )
    found.root_parser.description = inspect.cleandoc(settings.__doc__ or "")
    return found


def placeholder(name: str, field: FieldInfo) -> str:
    """Return the word that stands for a setting's value in the help, such as PATH."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if get_origin(kind) is Literal:
            return "{" + ",".join(map(str, get_args(kind))) + "}"
    if Path in (field.annotation, *get_args(field.annotation)):
        return "PATH"
    return _BY_ENDING.get(name.rpartition("_")[2], "N")


def _section(fields: list[str], name: str) -> str:
    """Return the group of a setting: the last one that begins at or before it."""
    return [SECTIONS[field] for field in fields[: fields.index(name) + 1] if field in SECTIONS][-1]


def _help(name: str, field: FieldInfo) -> str:
    default = field.default
    if default is None:
        return f"{field.description}"
    if isinstance(default, bool):
        default = "on" if default else "off"
    elif name.endswith("_bytes"):
        default = byte_sizes.text(default)
    return f"{field.description} (default: {default})"

"""The server's settings: each declared once, and taken from flag, environment, TOML file or default, in this order."""

import argparse
import difflib
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    CliApp,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from optd_server import flags
from optd_server.byte_sizes import Bytes, MessageBytes

MIB = 1 << 20


def _memory() -> int:
    """Bytes that this process may have: the machine's, or fewer where its control group (its container) has fewer."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdecimal() else physical


class ConfigError(Exception):
    """A setting that the server cannot start with."""


class Config(BaseSettings):
    """optd: torch.optim as a service.

    Every setting may be given as a flag, as OPTD_<NAME> in the environment, or as <name> in a TOML file.
    BYTES is a number, such as 16777216, or one with a unit, such as 16MiB (1024 KiB each) or 16MB (1000 KB each).
    """

    model_config = SettingsConfigDict(
        env_prefix="OPTD_",
        extra="forbid",
        cli_prog_name="optd",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        frozen=True,
    )

    config: Path | None = Field(None, description="TOML file with settings")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(50051, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    address_file: Path | None = Field(None, description="file to write HOST:PORT to when the server is ready")
    insecure: bool = Field(False, description="allow an address beyond loopback without TLS or a token")
    token_file: Path | None = Field(
        None, description="file with the accepted tokens, one a line; every call must show one"
    )
    tls_cert: Path | None = Field(None, description="PEM file with the server's certificate chain")
    tls_key: Path | None = Field(None, description="PEM file with the certificate's private key")
    tls_client_ca: Path | None = Field(
        None, description="PEM file with the authorities whose client certificates are accepted, and demanded"
    )
    max_message_bytes: MessageBytes = Field(16 * MIB, description="largest message that is accepted")
    max_inflight_bytes: Bytes = Field(
        1024 * MIB, description="bytes of requests that are held at the same time; more have to wait"
    )
    max_requests: int = Field(1024, ge=1, description="calls that are answered at the same time")
    max_streams: int = Field(256, ge=1, description="calls at the same time on one connection")
    max_memory_bytes: Bytes = Field(
        int(_memory() * 0.8) // MIB * MIB,
        description="memory that may be planned for all jobs; unless given, 80 percent of what there is",
    )
    kernels: Literal["auto", "numba", "numpy"] = Field(
        "auto", description="what does the arithmetic; auto is numba where it works, else numpy"
    )
    threads: int = Field(os.cpu_count() or 1, ge=1, le=1024, description="threads for arithmetic")
    shared_memory: bool = Field(
        True, description="share memory with workers of this host, so that numbers need not travel"
    )
    shared_memory_dir: Path = Field(
        Path("/dev/shm"),  # noqa: S108 - a socket of a random name, for this user alone
        description="folder for the socket over which workers get shared memory",
    )
    lease_seconds: float = Field(
        30.0, ge=0.1, le=86400, description="how long a worker counts as alive after its last sign of life"
    )
    ephemeral_seconds: float = Field(
        600.0,
        ge=0,
        le=30 * 86400,
        description="how long a job that nobody has named is kept after its worker's lease ran out",
    )
    idle_seconds: float = Field(
        30.0, ge=0.1, le=86400, description="how long an upload may stand still before it is given up"
    )
    grace_seconds: float = Field(
        10.0, ge=0, le=3600, description="how long running calls may go on after SIGTERM or SIGINT"
    )
    stop_with_stdin: bool = Field(
        False, description="stop when standard input ends, as it does when the program that started the server is gone"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level to log")
    log_format: Literal["text", "json"] = Field("text", description="how log lines are written, to stderr")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment before TOML file; the flags are put in front of both."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @model_validator(mode="after")
    def _complete(self) -> "Config":
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key must be given together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key")
        return self

    @property
    def tls(self) -> bool:
        """Whether the server speaks TLS."""
        return self.tls_cert is not None


def load(arguments: Sequence[str]) -> Config:
    """Settings from flags, environment and file; raises `ConfigError` with one line that names the setting.

    `--help` and `--version` print and exit, as argparse does.
    """
    first = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    first.add_argument("--config", default=os.environ.get("OPTD_CONFIG"))
    file = None
    try:
        file = first.parse_known_args(list(arguments))[0].config
        if file is not None and not Path(file).is_file():
            raise ConfigError(f"config: no file {file}")
        settings: type[Config] = type(
            "Config",
            (Config,),
            {"__doc__": Config.__doc__, "model_config": SettingsConfigDict(toml_file=file)},
        )
        return CliApp.run(settings, cli_args=list(arguments), cli_settings_source=flags.source(settings))
    except ValidationError as error:
        raise ConfigError("; ".join(_line(found) for found in error.errors())) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"config: cannot read {file}: {error}") from None
    except (SettingsError, argparse.ArgumentError) as error:
        raise ConfigError(str(error).removeprefix("error parsing CLI: ")) from None


def _line(found: Any) -> str:
    name = ".".join(str(part) for part in found["loc"])
    message = found["msg"].removeprefix("Value error, ")
    if found["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, Config.model_fields, n=1)
        return f"no setting {name!r}" + (f"; did you mean {close[0]!r}?" if close else "")
    if not name:
        return str(message)
    return f"{name}: {message[:1].lower()}{message[1:]}, got {found['input']!r}"

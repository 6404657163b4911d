"""The server's settings, each declared once. A flag wins over the environment, then the TOML file, then the default."""

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
_OF_A_DATA_DIR = {
    "fsync",
    "fsync_interval_ms",
    "snapshot_seconds",
    "snapshot_versions",
    "keep_snapshots",
    "recover",
}


def _memory() -> int:
    """Return the bytes of memory that this process may use: the machine's, or the limit of its container if lower."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdecimal() else physical


class ConfigError(Exception):
    """A setting with which the server cannot start."""


class Config(BaseSettings):
    """optd: torch.optim as a service.

    Every setting can be given as a flag, as OPTD_<NAME> in the environment, or as <name> in a TOML file.
    BYTES is a number, such as 16777216, or a number with a unit, such as 16MiB or 16MB. KiB, MiB, GiB and TiB are
    powers of 1024; KB, MB, GB and TB are powers of 1000.
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

    config: Path | None = Field(None, description="TOML file to read settings from")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(50051, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    address_file: Path | None = Field(None, description="file to write HOST:PORT to when the server is ready")
    insecure: bool = Field(False, description="allow an address beyond loopback without TLS or a token")
    token_file: Path | None = Field(
        None, description="file with the accepted tokens, one per line; every call must carry one"
    )
    tls_cert: Path | None = Field(None, description="PEM file with the server's certificate chain")
    tls_key: Path | None = Field(None, description="PEM file with the certificate's private key")
    tls_client_ca: Path | None = Field(
        None,
        description="PEM file with CA certificates; every client must then show a certificate signed by one of them",
    )
    max_message_bytes: MessageBytes = Field(16 * MIB, description="largest message that is accepted")
    max_inflight_bytes: Bytes = Field(
        1024 * MIB, description="bytes of requests held in memory at the same time; further requests wait"
    )
    max_job_inflight_bytes: Bytes | None = Field(
        None, description="the same for the requests of one job; by default half of max_inflight_bytes"
    )
    max_requests: int = Field(1024, ge=1, description="calls served at the same time; further calls are refused")
    max_streams: int = Field(256, ge=1, description="calls served at the same time on one connection")
    max_memory_bytes: Bytes = Field(
        int(_memory() * 0.8) // MIB * MIB,
        description="memory that all jobs together may plan; by default 80 percent of what the server may use",
    )
    data_dir: Path | None = Field(
        None, description="folder to keep jobs in; without one, the end of the server is the end of its jobs"
    )
    durability: Literal["none", "snapshot", "log"] | None = Field(
        None,
        description="what is kept: snapshots of jobs, or besides them a log of every event; by default snapshot with a "
        "data_dir, and none without one",
    )
    fsync: Literal["interval", "commit"] = Field(
        "interval", description="when the log is synced: regularly, or before an event is acknowledged"
    )
    fsync_interval_ms: int = Field(
        1000, ge=1, le=3_600_000, description="milliseconds between two syncs of the log with fsync interval"
    )
    snapshot_seconds: float = Field(
        60.0, ge=0.05, le=86400, description="how long after the last snapshot of a changed job the next one is written"
    )
    snapshot_versions: int = Field(
        0, ge=0, description="write a snapshot after this many versions, too; 0 means that only time counts"
    )
    keep_snapshots: int = Field(3, ge=1, le=1000, description="how many snapshots of a job are kept")
    recover: Literal["strict", "skip"] = Field(
        "strict", description="what to do about a damaged job at the start: refuse to start, or start without it"
    )
    kernels: Literal["auto", "numba", "numpy"] = Field(
        "auto", description="implementation of the arithmetic; auto means numba if it works here, otherwise numpy"
    )
    threads: int = Field(os.cpu_count() or 1, ge=1, le=1024, description="threads for arithmetic")
    shared_memory: bool = Field(
        True, description="share memory with workers on this host, so that they need not send and receive numbers"
    )
    shared_memory_dir: Path = Field(
        Path("/dev/shm"),  # noqa: S108 - a socket of a random name, for this user alone
        description="folder of the socket over which workers on this host get shared memory",
    )
    lease_seconds: float = Field(
        30.0, ge=0.1, le=86400, description="how long a worker counts as alive after its last sign of life"
    )
    ephemeral_seconds: float = Field(
        600.0,
        ge=0,
        le=30 * 86400,
        description="how long an unnamed job is kept after the lease of its worker has expired",
    )
    idle_seconds: float = Field(
        30.0, ge=0.1, le=86400, description="how long an upload or a reader may stall before its call ends"
    )
    grace_seconds: float = Field(
        10.0, ge=0, le=3600, description="how long running calls may continue after SIGTERM or SIGINT"
    )
    stop_with_stdin: bool = Field(
        False, description="stop when standard input ends, which happens when the program that started the server ends"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="lowest level that is logged")
    log_format: Literal["text", "json"] = Field("text", description="format of the log lines, which go to stderr")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over the TOML file; `load` puts the flags in front of both."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @model_validator(mode="after")
    def _complete(self) -> "Config":
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key must be given together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key")
        if self.data_dir is not None and not str(self.data_dir).strip("."):
            raise ValueError("data_dir is empty: name a folder, such as ./jobs")
        if self.data_dir is None and self.durability not in (None, "none"):
            raise ValueError(f"durability {self.durability} needs a data_dir to keep jobs in")
        for name in sorted(self.model_fields_set & _OF_A_DATA_DIR):
            if self.level == "none":
                raise ValueError(f"{name} has no effect: the server keeps nothing without data_dir and durability")
            if name.startswith("fsync") and self.level != "log":
                raise ValueError(f"{name} has no effect with durability {self.level}: only a log is synced")
        if "fsync_interval_ms" in self.model_fields_set and self.fsync == "commit":
            raise ValueError("fsync_interval_ms has no effect with fsync commit, which syncs before each answer")
        return self

    @property
    def level(self) -> str:
        """What is kept: `none`, `snapshot` or `log`."""
        return self.durability or ("none" if self.data_dir is None else "snapshot")

    @property
    def tls(self) -> bool:
        """Whether the server speaks TLS."""
        return self.tls_cert is not None


def load(arguments: Sequence[str]) -> Config:
    """Read the settings from flags, environment and file; raise `ConfigError` with one line that names the setting.

    With `--help` or `--version` it prints and exits, as argparse does.
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

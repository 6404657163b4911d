"""Settings of the server: a flag counts before the environment, the environment before the file, the file before
the default; what is wrong with one is said in one line."""

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from contract.plain import Plain
from e2e.programs import refuses_settings, refuses_to_start, running

from optd_server.config import Config, ConfigError, load
from optd_server.flags import SECTIONS


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the environment but what a test puts there."""
    for name in Config.model_fields:
        monkeypatch.delenv(f"OPTD_{name.upper()}", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "optd.toml"
    path.write_text("max_requests = 30\nlease_seconds = 3.5\nlog_format = 'json'\n")
    return path


def test_the_default_counts_where_nothing_is_said():
    config = load([])
    assert (config.host, config.port, config.max_requests, config.log_format) == ("127.0.0.1", 50051, 1024, "text")
    assert config.token_file is None
    assert not config.insecure


def test_the_file_counts_before_the_default(file: Path):
    config = load(["--config", str(file)])
    assert (config.max_requests, config.lease_seconds, config.log_format) == (30, 3.5, "json")
    assert config.max_streams == 256


def test_the_environment_counts_before_the_file(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPTD_MAX_REQUESTS", "20")
    config = load(["--config", str(file)])
    assert (config.max_requests, config.lease_seconds) == (20, 3.5)


def test_a_flag_counts_before_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPTD_MAX_REQUESTS", "20")
    monkeypatch.setenv("OPTD_LEASE_SECONDS", "2")
    config = load(["--config", str(file), "--max-requests", "10"])
    assert (config.max_requests, config.lease_seconds, config.log_format) == (10, 2.0, "json")


def test_the_environment_can_name_the_file(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPTD_CONFIG", str(file))
    assert load([]).max_requests == 30
    other = file.with_name("other.toml")
    other.write_text("max_requests = 31\n")
    assert load([f"--config={other}"]).max_requests == 31


def test_every_setting_can_be_given_in_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    values = {
        "address_file": "a",
        "data_dir": "kept",
        "durability": "log",
        "ephemeral_seconds": 0.5,
        "fsync": "interval",
        "fsync_interval_ms": 20,
        "grace_seconds": 1.5,
        "host": "127.0.0.3",
        "idle_seconds": 2.5,
        "insecure": True,
        "keep_snapshots": 9,
        "kernels": "numpy",
        "lease_seconds": 3.5,
        "log_format": "json",
        "log_level": "debug",
        "max_memory_bytes": 1 << 21,
        "max_inflight_bytes": 1 << 22,
        "max_job_inflight_bytes": 1 << 21,
        "max_message_bytes": 1 << 17,
        "max_requests": 4,
        "max_streams": 5,
        "port": 6,
        "recover": "skip",
        "shared_memory": True,
        "shared_memory_dir": "s",
        "snapshot_seconds": 7.5,
        "snapshot_versions": 8,
        "stop_with_stdin": True,
        "threads": 7,
        "tls_cert": "c",
        "tls_client_ca": "d",
        "tls_key": "k",
        "token_file": "t",
    }
    assert values.keys() | {"config"} == set(Config.model_fields)
    as_toml = [
        f"{name} = {str(value).lower() if isinstance(value, bool) else repr(value)}" for name, value in values.items()
    ]
    (tmp_path / "all.toml").write_text("\n".join(as_toml))
    as_flags = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in values.items()
    ]
    from_flags = load(as_flags)
    from_file = load(["--config", str(tmp_path / "all.toml")])
    for name, value in values.items():
        monkeypatch.setenv(f"OPTD_{name.upper()}", str(value))
    from_environment = load([])
    for config in (from_flags, from_file, from_environment):
        found = {name: getattr(config, name) for name in values}
        assert {n: str(v) if isinstance(v, Path) else v for n, v in found.items()} == values


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("16777216", 16777216),
        ("16MiB", 16777216),
        ("16 mib", 16777216),
        ("16MB", 16_000_000),
        ("1.5MiB", 1572864),
        ("1048576B", 1 << 20),
        ("1GiB", 1 << 30),
        ("1024KiB", 1 << 20),
    ],
)
@pytest.mark.parametrize("name", [name for name in Config.model_fields if name.endswith("_bytes")])
def test_sizes_may_have_units_in_every_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, written: str, size: int
):
    assert getattr(load([f"--{name.replace('_', '-')}", written]), name) == size
    path = tmp_path / "optd.toml"
    path.write_text(f"{name} = '{written}'\n")
    assert getattr(load(["--config", str(path)]), name) == size
    monkeypatch.setenv(f"OPTD_{name.upper()}", written)
    assert getattr(load([]), name) == size


@pytest.mark.parametrize("name", [name for name in Config.model_fields if name.endswith("_bytes")])
@pytest.mark.parametrize("written", ["lots", "16MiBs", "-16MiB", "1.00001KiB", "16 M", "", "1e6", "nan"])
def test_what_is_no_size_is_told_with_examples(name: str, written: str):
    with pytest.raises(ConfigError) as caught:
        load([f"--{name.replace('_', '-')}={written}"])
    assert all(part in str(caught.value) for part in (name, "16MiB", f"got {written!r}")), str(caught.value)


def test_a_size_out_of_its_bounds_is_told_as_it_was_written():
    with pytest.raises(ConfigError) as caught:
        load(["--max-message-bytes", "2GiB"])
    assert all(part in str(caught.value) for part in ("64KiB", "1GiB", "got '2GiB'")), str(caught.value)


def test_the_help_has_placeholders_groups_and_defaults(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        load(["--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    sections = [line.rstrip(":") for line in said.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert sections[-len(SECTIONS) :] == list(SECTIONS.values())
    for shown in ("--config PATH", "--port PORT", "--lease-seconds SECONDS", "--max-requests N", "{text,json}"):
        assert shown in said
    assert re.search(r"--max-message-bytes BYTES\s+largest message that is accepted \(default: 16MiB\)", said)
    assert not re.search(r"\b(int|float|str|Path|None)\b", said)


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        load(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"optd {metadata.version('optd')}\n"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("max_request = 3", ["'max_request'", "did you mean 'max_requests'"]),
        ("max-requests = 3", ["'max-requests'", "did you mean 'max_requests'"]),
        ("lease_secs = 3", ["'lease_secs'", "did you mean 'lease_seconds'"]),
        ("zzz = 3", ["no setting 'zzz'"]),
        ("max_requests = 0", ["max_requests", "greater than or equal to 1", "got 0"]),
        ("max_requests = 'many'", ["max_requests", "'many'"]),
        ("port = 70000", ["port", "65535", "70000"]),
        ("max_message_bytes = 10", ["max_message_bytes", "65536", "10"]),
        ("lease_seconds = 0.0", ["lease_seconds", "0.1"]),
        ("lease_seconds = nan", ["lease_seconds", "nan"]),
        ("log_level = 'loud'", ["log_level", "'debug'", "'loud'"]),
        ("max_requests = ", ["optd.toml"]),
        ("[server]\nport = 1", ["no setting 'server'"]),
    ],
)
def test_a_wrong_line_of_the_file_is_named(tmp_path: Path, text: str, parts: list[str]):
    path = tmp_path / "optd.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(["--config", str(path)])
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--max-request", "3"], ["--max-request"]),
        (["--prot", "3"], ["--prot"]),
        (["--max-requests", "many"], ["max_requests", "'many'"]),
        (["--port", "-1"], ["port", "0", "-1"]),
        (["--threads"], ["--threads", "expected one argument"]),
        (["--config", "no-such-file.toml"], ["config", "no-such-file.toml"]),
        (["--config"], ["--config", "expected one argument"]),
        (["stray"], ["stray"]),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_a_wrong_flag_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], parts: list[str]
):
    line = refuses_settings(monkeypatch, capsys, *flags)
    assert all(part in line for part in parts), line


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPTD_LEASE_SECONDS", "soon")
    with pytest.raises(ConfigError, match=r"lease_seconds: .*'soon'"):
        load([])


def test_a_file_that_is_not_text_is_named(tmp_path: Path):
    path = tmp_path / "optd.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"optd\.toml"):
        load(["--config", str(path)])


def test_variables_of_the_client_do_not_trouble_the_server(monkeypatch: pytest.MonkeyPatch):
    """OPTD_TOKEN and the like may be set where a server starts."""
    for name in ("TOKEN", "SERVER", "JOB", "WORKER", "TLS_CA"):
        monkeypatch.setenv(f"OPTD_{name}", "anything")
    assert load([]).max_requests == 1024


def test_a_process_takes_its_settings_from_everywhere(tmp_path: Path):
    path = tmp_path / "optd.toml"
    path.write_text("max_streams = 30\nmax_requests = 30\nmax_message_bytes = 300000\n")
    environment = {"OPTD_CONFIG": str(path), "OPTD_MAX_STREAMS": "20", "OPTD_MAX_REQUESTS": "20"}
    with (
        running(tmp_path, "--max-requests", "10", environment=environment) as program,
        Plain(program.address) as plain,
    ):
        limits = plain.status().limits
    assert limits.max_requests == 10
    assert limits.max_streams_per_connection == 20
    assert limits.max_message_bytes == 300000


def test_a_process_with_a_wrong_setting_exits_with_2(tmp_path: Path):
    path = tmp_path / "optd.toml"
    path.write_text("max_memory_byte = 3\n")
    assert "did you mean 'max_memory_bytes'" in refuses_to_start("--config", str(path))


def test_kernels_that_cannot_be_had_are_told_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delitem(sys.modules, "optd_server.optim.backends.compiled.backend", raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)
    said = refuses_settings(monkeypatch, capsys, "--kernels", "numba")
    assert said == "optd: kernels: numba does not work here: import of numba halted; None in sys.modules"


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "shown"), [("numpy", "numpy, 2 threads"), ("numba", "numba ")])
def test_the_status_tells_the_kernels(asked: str, shown: str, tmp_path: Path):
    with running(tmp_path, "--kernels", asked, "--threads", "2") as server, Plain(server.address) as plain:
        assert plain.status().kernels.startswith(shown)

"""The exit codes that scripts may rely on, each with its one line on standard error."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from optd.ctl import connection
from optd.ctl.app import run
from optd.ctl.exits import MEANINGS, Exit, code_of
from optd.local import LocalServer, local
from optd_wire import errors
from optd_wire.values import Async, GroupOptions, GroupSummary, JobInfo, JobOptions, JobVersion

from .conftest import Ended, Optctl


def assert_one_line(ended: Ended, code: Exit, *words: str) -> None:
    assert ended.code == code, ended
    assert ended.out == ""
    assert ended.err.startswith("optctl: ")
    assert ended.err.count("\n") == 1
    for word in words:
        assert word in ended.err


@pytest.fixture
def called(server: LocalServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`optctl` within this process, which is quicker."""
    for name in [name for name in os.environ if name.startswith("OPTD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPTD_SERVER", server.address)

    def call(*arguments: str) -> Ended:
        code = run(arguments)
        out, err = capsys.readouterr()
        return Ended(code, out, err)

    return call


# Real processes, one for each code


@pytest.mark.slow
def test_refused_is_1(optctl: Optctl, train, name: str):
    train()  # a job of its own: what it refuses is counted
    assert_one_line(optctl("set", name, "group0", "lr=-1"), Exit.REFUSED, "lr must be in [0, inf), got -1")
    assert_one_line(optctl("set", name, "group0", "lr=abc"), Exit.REFUSED, "lr must be a number, got 'abc'")


def test_wrong_usage_is_2(optctl: Optctl):
    assert_one_line(optctl("set", "digits", "hidden", "lr"), Exit.USAGE, "'lr' is not NAME=VALUE")


@pytest.mark.slow
def test_no_server_is_3():
    with socket.socket() as held:  # bound and not listening: nobody else can take it, and it refuses
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        ended = Optctl(address)("jobs", "--timeout", "0.5")
        assert_one_line(ended, Exit.UNREACHABLE, f"no optd server answers at {address}: tried for 0.", "refused")


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_3():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        ended = Optctl(f"127.0.0.1:{silent.getsockname()[1]}")("jobs", "--timeout", "0.5")
        assert_one_line(ended, Exit.UNREACHABLE)


def test_unknown_is_5(optctl: Optctl, digits):
    assert_one_line(optctl("groups", "nope"), Exit.NOT_FOUND, "no job 'nope' on this server")


# Tables, within this process


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["group", "digits", "nope"], "job 'digits' has no group 'nope'; its groups are hidden, output, biases"),
        (["group", "digits", "hidden", "-p", "nope"], "group 'hidden' has no parameter 'nope'"),
        (["set", "digits", "nope", "lr=1"], "job 'digits' has no group 'nope'; its groups are hidden, output, biases"),
        (["set", "nope", "hidden", "lr=1"], "no job 'nope'"),
        (["workers", "nope"], "no job 'nope'"),
        (["rejections", "nope"], "no job 'nope'"),
        (["watch", "nope"], "no job 'nope'"),
        (["delete", "nope", "--yes"], "no job 'nope'"),
        (["algorithms", "adm"], "no algorithm 'adm'; the nearest is 'adam'"),
    ],
)
def test_unknown(called, digits, arguments: list[str], words: str):
    assert_one_line(called(*arguments), Exit.NOT_FOUND, words)
    assert_one_line(called("-o", "json", *arguments), Exit.NOT_FOUND, words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope"], "No such command 'nope'"),
        (["--nope"], "--nope"),
        (["jobs", "--nope"], "see 'optctl jobs --help'"),
        (["groups"], "JOB"),
        (["set", "digits", "hidden"], "NAME=VALUE"),
        (["set", "digits", "hidden", "lr"], "'lr' is not NAME=VALUE"),
        (["set", "digits", "hidden", "lr="], "lr= has no value"),
        (["-o", "xml", "jobs"], "xml"),
        (["jobs", "--timeout", "0"], "must be in [0.001, 86400] seconds, got 0"),
        (["jobs", "--timeout", "nan"], "must be in [0.001, 86400] seconds, got nan"),
        (["watch", "digits", "--interval", "-1"], "must be in [0.001, 86400] seconds, got -1"),
        (["watch", "digits", "--count", "0"], "--count"),
        (["group", "digits", "hidden", "--limit", "-1"], "--limit"),
        (["jobs", "--server", "nowhere"], "the server must be HOST:PORT, got 'nowhere'"),
        (["jobs", "--server", "127.0.0.1:99999"], "the server must be HOST:PORT, got '127.0.0.1:99999'"),
        (["jobs", "--tls-ca", "/no/file"], "cannot read ca /no/file: No such file or directory"),
        (["jobs", "--tls-cert", "/no/file"], "cert and key must be given together"),
        (["jobs", "--token-file", "/no/file"], "cannot read /no/file: No such file or directory"),
        (["jobs", "--token-file", "/dev/null"], "no token in /dev/null"),
        (["jobs", "--token", "a\nb"], "only printable ASCII"),
    ],
)
def test_wrong_usage(called, arguments: list[str], words: str):
    assert_one_line(called(*arguments), Exit.USAGE, words)


def test_delete_without_a_terminal_wants_yes(optctl: Optctl, digits):
    assert_one_line(optctl("delete", "digits"), Exit.USAGE, "pass --yes")


def test_no_command_shows_the_help(called):
    ended = called()
    assert ended.code == Exit.USAGE
    assert "Usage: optctl" in ended.out


def test_every_error_has_a_code():
    codes = {code_of(error(**_values(error))) for error in errors.BY_REASON.values()}
    assert codes == {Exit.REFUSED, Exit.UNREACHABLE, Exit.UNAUTHENTICATED, Exit.NOT_FOUND}
    assert set(MEANINGS) == set(Exit)


def _values(error: type[errors.OptdError]) -> dict[str, str]:
    class Any(dict[str, str]):
        def __missing__(self, key: str) -> str:
            self[key] = key
            return key

    values = Any()
    error.template.format_map(values)
    return values


# A server that is told what to say


class Told:
    """A transport whose every call does what the test says."""

    address = "127.0.0.1:1"

    def __init__(self, **answers: object) -> None:
        self._answers = answers

    def __getattr__(self, call: str):
        def answer(*_: object, **__: object) -> object:
            told = self._answers[call]
            if isinstance(told, list):
                told = told.pop(0)
            if isinstance(told, BaseException):
                raise told
            return told

        return answer

    def close(self) -> None: ...


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch):
    def tell(**answers: object) -> None:
        monkeypatch.setattr(connection.ServerCalls, "over_grpc", lambda *_, **__: Told(**answers))

    return tell


@pytest.mark.parametrize("how", [[], ["-o", "json"]])
def test_a_server_that_is_not_ready_is_not_healthy(called, told, how: list[str]):
    told(health=False)
    ended = called("health", *how)
    assert ended.code == Exit.REFUSED
    assert ended.out.split() == (["{", '"status":', '"NOT_SERVING"', "}"] if how else ["NOT_SERVING"])


@pytest.mark.parametrize(
    "error",
    [
        errors.ConnectionLost(address="a:1", rpc="Check", problem="refused"),
        errors.DeadlineExceeded(rpc="Check", address="a:1", seconds="1", hint=""),
        errors.MissingToken(),
    ],
)
def test_whoever_cannot_be_asked_is_not_healthy(called, told, error: Exception):
    told(health=error)
    assert_one_line(called("health"), Exit.REFUSED)


def test_something_unforeseen_is_one_line_too(called, told):
    told(list_jobs=ZeroDivisionError("by\nzero"))
    assert_one_line(called("jobs"), Exit.REFUSED, "ZeroDivisionError: by zero (--debug shows where)")
    assert "Traceback" in called("jobs", "--debug").err


def test_an_answer_that_was_lost_is_asked_for_again(called, told):
    lost = errors.ConnectionLost(address="a:1", rpc="ListJobs", problem="gone")
    told(list_jobs=[lost, lost, ()])
    assert called("jobs").out == "no jobs\n"


def test_ctrl_c_is_130(called, told):
    told(list_jobs=KeyboardInterrupt())
    assert called("jobs").code == 130


def test_set_tries_again_where_somebody_else_is_faster(called, told):
    def group(lr: float, revision: int) -> GroupSummary:
        return GroupSummary(0, GroupOptions("g", {"lr": lr}, revision, revision), 1, 1, ("float32",), 0, 0)

    conflict = errors.OptionConflict(group="g", option="lr", ours="1", theirs="2", since="7")
    told(
        list_groups=[(group(1.0, 1),), (group(2.0, 2),)],
        update_group=[conflict, (group(5.0, 3).options, JobVersion(3))],
    )
    assert called("set", "j", "g", "lr=5").out == "j g: lr 2 -> 5, since version 3\n"


def test_set_for_a_job_tries_again_where_somebody_else_is_faster(called, told):
    def info(bound: float, revision: int) -> JobInfo:
        options = JobOptions({"clip_norm": bound}, revision, revision)
        return JobInfo("j", "sgd", {}, Async(), (), JobVersion(), options)

    conflict = errors.JobOptionConflict(job="j", option="clip_norm", ours="1", theirs="2", since="7")
    told(
        get_job=[info(1.0, 1), info(1.0, 1), info(2.0, 2)], update_job=[conflict, (info(5.0, 3).options, JobVersion(3))]
    )
    assert called("set", "j", "clip_norm=5").out == "j: clip_norm 2 -> 5, since version 3\n"


# A server that wants to know who asks


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalServer, Path]]:
    """A server with TLS, client certificates and a token; and the folder with all files."""
    folder = tmp_path_factory.mktemp("tls")
    authority, stranger = trustme.CA(), trustme.CA()
    ours, theirs = authority.issue_cert("127.0.0.1"), authority.issue_cert("client")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    stranger.cert_pem.write_to_path(folder / "stranger.pem")
    for name, leaf in {"server": ours, "client": theirs}.items():
        leaf.private_key_pem.write_to_path(folder / f"{name}.key")
        leaf.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    (folder / "token").write_text("# who may\nopen-sesame-please\n")
    (folder / "wrong").write_text("open-barley-please\n")
    flags = {"cert": "server.pem", "key": "server.key", "client-ca": "ca.pem"}
    tls = [f"--tls-{name}={folder / file}" for name, file in flags.items()]
    with local(*tls, f"--token-file={folder / 'token'}") as running:
        yield running, folder


def tls_flags(folder: Path) -> list[str]:
    return [
        f"--tls-ca={folder / 'ca.pem'}",
        f"--tls-cert={folder / 'client.pem'}",
        f"--tls-key={folder / 'client.key'}",
    ]


@pytest.mark.slow
def test_token_and_certificates_as_flags(guarded):
    server, folder = guarded
    _, document = Optctl(server.address).both("status", *tls_flags(folder), f"--token-file={folder / 'token'}")
    assert (document["authentication"], document["tls"]) == ("token+mtls", True)


@pytest.mark.slow
def test_token_and_certificates_from_the_environment(called, guarded, monkeypatch: pytest.MonkeyPatch):
    server, folder = guarded
    files = {
        "OPTD_TLS_CA": "ca.pem",
        "OPTD_TLS_CLIENT_CERT": "client.pem",
        "OPTD_TLS_CLIENT_KEY": "client.key",
        "OPTD_TOKEN_FILE": "token",
    }
    for name, file in files.items():
        monkeypatch.setenv(name, str(folder / file))
    monkeypatch.setenv("OPTD_SERVER", server.address)
    assert called("health").out == "SERVING\n"


@pytest.mark.slow
def test_without_a_token_is_4(guarded):
    server, folder = guarded
    ended = Optctl(server.address)("jobs", *tls_flags(folder))
    assert_one_line(ended, Exit.UNAUTHENTICATED, "this server wants a token")


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--token", "guess"], ["--token-file", "{folder}/wrong"]])
def test_a_wrong_token(called, guarded, flags: list[str]):
    server, folder = guarded
    flags = [flag.format(folder=folder) for flag in flags]
    ended = called("jobs", "--server", server.address, *tls_flags(folder), *flags)
    assert_one_line(ended, Exit.UNAUTHENTICATED, "the token is not one of this server's")


@pytest.mark.slow
def test_a_server_that_is_not_trusted_is_3(guarded):
    server, folder = guarded
    ended = Optctl(server.address)("jobs", f"--tls-ca={folder / 'stranger.pem'}", "--timeout", "0.5")
    assert ended.code == Exit.UNREACHABLE
    # gRPC's core may say something of its own before.
    assert ended.err.splitlines()[-1].startswith(f"optctl: no optd server answers at {server.address}")


def test_without_an_address_the_server_of_this_host_is_asked(called, server: LocalServer, monkeypatch):
    monkeypatch.delenv("OPTD_SERVER")
    monkeypatch.setenv("OPTD_PORT", server.address.rpartition(":")[2])
    assert called("health").out == "SERVING\n"
    monkeypatch.setenv("OPTD_SERVER", "127.0.0.1:1")  # says more than a port alone
    assert called("jobs", "--timeout", "0.1").code == Exit.UNREACHABLE


@pytest.mark.parametrize("port", ["0", "65536", "grpc", "²"])
def test_a_port_at_which_no_server_can_be_is_named(called, monkeypatch, port: str):
    monkeypatch.delenv("OPTD_SERVER")
    monkeypatch.setenv("OPTD_PORT", port)
    assert_one_line(called("jobs"), Exit.USAGE, "OPTD_PORT must be in [1, 65535]", f"got {port!r}")

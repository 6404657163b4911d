"""Who gets in: tokens, certificates and addresses, on every RPC that the server has."""

import logging
import ssl
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
import trustme
from contract.plain import (
    ALL_RPCS,
    OWN_RPCS,
    Plain,
    Refusal,
    call,
    files,
    frame,
    group,
    header,
    job_spec,
    refusal_of,
)
from e2e.programs import Program, refuses_settings, refuses_to_start, running
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

import optd
from optd.errors import MissingToken, Unauthenticated, Unreachable, WrongToken
from optd_server.config import load
from optd_server.rpc.security import secure

TOKENS = ("first-token-0123456789", "second-token-9876543210")
NEVER_SENT = "third-token-which-is-not-in-the-file"
MESSAGES = {name: getattr(file, name) for file in (*files(), health_pb2, reflection_pb2) for name in vars(file)}

every_rpc = pytest.mark.parametrize("method", ALL_RPCS, ids=lambda method: method.full_name.removeprefix("optd.v1."))


def request_of(method: MethodDescriptor) -> bytes:
    """A message that the RPC understands, though it may not like what it says."""
    message = MESSAGES[method.input_type.name]()
    if "list_services" in method.input_type.fields_by_name:
        message.list_services = "*"
    return message.SerializeToString()


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


def refusal(channel: grpc.Channel, method: MethodDescriptor, **more: object) -> Refusal:
    """How a call is refused; of one that is not, code OK."""
    try:
        call(channel, method, request_of(method), **more)
    except grpc.RpcError as error:
        return refusal_of(error)
    return Refusal(grpc.StatusCode.OK, "", {}, "")


def is_served(found: Refusal) -> bool:
    """Whether a call came as far as its service, which may well have refused what it was asked for."""
    return found.code is grpc.StatusCode.OK or found.reason in ("UNKNOWN_JOB", "INVALID_REQUEST", "INVALID_NAME")


def train(session: optd.Session) -> None:
    """One step, as a worker that was let in takes it."""
    weights = np.zeros(3, "f4")
    optd.SGD([weights], lr=1.0, session=session).step([np.ones(3, "f4")])
    assert weights.tolist() == [-1, -1, -1]


# Tokens


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A server that wants one of `TOKENS`, and logs all it has to say."""
    folder = tmp_path_factory.mktemp("token")
    file = folder / "tokens"
    file.write_text(f"# who may train\n{TOKENS[0]}\n\n  {TOKENS[1]}  \n")
    with running(folder, "--token-file", str(file), "--log-level", "debug") as program:
        yield program


@pytest.fixture(scope="module")
def guarded_channel(guarded: Program) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(guarded.address) as channel:
        yield channel


@every_rpc
def test_40_a_call_without_token_is_refused(guarded_channel: grpc.Channel, method: MethodDescriptor):
    found = refusal(guarded_channel, method)
    assert (found.code, found.reason) == (grpc.StatusCode.UNAUTHENTICATED, "MISSING_TOKEN")


@every_rpc
@pytest.mark.parametrize(
    "authorization",
    [
        f"Bearer {NEVER_SENT}",
        f"Bearer {TOKENS[0]}x",
        f"Bearer {TOKENS[0][:-1]}",
        "Bearer ",
        "",
        TOKENS[0],
        f"Basic {TOKENS[0]}",
    ],
    ids=["another", "one more letter", "one less", "empty", "nothing", "no scheme", "another scheme"],
)
def test_40_a_call_with_a_wrong_token_is_refused(
    guarded_channel: grpc.Channel, method: MethodDescriptor, authorization: str
):
    found = refusal(guarded_channel, method, metadata=[("authorization", authorization)])
    assert (found.code, found.reason) == (grpc.StatusCode.UNAUTHENTICATED, "WRONG_TOKEN")


@every_rpc
@pytest.mark.parametrize("token", TOKENS, ids=["first", "second"])
def test_a_call_with_any_token_of_the_file_is_served(
    guarded_channel: grpc.Channel, method: MethodDescriptor, token: str
):
    found = refusal(guarded_channel, method, metadata=bearer(token))
    assert is_served(found), found


def test_comments_in_the_token_file_are_no_tokens(guarded_channel: grpc.Channel):
    for method in OWN_RPCS[:1]:
        assert refusal(guarded_channel, method, metadata=bearer("# who may train")).reason == "WRONG_TOKEN"


@pytest.mark.parametrize("token", TOKENS)
def test_our_client_trains_with_a_token(guarded: Program, name: str, token: str):
    with optd.connect(guarded.address, job=name, token=token) as session:
        train(session)


@pytest.mark.parametrize(("token", "error"), [(None, MissingToken), (NEVER_SENT, WrongToken)])
def test_our_client_says_at_once_that_the_token_is_missing_or_wrong(
    guarded: Program, monkeypatch: pytest.MonkeyPatch, token: str | None, error: type[Unauthenticated]
):
    for variable in ("OPTD_TOKEN", "OPTD_TOKEN_FILE"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(error) as caught:
        optd.connect(guarded.address, token=token, connect_timeout=5)
    assert NEVER_SENT not in str(caught.value)


def test_our_client_finds_the_token_in_the_environment(
    guarded: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.delenv("OPTD_TOKEN", raising=False)
    file = tmp_path / "mine"
    file.write_text(f"# mine\n{TOKENS[1]}\n")
    monkeypatch.setenv("OPTD_TOKEN_FILE", str(file))
    optd.connect(guarded.address).close()
    monkeypatch.setenv("OPTD_TOKEN", NEVER_SENT)  # counts before the file
    with pytest.raises(WrongToken):
        optd.connect(guarded.address)


def test_41_tokens_are_in_no_log_and_no_answer(guarded: Program, guarded_channel: grpc.Channel):
    """After calls with good, bad and no tokens, to every RPC; the log is at its most talkative."""
    told = []
    for method in ALL_RPCS:
        for metadata in (bearer(TOKENS[0]), bearer(NEVER_SENT), []):
            try:
                told += [data.decode("latin1") for data in call(guarded_channel, method, b"", metadata=metadata)]
            except grpc.RpcError as error:
                told.append(f"{error.details()} {error.trailing_metadata()}")
    assert "GetServerStatus" in guarded.log
    for token in (*TOKENS, NEVER_SENT):
        assert token not in guarded.log
        assert not any(token in text for text in told)


def test_41_our_client_tells_its_token_nobody(guarded: Program, name: str, caplog: pytest.LogCaptureFixture):
    """Neither in its log, which is at its most talkative, nor in errors, nor in what describes it."""
    caplog.set_level(logging.DEBUG)
    with optd.connect(guarded.address, job=name, token=TOKENS[0]) as session:
        train(session)
        told = [repr(session), str(session), repr(session.info()), repr(session.workers()), repr(vars(session))]
        with pytest.raises(optd.OptdError) as caught:
            session.set_options(clip_norm=-1.0)
        told.append(str(caught.value))
    with pytest.raises(WrongToken) as wrong:
        optd.connect(guarded.address, token=NEVER_SENT, connect_timeout=5)
    told += [str(wrong.value), repr(wrong.value), "".join(traceback.format_exception(wrong.value)), caplog.text]
    for token in (TOKENS[0], NEVER_SENT):
        assert not any(token in text for text in told)


# What was never written


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 50, 1000])
def test_41_numbers_that_nobody_sent_are_not_what_lay_in_memory(plain: Plain, name: str, count: int):
    """A parameter without gradient in the last step has none to read: not whatever the server's memory held
    before, which may be anything of anybody."""
    groups = [group("g", {"w": ((count,), "float32"), "v": ((count,), "float64")})]
    for index in range(5):
        job = f"{name}.{index}"
        plain.create(job_spec(job, groups), [frame(np.zeros(count, "f4")), frame(np.zeros(count), offset=count)])
        with pytest.raises(grpc.RpcError):
            plain.info("a name that takes some room in memory " * 20)
        epoch = plain.join(job)
        plain.push(header(job, "w0", epoch, 1), [])
        _, frames = plain.read_state(job, "gradient", "weights", "momentum_buffer")
        assert all(not any(sent.payload) for sent in frames)


# Certificates


@dataclass(frozen=True)
class Papers:
    """Files of an authority, and of a certificate that it has signed."""

    ca: Path
    cert: Path
    key: Path

    @property
    def flags(self) -> tuple[str, ...]:
        return "--tls-cert", str(self.cert), "--tls-key", str(self.key)

    def channel(self, address: str, showing: "Papers | None" = None) -> grpc.Channel:
        pair = (showing.key.read_bytes(), showing.cert.read_bytes()) if showing else (None, None)
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(self.ca.read_bytes(), *pair))


def issue(folder: Path, name: str, authority: trustme.CA) -> Papers:
    pair = authority.issue_cert("127.0.0.1", "localhost")
    papers = Papers(*(folder / f"{name}.{kind}" for kind in ("ca", "cert", "key")))
    authority.cert_pem.write_to_path(papers.ca)
    papers.cert.write_bytes(b"".join(blob.bytes() for blob in pair.cert_chain_pems))
    pair.private_key_pem.write_to_path(papers.key)
    return papers


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    """Of the server."""
    return issue(tmp_path_factory.mktemp("server-papers"), "server", trustme.CA())


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Papers, Papers]:
    """Of a worker that the server knows, and of one that it does not."""
    folder = tmp_path_factory.mktemp("worker-papers")
    return issue(folder, "known", trustme.CA()), issue(folder, "stranger", trustme.CA())


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory, papers: Papers) -> Iterator[Program]:
    with running(tmp_path_factory.mktemp("tls"), *papers.flags) as program:
        yield program


@pytest.fixture(scope="module")
def mutual(
    tmp_path_factory: pytest.TempPathFactory, papers: Papers, workers: tuple[Papers, Papers]
) -> Iterator[Program]:
    """A server that wants to see a certificate, and a token on top."""
    folder = tmp_path_factory.mktemp("mtls")
    (folder / "tokens").write_text(TOKENS[0])
    flags = (*papers.flags, "--tls-client-ca", str(workers[0].ca), "--token-file", str(folder / "tokens"))
    with running(folder, *flags) as program:
        yield program


def test_the_right_authority_gets_in(encrypted: Program, papers: Papers, name: str):
    with optd.connect(encrypted.address, job=name, tls=optd.TLS(ca=papers.ca)) as session:
        train(session)
    with papers.channel(encrypted.address) as channel:
        assert all(is_served(refusal(channel, method)) for method in ALL_RPCS)


def test_the_environment_can_name_the_authority(
    encrypted: Program, papers: Papers, name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPTD_TLS_CA", str(papers.ca))
    with optd.connect(encrypted.address, job=name) as session:
        train(session)


def test_a_client_without_tls_fails_and_says_where(encrypted: Program):
    with pytest.raises(Unreachable) as caught:
        optd.connect(encrypted.address, connect_timeout=1)
    assert encrypted.address in str(caught.value)
    assert "tried for" in str(caught.value)


@every_rpc
def test_40_no_rpc_answers_without_tls(encrypted: Program, method: MethodDescriptor):
    with grpc.insecure_channel(encrypted.address) as channel:
        assert refusal(channel, method).code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.slow
@pytest.mark.parametrize("known", [False, True], ids=["another authority", "the public authorities"])
def test_40_a_wrong_authority_is_a_clear_error(encrypted: Program, workers: tuple[Papers, Papers], known: bool):
    with pytest.raises(Unreachable, match=r"(?i)certificate.verify") as caught:
        optd.connect(encrypted.address, tls=True if known else optd.TLS(ca=workers[1].ca), connect_timeout=1)
    assert encrypted.address in str(caught.value)


@pytest.mark.slow
def test_a_certificate_for_another_name_is_a_clear_error(tmp_path: Path, papers: Papers):
    authority = trustme.CA()
    pair = authority.issue_cert("elsewhere.example")
    theirs = Papers(*(tmp_path / name for name in ("ca", "cert", "key")))
    authority.cert_pem.write_to_path(theirs.ca)
    pair.cert_chain_pems[0].write_to_path(theirs.cert)
    pair.private_key_pem.write_to_path(theirs.key)
    with (
        running(tmp_path, *theirs.flags) as program,
        pytest.raises(Unreachable, match=r"(?i)(host|name).*127\.0\.0\.1|127\.0\.0\.1.*(name|host)"),
    ):
        optd.connect(program.address, tls=optd.TLS(ca=theirs.ca), connect_timeout=1)


def test_what_the_wire_carries_is_tls(encrypted: Program):
    """Not only does our client speak TLS: the port understands nothing else."""
    host, port = encrypted.address.split(":")
    certificate = ssl.get_server_certificate((host, int(port)))
    assert "BEGIN CERTIFICATE" in certificate


@every_rpc
@pytest.mark.parametrize("shown", ["nothing", "stranger"])
def test_40_without_a_certificate_of_the_authority_no_rpc_answers(
    mutual: Program, papers: Papers, workers: tuple[Papers, Papers], method: MethodDescriptor, shown: str
):
    with papers.channel(mutual.address, None if shown == "nothing" else workers[1]) as channel:
        found = refusal(channel, method, metadata=bearer(TOKENS[0]))
    assert found.code is grpc.StatusCode.UNAVAILABLE


def test_a_certificate_of_the_authority_gets_in_with_its_token(
    mutual: Program, papers: Papers, workers: tuple[Papers, Papers], name: str
):
    mine = optd.TLS(ca=papers.ca, cert=workers[0].cert, key=workers[0].key)
    with optd.connect(mutual.address, job=name, tls=mine, token=TOKENS[0]) as session:
        train(session)
    with papers.channel(mutual.address, workers[0]) as channel:
        for method in ALL_RPCS:
            assert is_served(refusal(channel, method, metadata=bearer(TOKENS[0])))
            assert refusal(channel, method).reason == "MISSING_TOKEN"


@pytest.mark.slow
def test_our_client_without_certificate_fails_and_says_where(mutual: Program, papers: Papers):
    with pytest.raises(Unreachable) as caught:
        optd.connect(mutual.address, tls=optd.TLS(ca=papers.ca), token=TOKENS[0], connect_timeout=1)
    assert mutual.address in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "parts"),
    [
        ({"ca": "no-such-file"}, ["ca", "no-such-file"]),
        ({"cert": "no-such-file", "key": "no-such-file"}, ["cert", "no-such-file"]),
        ({"cert": "only"}, ["cert and key", "together"]),
    ],
)
def test_our_client_names_the_file_that_it_cannot_use(encrypted: Program, wrong: dict[str, str], parts: list[str]):
    with pytest.raises(optd.errors.InvalidRequest) as caught:
        optd.connect(encrypted.address, tls=optd.TLS(**wrong))
    assert all(part in str(caught.value) for part in parts)


# Starting


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_43_an_address_beyond_loopback_needs_a_token_or_tls(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str
):
    line = refuses_settings(monkeypatch, capsys, "--host", host)
    assert all(part in line for part in (host, "--token-file", "--tls-cert", "--insecure"))


def test_43_a_process_that_may_not_start_exits_with_2_and_leaves_no_address(tmp_path: Path):
    line = refuses_to_start("--host", "0.0.0.0", "--address-file", str(tmp_path / "address"))
    assert "0.0.0.0 is reachable from other machines" in line
    assert not (tmp_path / "address").exists()


@pytest.mark.slow
def test_43_insecure_lets_it_start_and_warns(tmp_path: Path):
    with running(tmp_path, "--host", "0.0.0.0", "--insecure") as program:
        assert "warning" in program.log
        assert "anyone who reaches this server can change every job" in program.log


@pytest.mark.parametrize("by", ["token", "tls"])
def test_a_token_or_tls_lets_it_listen_anywhere(tmp_path: Path, papers: Papers, by: str):
    (tmp_path / "tokens").write_text(TOKENS[0])
    flags = papers.flags if by == "tls" else ("--token-file", str(tmp_path / "tokens"))
    assert secure(load(["--host", "0.0.0.0", *flags])).authentication == {"token": "token", "tls": "none"}[by]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_needs_neither(host: str):
    assert secure(load(["--host", host])).authentication == "none"


@pytest.mark.slow
def test_a_token_lets_it_start_without_a_warning(tmp_path: Path, name: str):
    (tmp_path / "tokens").write_text(TOKENS[0])
    with (
        running(
            tmp_path,
            "--host",
            "0.0.0.0",
            "--token-file",
            str(tmp_path / "tokens"),
            "--data-dir",
            str(tmp_path / "kept"),
        ) as program,
        optd.connect(program.address.replace("0.0.0.0", "127.0.0.1"), job=name, token=TOKENS[0]) as session,
    ):
        train(session)
        assert "warning" not in program.log


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["cannot read", "No such file"]),
        ("", ["holds no token"]),
        ("# only a comment\n\n", ["holds no token"]),
        ("short", ["token 1", "at least 16", "got 5"]),
        (f"{TOKENS[0]}\nshort", ["token 2", "got 5"]),
        ("a token of several words", ["token 1", "without spaces"]),
        ("tökens-are-plain-ascii", ["token 1", "ASCII"]),
    ],
    ids=["missing", "empty", "comment", "short", "second short", "words", "umlaut"],
)
def test_a_token_file_that_is_no_use_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    parts: list[str],
):
    file = tmp_path / "secrets"
    if content is not None:
        file.write_text(content)
    line = refuses_settings(monkeypatch, capsys, "--token-file", str(file))
    assert all(part in line for part in ("token_file", str(file), *parts))
    assert not any(part in line for part in ("short", "several", "kens-are", TOKENS[0]))


@pytest.fixture(scope="module")
def drawer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of certificates and keys, good and bad."""
    folder = tmp_path_factory.mktemp("drawer")
    issue(folder, "server", trustme.CA())
    issue(folder, "other", trustme.CA())
    (folder / "noise").write_bytes(bytes(range(256)) * 4)
    for marker, file in (("CERTIFICATE", "hollow.cert"), ("PRIVATE KEY", "hollow.key")):
        (folder / file).write_text(f"-----BEGIN {marker}-----\nbm90aGluZw==\n-----END {marker}-----\n")
    return folder


def tls_flags(drawer: Path, cert: str | None, key: str | None, client_ca: str | None = None) -> list[str]:
    given = {"--tls-cert": cert, "--tls-key": key, "--tls-client-ca": client_ca}
    return [word for flag, file in given.items() if file is not None for word in (flag, str(drawer / file))]


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ((None, "server.key"), ["tls_cert", "tls_key", "together"]),
        (("server.cert", None), ["tls_cert", "tls_key", "together"]),
        ((None, None, "server.ca"), ["tls_client_ca", "tls_cert", "tls_key"]),
        (("missing", "server.key"), ["tls_cert", "missing", "No such file"]),
        (("server.cert", "missing"), ["tls_key", "missing", "No such file"]),
        (("server.cert", "server.key", "missing"), ["tls_client_ca", "missing", "No such file"]),
        (("noise", "server.key"), ["tls_cert", "noise"]),
        (("server.cert", "noise"), ["tls_key", "noise"]),
        (("server.cert", "server.key", "noise"), ["tls_client_ca", "noise"]),
        (("server.key", "server.cert"), ["tls_", "server."]),
    ],
    ids=lambda given: " ".join(str(file) for file in given) if isinstance(given, tuple) else "",
)
def test_a_certificate_or_key_that_is_none_is_named(
    drawer: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    files: tuple[str | None, ...],
    parts: list[str],
):
    line = refuses_settings(monkeypatch, capsys, *tls_flags(drawer, *files))
    assert all(part in line for part in parts), line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "parts"),
    [
        (("hollow.cert", "server.key"), ["tls_cert", "hollow.cert"]),
        (("server.cert", "hollow.key"), ["tls_key", "hollow.key"]),
        (("server.cert", "server.key", "hollow.cert"), ["tls_client_ca", "hollow.cert"]),
        (("server.cert", "other.key"), ["tls_key", "other.key"]),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, tuple) else "",
)
def test_a_pair_that_no_server_can_start_with_is_named(drawer: Path, files: tuple[str, ...], parts: list[str]):
    """They look like what they should be; only who opens them finds out. A real process says it, in one line."""
    line = refuses_to_start(*tls_flags(drawer, *files))
    assert all(part in line for part in parts), line


@pytest.mark.slow
def test_a_port_that_is_taken_is_named(guarded: Program):
    line = refuses_to_start("--port", guarded.address.rpartition(":")[2])
    assert all(part in line for part in ("port", guarded.address))

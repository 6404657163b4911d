"""What a client that speaks HTTP/2 by hand can do, beyond what any gRPC library lets one do."""

import random
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from contract.plain import Plain, frame, group, header, job_spec, refusal_of
from e2e.programs import running
from faults.processes import wait_for
from grpc_health.v1 import health_pb2

import optd
from optd.local import LocalServer, local
from optd.transport import channel
from optd_server.rpc.server import MIN_PING_INTERVAL_MS
from optd_wire.v1.inspection_service_pb2 import GetServerStatusRequest

MIB = 1 << 20
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
SECONDS = 10.0


@pytest.fixture
def plain_numbers(server: LocalServer) -> Iterator[Plain]:
    """Stubs on a connection of their own."""
    with Plain(server.address) as stubs:
        yield stubs


def http2(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame (RFC 9113, 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def hpack(fields: dict[str, str]) -> bytes:
    """A header block of literals that nobody is to remember (RFC 7541, 6.2.2)."""
    block = b""
    for name, value in fields.items():
        block += b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
    return block


class Raw:
    """A connection of bytes."""

    def __init__(self, address: str, preface: bytes = PREFACE + http2(SETTINGS, 0, 0)) -> None:
        host, port = address.split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=SECONDS)
        self.socket.sendall(preface)
        self._held = b""
        self._next = 1
        self._host = address

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(frames))

    def request(self, rpc: str, **more: str) -> tuple[int, bytes]:
        """A new stream, and the frame that begins a call in it."""
        stream, self._next = self._next, self._next + 2
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": rpc,
            ":authority": self._host,
            "content-type": "application/grpc",
            "te": "trailers",
        }
        return stream, http2(HEADERS, END_HEADERS, stream, hpack({**fields, **more}))

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """What the server says, until it ends the connection."""
        with suppress(ConnectionError):
            while data := self.socket.recv(65536):
                self._held += data
                while len(self._held) >= 9 and len(self._held) >= (size := 9 + int.from_bytes(self._held[:3], "big")):
                    one, self._held = self._held[:size], self._held[size:]
                    yield one[3], one[4], int.from_bytes(one[5:9], "big"), one[9:]


def resident(server: LocalServer) -> int:
    return psutil.Process(server.process.pid).memory_info().rss


STATUS = "/optd.v1.InspectionService/GetServerStatus"
PUSH = "/optd.v1.TrainingService/Push"


def test_a_call_by_hand_is_answered(server: LocalServer):
    """So that what the other tests do to the server is done by something that it understands."""
    with Raw(server.address) as raw:
        stream, headers = raw.request(STATUS)
        raw.send(headers, http2(DATA, END_STREAM, stream, b"\0" + bytes(4)))
        kinds = []
        for kind, flags, found, _ in raw.frames():
            if found == stream:
                kinds.append(kind)
                if flags & END_STREAM and kind == HEADERS:
                    break
    assert kinds == [HEADERS, DATA, HEADERS]


@pytest.mark.parametrize("declared", [17 * MIB, 1 << 31, 2**32 - 1])
def test_29_a_message_that_is_declared_to_be_huge_is_refused_unread(
    server: LocalServer, plain_numbers: Plain, declared: int
):
    """Five bytes say that four gigabytes follow. They need not follow for the answer."""
    before = resident(server)
    with Raw(server.address) as raw:
        for rpc in (STATUS, PUSH):
            stream, headers = raw.request(rpc)
            raw.send(headers, http2(DATA, 0, stream, b"\0" + struct.pack(">I", declared) + b"x" * 100))
            for kind, flags, found, payload in raw.frames():
                if found == stream and (kind == RST_STREAM or flags & END_STREAM):
                    assert kind == RST_STREAM or b"grpc-status" in payload
                    break
    assert plain_numbers.healthy()
    assert resident(server) - before < 10 * MIB


def test_36_streams_that_are_reset_at_once_take_no_memory(server: LocalServer, plain_numbers: Plain):
    """20,000 calls, each taken back with the next frame; the neighbours are answered meanwhile."""
    before = resident(server)
    longest = 0.0
    sent = 0
    with ExitStack() as stack:
        while sent < 20_000:
            raw = stack.enter_context(Raw(server.address))
            with suppress(OSError):  # the server may well have enough of a connection
                for _ in range(20):
                    batch = []
                    for _ in range(250):
                        stream, headers = raw.request(STATUS)
                        batch += [headers, http2(RST_STREAM, 0, stream, struct.pack(">I", 8))]
                    raw.send(*batch)
                    sent += 250
                    began = time.perf_counter()
                    assert plain_numbers.healthy()
                    longest = max(longest, time.perf_counter() - began)
    assert plain_numbers.healthy()
    assert longest < 2
    assert resident(server) - before < 64 * MIB


def test_44_a_flood_of_pings_ends_its_connection_only(server: LocalServer, plain_numbers: Plain):
    with Raw(server.address) as raw:
        raw.send(*[http2(PING, 0, 0, bytes(8))] * 1000)
        said = [payload for kind, _, _, payload in raw.frames() if kind == GOAWAY]
    assert any(b"too_many_pings" in payload for payload in said)
    assert plain_numbers.healthy()


def test_44_our_client_is_unaffected_by_pings_of_others(
    server: LocalServer, name: str, caplog: pytest.LogCaptureFixture
):
    """It keeps its one connection, on which it pings rarely enough; nothing is lost and sent again."""
    weights = np.zeros(4, "f4")
    with optd.connect(server.address, job=name, lane="grpc") as session:
        optimizer = optd.SGD([weights], lr=1.0, session=session)
        for _ in range(5):
            optimizer.step([np.ones(4, "f4")])
            with Raw(server.address) as raw, suppress(OSError):
                raw.send(*[http2(PING, 0, 0, bytes(8))] * 1000)
                assert any(kind == GOAWAY for kind, *_ in raw.frames())
        optimizer.step([np.ones(4, "f4")])
    assert weights.tolist() == [-6] * 4
    assert not [record for record in caplog.records if "trying again" in record.getMessage()]
    assert dict(channel._OPTIONS)["grpc.keepalive_time_ms"] >= 2 * MIN_PING_INTERVAL_MS


@pytest.mark.slow
def test_44_a_client_that_pings_every_second_is_sent_away(server: LocalServer, plain_numbers: Plain):
    """As any gRPC library does with a keepalive of a second, over a call that goes on."""
    pinging = [
        ("grpc.keepalive_time_ms", 1000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_time_between_pings_ms", 1000),
    ]
    with Plain(server.address, options=pinging) as stubs:
        watch = stubs.health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        with pytest.raises(grpc.RpcError) as caught:
            for _ in watch:
                continue
        assert "too many pings" in refusal_of(caught.value).text.lower().replace("_", " ")
    assert plain_numbers.healthy()


@pytest.mark.parametrize(
    "bytes_",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),  # a TLS client
        bytes(10_000),
        random.Random(0).randbytes(100_000),
        PREFACE + random.Random(1).randbytes(100_000),
        PREFACE + http2(SETTINGS, 0, 0) + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + bytes(100),
        PREFACE + http2(SETTINGS, 0, 0, b"\0\4\xff\xff\xff\xff"),
        PREFACE + http2(SETTINGS, 0, 0) + http2(HEADERS, END_HEADERS, 1, b"\xff" * 1000),
        PREFACE + http2(SETTINGS, 0, 0) + http2(HEADERS, 0, 1, b"\0") + http2(CONTINUATION, 0, 1, b"\0") * 10_000,
        b"",
    ],
    ids=[
        "http/1",
        "tls",
        "zeros",
        "noise",
        "noise behind a preface",
        "huge frame",
        "window",
        "headers",
        "headers without end",
        "nothing",
    ],
)
def test_32_what_is_no_http2_ends_its_connection_only(server: LocalServer, plain_numbers: Plain, bytes_: bytes):
    with suppress(OSError), Raw(server.address, preface=bytes_) as raw:
        raw.socket.shutdown(socket.SHUT_WR)
        for _ in raw.frames():
            pass
    assert plain_numbers.healthy()


def test_headers_beyond_the_limit_are_refused(server: LocalServer, plain_numbers: Plain):
    """Metadata is held in memory too."""
    before = resident(server)
    with pytest.raises(grpc.RpcError) as caught:
        plain_numbers.inspection.GetServerStatus(
            GetServerStatusRequest(), timeout=SECONDS, metadata=[("x-long", "x" * 100_000)]
        )
    assert refusal_of(caught.value).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert plain_numbers.healthy()
    assert resident(server) - before < 10 * MIB


@pytest.mark.slow
def test_37_after_a_flood_of_connections_the_server_accepts_again(name: str):
    """More of them than it may have files open. Who was connected before stays connected."""
    with local() as server, Plain(server.address) as plain, ExitStack() as flood:
        assert plain.healthy()
        # Kernels are loaded from files when they are first wanted.
        plain.create(job_spec(name + ".first", [group("g", {"w": ((1,), "float32")})]), [frame(np.zeros(1, "f4"))])
        process = psutil.Process(server.process.pid)
        most = process.num_fds() + 40
        process.rlimit(psutil.RLIMIT_NOFILE, (most, most))
        for _ in range(150):
            flood.enter_context(Raw(server.address))
        assert plain.healthy()
        spec = job_spec(name, [group("g", {"w": ((1,), "float32")})])
        plain.create(spec, [frame(np.zeros(1, "f4"))])
        plain.push(header(name, "w0", plain.join(name), 1), [])
        flood.close()
        with optd.connect(server.address, job=name, connect_timeout=SECONDS) as session:
            assert session.info().version.version == 1
        assert server.process.poll() is None


@pytest.mark.slow
def test_37_after_a_flood_of_streams_the_server_serves_again(name: str):
    """More calls that begin and never go on than it serves at the same time, and more than a connection may have.

    Health is answered meanwhile; our client is told to come back later, does so, and gets in once they are given up.
    """
    with (
        local("--max-requests", "64", "--max-streams", "32", "--idle-seconds", "1") as server,
        Plain(server.address) as plain,
        ExitStack() as flood,
    ):
        before = resident(server)
        for _ in range(4):
            raw = flood.enter_context(Raw(server.address))
            with suppress(OSError):  # the server may well have enough of it
                raw.send(*[raw.request(PUSH)[1] for _ in range(1000)])
        assert all(plain.healthy() for _ in range(20))
        weights = np.zeros(4, "f4")
        with optd.connect(server.address, job=name, lane="grpc", connect_timeout=60, timeout=60) as session:
            optd.SGD([weights], lr=1.0, session=session).step([np.ones(4, "f4")])
        assert weights.tolist() == [-1] * 4
        assert resident(server) - before < 64 * MIB
        flood.close()
        wait_for(lambda: plain.status().requests == 1, "no call of the flood is left")


@pytest.mark.slow
def test_the_log_of_a_server_under_attack_stays_short(tmp_path: Path):
    """A line for each refused call is enough; noise on the port is not worth one each."""
    with running(tmp_path) as program:
        for seed in range(50):
            with suppress(OSError), Raw(program.address, preface=random.Random(seed).randbytes(1000)) as raw:
                raw.socket.shutdown(socket.SHUT_WR)
                for _ in raw.frames():
                    pass
        with Plain(program.address) as plain:
            assert plain.healthy()
        assert len(program.log.splitlines()) < 60
        assert "Traceback" not in program.log

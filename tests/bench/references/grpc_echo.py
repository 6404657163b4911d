"""Bare gRPC: a server in a process of its own that answers every message of an open stream with bytes.

No protobuf, no work: the least that a round trip of so many bytes takes with grpcio.
"""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from bench.processes import children, pace

_METHOD = "/bench.Echo/Exchange"


@contextmanager
def echo_server(reply_bytes: int) -> Iterator[str]:
    """The address of a server that answers each message with so many bytes."""
    with children((_server, reply_bytes)) as (server,):
        yield server.ask()


@contextmanager
def echo_client(address: str, request_bytes: int) -> Iterator[Callable[[], bytes]]:
    """A function that sends so many bytes on an open stream, and waits for the answer to them."""
    requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    payload = bytes(request_bytes)
    with grpc.insecure_channel(address) as channel:
        replies = channel.stream_stream(_METHOD)(iter(requests.get, None))

        def exchange() -> bytes:
            requests.put(payload)
            return next(replies)

        yield exchange
        requests.put(None)
        replies.cancel()


@contextmanager
def echo_pusher(address: str, request_bytes: int) -> Iterator[Callable[..., float]]:
    """A service of `processes`: exchanges messages for so many seconds; answers with exchanges a second."""
    with echo_client(address, request_bytes) as exchange:
        yield lambda seconds: pace(exchange, seconds)


@contextmanager
def _server(reply_bytes: int) -> Iterator[Callable[..., str]]:
    """On a loop in a thread of its own, since the process's own one waits for the harness."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)

    server, port = run(_start(bytes(reply_bytes)))
    try:
        yield lambda: f"127.0.0.1:{port}"
    finally:
        run(server.stop(None))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


async def _start(reply: bytes) -> tuple[grpc.aio.Server, int]:
    async def exchange(requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        async for _request in requests:
            yield reply

    server = grpc.aio.server()
    handlers = {"Exchange": grpc.stream_stream_rpc_method_handler(exchange)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, port

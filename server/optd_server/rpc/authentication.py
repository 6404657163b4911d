"""Demand a bearer token for every RPC of the server, including health and reflection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from optd_server.rpc.callers import Caller, Callers
from optd_server.rpc.calls import Context, Handler, abort
from optd_wire.errors import Unauthenticated


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls that show no valid token."""

    def __init__(self, callers: Callers) -> None:
        self._callers = callers

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Pass the call on if its token is valid; otherwise answer it with the refusal."""
        handler = await continuation(handler_call_details)
        caller = self._callers.identify(handler_call_details.invocation_metadata or ())
        # Without a handler the method does not exist, and gRPC answers that itself.
        if isinstance(caller, Caller) or handler is None:
            return handler
        return _refusing(handler, caller)


def _refusing(handler: Handler, refusal: Unauthenticated) -> Handler:
    async def refuse_one(request: object, context: Context) -> None:
        await abort(context, refusal)

    async def refuse_many(request: object, context: Context) -> Any:
        await abort(context, refusal)
        yield  # makes this an asynchronous generator, which gRPC expects for a streaming answer

    answer = refuse_many if handler.response_streaming else refuse_one
    kind = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
    make: Callable[..., Handler] = getattr(grpc, f"{kind}_rpc_method_handler")
    return make(answer)

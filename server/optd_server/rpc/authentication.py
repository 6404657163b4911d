"""Bearer tokens, on every RPC of the server, health and reflection included."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc

from optd_server.rpc.calls import Context, Handler, abort
from optd_wire.errors import MissingToken, Unauthenticated, WrongToken

HEADER = "authorization"
SCHEME = "Bearer "


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls that do not carry one of the tokens."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = [token.encode() for token in tokens]

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Lets the call go on, or answers it with the refusal."""
        handler = await continuation(handler_call_details)
        refusal = self._refusal(dict(handler_call_details.invocation_metadata or ()))
        # gRPC answers a method that does not exist by itself.
        if refusal is None or handler is None:
            return handler
        return _refusing(handler, refusal)

    def _refusal(self, metadata: dict[str, Any]) -> Unauthenticated | None:
        sent = metadata.get(HEADER)
        if sent is None:
            return MissingToken()
        credential = sent.encode() if isinstance(sent, str) else bytes(sent)
        if not credential.startswith(SCHEME.encode()):
            return WrongToken()
        shown = credential[len(SCHEME) :]
        # Compares with every token, in a time that does not tell how much of one was right.
        matches = [hmac.compare_digest(shown, token) for token in self._tokens]
        return None if any(matches) else WrongToken()


def _refusing(handler: Handler, refusal: Unauthenticated) -> Handler:
    async def refuse_one(request: object, context: Context) -> None:
        await abort(context, refusal)

    async def refuse_many(request: object, context: Context) -> Any:
        await abort(context, refusal)
        yield  # makes it an asynchronous generator, as gRPC expects of a streaming answer

    answer = refuse_many if handler.response_streaming else refuse_one
    kind = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
    make: Callable[..., Handler] = getattr(grpc, f"{kind}_rpc_method_handler")
    return make(answer)

"""Errors about who may call the server."""

from optd_wire.errors.base import Unauthenticated


class MissingToken(Unauthenticated):
    """The server requires a token, and the call has none."""

    reason = "MISSING_TOKEN"
    template = "this server wants a token: pass token= or set OPTD_TOKEN"


class WrongToken(Unauthenticated):
    """The server does not accept the token of the call."""

    reason = "WRONG_TOKEN"
    template = "the token is not one of this server's"

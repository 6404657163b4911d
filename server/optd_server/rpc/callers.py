"""Who is calling: known by the token that a call shows."""

import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from optd_wire.errors import MissingToken, Unauthenticated, WrongToken

HEADER = "authorization"
SCHEME = "Bearer "


@dataclass(frozen=True, slots=True)
class Caller:
    """Who has made a call. Services are told with every call."""

    name: str


ANONYMOUS = Caller("anonymous")


class Callers:
    """Tells callers by their tokens; without tokens everyone is anonymous."""

    def __init__(self, tokens: Sequence[str] = ()) -> None:
        self._tokens = [token.encode() for token in tokens]
        self._callers = [Caller(f"token {number}") for number in range(1, len(tokens) + 1)]
        """By the place of the token in its file: the token itself must not show up in a log."""

    def identify(self, metadata: Iterable[tuple[str, Any]]) -> Caller | Unauthenticated:
        """The caller, or why the call is refused."""
        if not self._tokens:
            return ANONYMOUS
        sent = next((value for key, value in metadata if key == HEADER), None)
        if sent is None:
            return MissingToken()
        credential = sent.encode() if isinstance(sent, str) else bytes(sent)
        if not credential.startswith(SCHEME.encode()):
            return WrongToken()
        shown = credential[len(SCHEME) :]
        # Compares with every token, in a time that does not tell how much of one was right.
        matches = [hmac.compare_digest(shown, token) for token in self._tokens]
        return self._callers[matches.index(True)] if any(matches) else WrongToken()

"""Who makes a call, known by the token that the call shows."""

import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from optd_wire.errors import MissingToken, Unauthenticated, WrongToken

HEADER = "authorization"
SCHEME = "Bearer "


@dataclass(frozen=True, slots=True)
class Caller:
    """Who made a call. Each method of a service gets it as an argument."""

    name: str


ANONYMOUS = Caller("anonymous")


class Callers:
    """Identifies callers by their tokens. If the server has no tokens, everyone is anonymous."""

    def __init__(self, tokens: Sequence[str] = ()) -> None:
        self._tokens = [token.encode() for token in tokens]
        self._callers = [Caller(f"token {number}") for number in range(1, len(tokens) + 1)]
        """Named by the position of the token in its file, because the token itself must never appear in a log."""

    def identify(self, metadata: Iterable[tuple[str, Any]]) -> Caller | Unauthenticated:
        """Return the caller, or the error with which the call is refused."""
        if not self._tokens:
            return ANONYMOUS
        sent = next((value for key, value in metadata if key == HEADER), None)
        if sent is None:
            return MissingToken()
        credential = sent.encode() if isinstance(sent, str) else bytes(sent)
        if not credential.startswith(SCHEME.encode()):
            return WrongToken()
        shown = credential[len(SCHEME) :]
        # Compares with every token, in a time that does not reveal how many characters were right.
        matches = [hmac.compare_digest(shown, token) for token in self._tokens]
        return self._callers[matches.index(True)] if any(matches) else WrongToken()

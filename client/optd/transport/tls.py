"""The certificates and the key that a client uses for TLS."""

from dataclasses import dataclass
from pathlib import Path

from optd_wire.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class TLS:
    """Files in PEM format: the authority that signed the server's certificate, and the client's own pair.

    Without `ca` the client trusts the authorities that gRPC includes. `cert` and `key` are for servers that demand
    client certificates (`--tls-client-ca`).
    """

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """The files' contents; raises `InvalidRequest` for one that cannot be read."""
        if (self.cert is None) != (self.key is None):
            raise InvalidRequest(problem="tls: cert and key must be given together")
        return _read("ca", self.ca), _read("cert", self.cert), _read("key", self.key)


def _read(name: str, path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidRequest(problem=f"tls: cannot read {name} {path}: {error.strerror}") from None

"""Who may talk to the server: its address, tokens and certificates. Safe unless `--insecure` says otherwise."""

import ipaddress
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from optd_server.config import Config, ConfigError

MIN_TOKEN = 16


@dataclass(frozen=True, slots=True)
class Security:
    """The tokens and certificates of a configuration that has been checked."""

    tokens: tuple[str, ...]
    credentials: grpc.ServerCredentials | None
    mutual: bool

    @property
    def authentication(self) -> str:
        """How callers prove who they are, such as `token`, `mtls`, `token+mtls` or `none`."""
        shown = [name for name, on in (("token", self.tokens), ("mtls", self.mutual)) if on]
        return "+".join(shown) or "none"


def secure(config: Config) -> Security:
    """Read tokens and certificates; raise `ConfigError` if a setting is missing, unreadable or unsafe."""
    tokens = _read_tokens(config.token_file) if config.token_file else ()
    if not (tokens or config.tls or config.insecure or _is_loopback(config.host)):
        raise ConfigError(
            f"host: {config.host} is reachable from other machines, so the server needs --token-file or --tls-cert "
            "and --tls-key (or --insecure, which lets anyone who reaches it change every job)"
        )
    return Security(tokens, _credentials(config), mutual=config.tls_client_ca is not None)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        try:
            found = socket.getaddrinfo(host, None)
        except OSError as error:
            raise ConfigError(f"host: {host!r} is not an address of this machine: {error}") from None
        return all(ipaddress.ip_address(str(entry[4][0]).split("%")[0]).is_loopback for entry in found)


def _read_tokens(path: Path) -> tuple[str, ...]:
    lines = _read("token_file", path).decode("utf-8", "replace").splitlines()
    tokens = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not tokens:
        raise ConfigError(f"token_file: {path} holds no token")
    for number, token in enumerate(tokens, 1):
        if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
            raise ConfigError(
                f"token_file: token {number} of {path} must be at least {MIN_TOKEN} printable ASCII characters "
                f"without spaces, got {len(token)} characters"
            )
    return tokens


def _credentials(config: Config) -> grpc.ServerCredentials | None:
    if config.tls_cert is None or config.tls_key is None:
        return None
    pair = (_read("tls_key", config.tls_key), _read("tls_cert", config.tls_cert))
    for name, marker, content in (
        ("tls_key", b"PRIVATE KEY", pair[0]),
        ("tls_cert", b"CERTIFICATE", pair[1]),
    ):
        if marker not in content:
            raise ConfigError(f"{name}: {getattr(config, name)} is not a PEM file with a {marker.decode().lower()}")
    authorities = _read("tls_client_ca", config.tls_client_ca) if config.tls_client_ca else None
    _check_pair(config)
    return grpc.ssl_server_credentials([pair], authorities, require_client_auth=authorities is not None)


def _check_pair(config: Config) -> None:
    """Check the certificate and its key with OpenSSL, which says why a pair is unusable; gRPC does not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert config.tls_cert is not None
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"tls_cert: {config.tls_cert} and tls_key {config.tls_key} are not a usable pair: {_reason(error)}"
        ) from None
    if config.tls_client_ca is not None:
        try:
            context.load_verify_locations(config.tls_client_ca)
        except ssl.SSLError as error:
            raise ConfigError(f"tls_client_ca: {config.tls_client_ca} holds no certificate: {_reason(error)}") from None


def _no_password() -> str:
    raise ValueError("the key is encrypted; the server needs one without a password")


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason).lower().replace("_", " ") if reason else str(error)


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}: cannot read {path}: {error.strerror}") from None

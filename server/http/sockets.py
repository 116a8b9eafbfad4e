"""Where the server listens: a TCP port or a Unix socket, with TLS or without. Used by `server.service`."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

from seesaw.engine.values.errors import ConfigError
from seesaw.server.config import ServerConfig

BACKLOG = 2048


@contextlib.contextmanager
def bound(config: ServerConfig) -> Iterator[socket.socket]:
    """The address, taken; clients may knock only once there is somebody to answer (`listen`). Raises ConfigError."""
    with _errors(config):
        listener = _bind_unix(Path(config.uds)) if config.uds else _bind_port(config.host, config.port)
    try:
        yield listener
    finally:
        listener.close()
        if config.uds:
            Path(config.uds).unlink(missing_ok=True)


def listen(config: ServerConfig, listener: socket.socket) -> None:
    """Let clients in. Raises ConfigError."""
    with _errors(config):
        # Connections inherit it, and without it would keep the next server off when this one has ended.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.listen(BACKLOG)


def base_url(config: ServerConfig, listener: socket.socket) -> str:
    """As clients write it; of a Unix socket only its path matters."""
    if config.uds:
        return "http://localhost"
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"{'https' if config.ssl_certfile else 'http'}://{host}:{listener.getsockname()[1]}"


def check_tls(config: ServerConfig) -> None:
    """Raise ConfigError unless what is named for TLS can be used."""
    if not config.ssl_certfile:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # An empty password, lest it asks for one at the terminal.
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile or None, password="")
        if config.ssl_ca_certs:
            context.load_verify_locations(config.ssl_ca_certs)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise ConfigError(
            f"TLS cannot use {config.ssl_certfile}, its key or the CA certificates ({error}): "
            "check --ssl-certfile, --ssl-keyfile and --ssl-ca-certs"
        ) from None


def _bind_port(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    try:
        # Taken from every other, also from one that has yet to listen. Two with SO_REUSEADDR could both have it.
        return _bind(socket.socket(family, kind, protocol), address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        # Perhaps only connections of a server that ended linger on it.
        return _bind(socket.socket(family, kind, protocol), address, socket.SO_REUSEADDR)


def _bind_unix(path: Path) -> socket.socket:
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(path.stat().st_mode) and not _is_served(path):
            path.unlink()  # a server that ended suddenly left it
    return _bind(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), str(path))


def _bind(listener: socket.socket, address: str | tuple[object, ...], *options: int) -> socket.socket:
    try:
        for option in options:
            listener.setsockopt(socket.SOL_SOCKET, option, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _is_served(path: Path) -> bool:
    if any(line.endswith(f" {path}") for line in Path("/proc/net/unix").read_text().splitlines()):
        return True  # also by one that has yet to listen
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True


@contextlib.contextmanager
def _errors(config: ServerConfig) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        if config.uds:
            raise ConfigError(f"cannot listen on {config.uds} ({reason}): choose another path for --uds") from None
        raise ConfigError(
            f"cannot listen on {config.host} port {config.port} ({reason}): choose another --port or --host"
        ) from None

"""Where a server listens: Unix sockets, TLS, and what cannot be listened on."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from seesaw.engine.values.errors import ConfigError
from seesaw.server.config import ServerConfig
from seesaw.server.http.sockets import base_url, bound, check_tls, listen
from tests.patience import PATIENCE_S
from tests.server.fake_engine import short_dir
from tests.server.served import served


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of a path short enough for a socket's name."""
    folder = short_dir()
    yield folder
    shutil.rmtree(folder)


def test_a_unix_socket(folder: Path, tmp_path: Path) -> None:
    path = folder / "s"
    with served("echo", tmp_path, f"--uds={path}") as server:
        assert server.wait_ready() == f"unix:{path}"
        assert f"--unix-socket {path} http://localhost/v1" in server.wait_for("curl")
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=PATIENCE_S) as client:
            response = client.post("http://localhost/v1/completions", json={"prompt": "hello"})
            assert response.json()["choices"][0]["text"] == "hello"
        server.process.terminate()
        assert server.end()[0] == 0
    assert not path.exists()


def test_a_unix_socket_that_is_in_use_is_left_alone_and_a_dead_one_replaced(folder: Path) -> None:
    config = ServerConfig(uds=str(folder / "s"))
    with bound(config) as listener:
        listen(config, listener)
        with pytest.raises(ConfigError, match="--uds"), bound(config):
            pass
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(config.uds)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(config.uds)
    with bound(config) as listener:
        assert base_url(config, listener) == "http://localhost"
    (folder / "file").write_text("kept")
    with pytest.raises(ConfigError), bound(ServerConfig(uds=str(folder / "file"))):
        pass
    assert (folder / "file").read_text() == "kept"


def test_who_is_to_listen_later_has_the_address_already(folder: Path) -> None:
    with bound(ServerConfig(port=0)) as listener:
        for_port = ServerConfig(port=listener.getsockname()[1])
        with pytest.raises(ConfigError, match="--port"), bound(for_port):
            pass
        listen(for_port, listener)
        with socket.create_connection(listener.getsockname()), listener.accept()[0]:
            pass  # this end closes first, and so lingers
    with bound(for_port) as listener:
        listen(for_port, listener)
    config = ServerConfig(uds=str(folder / "s"))
    with bound(config) as listener:
        with pytest.raises(ConfigError, match="--uds"), bound(config):
            pass
        listen(config, listener)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(config.uds)


def test_a_port_that_is_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = ServerConfig(port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match="--port"), bound(config):
            pass


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """Of 127.0.0.1, signed by itself, and its key."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=x"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    subprocess.run(command + names, check=True, capture_output=True)
    return certificate, key


def test_tls(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    chain, key = certificate
    (temp := tmp_path / "run").mkdir()
    with served("echo", temp, f"--ssl-certfile={chain}", f"--ssl-keyfile={key}") as server:
        url = server.wait_ready()
        assert url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=str(chain))
        with urllib.request.urlopen(f"{url}/models", timeout=PATIENCE_S, context=context) as response:
            assert response.status == 200
        server.process.terminate()
        assert server.end()[0] == 0


def test_what_tls_cannot_use(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    chain, key = map(str, certificate)
    check_tls(ServerConfig())
    check_tls(ServerConfig(ssl_certfile=chain, ssl_keyfile=key, ssl_ca_certs=chain, ssl_cert_reqs="required"))
    for wrong in ({"ssl_keyfile": chain}, {"ssl_keyfile": "/nowhere"}, {"ssl_keyfile": key, "ssl_ca_certs": key}):
        with pytest.raises(ConfigError, match="--ssl-certfile"):
            check_tls(ServerConfig(ssl_certfile=chain, **wrong))  # type: ignore[arg-type]

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trustme

from integration.doctor_setups import tls_context
from vestige_bridge.cli.http_client import NoAnswer, connect, fetch

TIMEOUT_SECONDS = 2.0


@contextmanager
def answering_each(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Runs a server that calls ``answer`` for each connection, and yields its authority."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    if over.is_set():
                        return
                    answer(connection)

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        over.set()
        socket.create_connection(listener.getsockname()).close()
        server.join(10)
        assert not server.is_alive()


def kind_of(url: str) -> str:
    with pytest.raises(NoAnswer) as none:
        fetch("GET", url, timeout_seconds=TIMEOUT_SECONDS)
    return none.value.kind


def test_a_400_to_plain_http_means_https_only_if_the_port_speaks_tls() -> None:
    refusal = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\nConnection: close\r\n\r\nThis port speaks TLS."
    context = tls_context()

    def serve(connection: socket.socket, *, tls: bool) -> None:
        if tls and connection.recv(1, socket.MSG_PEEK) == b"\x16":
            with context.wrap_socket(connection, server_side=True):
                return
        connection.recv(65536)
        connection.sendall(refusal)

    with answering_each(lambda connection: serve(connection, tls=True)) as authority:
        assert kind_of(f"http://{authority}") == "https"
    with answering_each(lambda connection: serve(connection, tls=False)) as authority:
        assert fetch("GET", f"http://{authority}", timeout_seconds=TIMEOUT_SECONDS).status == 400


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", "cut"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "cut"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf", "cut"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "other"),
        (b"HTTP/1.1 two hundred\r\n\r\n", "other"),
    ],
)
def test_an_invalid_http_response_is_classified(answer: bytes, kind: str) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    with answering_each(serve) as authority:
        assert kind_of(f"http://{authority}") == kind


def test_a_server_that_closes_the_tls_handshake_does_not_speak_tls() -> None:
    with answering_each(socket.socket.close) as authority:
        assert kind_of(f"https://{authority}") in ("http", "cut")


def test_a_server_that_requires_a_client_certificate_is_not_reported_as_without_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer = trustme.CA()
    issuer.cert_pem.write_to_path(tmp_path / "issuer.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "issuer.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issuer.issue_cert("127.0.0.1").configure_cert(context)
    issuer.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED

    def serve(connection: socket.socket) -> None:
        with suppress(OSError), context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(65536)

    with answering_each(serve) as authority:
        assert kind_of(f"https://{authority}") in ("refused_tls", "cut")


@pytest.mark.parametrize("host", ["vestige.invalid", "a" * 64])
def test_a_host_name_that_does_not_resolve_is_named(host: str) -> None:
    with pytest.raises(NoAnswer, match=f"^the name {host} does not resolve$"):
        connect(f"http://{host}:8000", TIMEOUT_SECONDS)

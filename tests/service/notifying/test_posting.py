"""One attempt against real servers: the address that was checked, the name in the URL, and never past the deadline."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from service.notifying.posting import Deadline, NotSentError, post
from service.receivers import parse_receiver
from tests.service.notifying.receiver import Receiver

NAME = "hooks.example.test"


def send(url: str, *addresses: str, timeout_s: float = 5, tls: ssl.SSLContext | None = None) -> int:
    return post(
        parse_receiver(url),
        addresses or ["127.0.0.1"],
        headers={"webhook-id": "msg_1"},
        body=b"{}",
        deadline=Deadline(timeout_s),
        tls=tls or ssl.create_default_context(),
    )


def test_the_message_goes_to_the_checked_address_under_the_name_of_the_url(receiver: Receiver) -> None:
    """The name leads nowhere: only the address that was given can have been used."""
    assert send(f"http://{NAME}:{receiver.port}/hook?x=1", "127.0.0.1") == 204
    (message,) = receiver.messages
    assert (message.path, message.body) == ("/hook?x=1", b"{}")
    assert message.headers["host"] == f"{NAME}:{receiver.port}"
    assert message.headers["content-type"] == "application/json"
    assert message.headers["webhook-id"] == "msg_1"


def test_an_address_that_does_not_answer_is_passed_over(receiver: Receiver) -> None:
    assert send(f"http://{NAME}:{receiver.port}/", "127.0.0.77", "::1", "127.0.0.1") == 204


def test_a_redirect_is_an_answer_and_not_followed(receiver: Receiver) -> None:
    receiver.answers = lambda _request: 307
    assert send(f"{receiver.url}/hook") == 307
    assert [message.path for message in receiver.messages] == ["/hook"]


def test_a_proxy_of_the_environment_is_not_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert send(receiver.url) == 204


def test_a_port_where_nobody_listens_is_not_sent_to(unused_port: int) -> None:
    with pytest.raises(NotSentError, match="refused"):
        send(f"http://127.0.0.1:{unused_port}/")


@pytest.fixture
def raw_server() -> Iterator[Callable[[Callable[[socket.socket], None]], int]]:
    """Serves one connection as it is told, on a port of its own."""
    threads, listeners = [], []

    def serve(behave: Callable[[socket.socket], None]) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                try:
                    connection.recv(65_536)
                    behave(connection)
                except OSError:
                    pass

        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()
        return int(listener.getsockname()[1])

    yield serve
    for listener in listeners:
        listener.close()


def test_a_receiver_that_never_answers_is_left_in_time(
    raw_server: Callable[[Callable[[socket.socket], None]], int],
) -> None:
    def listen(connection: socket.socket) -> None:
        while connection.recv(65_536):
            pass

    port = raw_server(listen)
    began = time.monotonic()
    with pytest.raises(NotSentError, match="no answer in time"):
        send(f"http://127.0.0.1:{port}/", timeout_s=0.3)
    assert time.monotonic() - began < 3


def test_a_receiver_that_answers_byte_by_byte_is_left_in_time(
    raw_server: Callable[[Callable[[socket.socket], None]], int],
) -> None:
    """Every byte comes well within the time that a single read has."""

    def trickle(connection: socket.socket) -> None:
        for byte in b"HTTP/1.1 200 OK\r\n" + b"x" * 1_000:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)

    port = raw_server(trickle)
    began = time.monotonic()
    with pytest.raises(NotSentError, match="no answer in time"):
        send(f"http://127.0.0.1:{port}/", timeout_s=0.3)
    assert time.monotonic() - began < 3


def test_an_answer_without_an_end_is_not_read(raw_server: Callable[[Callable[[socket.socket], None]], int]) -> None:
    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65_536)

    assert send(f"http://127.0.0.1:{raw_server(flood)}/") == 200


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100_000])
def test_what_is_not_http_is_no_answer(
    said: bytes, raw_server: Callable[[Callable[[socket.socket], None]], int]
) -> None:
    """And what it is instead is not shown: it may be a private service's greeting."""
    with pytest.raises(NotSentError, match="hung up, or answered with something else than HTTP"):
        send(f"http://127.0.0.1:{raw_server(lambda connection: connection.sendall(said))}/")


class Authority:
    """A certificate authority of the tests' own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the tests' authority")])
        self.certificate = self._signed(self._name, self._key, x509.BasicConstraints(ca=True, path_length=None))
        self.trusting = ssl.create_default_context(
            cadata=self.certificate.public_bytes(serialization.Encoding.PEM).decode()
        )

    def server_context(self, name: str) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        alternative: x509.GeneralName = x509.DNSName(name)
        if name[0].isdigit():
            alternative = x509.IPAddress(ipaddress.ip_address(name))
        certificate = self._signed(subject, key, x509.SubjectAlternativeName([alternative]))
        file = self._folder / "server.pem"
        file.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def _signed(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
            .sign(self._key, hashes.SHA256())
        )


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def tls_receiver(authority: Authority) -> Iterator[tuple[Receiver, list[str | None]]]:
    """A receiver with a certificate for NAME, and the names that it was asked for (SNI)."""
    context, asked = authority.server_context(NAME), []
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    receiver = Receiver(context)
    yield receiver, asked
    receiver.close()


def test_tls_is_asked_for_and_checked_by_the_name_in_the_url(
    authority: Authority, tls_receiver: tuple[Receiver, list[str | None]]
) -> None:
    receiver, asked = tls_receiver
    assert send(f"https://{NAME}:{receiver.port}/", "127.0.0.1", tls=authority.trusting) == 204
    assert asked == [NAME]
    assert len(receiver.messages) == 1


@pytest.mark.parametrize("host", ["other.example.test", "127.0.0.1"])
def test_a_certificate_for_another_name_is_refused(
    host: str, authority: Authority, tls_receiver: tuple[Receiver, list[str | None]]
) -> None:
    receiver, _ = tls_receiver
    with pytest.raises(NotSentError, match="CERTIFICATE_VERIFY_FAILED"):
        send(f"https://{host}:{receiver.port}/", "127.0.0.1", tls=authority.trusting)
    assert receiver.messages == []


def test_a_certificate_that_nobody_vouches_for_is_refused(
    tls_receiver: tuple[Receiver, list[str | None]],
) -> None:
    receiver, _ = tls_receiver
    with pytest.raises(NotSentError, match="CERTIFICATE_VERIFY_FAILED"):
        send(f"https://{NAME}:{receiver.port}/", "127.0.0.1")
    assert receiver.messages == []


def test_a_server_that_hangs_up_is_no_answer(receiver: Receiver) -> None:
    def hang_up(request: BaseHTTPRequestHandler) -> None:
        request.connection.shutdown(socket.SHUT_RDWR)

    receiver.answers = hang_up
    with pytest.raises(NotSentError):
        send(receiver.url)

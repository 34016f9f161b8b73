"""Which receivers a webhook may have, whatever its URL or a name server says."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from service.receivers import RefusedReceiverError, checked_addresses, is_public, parse_receiver


@pytest.mark.parametrize(
    ("url", "host", "port", "target", "authority"),
    [
        ("https://example.org/hook", "example.org", 443, "/hook", "example.org"),
        ("http://Example.org:8080/a?b=c", "example.org", 8080, "/a?b=c", "example.org:8080"),
        ("https://example.org", "example.org", 443, "/", "example.org"),
        ("https://example.org?x=1", "example.org", 443, "/?x=1", "example.org"),
        ("https://[2606:4700::1111]:8443/", "2606:4700::1111", 8443, "/", "[2606:4700::1111]:8443"),
        ("http://1.1.1.1/", "1.1.1.1", 80, "/", "1.1.1.1"),
        ("https://my_host.internal/", "my_host.internal", 443, "/", "my_host.internal"),
    ],
)
def test_a_url_is_taken_apart(url: str, host: str, port: int, target: str, authority: str) -> None:
    receiver = parse_receiver(url)
    assert (receiver.host, receiver.port, receiver.target, receiver.authority) == (host, port, target, authority)


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("ftp://example.org/", "must begin with https:// or http://"),
        ("file:///etc/passwd", "must begin with https:// or http://"),
        ("gopher://example.org:70/", "must begin with https:// or http://"),
        ("example.org/hook", "must begin with https:// or http://"),
        ("", "must begin with https:// or http://"),
        ("https://", "must have a host"),
        ("https:///path", "must have a host"),
        ("https://ada:secret@example.org/", "must not contain a user name or password"),
        ("https://example.org@127.0.0.1/", "must not contain a user name or password"),
        ("https://@example.org/", "must not contain a user name or password"),
        ("https://example.org/#top", "must not have a fragment"),
        ("https://example.org/#", "must not have a fragment"),
        ("https://example.org:0/", "must have a port from 1 to 65535"),
        ("https://example.org:/", "must have a port from 1 to 65535"),
        ("https://example.org:65536/", "is no URL"),
        ("https://example.org:http/", "is no URL"),
        ("https://[::1/", "is no URL"),
        ("https://example.org/\r\nX-Injected: 1", "must be printable ASCII"),
        ("https://example.org/\x00", "must be printable ASCII"),
        ("https://example.org/a b", "must be printable ASCII"),
        ("https://exаmple.org/", "must be printable ASCII"),  # а is Cyrillic
        ("https://１２７.0.0.1/", "must be printable ASCII"),
        ("https://example.org\\@127.0.0.1/", "must be printable ASCII"),
        ("https://example..org/", "must have a host name or an IP address"),
        ("https://example.org./", "must have a host name or an IP address"),
        ("https://-example.org/", "must have a host name or an IP address"),
        ("https://exa%6Dple.org/", "must have a host name or an IP address"),
        ("https://example.org/" + "a" * 2_000, "must have at most 2,000 characters"),
        ("https://" + "a." * 140 + "org/", "must have a host name or an IP address"),
        ("http://2130706433/", "four decimal numbers"),
        ("http://0x7f000001/", "four decimal numbers"),
        ("http://0x7f.1/", "four decimal numbers"),
        ("http://0177.0.0.1/", "four decimal numbers"),
        ("http://127.1/", "four decimal numbers"),
        ("http://127.0.0.1.2/", "four decimal numbers"),
        ("http://[fe80::1%25eth0]/", "is no"),
        ("http://[::ffff:127.0.0.1.5]/", "is no"),
    ],
)
def test_a_url_that_is_none_for_a_webhook_is_refused_with_the_rule(url: str, rule: str) -> None:
    with pytest.raises(RefusedReceiverError, match=rule.replace("(", r"\(")):
        parse_receiver(url)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.9.1",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "192.0.0.1",
        "192.0.0.9",
        "192.0.0.192",
        "168.63.129.16",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%lo",
        "fc00::1",
        "fd00:ec2::254",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:168.63.129.16",
        "64:ff9b::a83f:8110",
        "::127.0.0.1",
        "::1.1.1.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::7f00:1",
        "192.88.99.0",
        "192.88.99.1",
        "192.88.99.255",
        "::ffff:192.88.99.1",
        "2002:7f00:1::",
        "2002:101:101::",
        "2001:0:7f00:1::",
    ],
)
def test_an_address_that_is_not_one_machine_of_the_internet_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


def test_a_name_with_one_private_address_among_others_is_refused() -> None:
    receiver = parse_receiver("https://rebind.example/")
    with pytest.raises(RefusedReceiverError, match="private, local or reserved"):
        checked_addresses(
            receiver, allow_private=False, timeout_s=5, resolver=lambda _host, _port: ["1.1.1.1", "10.0.0.1"]
        )


@pytest.mark.parametrize("url", ["http://localhost/", "http://127.0.0.1:5432/", "http://[::1]/", "http://0.0.0.0/"])
def test_this_machine_is_no_receiver_unless_private_ones_are_allowed(url: str) -> None:
    receiver = parse_receiver(url)
    with pytest.raises(RefusedReceiverError):
        checked_addresses(receiver, allow_private=False, timeout_s=5)
    assert checked_addresses(receiver, allow_private=True, timeout_s=5)


def test_a_name_that_nobody_knows_is_an_os_error() -> None:
    with pytest.raises(OSError):  # noqa: PT011 – which of its kinds is the name server's matter
        checked_addresses(parse_receiver("https://nowhere.invalid/"), allow_private=True, timeout_s=20)


@pytest.fixture
def silence() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_a_name_server_that_does_not_answer_is_not_waited_for(silence: threading.Event) -> None:
    def resolver(_host: str, _port: int) -> list[str]:
        silence.wait(20)
        return ["1.1.1.1"]

    with pytest.raises(TimeoutError, match="did not resolve"):
        checked_addresses(
            parse_receiver("https://slow.example/"), allow_private=False, timeout_s=0.05, resolver=resolver
        )

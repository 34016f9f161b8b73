"""Which receivers a webhook may have: public web servers, whatever tricks a URL or a name server plays.

A URL's form is checked when the webhook is made; where its name leads to, then and before every attempt. The sender
connects to the very addresses that were checked, so that a name cannot lead elsewhere in between (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_URL = 2_000
"""Characters of a URL."""

Resolver = Callable[[str, int], list[str]]
"""The IP addresses of a host, for a port. Raises OSError where it has none."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*$")
_NUMBER = re.compile(r"([0-9]+|0[xX][0-9A-Fa-f]*)$")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC = (
    ipaddress.IPv4Network("192.0.0.0/24"),  # assigned for protocols; clouds have metadata there
    ipaddress.IPv4Network("168.63.129.16/32"),  # Azure's wire server, on every machine there
    ipaddress.IPv4Network("192.88.99.0/24"),  # 6to4's relays (RFC 7526): whichever is near, and none of them a receiver
)
"""What Python takes for addresses of the internet, and is inside of a cloud or no one machine."""
_TUNNELS = (ipaddress.IPv6Network("2002::/16"), ipaddress.IPv6Network("2001::/32"))  # 6to4, Teredo: IPv4 inside


class RefusedReceiverError(ValueError):
    """A webhook must not have this receiver; the message says which rule it breaks."""


@dataclass(frozen=True, slots=True)
class Receiver:
    """A receiver's URL, taken apart; `target` is the path with its query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def parse_receiver(url: str) -> Receiver:
    """The parts of a URL. Raises RefusedReceiverError where it is none that a webhook may have."""
    if len(url) > MAX_URL:
        raise RefusedReceiverError(f"must have at most {MAX_URL:,} characters, got {len(url):,}")
    if not all("!" <= character <= "~" for character in url) or "\\" in url:
        raise RefusedReceiverError(
            "must be printable ASCII without spaces and backslashes; other letters are written %XX in a path and "
            "xn--… in a name"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise RefusedReceiverError(f"is no URL: {error}") from error
    if parts.scheme not in _DEFAULT_PORTS:
        raise RefusedReceiverError(f"must begin with https:// or http://, got {url[:20]!r}")
    if "@" in parts.netloc:
        raise RefusedReceiverError("must not contain a user name or password")
    if parts.fragment or url.endswith("#"):
        raise RefusedReceiverError("must not have a fragment (#…)")
    if parts.netloc.endswith(":") or port == 0:
        raise RefusedReceiverError("must have a port from 1 to 65535, or none")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not target.startswith("/"):
        raise RefusedReceiverError("must have a path that begins with /")
    return Receiver(parts.scheme, _checked_host(host or ""), port or _DEFAULT_PORTS[parts.scheme], target)


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the internet, and to one machine of it.

    Not loopback, private, link-local, shared, reserved, unspecified, multicast, a cloud's own or a tunnel's; where an
    IPv4 address is inside (mapped, NAT64), that one counts.
    """
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped
        if parsed in _NAT64:
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFF_FFFF)
        if inner is None:
            return parsed in _GLOBAL_UNICAST and parsed.is_global and not any(parsed in tunnel for tunnel in _TUNNELS)
        parsed = inner
    return (
        parsed.is_global
        and not parsed.is_multicast
        and not parsed.is_reserved
        and not any(parsed in network for network in _NOT_PUBLIC)
    )


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host as this machine resolves it, each once, in its order of preference. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def checked_addresses(
    receiver: Receiver, *, allow_private: bool, timeout_s: float, resolver: Resolver = resolve
) -> list[str]:
    """Where the receiver is.

    Raises RefusedReceiverError where an address of it is not public, unless private ones are allowed; OSError where
    its name does not resolve within `timeout_s`, which is a TimeoutError then.
    """
    addresses = _in_time(lambda: resolver(receiver.host, receiver.port), timeout_s)
    if not addresses:
        raise OSError(f"the name {receiver.host!r} has no address")
    if not allow_private and not all(is_public(address) for address in addresses):
        raise RefusedReceiverError(
            f"must be on the internet, and {receiver.host!r} is at a private, local or reserved address; "
            "SAMSTUDY_ALLOW_PRIVATE_WEBHOOKS=true allows that"
        )
    return addresses


def _checked_host(host: str) -> str:
    """A host name, or an IP address in its usual form. Raises RefusedReceiverError."""
    if ":" in host:
        try:
            return str(ipaddress.IPv6Address(host if "%" not in host else ""))
        except ValueError as error:
            raise RefusedReceiverError(f"{host!r} is no IPv6 address without a zone") from error
    if _NUMBER.match(host.rpartition(".")[2]):  # also 2130706433, 0x7f.1 and 0177.0.0.1, which are 127.0.0.1
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError as error:
            raise RefusedReceiverError(
                f"{host!r} is no host name, and no IPv4 address in the form of four decimal numbers"
            ) from error
    if not _NAME.match(host):
        raise RefusedReceiverError(
            f"must have a host name or an IP address, got {host!r}" if host else "must have a host"
        )
    return host


def _in_time(resolving: Callable[[], list[str]], timeout_s: float) -> list[str]:
    """A name server that does not answer can take minutes, and nothing interrupts it: its thread is left behind."""
    answers: list[list[str] | OSError] = []

    def run() -> None:
        try:
            answers.append(resolving())
        except OSError as error:
            answers.append(error)
        except UnicodeError as error:  # a name that no name server can be asked for
            answers.append(OSError(str(error)))

    thread = threading.Thread(target=run, name="resolver", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not answers:
        raise TimeoutError(f"the host's name did not resolve within {timeout_s:.0f} s")
    if isinstance(answers[0], OSError):
        raise answers[0]
    return answers[0]

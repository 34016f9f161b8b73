"""One attempt to send a message: one POST to an address that was checked, over before its deadline."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import httpcore

from service.receivers import Receiver


class Deadline:
    """A moment by which something must be over."""

    def __init__(self, timeout_s: float) -> None:
        self._at = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Seconds until then. Raises TimeoutError where there are none."""
        left = self._at - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time for this attempt is over")
        return left


class NotSentError(Exception):
    """There was no answer; the message says why, and nothing of what was sent."""


def post(
    receiver: Receiver,
    addresses: Sequence[str],
    *,
    headers: Mapping[str, str],
    body: bytes,
    deadline: Deadline,
    tls: ssl.SSLContext,
) -> int:
    """The HTTP status of the answer, of which nothing else is read; redirects are not followed, proxies not used.

    addresses: the receiver's, of which the first that takes the connection gets the message. Its certificate is
    checked against the name in the URL. Raises NotSentError.
    """
    url = httpcore.URL(
        scheme=receiver.scheme.encode(),
        host=receiver.host.encode(),
        port=receiver.port,
        target=receiver.target.encode(),
    )
    own = {
        "Host": receiver.authority,
        "Content-Type": "application/json",
        "User-Agent": "samstudy",
        "Connection": "close",
    }
    network = _CheckedAddresses(addresses, deadline)
    try:
        with (
            httpcore.ConnectionPool(ssl_context=tls, network_backend=network, retries=0) as pool,
            pool.stream("POST", url, headers=[*own.items(), *headers.items()], content=body) as response,
        ):
            return response.status
    except (httpcore.TimeoutException, TimeoutError) as error:
        raise NotSentError("no answer in time") from error
    except (httpcore.ProtocolError, httpcore.ReadError, httpcore.WriteError) as error:  # texts may show what it said
        raise NotSentError("it hung up, or answered with something else than HTTP") from error
    except (httpcore.NetworkError, OSError) as error:
        raise NotSentError(str(error) or type(error).__name__) from error


class _CheckedAddresses(httpcore.NetworkBackend):
    """Connects to these addresses only, whatever the name may lead to by now."""

    def __init__(self, addresses: Sequence[str], deadline: Deadline) -> None:
        self._addresses = addresses
        self._deadline = deadline
        self._network = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for tried, address in enumerate(self._addresses):
            share_s = self._deadline.left_s() / (len(self._addresses) - tried)
            try:
                stream = self._network.connect_tcp(address, port, share_s, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _TimedStream(stream, self._deadline)
        raise failure


class _TimedStream(httpcore.NetworkStream):
    """A connection on which everything together has to be over by the deadline, however slowly the bytes arrive."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.left_s())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.left_s())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, self._deadline.left_s())
        return _TimedStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

"""Ports of the loopback address where nobody listens, for servers of the tests' own."""

from __future__ import annotations

import random
import socket

_PORTS = range(20_000, 32_768)  # the kernel gives none of these to an outgoing connection before somebody listens there
_TRIES = 100


def free_port() -> int:
    for candidate in random.SystemRandom().sample(_PORTS, _TRIES):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue
            return candidate
    raise RuntimeError("there is no free port on the loopback address")

"""Commands of samstudy in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

DEADLINE_S = 60.0


class Process:
    """A command of samstudy in a process of its own, which logs JSON.

    prelude: Python that it runs before, to change what no setting says.
    """

    def __init__(self, command: str, environment: Mapping[str, str], log: Path, prelude: str = "") -> None:
        self._log = log
        ours = ("SAMSTUDY_", "RAY_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        program = ["-m", "service.cli", command]
        if prelude:
            program = ["-c", f"import sys, service.cli\n{prelude}\nsys.exit(service.cli.main([{command!r}]))"]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *program],
                env={**inherited, "SAMSTUDY_LOG_FORMAT": "json", **environment},
                stdout=output,
                stderr=output,
            )

    def terminate(self) -> float:
        """SIGTERM, and the seconds until the process has ended."""
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(DEADLINE_S)
        return time.monotonic() - begun

    def lines(self) -> list[dict[str, Any]]:
        """The whole log, which has nothing but JSON objects."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=5).is_success
    except httpx.TransportError:
        return False

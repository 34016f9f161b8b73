"""Processes of the embedded service: started, watched, and stopped with everything that they started themselves."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
import psutil

from service.addresses import on_this_machine
from service.errors import ServiceUnavailableError

_STOP_DEADLINE_S = 20.0  # several times what a part takes: the controller 8 s at most, where all it asks hangs
_KILL_DEADLINE_S = 10.0
_RESTART_PAUSE_S = 1.0
_LOOK_S, _ANSWER_S = 1.0, 3.0
_PR_SET_PDEATHSIG = 1


class Part:
    """One process of the service, in a session of its own, with its log in a file.

    ready_url: what answers with 2xx once the process is ready, asked with `token` where there is one; None: at once.
    alive_url: what does so also where what the process needs is away; None: ready_url.
    start_deadline_s: until they answer. stop_deadline_s: between asking it to end and ending it.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        logs: Path,
        ready_url: str | None,
        alive_url: str | None = None,
        token: str | None = None,
        start_deadline_s: float = 120.0,
        stop_deadline_s: float = _STOP_DEADLINE_S,
    ) -> None:
        self.name = name
        self.log_file = logs / f"{name}.log"
        self._command = command
        self._environment = environment
        self._ready_url = ready_url
        self._alive_url = alive_url or ready_url
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._start_deadline_s = start_deadline_s
        self._stop_deadline_s = stop_deadline_s
        self._process: subprocess.Popen[bytes] | None = None
        self._ended_at: float | None = None
        self._started_at = 0.0
        self._has_answered = False
        self._look_again_at = 0.0

    def start(self) -> None:
        self._started_at, self._has_answered = time.monotonic(), self._alive_url is None
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603  # our own programs, no shell
                self._command,
                env=dict(self._environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the parent alone, which stops the parts in order
                preexec_fn=_die_with_parent,
            )

    def wait_until_ready(self, stopping: threading.Event) -> None:
        """Raises ServiceUnavailableError where it ends or does not answer in time."""
        deadline = time.monotonic() + self._start_deadline_s
        while self._ready_url is not None and not stopping.is_set():
            if self._process is None or self._process.poll() is not None:
                raise ServiceUnavailableError(f"{self.name} ended while it started; see {self.log_file}")
            if self._answers(self._ready_url):
                self._has_answered = True
                return
            if time.monotonic() > deadline:
                raise ServiceUnavailableError(
                    f"{self.name} did not answer within {self._start_deadline_s:.0f} s; see {self.log_file}"
                )
            stopping.wait(0.1)

    def keep_up(self) -> str | None:
        """Starts the process again a moment after it ended by itself; what had become of it where it did.

        So it does with one that has not answered in time since it was started: Ray's head begins without its dashboard
        where somebody has taken the port meanwhile, and stays so.
        """
        if self._process is None:
            return None
        now = time.monotonic()
        if self._process.poll() is None:
            if not self._is_mute(now):
                return None
            what = f"did not answer within {self._start_deadline_s:.0f} s"
        else:
            self._ended_at = now if self._ended_at is None else self._ended_at
            if now - self._ended_at < _RESTART_PAUSE_S:
                return None
            what = "ended unexpectedly"
        self._ended_at = None
        self._kill(_session(self._process.pid))  # what it left behind would keep its port
        self._process.wait()
        self.start()
        return what

    def _is_mute(self, now: float) -> bool:
        """Whether it should have answered by now, and never has since it was started; asks once a second at most."""
        if self._has_answered or now < self._look_again_at:
            return False
        self._look_again_at = now + _LOOK_S
        self._has_answered = self._answers(self._alive_url, timeout_s=_ANSWER_S)
        return not self._has_answered and now - self._started_at > self._start_deadline_s

    def stop(self) -> None:
        """Asks the process to end, and ends what is left of it and its children after a while."""
        if self._process is None:
            return
        family = _session(self._process.pid)
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(self._stop_deadline_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._kill(family)
        self._process.wait()

    def _answers(self, url: str | None, *, timeout_s: float = 5.0) -> bool:
        url = str(url)
        try:
            return httpx.get(
                url, headers=self._headers, timeout=timeout_s, trust_env=not on_this_machine(url)
            ).is_success
        except httpx.HTTPError:
            return False

    @staticmethod
    def _kill(processes: Sequence[psutil.Process]) -> None:
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        deadline = time.monotonic() + _KILL_DEADLINE_S
        while any(_lives(process) for process in processes) and time.monotonic() < deadline:
            time.sleep(0.01)


def _session(leader: int) -> list[psutil.Process]:
    """Every process of the session that this process leads, and all of their children."""
    family: set[psutil.Process] = set()
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader:
                family |= {process, *process.children(recursive=True)}
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return list(family)


def _lives(process: psutil.Process) -> bool:
    """Whether the process still does anything; one that only waits to be reaped does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _die_with_parent() -> None:
    """The kernel ends this process when `samstudy up` is gone, however that went."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

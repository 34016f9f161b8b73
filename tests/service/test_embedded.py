"""What the processes of the embedded service see of the environment that it was started in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from service.addresses import Addresses
from service.embedded import _environment
from service.settings import Settings
from tests.service.proxy import proxy_of_the_environment


def environment(home: Path) -> dict[str, str]:
    addresses = Addresses("http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3", str(home), 1)
    return _environment(Settings(home=home), addresses)


def test_no_part_asks_another_through_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As MLflow's client asks, with requests."""
    with proxy_of_the_environment(monkeypatch) as asked:
        ask = "import requests, sys; requests.get(sys.argv[1], timeout=10)"
        command = [sys.executable, "-c", ask]
        for url, status in (("http://127.0.0.1:1/", 1), ("http://localhost:1/", 1), ("http://x.invalid/", 0)):
            done = subprocess.run([*command, url], env=environment(tmp_path), capture_output=True, timeout=60)
            assert done.returncode == status
        assert asked == ["http://x.invalid/"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("127.0.0.1,localhost", "127.0.0.1,localhost")),
        ({"NO_PROXY": "corp"}, ("corp,127.0.0.1,localhost", "corp,127.0.0.1,localhost")),
        ({"no_proxy": "a", "NO_PROXY": "b"}, ("a,127.0.0.1,localhost", "b,127.0.0.1,localhost")),
        ({"no_proxy": "*"}, ("*", "*")),
    ],
)
def test_the_users_own_exceptions_from_a_proxy_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: tuple[str, str]
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    seen = environment(tmp_path)
    assert (seen["no_proxy"], seen["NO_PROXY"]) == expected

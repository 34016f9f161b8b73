"""Where the embedded service of a home runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.addresses import (
    Addresses,
    AlreadyRunningError,
    holding,
    on_this_machine,
    publish,
    running_addresses,
    withdraw,
)


@pytest.fixture
def addresses(tmp_path: Path) -> Addresses:
    return Addresses("http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3", str(tmp_path), os.getpid())


def test_a_service_is_found_while_it_holds_its_home(addresses: Addresses, tmp_path: Path) -> None:
    assert running_addresses(tmp_path) is None
    with holding(tmp_path):
        publish(addresses)
        assert running_addresses(tmp_path) == addresses
        withdraw(addresses)
        assert running_addresses(tmp_path) is None


def test_addresses_that_a_killed_service_left_behind_are_no_service(addresses: Addresses, tmp_path: Path) -> None:
    publish(addresses)
    assert running_addresses(tmp_path) is None


def test_a_home_is_held_once(tmp_path: Path) -> None:
    with holding(tmp_path), pytest.raises(AlreadyRunningError, match="SAMSTUDY_HOME"), holding(tmp_path):
        pass
    with holding(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"pid": 1}', "\x00"])
def test_a_file_that_says_nothing_is_no_service(tmp_path: Path, content: str) -> None:
    (tmp_path / "addresses.json").write_text(content)
    with holding(tmp_path):
        assert running_addresses(tmp_path) is None


@pytest.mark.parametrize(
    ("url", "is_here"),
    [
        ("http://127.0.0.1:5000", True),
        ("http://u:p@localhost:5000/x", True),
        ("http://127.8.8.8", True),
        ("http://[::1]:80", True),
        ("http://127.0.0.1.example", False),
        ("http://127.0.0.1@example", False),
        ("http://192.0.2.1", False),
        ("http://[2001:db8::1]", False),
        ("mlflow", False),
    ],
)
def test_an_address_is_this_machines_own_where_it_is_a_loopback_one(url: str, is_here: bool) -> None:
    assert on_this_machine(url) is is_here

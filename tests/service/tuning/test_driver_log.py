"""The log of a driver, which is its Ray job's log: every line says whose driver it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def drive(home: Path, **changes: str) -> list[dict[str, Any]]:
    """What a driver of no study says, line by line."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SAMSTUDY_", "RAY_"))}
    environment |= {"SAMSTUDY_HOME": str(home), "SAMSTUDY_LOG_FORMAT": "json", **changes}
    done = subprocess.run(
        [sys.executable, "-m", "service.tuning.driver", "nowhere", "7"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_every_line_of_a_driver_has_its_study_and_its_number(migrated_store: Path, tmp_path: Path) -> None:
    lines = drive(tmp_path, SAMSTUDY_DATABASE_URL=f"sqlite:///{migrated_store}")
    assert [line["message"] for line in lines] == ["study nowhere is gone"]
    assert {(line["study_id"], line["driver_attempt"]) for line in lines} == {("nowhere", 7)}


def test_a_driver_whose_node_was_told_of_no_store_makes_none(tmp_path: Path) -> None:
    (line,) = drive(tmp_path / "home")
    assert line["message"] == (
        f"{tmp_path}/home/samstudy.db is not there: Ray's nodes need the SAMSTUDY_ variables of the controller"
    )
    assert not (tmp_path / "home").exists()

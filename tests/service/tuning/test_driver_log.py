"""The log of a driver, which is its Ray job's log: every line says whose driver it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_every_line_of_a_driver_has_its_study_and_its_number(migrated_store: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SAMSTUDY_", "RAY_"))}
    environment |= {"SAMSTUDY_DATABASE_URL": f"sqlite:///{migrated_store}", "SAMSTUDY_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "service.tuning.driver", "nowhere", "7"],
        env=environment | {"SAMSTUDY_LOG_FORMAT": "json"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["message"] for line in lines] == ["study nowhere is gone"]
    assert {(line["study_id"], line["driver_attempt"]) for line in lines} == {("nowhere", 7)}

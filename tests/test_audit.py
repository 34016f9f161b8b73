"""What `make audit` makes of pip-audit's answers."""

from __future__ import annotations

import json
from typing import Any

from tools.audit import judged


def report(*packages: dict[str, Any]) -> str:
    return json.dumps({"dependencies": list(packages), "fixes": []})


HARMLESS = {"name": "numpy", "version": "2.0", "vulns": []}
VULNERABLE = {
    "name": "flask",
    "version": "0.5",
    "vulns": [{"id": "PYSEC-2019-179", "fix_versions": ["1.0"], "aliases": ["CVE-2019-1010083"]}],
}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.13.0)"}


def test_a_vulnerability_fails_and_is_named() -> None:
    status, said = judged(report(HARMLESS, VULNERABLE), "Found 1 known vulnerability in 1 package")
    assert status == 1
    assert "flask 0.5: PYSEC-2019-179 (CVE-2019-1010083), mended in 1.0" in said


def test_none_is_no_failure_and_what_was_skipped_is_said() -> None:
    status, said = judged(report(HARMLESS, SKIPPED, {"name": "samstudy", "skip_reason": "editable"}), "")
    assert (status, said) == (0, "not audited: torch\n1 packages audited, 0 known vulnerabilities")


def test_a_mirror_that_knows_no_package_is_no_audit() -> None:
    status, said = judged(report(SKIPPED), "No known vulnerabilities found")
    assert status == 0
    assert "nothing was audited" in said


def test_a_database_that_cannot_be_reached_is_said_so() -> None:
    status, said = judged("", "requests.exceptions.ProxyError: HTTPSConnectionPool(host='pypi.org', port=443)")
    assert status == 0
    assert "cannot be reached" in said


def test_any_other_failure_of_the_audit_is_one() -> None:
    status, said = judged("", "ModuleNotFoundError: No module named 'pip_audit'")
    assert status == 1
    assert "pip_audit" in said

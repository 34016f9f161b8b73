"""`make audit`: the installed packages against the published vulnerabilities, by pip-audit.

Fails where a package has a known vulnerability, and where the audit itself goes wrong. Only a database that cannot be
reached is no failure, and is said so: pip-audit alone calls that "no known vulnerabilities" where a mirror answers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

OUR_OWN = "samstudy"
_UNREACHABLE = ("Could not connect", "ConnectionError", "ProxyError", "SSLError", "Timeout")


def main() -> int:
    """Runs pip-audit over this environment; 0 where it found nothing or had no database, 1 otherwise."""
    command = [sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--progress-spinner", "off"]
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=False)  # noqa: S603  # our own command
    status, said = judged(done.stdout, done.stderr)
    print(said, file=sys.stderr if status else sys.stdout)
    return status


def judged(report: str, complaint: str) -> tuple[int, str]:
    """The exit status and what to say. report: pip-audit's JSON, empty where it failed. complaint: its stderr."""
    try:
        packages = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        if any(word in complaint for word in _UNREACHABLE):
            return 0, "the vulnerability database cannot be reached from here: nothing was audited"
        return 1, f"pip-audit failed:\n{complaint.strip()}"
    audited = [package for package in packages if "vulns" in package]
    skipped = [package["name"] for package in packages if "vulns" not in package and package["name"] != OUR_OWN]
    if not audited:
        return 0, "the vulnerability database that answers here knows none of the packages: nothing was audited"
    lines = [line for package in audited for line in _findings(package)]
    if skipped:
        lines.append(f"not audited: {', '.join(skipped)}")
    found = sum(len(package["vulns"]) for package in audited)
    lines.append(f"{len(audited)} packages audited, {found} known vulnerabilities")
    return int(found > 0), "\n".join(lines)


def _findings(package: Mapping[str, Any]) -> Iterator[str]:
    for found in package["vulns"]:
        aliases = ", ".join(found.get("aliases", ())) or "no alias"
        versions = ", ".join(found["fix_versions"]) or "nothing yet"
        yield f"{package['name']} {package['version']}: {found['id']} ({aliases}), mended in {versions}"


if __name__ == "__main__":
    sys.exit(main())

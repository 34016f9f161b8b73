"""The example of a package with its own model and data, where Python finds it as if pip had installed it."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "examples/own_package"


def python_path(site: Path) -> str:
    """The PYTHONPATH of a process that has the example installed; `site`: an empty folder for what pip writes of it."""
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]
    announce(site, project["entry-points"], name=project["name"], version=project["version"])
    return os.pathsep.join((str(site), str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])))


def announce(site: Path, groups: dict[str, dict[str, str]], *, name: str = "lab", version: str = "1.0") -> None:
    """Writes what pip does of a package with these entry points, by group and by name."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, entry_points in groups.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entry_points.items())]
    (folder / "entry_points.txt").write_text("\n".join(lines))

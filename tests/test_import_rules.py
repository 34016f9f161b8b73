"""The import rules of pyproject.toml against the modules that there are."""

import tomllib
from pathlib import Path

import trainers

ROOT = Path(__file__).parent.parent

OPEN_TO_THE_SERVICE = {"catalog", "config", "facts", "knob", "metrics", "plugins", "problem_settings", "rules"}
"""What a run is, without torch."""


def test_every_module_of_the_trainers_is_closed_to_the_service_or_known_to_be_open() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = [one for one in contracts if one["name"].startswith("Of the trainers the service knows")]
    closed = [name.removeprefix("trainers.") for name in contract["forbidden_modules"]]
    found = {path.stem for path in Path(trainers.__path__[0]).iterdir() if path.suffix == ".py" or path.is_dir()}
    assert sorted([*closed, *OPEN_TO_THE_SERVICE]) == sorted(found - {"__init__", "__pycache__"})

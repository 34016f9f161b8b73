"""Under what a result came about: machine and versions."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

from service.reproduction.sources import short, sources_digest

_PACKAGES = ("torch", "torchvision", "numpy", "ray", "mlflow")
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Provenance:
    """machine: where the trials ran, in words. versions: of what computed them, by package."""

    machine: str
    versions: dict[str, str]


def of_this_machine() -> Provenance:
    """For trials that ran here."""
    cores = os.cpu_count() or 1
    memory = f"{psutil.virtual_memory().total / _GIB:.0f} GiB of memory"
    graphics = ", ".join(_graphics_cards()) or "no GPU"
    parts = [_processor(), f"{cores} core{'s' * (cores > 1)}", memory, graphics]
    system = f"{platform.system()} {platform.machine()}"
    versions = {"Python": platform.python_version(), "samstudy": _samstudy()}
    versions |= {name: version(name) for name in _PACKAGES}
    return Provenance(f"{', '.join(parts)}; {system}", versions)


def of_another_machine() -> Provenance:
    """For trials that ran on nodes of a service elsewhere, of which the command knows nothing."""
    return Provenance(
        "the nodes of a service elsewhere, unknown to the command",
        {"samstudy": f"{_samstudy()}, as the command has it"},
    )


def _samstudy() -> str:
    """The version and the digest of the sources of what trains, by which studies are found again."""
    return f"{version('samstudy')} (sources {short(sources_digest())})"


def _processor() -> str:
    """The processor's name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "an unknown processor"


def _graphics_cards() -> list[str]:
    """NVIDIA's cards, as their driver names them."""
    cards = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = path.read_text().splitlines()
        cards += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return cards

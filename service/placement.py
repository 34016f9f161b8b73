"""Whether the nodes of a cluster hold a trial, and what lacks where none does. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ROUNDING = 1e-9
"""Parts of a CPU or GPU do not add up exactly."""


@dataclass(frozen=True, slots=True)
class Node:
    """What one node of the cluster has, busy or not."""

    cpu: float
    gpu: float

    def holds(self, cpu: float, gpu: float) -> bool:
        """Whether a trial that needs so much could train here, if the node were its own."""
        return cpu <= self.cpu + ROUNDING and gpu <= self.gpu + ROUNDING


def has_place(cpu: float, gpu: float, nodes: Iterable[Node]) -> bool:
    """Whether any node holds a trial that needs so much."""
    return any(node.holds(cpu, gpu) for node in nodes)


def what_lacks(cpu: float, gpu: float, nodes: Sequence[Node]) -> str:
    """What is missing where no node holds a trial that needs so much, in plain words."""
    if not nodes:
        return "the cluster has no nodes"
    wanted = f"a trial needs {_amounts(cpu, gpu)} on one node"
    if gpu > 0 and not any(node.gpu > 0 for node in nodes):
        return f"{wanted}; no node has a GPU"
    nearest = max(nodes, key=lambda node: _nearness(cpu, gpu, node))
    if len(nodes) == 1:
        return f"{wanted}; the cluster's only node has {_amounts(nearest.cpu, nearest.gpu)}"
    return f"{wanted}; of the cluster's {len(nodes)} nodes the nearest to it has {_amounts(nearest.cpu, nearest.gpu)}"


def _nearness(cpu: float, gpu: float, node: Node) -> tuple[float, float]:
    """Grows with the part of each need that the node covers: of the one it covers least, then of both."""
    parts = [min(1.0, node.cpu / cpu), min(1.0, node.gpu / gpu) if gpu > 0 else 1.0]
    return min(parts), sum(parts)


def _amounts(cpu: float, gpu: float) -> str:
    """Both in words; a cluster without GPUs need not read of them."""
    cpus = f"{cpu:g} CPU{'' if cpu == 1 else 's'}"
    return f"{cpus} and {gpu:g} GPU{'' if gpu == 1 else 's'}" if gpu > 0 else cpus

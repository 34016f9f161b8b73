"""Why nothing trains: what a trial needs against what the cluster has, in plain words."""

from __future__ import annotations

import ray
from ray.exceptions import RayError

from service.shares import Node
from service.spec_sections import Resources


def waiting_reason(needed: Resources, *, has_no_share: bool = False) -> str:
    """Why no trial that needs this runs at the moment. Asks the cluster, which takes a few milliseconds.

    has_no_share: whether other studies hold all of the cluster.
    """
    if not ray.is_initialized():
        return "its driver is starting"
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    except (RayError, RuntimeError, OSError):
        return "the Ray cluster does not answer"
    return _reason(needed, nodes, has_no_share=has_no_share)


def _reason(needed: Resources, nodes: list[dict[str, float]], *, has_no_share: bool = False) -> str:
    has = [Node(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes]
    if not any(node.cpu >= needed.cpu and node.gpu >= needed.gpu for node in has):
        return _nowhere(needed, has)
    if has_no_share:
        return "other studies hold the cluster; its own share is no trial at the moment"
    return "its workers are starting, or wait for a place in the cluster"


def _nowhere(needed: Resources, nodes: list[Node]) -> str:
    """What is missing where no node holds a trial."""
    if not nodes:
        return "the cluster has no nodes"
    wanted = f"a trial needs {_amounts(needed.cpu, needed.gpu)} on one node"
    if needed.gpu > 0 and not any(node.gpu > 0 for node in nodes):
        return f"{wanted}; no node has a GPU"
    nearest = max(nodes, key=lambda node: _nearness(needed, node))
    if len(nodes) == 1:
        return f"{wanted}; the cluster's only node has {_amounts(nearest.cpu, nearest.gpu)}"
    return f"{wanted}; of the cluster's {len(nodes)} nodes the nearest to it has {_amounts(nearest.cpu, nearest.gpu)}"


def _nearness(needed: Resources, node: Node) -> tuple[float, float]:
    """Grows with the part of each need that the node covers: of the one it covers least, then of both."""
    parts = [min(1.0, node.cpu / needed.cpu), min(1.0, node.gpu / needed.gpu) if needed.gpu > 0 else 1.0]
    return min(parts), sum(parts)


def _amounts(cpu: float, gpu: float) -> str:
    """Both in words; a cluster without GPUs need not read of them."""
    cpus = f"{cpu:g} CPU{'' if cpu == 1 else 's'}"
    return f"{cpus} and {gpu:g} GPU{'' if gpu == 1 else 's'}" if gpu > 0 else cpus

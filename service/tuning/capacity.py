"""Why nothing trains: what a trial needs against what the cluster has, in plain words."""

from __future__ import annotations

import ray
from ray.exceptions import RayError

from service.placement import Node, has_place, what_lacks
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
    if not has_place(needed.cpu, needed.gpu, has):
        return what_lacks(needed.cpu, needed.gpu, has)
    if has_no_share:
        return "other studies hold the cluster; its own share is no trial at the moment"
    return "its workers are starting, or wait for a place in the cluster"

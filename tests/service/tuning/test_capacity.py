"""Why nothing trains."""

from __future__ import annotations

from service.spec_sections import Resources
from service.tuning.capacity import _reason, waiting_reason

NODES = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 16.0}]


def test_before_the_driver_has_a_cluster_it_is_starting() -> None:
    assert waiting_reason(Resources()) == "its driver is starting"


def test_a_trial_that_fits_on_no_single_node_is_told_what_the_nearest_has() -> None:
    assert _reason(Resources(cpu=8, gpu=1), NODES) == (
        "a trial needs 8 CPUs and 1 GPU on one node; of the cluster's 2 nodes the nearest to it has 4 CPUs and 1 GPU"
    )
    assert "the nearest to it has 16 CPUs" in _reason(Resources(cpu=32), NODES)
    assert "the nearest to it has 2 CPUs and 1 GPU" in _reason(
        Resources(cpu=4, gpu=1), [{"CPU": 8.0}, {"CPU": 2.0, "GPU": 1.0}]
    )


def test_a_cluster_of_one_node_is_told_in_the_singular() -> None:
    reason = "a trial needs 1.5 CPUs on one node; the cluster's only node has 1 CPU"
    assert _reason(Resources(cpu=1.5), [{"CPU": 1.0}]) == reason


def test_where_no_node_has_a_gpu_that_is_what_is_missing() -> None:
    reason = "a trial needs 1 CPU and 1 GPU on one node; no node has a GPU"
    assert _reason(Resources(gpu=1), [{"CPU": 2.0}, {"node:__internal_head__": 1.0}]) == reason


def test_a_cluster_without_nodes_has_none() -> None:
    assert _reason(Resources(), []) == "the cluster has no nodes"


def test_without_a_share_other_studies_are_the_reason_unless_no_node_would_do() -> None:
    assert "other studies" in _reason(Resources(gpu=1), NODES, has_no_share=True)
    assert "needs 1 CPU and 8 GPUs" in _reason(Resources(gpu=8), NODES, has_no_share=True)


def test_where_a_trial_fits_its_workers_are_on_their_way() -> None:
    assert "starting" in _reason(Resources(cpu=16), NODES)
    assert "starting" in _reason(Resources(gpu=1), NODES)

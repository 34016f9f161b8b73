"""Why nothing trains."""

from __future__ import annotations

from service.spec_sections import Resources
from service.tuning.capacity import _reason, waiting_reason

NODES = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 16.0}]


def test_before_the_driver_has_a_cluster_it_is_starting() -> None:
    assert waiting_reason(Resources()) == "its driver is starting"


def test_a_trial_that_fits_on_no_single_node_is_told_what_the_nodes_have() -> None:
    reason = _reason(Resources(cpu=8, gpu=1), NODES)
    assert "needs 8 CPUs and 1 GPUs on one node" in reason
    assert "2 nodes have 16 CPUs and 1 GPUs" in reason


def test_a_cluster_without_nodes_has_nothing() -> None:
    assert "0 nodes have 0 CPUs" in _reason(Resources(), [])


def test_without_a_share_other_studies_are_the_reason_unless_no_node_would_do() -> None:
    assert "other studies" in _reason(Resources(gpu=1), NODES, has_no_share=True)
    assert "needs 1 CPUs and 8 GPUs" in _reason(Resources(gpu=8), NODES, has_no_share=True)


def test_where_a_trial_fits_its_workers_are_on_their_way() -> None:
    assert "starting" in _reason(Resources(cpu=16), NODES)
    assert "starting" in _reason(Resources(gpu=1), NODES)

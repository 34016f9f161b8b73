"""Which studies make room, as the leading controller remembers them."""

from service.giving_way import GivingWay
from service.placement import Node
from service.shares import Demand
from service.store.reconciling import DrivenStudy, DriverClaim

NODES = [Node(cpu=4, gpu=0)]
FITS = {"waits": (1.0, 0.0)}


def driven(*, gpu: float, running: int = 0) -> DrivenStudy:
    return DrivenStudy(DriverClaim("study", 1), Demand("study", "owner", 1.0, gpu, 1, running), None)


def test_a_study_that_was_to_make_room_and_trains_after_all_makes_none() -> None:
    """It could not be asked to end, and a node came back meanwhile."""
    giving_way = GivingWay(grace_s=10)
    assert giving_way.leaving([driven(gpu=8)], FITS, NODES, now=0) == []
    assert giving_way.leaving([driven(gpu=8)], FITS, NODES, now=11) == [DriverClaim("study", 1)]
    assert giving_way.lacks("study") is not None
    assert giving_way.leaving([driven(gpu=8, running=1)], FITS, [Node(cpu=8, gpu=8)], now=12) == []
    assert giving_way.lacks("study") is None


def test_one_that_is_still_stuck_is_asked_again_and_goes_on_to_lack_what_it_lacked() -> None:
    giving_way = GivingWay(grace_s=10)
    for now in (0, 11, 12):
        leaving = giving_way.leaving([driven(gpu=8)], FITS, NODES, now=now)
    assert leaving == [DriverClaim("study", 1)]
    assert giving_way.lacks("study") is not None

"""The driver dies while it brings its study to where the user wants it: the study gets there all the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from service.client import Client
from service.study import Reason, StudyState, TrialState
from tests.embedded_service import Service, frozen, kill, wait_until
from tests.faults.conftest import ask
from tests.faults.invariants import Witness

pytestmark = pytest.mark.soak


def test_a_study_whose_driver_dies_while_it_pauses_is_paused_and_goes_on_when_resumed(
    service: Service, begin: Callable[..., Witness], client: Client
) -> None:
    """No checkpoint comes up before the end, so that the driver waits for its trials."""
    witness = begin("dies-while-pausing", trials=2, epochs=300, checkpoint={"every_epochs": 290})
    witness.wait_for_trials(finished=0, training=2, epochs=2)
    ask(client, witness.study_id, "pause")
    assert witness.study().state is StudyState.STOPPING
    kill(service.drivers(witness.study_id))
    witness.check(state=StudyState.PAUSED, reason=None)
    assert {trial.state for trial in witness.trials()} == {TrialState.PENDING}
    ask(client, witness.study_id, "resume")
    wait_until(lambda: witness.study().state is not StudyState.PAUSED, what="the study goes on")
    assert witness.check(trials=2).driver_attempt == 2


def test_a_study_whose_driver_dies_while_it_stops_finishes_what_had_begun_and_no_more(
    service: Service, begin: Callable[..., Witness], client: Client
) -> None:
    witness = begin("dies-while-stopping", trials=8, epochs=100)
    witness.wait_for_trials(finished=0, training=2, epochs=2)
    ask(client, witness.study_id, "stop")
    kill(service.drivers(witness.study_id))
    begun = {trial.id for trial in witness.trials() if trial.attempt}
    study = witness.check(reason=Reason.USER)
    assert study.driver_attempt == 2
    assert {trial.id for trial in witness.trials(TrialState.SUCCEEDED)} == begun
    assert all(trial.id in begun or trial.state is TrialState.CANCELLED for trial in witness.trials())


def test_a_study_whose_driver_dies_while_it_is_cancelled_is_cancelled(
    service: Service, begin: Callable[..., Witness], client: Client
) -> None:
    witness = begin("dies-while-cancelling", trials=2, epochs=5_000)
    witness.wait_for_trials(finished=0, training=2, epochs=2)
    drivers = service.drivers(witness.study_id)
    with frozen(*drivers, store=service.database):  # it would be quicker than the test
        ask(client, witness.study_id, "cancel")
        kill(drivers)
    study = witness.check(state=StudyState.CANCELLED, reason=Reason.USER)
    assert study.driver_attempt == 1
    assert {trial.state for trial in witness.trials()} == {TrialState.CANCELLED}

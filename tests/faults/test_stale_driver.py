"""A driver that wakes up after its lease ran out: another drives its study by then, and nothing that it says counts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from service.study import AttemptState
from tests.embedded_service import Service, frozen, wait_until
from tests.faults.invariants import Witness


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_driver_that_wakes_up_late_is_refused_and_ends_itself(
    service: Service, begin: Callable[..., Witness]
) -> None:
    witness = begin("stale-driver", trials=3, epochs=200, budget={"max_concurrent_trials": 1})
    witness.wait_for_trials(finished=1, epochs=3)
    witness.remember()
    (stale,) = service.drivers(witness.study_id)
    with ExitStack() as asleep:
        # Its Ray supervisor too, which would end it when the controller asks for that: as on a node that is cut off.
        supervisors = service.processes("ray::JobSupervisor")
        asleep.enter_context(frozen(stale, *supervisors, store=service.database))
        wait_until(lambda: len(service.drivers(witness.study_id)) == 2, what="the driver is replaced")
        witness.wait_for_trials(finished=1, epochs=6)  # while the first one sleeps in the middle of the same trial
        attempts = [
            attempt
            for trial in witness.trials()
            for attempt in witness.store.attempts(witness.study_id, trial.id)
            if attempt.driver_attempt == 1
        ]
        assert [attempt.state for attempt in attempts] == [AttemptState.SUCCEEDED, AttemptState.LOST]
        before = [witness.store.results(witness.study_id, attempt.trial_id) for attempt in attempts]
        with frozen(*supervisors):
            stale.resume()
            stale.wait(60)  # it ends itself
    assert witness.check(trials=3, deadline_s=400).driver_attempt == 2
    for attempt, results in zip(attempts, before, strict=True):
        (same,) = [
            other
            for other in witness.store.attempts(witness.study_id, attempt.trial_id)
            if other.number == attempt.number
        ]
        assert same == attempt
        of_it = [result for result in results if result.attempt == attempt.number]
        after = witness.store.results(witness.study_id, attempt.trial_id)
        assert [result for result in after if result.attempt == attempt.number] == of_it
    logs = (service.home / "logs" / "controller.log").read_text()
    assert f"study {witness.study_id} lost driver 1; it is QUEUED" in logs

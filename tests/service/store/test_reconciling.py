from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from service.errors import LeaseLostError
from service.store.driving import DrivingStore
from service.store.reconciling import DriverClaim, UnconfirmedStart
from service.store.reports import AttemptLost, AttemptStarted, EpochReported, TrialEnded
from service.store.watching import WatchingStore
from service.store.webhooks import WebhookStore
from service.study import AttemptState, Reason, Study, StudyState, TrialState


def test_a_study_is_claimed_once_among_many(stores: Any) -> None:
    study = stores.create()
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda _: stores.reconciling.claim(study.id, 60), range(8)))
    assert [claim for claim in claims if claim] == [DriverClaim(study.id, 1)]


def test_a_claimed_study_runs_under_its_driver(stores: Any) -> None:
    study = stores.create()
    assert stores.claim(study) == DriverClaim(study.id, 1)
    running = stores.studies.get(study.id)
    assert (running.state, running.driver_attempt) == (StudyState.RUNNING, 1)
    assert running.started_at is not None
    assert running.waiting_reason == "its driver is starting"


def test_queued_studies_come_oldest_first(stores: Any) -> None:
    studies = [stores.create() for _ in range(3)]
    stores.claim(studies[1])
    assert [queued.study_id for queued in stores.reconciling.queued()] == [studies[0].id, studies[2].id]


def test_a_waiting_reason_is_said_of_queued_studies_only(stores: Any) -> None:
    queued, running = stores.create(), stores.create()
    stores.claim(running)
    stores.reconciling.set_waiting_reason([queued.id, running.id], "no cluster")
    assert stores.studies.get(queued.id).waiting_reason == "no cluster"
    assert stores.studies.get(running.id).waiting_reason == "its driver is starting"
    stores.claim(queued)
    assert stores.studies.get(queued.id).waiting_reason == "its driver is starting"


def test_a_driver_is_overdue_once_its_lease_ran_out(timed_stores: Any, clock: Any) -> None:
    study = timed_stores.create()
    driver = timed_stores.drive(study, lease_s=60)
    clock.advance(60)
    assert timed_stores.reconciling.overdue_drivers() == []
    driver.heartbeat(10)
    clock.advance(10)
    assert timed_stores.reconciling.overdue_drivers() == []
    clock.advance(0.1)
    assert timed_stores.reconciling.overdue_drivers() == [DriverClaim(study.id, 1)]


def test_a_study_that_ended_is_never_overdue(timed_stores: Any, clock: Any) -> None:
    timed_stores.finish(timed_stores.drive(timed_stores.create()))
    clock.advance(1e6)
    assert timed_stores.reconciling.overdue_drivers() == []


def test_a_lost_driver_leaves_its_study_to_the_next(stores: Any) -> None:
    study = stores.create()
    claim = stores.claim(study)
    driver = DrivingStore(stores.database, study.id, 1)
    running, done = stores.begin(driver), stores.begin(driver)
    stores.succeed(driver, done)
    driver.heartbeat(-1)
    lost = stores.lose(claim)
    assert (lost.state, lost.driver_attempt) == (StudyState.QUEUED, 1)
    assert lost.waiting_reason == "its driver was lost; a new one is being started"
    assert stores.studies.trial(study.id, running.id).state is TrialState.PENDING
    assert stores.studies.trial(study.id, done.id).state is TrialState.SUCCEEDED
    (attempt,) = stores.studies.attempts(study.id, running.id)
    assert (attempt.state, attempt.error) == (AttemptState.LOST, None)
    assert "driver.lost" in {event.kind for event in stores.studies.events(study.id)}
    assert stores.claim(study) == DriverClaim(study.id, 2)
    assert stores.studies.get(study.id).started_at == lost.started_at


def test_a_driver_that_just_sent_a_heartbeat_is_not_lost(stores: Any) -> None:
    study = stores.create()
    claim = stores.claim(study, lease_s=-1)
    assert stores.reconciling.overdue_drivers() == [claim]
    DrivingStore(stores.database, study.id, 1).heartbeat(60)
    assert stores.reconciling.lose_driver(claim, max_losses=5) is None
    assert stores.studies.get(study.id).state is StudyState.RUNNING


def test_a_driver_is_lost_once(stores: Any) -> None:
    study = stores.create()
    claim = stores.claim(study, lease_s=-1)
    stores.lose(claim)
    assert stores.reconciling.lose_driver(claim, max_losses=5) is None
    stores.claim(study, lease_s=-1)
    assert stores.reconciling.lose_driver(claim, max_losses=5) is None
    assert stores.studies.get(study.id).driver_attempt == 2


def test_a_study_being_cancelled_is_not_ended_before_its_drivers_job(stores: Any) -> None:
    study = stores.create()
    claim = stores.claim(study, lease_s=-1)
    trial = stores.begin(DrivingStore(stores.database, study.id, 1))
    stores.lifecycle.cancel(study.id)
    assert stores.reconciling.lose_driver(claim, max_losses=1) is None
    assert stores.studies.get(study.id).state is StudyState.STOPPING
    stores.reconciling.cancel_now(claim)
    ended = stores.studies.get(study.id)
    assert (ended.state, ended.reason) == (StudyState.CANCELLED, Reason.USER)
    assert stores.studies.trial(study.id, trial.id).state is TrialState.CANCELLED


def test_a_study_that_loses_driver_after_driver_fails(stores: Any) -> None:
    study = stores.create()
    for _ in range(2):
        assert stores.lose(stores.claim(study, lease_s=-1), max_losses=3).state is StudyState.QUEUED
    lost = stores.lose(stores.claim(study, lease_s=-1), max_losses=3)
    assert (lost.state, lost.reason) == (StudyState.FAILED, Reason.DRIVER_FAILED)
    assert lost.error is not None
    assert f"{study.id}-3" in lost.error


def test_a_driver_that_was_asked_to_end_is_no_loss_that_counts(stores: Any) -> None:
    study = stores.create()
    stores.lose(stores.claim(study, lease_s=-1), max_losses=3)
    for _ in range(5):
        claim = stores.claim(study)
        DrivingStore(stores.database, study.id, claim.driver_attempt).give_up_lease()
        assert stores.lose(claim, max_losses=3).state is StudyState.QUEUED
        said = "its driver was asked to end; a new one is being started"
        assert stores.studies.get(study.id).waiting_reason == said
    assert stores.lose(stores.claim(study, lease_s=-1), max_losses=3).state is StudyState.QUEUED
    assert stores.lose(stores.claim(study, lease_s=-1), max_losses=3).state is StudyState.FAILED


@pytest.mark.parametrize(
    ("lives_s", "trains", "ends"),
    [
        (599, False, StudyState.FAILED),
        (601, False, StudyState.QUEUED),
        (601, True, StudyState.FAILED),
    ],
)
def test_a_driver_that_waited_for_long_and_trained_nothing_is_no_loss_that_counts(
    timed_stores: Any, clock: Any, lives_s: float, trains: bool, ends: StudyState
) -> None:
    study = timed_stores.create()
    for loss in range(3):
        claim = timed_stores.claim(study)
        driver = DrivingStore(timed_stores.database, study.id, claim.driver_attempt)
        if trains and not loss:
            timed_stores.begin(driver)
        elif trains:
            (trial,) = timed_stores.studies.trials(study.id)
            driver.record([AttemptStarted(trial.id, loss + 1, "node-1")])
        clock.advance(lives_s)
        driver.heartbeat(60)
        clock.advance(61)
        lost = timed_stores.lose(claim, max_losses=3)
    assert lost.state is ends


def test_a_lease_that_has_run_out_is_not_given_up(stores: Any) -> None:
    study = stores.create()
    claim = stores.claim(study, lease_s=-1)
    DrivingStore(stores.database, study.id, claim.driver_attempt).give_up_lease()  # a driver that hung, asked to end
    assert stores.lose(claim, max_losses=1).state is StudyState.FAILED


def test_a_new_result_forgives_the_losses_before(stores: Any) -> None:
    study = stores.create()
    for _ in range(2):
        stores.lose(stores.claim(study, lease_s=-1), max_losses=3)
    claim = stores.claim(study, lease_s=-1)
    driver = DrivingStore(stores.database, study.id, claim.driver_attempt)
    stores.report(driver, stores.begin(driver), 1)
    assert stores.lose(claim, max_losses=3).state is StudyState.QUEUED


def test_an_epoch_done_again_forgives_nothing(stores: Any) -> None:
    study = stores.create()
    claim = stores.claim(study, lease_s=-1)
    trial = stores.begin(DrivingStore(stores.database, study.id, claim.driver_attempt))
    stores.report(DrivingStore(stores.database, study.id, claim.driver_attempt), trial, 1)
    for attempt in (2, 3, 4):
        assert stores.lose(claim, max_losses=4).state is StudyState.QUEUED
        claim = stores.claim(study, lease_s=-1)
        driver = DrivingStore(stores.database, study.id, claim.driver_attempt)
        driver.record([AttemptStarted(trial.id, attempt, None), EpochReported(trial.id, attempt, 1, {"val_loss": 0.5})])
    assert stores.lose(claim, max_losses=4).state is StudyState.FAILED


def test_a_report_that_comes_too_late_forgives_nothing(stores: Any) -> None:
    study = stores.create()
    stores.lose(stores.claim(study, lease_s=-1), max_losses=2)
    claim = stores.claim(study, lease_s=-1)
    driver = DrivingStore(stores.database, study.id, claim.driver_attempt)
    trial = stores.begin(driver)
    driver.record([AttemptLost(trial.id, 1, "the node went away"), AttemptStarted(trial.id, 2, None)])
    driver.record([EpochReported(trial.id, 1, 1, {}), TrialEnded(trial.id, 1, TrialState.SUCCEEDED, 0.5)])
    assert stores.lose(claim, max_losses=2).state is StudyState.FAILED


def test_the_end_of_a_trial_forgives_the_losses_before(stores: Any) -> None:
    study = stores.create()
    stores.lose(stores.claim(study, lease_s=-1), max_losses=2)
    claim = stores.claim(study, lease_s=-1)
    driver = DrivingStore(stores.database, study.id, claim.driver_attempt)
    driver.record([TrialEnded(stores.begin(driver).id, 1, TrialState.FAILED, None, "ValueError: no")])
    assert stores.lose(claim, max_losses=2).state is StudyState.QUEUED


def test_a_begun_attempt_alone_forgives_nothing(stores: Any) -> None:
    study = stores.create()
    stores.lose(stores.claim(study, lease_s=-1), max_losses=2)
    claim = stores.claim(study, lease_s=-1)
    stores.begin(DrivingStore(stores.database, study.id, claim.driver_attempt))
    assert stores.lose(claim, max_losses=2).state is StudyState.FAILED


def test_one_holder_leads_until_it_gives_up(stores: Any) -> None:
    lead = stores.reconciling.lead
    assert lead("controller", "a", 60)
    assert not lead("controller", "b", 60)
    assert lead("controller", "a", 60)
    assert lead("another", "b", 60)
    stores.reconciling.give_up_lead("controller", "b")
    assert not lead("controller", "b", 60)
    stores.reconciling.give_up_lead("controller", "a")
    assert lead("controller", "b", 60)


def test_the_lead_passes_on_when_its_lease_runs_out(timed_stores: Any, clock: Any) -> None:
    lead = timed_stores.reconciling.lead
    assert lead("controller", "a", 10)
    clock.advance(8)
    assert lead("controller", "a", 10)
    clock.advance(8)
    assert not lead("controller", "b", 10)
    clock.advance(2.1)
    assert lead("controller", "b", 10)
    assert not lead("controller", "a", 10)


def test_the_lead_is_free_where_the_clock_went_back_since_it_was_taken(timed_stores: Any, clock: Any) -> None:
    lead = timed_stores.reconciling.lead
    assert lead("controller", "a", 600)
    clock.advance(-0.001)
    assert lead("controller", "b", 600)
    clock.advance(-3600)
    assert lead("controller", "b", 600)  # its own
    assert not lead("controller", "a", 600)


def test_a_drivers_lease_is_shortened_where_the_clock_went_back(timed_stores: Any, clock: Any) -> None:
    study = timed_stores.create()
    driver = timed_stores.drive(study, lease_s=600)
    reconciling = timed_stores.reconciling
    assert reconciling.shorten_leases(10) == []
    clock.advance(-0.001)
    assert reconciling.shorten_leases(10) == [DriverClaim(study.id, 1)]
    assert reconciling.shorten_leases(10) == []
    clock.advance(10)
    assert reconciling.overdue_drivers() == []
    clock.advance(0.1)
    assert reconciling.overdue_drivers() == [DriverClaim(study.id, 1)]
    driver.heartbeat(10)
    assert reconciling.overdue_drivers() == []


def test_the_lease_of_a_driver_that_gave_it_up_is_not_shortened(timed_stores: Any) -> None:
    study = timed_stores.create()
    timed_stores.drive(study).give_up_lease()
    assert timed_stores.reconciling.shorten_leases(10) == []
    assert timed_stores.reconciling.overdue_drivers(given_up=True) == [DriverClaim(study.id, 1)]


def test_one_of_many_takes_a_free_lead(stores: Any) -> None:
    with ThreadPoolExecutor(8) as pool:
        leads = list(pool.map(lambda number: stores.reconciling.lead("controller", f"{number}", 60), range(8)))
    assert sum(leads) == 1


def test_a_study_whose_driver_did_not_start_waits_again(stores: Any) -> None:
    study = stores.create()
    claim = stores.claim(study)
    stores.reconciling.give_back(claim, "the cluster takes no jobs")
    queued = stores.studies.get(study.id)
    assert (queued.state, queued.waiting_reason) == (StudyState.QUEUED, "the cluster takes no jobs")
    assert stores.claim(study).driver_attempt == 2
    stores.reconciling.give_back(claim, "late")
    assert stores.studies.get(study.id).state is StudyState.RUNNING


def told_states(stores: Any, study: Study) -> list[str]:
    return [event.data["state"] for event in stores.studies.events(study.id) if event.kind == "study.state"]


def test_a_claim_is_told_once_its_driver_was_taken(timed_stores: Any, clock: Any) -> None:
    stores = timed_stores
    study = stores.create()
    claim = stores.reconciling.claim(study.id, 60)
    claimed_at = clock.now
    assert told_states(stores, study) == ["QUEUED"]
    assert stores.reconciling.unconfirmed_starts() == [UnconfirmedStart(claim, lives=False)]
    clock.advance(3)
    for _ in range(2):
        stores.reconciling.confirm_start(claim)
    assert told_states(stores, study) == ["QUEUED", "RUNNING"]
    running = stores.studies.get(study.id)
    assert (running.started_at, running.revision > running.exported_revision) == (claimed_at, True)
    assert stores.reconciling.unconfirmed_starts() == []


def test_a_start_that_was_refused_leaves_a_study_as_it_was(stores: Any) -> None:
    study = stores.create()
    webhook, _ = WebhookStore(stores.database).create("ada", "https://example.org/")
    for _ in range(3):
        stores.reconciling.give_back(stores.reconciling.claim(study.id, 60), "no disk")
    changes = {"waiting_reason": "no disk", "driver_attempt": 3}
    assert stores.studies.get(study.id) == study.model_copy(update=changes)
    assert told_states(stores, study) == ["QUEUED"]
    assert WebhookStore(stores.database).deliveries(webhook.id, limit=9) == []


def test_the_age_of_the_queue_goes_on_where_a_start_was_refused(timed_stores: Any, clock: Any) -> None:
    study = timed_stores.create()
    clock.advance(3600)
    timed_stores.reconciling.give_back(timed_stores.reconciling.claim(study.id, 60), "no disk")
    assert WatchingStore(timed_stores.database).look().queued.oldest_s == 3600


def test_a_start_that_its_user_steers_before_it_is_confirmed_is_told_as_it_is(stores: Any) -> None:
    stopped, paused = stores.create(), stores.create()
    claims = [stores.reconciling.claim(study.id, 60) for study in (stopped, paused)]
    stores.lifecycle.stop(stopped.id)
    stores.lifecycle.pause(paused.id)
    for claim in claims:
        stores.reconciling.confirm_start(claim)
    assert told_states(stores, stopped) == told_states(stores, paused) == ["QUEUED", "STOPPING"]
    for claim in claims:
        assert stores.reconciling.give_back(claim, "no disk")
    assert told_states(stores, stopped) == ["QUEUED", "STOPPING", "CANCELLED"]
    assert told_states(stores, paused) == ["QUEUED", "STOPPING", "PAUSED"]


@pytest.mark.parametrize("verb", ["", "pause", "stop"])
def test_a_driver_that_lives_keeps_its_study_though_its_start_was_not_answered_in_time(verb: str, stores: Any) -> None:
    study = stores.create()
    claim = stores.reconciling.claim(study.id, 60)
    driver = DrivingStore(stores.database, study.id, 1)
    driver.heartbeat(60)
    trial = stores.begin(driver)
    if verb:
        getattr(stores.lifecycle, verb)(study.id)
    assert not stores.reconciling.give_back(claim, "the Ray cluster does not answer: timed out")
    assert told_states(stores, study) == ["QUEUED", "STOPPING" if verb else "RUNNING"]
    assert stores.reconciling.unconfirmed_starts() == []
    stores.succeed(driver, trial)
    assert stores.studies.trials(study.id)[0].state is TrialState.SUCCEEDED


def test_what_a_driver_without_trials_was_to_stop_ends_with_it(timed_stores: Any, clock: Any) -> None:
    study = timed_stores.create()
    claim = timed_stores.claim(study)
    timed_stores.lifecycle.stop(study.id)
    clock.advance(3600)
    assert timed_stores.reconciling.lose_driver(claim, max_losses=5).state is StudyState.CANCELLED


def test_a_start_that_its_user_has_steered_is_unconfirmed_until_the_study_has_started(stores: Any) -> None:
    study = stores.create()
    claim = stores.reconciling.claim(study.id, 60)
    stores.lifecycle.pause(study.id)
    stores.lifecycle.resume(study.id)
    assert stores.reconciling.unconfirmed_starts() == [UnconfirmedStart(claim, lives=False)]


def test_a_start_comes_too_late_to_be_confirmed(stores: Any) -> None:
    study = stores.create()
    claim = stores.reconciling.claim(study.id, -1)
    assert stores.lose(claim).state is StudyState.QUEUED
    stores.reconciling.confirm_start(claim)
    stores.reconciling.claim(study.id, 60)
    stores.reconciling.confirm_start(claim)
    assert told_states(stores, study) == ["QUEUED"], "it is queued again, as far as anybody knows: still"
    assert stores.studies.get(study.id).started_at is None


def test_a_driver_shows_that_its_start_was_taken(stores: Any) -> None:
    study = stores.create()
    claim = stores.reconciling.claim(study.id, 60)
    DrivingStore(stores.database, study.id, 1).heartbeat(60)
    assert stores.reconciling.unconfirmed_starts() == [UnconfirmedStart(claim, lives=True)]


def test_a_study_given_back_while_it_is_cancelled_is_cancelled(stores: Any) -> None:
    study = stores.create()
    claim = stores.claim(study)
    stores.lifecycle.cancel(study.id)
    stores.reconciling.give_back(claim, "no cluster")
    assert stores.studies.get(study.id).state is StudyState.CANCELLED


def test_a_cancel_that_its_driver_does_not_carry_out_is_carried_out(timed_stores: Any, clock: Any) -> None:
    stores = timed_stores
    study, other = stores.create(), stores.create()
    driver = stores.drive(study)
    stores.drive(other)
    trial = stores.begin(driver)
    clock.advance(1)
    stores.lifecycle.cancel(study.id)
    (cancel,) = stores.reconciling.cancelling()
    assert (cancel.study_id, cancel.driver_attempt, cancel.requested_at) == (study.id, 1, clock.now)
    stores.reconciling.cancel_now(DriverClaim(study.id, 2))
    assert stores.studies.get(study.id).state is StudyState.STOPPING
    stores.reconciling.cancel_now(DriverClaim(study.id, 1))
    assert stores.studies.get(study.id).state is StudyState.CANCELLED
    assert stores.studies.trial(study.id, trial.id).state is TrialState.CANCELLED
    assert stores.reconciling.cancelling() == []
    with pytest.raises(LeaseLostError):
        driver.heartbeat(60)


def test_a_running_study_is_not_cancelled_unasked(stores: Any) -> None:
    study = stores.create()
    stores.reconciling.cancel_now(stores.claim(study))
    assert stores.studies.get(study.id).state is StudyState.RUNNING


def test_a_start_that_nobody_could_confirm_is_told_by_its_driver_as_it_ends(stores: Any) -> None:
    """The controller died between the start and its confirmation, and the driver ended before there was another one."""
    study = stores.create()
    stores.reconciling.claim(study.id, 60)
    stores.finish(DrivingStore(stores.database, study.id, 1))
    assert told_states(stores, study) == ["QUEUED", "RUNNING", "SUCCEEDED"]
    assert stores.studies.get(study.id).started_at is not None

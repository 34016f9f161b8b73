"""What users ask of a study while it runs and after: pause, resume, stop, raise its budget, enqueue, confirm, share."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from service.client import Client
from service.study import AttemptState, Purpose, Reason, StudyState, TrialState
from tests.e2e.conftest import Service, wait_until
from tests.e2e.test_the_whole_way import Tracked, spec_for, wait_for_export

RHOS = {"type": "categorical", "choices": [0.05, 0.1]}
ONE_SEED = {"seeds": [0]}
EPOCHS = 300
"""So many that a trial still trains once the other's worker has started, 2 to 3 s later, where an epoch takes 20 ms."""


def ask(client: Client, study_id: str, verb: str, **request: Any) -> httpx.Response:
    """One request about a study, as curl would send it."""
    answer = httpx.request(
        request.pop("method", "POST"), f"{client.url}/api/v1/studies/{study_id}{verb}", timeout=30, **request
    )
    assert answer.is_success, answer.text
    return answer


def wait_for_state(client: Client, study_id: str, state: StudyState) -> None:
    wait_until(lambda: client.study(study_id).state is state, what=f"the study is {state}")


def running(client: Client, study_id: str) -> int:
    return len(client.trials(study_id, states=[TrialState.RUNNING]))


def log(client: Client, study_id: str, trial_id: str, attempt: int) -> str:
    return ask(client, study_id, f"/trials/{trial_id}/logs", method="GET", params={"attempt": attempt}).text


def epochs_in(log: str) -> list[int]:
    """The epochs that an attempt has trained itself."""
    return [int(epoch) for epoch in re.findall(r"samstudy: epoch (\d+)/", log)]


def test_a_paused_study_frees_its_workers_and_goes_on_where_it_was(service: Service, client: Client) -> None:
    study = client.submit(spec_for("paused", epochs=EPOCHS, search_space={"rho": RHOS}, replicates=ONE_SEED))
    wait_until(
        lambda: all(trial.epochs_done > 3 for trial in client.trials(study.id)) and running(client, study.id) == 2,
        what="both trials report",
    )
    ask(client, study.id, "/pause")
    wait_for_state(client, study.id, StudyState.PAUSED)
    wait_until(lambda: not service.workers(), what="the workers are freed")
    paused = {trial.id: trial for trial in client.trials(study.id)}
    assert {trial.state for trial in paused.values()} == {TrialState.PAUSED}
    assert all(0 < trial.epochs_done < EPOCHS for trial in paused.values())
    assert all(trial.pending_reason for trial in client.trials(study.id))
    elapsed = client.study(study.id).elapsed_s
    assert elapsed > 0

    ask(client, study.id, "/resume")
    ended = study.wait(240)
    assert (ended.state, ended.reason, ended.driver_attempt) == (StudyState.SUCCEEDED, Reason.SPACE_EXHAUSTED, 2)
    assert ended.elapsed_s > elapsed
    for trial_id, before in paused.items():
        first, second = client.trial(study.id, trial_id).attempts
        assert (first.state, second.state) == (AttemptState.PAUSED, AttemptState.SUCCEEDED)
        results = client.results(study.id, trial_id)
        assert [result.epoch for result in results] == list(range(1, EPOCHS + 1))
        assert [result.attempt for result in results].index(2) == before.epochs_done
        begun, gone_on = (log(client, study.id, trial_id, attempt) for attempt in (1, 2))
        assert f"continues after epoch {before.epochs_done}/{EPOCHS}" in gone_on
        assert epochs_in(begun) + epochs_in(gone_on) == list(range(1, EPOCHS + 1))  # nothing was trained twice
    wait_for_export(client, study.id)
    tracked = Tracked(service, "paused")
    assert {run.info.status for run in tracked.runs()} == {"FINISHED"}
    assert len(tracked.children()) == 2


@pytest.mark.soak
def test_a_stopped_study_lets_its_running_trials_end_and_a_raised_budget_reopens_it(
    service: Service, client: Client
) -> None:
    spec = spec_for(
        "stopped",
        epochs=60,
        search_space={"rho": {"type": "float", "low": 0.01, "high": 0.5, "log": True}},
        algorithm={"name": "tpe"},
        replicates=ONE_SEED,
        budget={"max_trials": 40},
    )
    study = client.submit(spec)
    wait_until(lambda: running(client, study.id) == 2, what="two trials run")
    begun = {trial.id for trial in client.trials(study.id, states=[TrialState.RUNNING, TrialState.SUCCEEDED])}
    ask(client, study.id, "/stop")
    stopped = study.wait(60)
    assert (stopped.state, stopped.reason) == (StudyState.SUCCEEDED, Reason.USER)
    trials = {trial.id: trial for trial in client.trials(study.id)}
    assert all(trials[trial_id].state is TrialState.SUCCEEDED for trial_id in begun)
    assert len(trials) < 10

    known = len(trials)
    version = client.study(study.id).version
    budget = {"budget": {"max_trials": known + 3, "max_wallclock_s": 600}}
    refused = httpx.patch(f"{client.url}/api/v1/studies/{study.id}", json=budget, headers={"If-Match": '"77"'})
    assert refused.status_code == 412
    lowered = ask(client, study.id, "", method="PATCH", json=budget, headers={"If-Match": f'"{version}"'}).json()
    assert lowered["state"] == "SUCCEEDED"  # lower than before: nothing is reopened
    budget = {"budget": {"max_trials": known + 4}}
    ask(client, study.id, "", method="PATCH", json=budget, headers={"If-Match": "*"})
    ended = study.wait(120)
    assert (ended.state, ended.reason) == (StudyState.SUCCEEDED, Reason.MAX_TRIALS)
    after = {trial.id: trial for trial in client.trials(study.id)}
    assert len(after) == known + 4
    for trial_id in begun:
        assert (after[trial_id].attempt, after[trial_id].finished_at) == (1, trials[trial_id].finished_at)
    assert {trial.state for trial in after.values()} == {TrialState.SUCCEEDED}
    assert len({configuration.configuration.point["rho"] for configuration in study.configurations()}) == known + 4
    wait_for_export(client, study.id)
    assert len(Tracked(service, "stopped").children()) == known + 4


@pytest.mark.soak
def test_an_enqueued_point_reaches_the_running_driver(client: Client) -> None:
    spec = spec_for(
        "enqueued",
        epochs=40,
        search_space={"rho": {"type": "float", "low": 0.01, "high": 0.5}},
        algorithm={"name": "random"},
        replicates=ONE_SEED,
        budget={"max_trials": 8, "max_concurrent_trials": 1},
    )
    study = client.submit(spec)
    wait_until(lambda: running(client, study.id) == 1, what="a trial runs")
    ask(client, study.id, "/configurations", json={"point": {"rho": 0.25}})
    assert study.wait(120).state is StudyState.SUCCEEDED
    configurations = study.configurations()
    assert len(configurations) == 8
    (enqueued,) = [one for one in configurations if one.configuration.origin == "USER"]
    assert enqueued.configuration.point == {"rho": 0.25}
    assert enqueued.complete
    assert enqueued.configuration.number < 8


@pytest.mark.soak
def test_the_best_is_confirmed_on_seeds_that_the_search_never_saw(service: Service, client: Client) -> None:
    study = client.submit(spec_for("confirmed", confirm={"top_k": 1, "seeds": [10, 11, 12]})).wait(120)
    assert study.state is StudyState.SUCCEEDED
    assert study.best is not None
    assert study.best.confirmed is not None
    assert study.best.objective is not None
    assert (study.best.objective.n, study.best.confirmed.n) == (2, 3)
    trials = client.trials(study.id)
    confirming = [trial for trial in trials if trial.purpose is Purpose.CONFIRM]
    assert sorted(trial.seed for trial in confirming) == [10, 11, 12]
    assert {trial.configuration_id for trial in confirming} == {study.best.configuration.id}
    assert study.best.confirmed.mean == pytest.approx(sum(trial.objective or 0.0 for trial in confirming) / 3)
    wait_for_export(client, study.id)
    assert len(Tracked(service, "confirmed").children()) == len(trials) == 11
    client.update(study.id, confirm={"top_k": 1, "seeds": [10, 11, 12, 13]})
    again = client.handle(study.id).wait(120)
    assert again.best is not None
    assert again.best.confirmed is not None
    assert (again.state, again.best.confirmed.n) == (StudyState.SUCCEEDED, 4)
    known = {trial.id for trial in trials}
    (added,) = [trial for trial in client.trials(study.id) if trial.id not in known]
    assert (added.seed, added.configuration_id) == (13, study.best.configuration.id)
    wait_for_export(client, study.id)
    assert len(Tracked(service, "confirmed").children()) == 12


@pytest.mark.soak
def test_two_studies_share_the_cluster(client: Client) -> None:
    first = client.submit(spec_for("first-of-two", epochs=150))
    wait_until(lambda: running(client, first.id) == 2, what="the first study has both workers")
    second = client.submit(spec_for("second-of-two", epochs=150))
    wait_until(lambda: running(client, second.id) == 1 and running(client, first.id) == 1, what="each has one")
    shares = client.study(first.id).slots, client.study(second.id).slots
    assert shares == (1, 1)
    first.cancel()
    wait_until(lambda: running(client, second.id) == 2, what="the second study has the whole cluster")
    second.cancel()
    assert {first.wait(60).state, second.wait(60).state} == {StudyState.CANCELLED}


@pytest.mark.soak
def test_studies_whose_share_is_taken_give_their_workers_back(service: Service, client: Client) -> None:
    """Of one owner's studies the older ones come first: two that are resumed have the two places."""
    older = [client.submit(spec_for(f"older-{number}", epochs=EPOCHS, search_space={"rho": RHOS})) for number in (1, 2)]
    for study in older:
        study.pause()
    newer = [client.submit(spec_for(f"newer-{number}", epochs=20)) for number in (1, 2)]
    wait_until(
        lambda: all(client.trials(study.id, states=[TrialState.SUCCEEDED]) for study in newer), what="both have trained"
    )
    for study in older:
        study.resume()
    wait_until(lambda: all(running(client, study.id) == 1 for study in older), what="the older ones train")
    assert [client.study(study.id).slots for study in newer] == [0, 0]
    for study in older:
        study.cancel()
    wait_until(lambda: all(running(client, study.id) == 1 for study in newer), what="the newer ones go on")
    for study in newer:
        study.cancel()
    assert {study.wait(60).state for study in (*older, *newer)} == {StudyState.CANCELLED}


@pytest.mark.soak
def test_a_failed_trial_is_retried_alone(client: Client) -> None:
    radii = {"type": "categorical", "choices": [1e-3, 10.0]}
    spec = spec_for("retried", search_space={"rho": radii}, replicates=ONE_SEED)
    spec["train"] = {"dataset": "ridge", "model": "linear", "lr": "theory", "momentum": 0, "batch_size": 1, "epochs": 2}
    spec["objective"] = {"metric": "suboptimality", "mode": "min"}
    study = client.submit(spec)
    study.wait(120)
    sound, broken = client.trials(study.id)
    assert (sound.state, broken.state) == (TrialState.SUCCEEDED, TrialState.FAILED)
    ask(client, study.id, "/retry")
    assert study.wait(60).state is StudyState.SUCCEEDED
    after_sound, after_broken = client.trials(study.id)
    assert after_sound.finished_at == sound.finished_at
    assert (after_broken.attempt, after_broken.state) == (2, TrialState.FAILED)  # it is too large still


@pytest.mark.soak
def test_a_trial_that_trains_too_long_fails_and_the_others_go_on(client: Client) -> None:
    epochs = {"type": "categorical", "choices": [2, 20_000]}
    spec = spec_for("too-long", search_space={"epochs": epochs}, replicates=ONE_SEED, budget={"max_trial_s": 15})
    del spec["train"]["epochs"]
    study = client.submit(spec).wait(120)
    assert study.state is StudyState.SUCCEEDED
    short, long = client.trials(study.id)
    assert (short.state, long.state) == (TrialState.SUCCEEDED, TrialState.FAILED)
    assert "max_trial_s" in str(long.error)
    assert long.attempt == 1

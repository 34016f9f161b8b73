"""Running an experiment against a real API: its studies are found again, and never those that came to nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from service.client import Client
from service.reproduction import running
from service.reproduction.experiment import Experiment, Report
from service.reproduction.running import (
    EXPERIMENT_LABEL,
    ReproductionFailedError,
    collect,
    run_experiment,
    study_for,
    study_key,
)
from service.spec import parse_spec
from service.store.reports import TrialEnded
from service.study import Reason, StudyState, TrialState

if TYPE_CHECKING:
    from tests.service.conftest import Life, RunningApi


@pytest.fixture
def client(running_api: RunningApi) -> Iterator[Client]:
    with Client(running_api.url) as client:
        yield client


def an_experiment(a_spec: dict[str, Any], *parts: str, **changes: Any) -> Experiment:
    studies = {part: parse_spec({**a_spec, "name": part, **changes}) for part in parts}
    return Experiment("figure", "A figure", "about", studies, lambda _: Report("", {}))


def finish(life: Life, study_id: str) -> None:
    """As a driver would: two configurations of two seeds."""
    driver = life.start(life.studies.get(study_id))
    for lam in (0.0, 1.0):
        for trial in life.propose(driver, {"lambda": lam, "rho": 0.1}):
            life.train(driver, trial, 0.9)
    life.succeed(driver)


def test_the_same_experiment_again_takes_the_study_that_is_there(client: Client, a_spec: dict[str, Any]) -> None:
    of = an_experiment(a_spec, "a", "b")
    first = study_for(client, of, "a")
    assert study_for(client, of, "a").id == first.id
    assert study_for(client, of, "b").id != first.id
    assert len(list(client.studies(labels={EXPERIMENT_LABEL: "figure"}))) == 2
    assert first.labels["team"] == "vision"  # those of the spec stay


def test_another_spec_is_another_study(client: Client, a_spec: dict[str, Any]) -> None:
    first = study_for(client, an_experiment(a_spec, "a"), "a")
    other = an_experiment(a_spec, "a", replicates={"seeds": [5]})
    assert study_for(client, other, "a").id != first.id


def test_fresh_makes_a_new_study_which_is_then_the_one_to_take(client: Client, a_spec: dict[str, Any]) -> None:
    of = an_experiment(a_spec, "a")
    first = study_for(client, of, "a")
    second = study_for(client, of, "a", fresh=True)
    assert second.id != first.id
    assert study_for(client, of, "a").id == second.id


@pytest.mark.parametrize("gone", ["archived", "deleted"])
def test_fresh_makes_a_new_study_whatever_became_of_the_others(
    gone: str, client: Client, life: Life, a_spec: dict[str, Any]
) -> None:
    of = an_experiment(a_spec, "a")
    first, second = (study_for(client, of, "a", fresh=fresh) for fresh in (False, True))
    finish(life, first.id)
    if gone == "archived":
        client.archive(first.id)
    else:
        client.delete(first.id, delete_runs=True)
    third = study_for(client, of, "a", fresh=True)
    assert third.id not in (first.id, second.id)
    assert study_for(client, of, "a").id == third.id


def test_a_study_that_failed_and_was_archived_is_not_taken_again(client: Client, a_spec: dict[str, Any]) -> None:
    of = an_experiment(a_spec, "a")
    first = study_for(client, of, "a")
    client.cancel(first.id)
    client.archive(first.id)
    second = study_for(client, of, "a")
    assert second.id != first.id
    assert study_for(client, of, "a").id == second.id


def test_a_study_that_was_cancelled_is_not_taken_again(client: Client, a_spec: dict[str, Any]) -> None:
    of = an_experiment(a_spec, "a")
    first = study_for(client, of, "a")
    client.cancel(first.id)
    second = study_for(client, of, "a")
    assert second.id != first.id
    assert second.state is StudyState.QUEUED


def test_after_a_change_of_the_sources_the_study_is_not_taken_again(
    client: Client, a_spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    of = an_experiment(a_spec, "a")
    first = study_for(client, of, "a")
    monkeypatch.setattr(running, "sources_digest", lambda: "of other trainers")
    second = study_for(client, of, "a")
    assert second.id != first.id
    assert study_for(client, of, "a").id == second.id


def test_the_key_depends_on_experiment_part_and_spec(a_spec: dict[str, Any]) -> None:
    of = an_experiment(a_spec, "a", "b")
    other = an_experiment(a_spec, "a", allow_test_objective=True)
    assert len({study_key(of, "a"), study_key(of, "b"), study_key(other, "a")}) == 3
    assert study_key(of, "a") == study_key(an_experiment(a_spec, "a"), "a")


def test_an_experiment_answers_with_every_result_of_every_part(
    client: Client, life: Life, a_spec: dict[str, Any]
) -> None:
    results = run_experiment(client, an_experiment(a_spec, "a", "b"), watch=lambda study_id: finish(life, study_id))
    assert list(results) == ["a", "b"]
    for part, study in results.items():
        assert study.study.name == part
        assert len(study.configurations) == 2
        assert len(study.trials) == 4
        found = study.configuration({"lambda": 1, "rho": 0.1})
        assert found is not None
        runs = study.runs(found, "val_accuracy")
        # 1,149 digits in batches of 64 are 18 steps an epoch
        assert list(runs) == [0, 1]
        assert [sorted(run) for run in runs.values()] == [[18.0, 36.0, 54.0]] * 2
        assert [run[54.0] for run in runs.values()] == pytest.approx([0.9, 0.9])


def test_a_finished_experiment_is_not_run_again(client: Client, life: Life, a_spec: dict[str, Any]) -> None:
    of = an_experiment(a_spec, "a")
    first = run_experiment(client, of, watch=lambda study_id: finish(life, study_id))
    again = run_experiment(client, of)  # returns at once, because the study has ended
    assert again == first


@pytest.mark.parametrize(("most", "is_refused"), [(0, True), (5, False)])
def test_a_run_that_diverged_is_in_no_mean_where_none_was_to_fail(
    client: Client, life: Life, a_spec: dict[str, Any], most: int, is_refused: bool
) -> None:
    study = life.create(**{**a_spec, "budget": {"max_failed_trials": most}})
    driver = life.start(study)
    first, second = life.propose(driver, {"lambda": 0.5, "rho": 0.1})
    life.train(driver, first, 0.9)
    life.begin(driver, second)
    said = "training diverged: val_loss is nan in epoch 1"
    driver.record([TrialEnded(second.id, 1, TrialState.EARLY_STOPPED, None, note=said)])
    driver.finish(StudyState.SUCCEEDED, Reason.SPACE_EXHAUSTED, known=driver.snapshot().known)
    if is_refused:
        with pytest.raises(ReproductionFailedError, match=f"1 of the 2 trials .* {second.id} is EARLY_STOPPED: {said}"):
            collect(client, study.id)
    else:
        assert collect(client, study.id).not_succeeded == 1


def test_a_study_that_fails_is_said_with_its_error(client: Client, life: Life, a_spec: dict[str, Any]) -> None:
    study = life.create(**a_spec)
    driver = life.start(study)
    driver.finish(StudyState.FAILED, Reason.TOO_MANY_FAILURES, "too many trials failed", known=driver.snapshot().known)
    with pytest.raises(ReproductionFailedError, match=rf"{study.id} .* is FAILED: too many trials failed"):
        collect(client, study.id)

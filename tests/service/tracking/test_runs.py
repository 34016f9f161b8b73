"""What the runs hold, and what a person reads there, without MLflow."""

from __future__ import annotations

from typing import Any

import pytest

from service.analysis.aggregation import ConfigurationResult, aggregate
from service.spec import StudySpec, parse_spec
from service.store.database import Database
from service.store.exporting import ExportStore
from service.store.lifecycle import LifecycleStore
from service.store.reports import AttemptPaused, TrialEnded
from service.study import Study, StudyState, TrialState
from service.tracking import runs
from service.tracking.files import configurations_csv
from service.tracking.limits import MAX_TAG
from service.tracking.summary import summary
from tests.service.conftest import Life


def test_parameters_of_a_study_leave_out_what_may_change(a_spec: dict[str, Any]) -> None:
    params = runs.study_params(parse_spec({**a_spec, "budget": {"max_trials": 40}}))
    assert params["train.dataset"] == "digits"
    assert params["search_space"] == "paper_lambda_rho"
    assert params["replicates.seeds"] == "[0, 1]"
    assert not [name for name in params if name.startswith(("budget", "labels", "description"))]


def test_a_parameter_of_an_inline_space_is_one_text(a_spec: dict[str, Any]) -> None:
    space = {"rho": {"type": "categorical", "choices": [0.1, 0.2]}}
    params = runs.study_params(parse_spec({**a_spec, "search_space": space}))
    assert '"choices": [0.1, 0.2]' in params["search_space.rho"]


def test_every_state_has_a_status_of_mlflow() -> None:
    assert set(runs._TRIAL_STATUS) == set(TrialState)
    assert set(runs._STUDY_STATUS) == set(StudyState)


def test_a_running_study_has_tags_and_no_metrics_of_a_best_configuration(life: Life, a_spec: dict[str, Any]) -> None:
    study = life.create()
    driver = life.start(study)
    for trial in life.propose(driver, {"lambda": 0.5, "rho": 0.1}):
        life.train(driver, trial, 0.9)
    content = runs.study_content(
        life.studies.get(study.id),
        parse_spec(study.spec),
        aggregate(life.studies.configurations(study.id), life.studies.trials(study.id)),
    )
    assert content.metrics == []
    assert content.tags["samstudy.state"] == "RUNNING"
    assert content.tags["samstudy.trials.succeeded"] == "2"
    assert content.tags["best.lambda"] == "0.5"


def test_a_count_that_fell_to_zero_is_written_as_zero(life: Life, a_spec: dict[str, Any]) -> None:
    study = life.create()
    driver = life.start(study)
    trials = life.propose(driver, {"lambda": 0.5, "rho": 0.1})

    def pending() -> str:
        results = aggregate(life.studies.configurations(study.id), life.studies.trials(study.id))
        return runs.study_content(life.studies.get(study.id), parse_spec(study.spec), results).tags[
            "samstudy.trials.pending"
        ]

    assert pending() == "2"
    for trial in trials:
        life.train(driver, trial, 0.9)
    assert pending() == "0"


def test_the_summary_of_a_large_study_fits_into_a_tag_and_shows_the_ten_best(life: Life) -> None:
    grid = {(number / 100, 0.1): (0.5 + number / 1000,) for number in range(30)}
    space = {
        "lambda": {"type": "float", "low": 0.0, "high": 1.0},
        "rho": {"type": "float", "low": 0.01, "high": 0.5},
    }
    study = life.finished(
        grid,
        search_space=space,
        algorithm={"name": "random"},
        replicates={"seeds": [0]},
        budget={"max_trials": 30},
        description="x" * 2_000,
    )
    results = aggregate(life.studies.configurations(study.id), life.studies.trials(study.id))
    text = summary(study, parse_spec(study.spec), results)
    assert len(text) <= MAX_TAG
    assert text.count("\n| 0.") == 10
    assert "the best 10 of 30" in text
    assert "**Best: λ = 0.29, ρ = 0.1**" in text


def test_text_of_a_user_is_no_markdown(life: Life) -> None:
    study = life.finished({("1/t", 0.1): (0.5, 0.6)})
    results = aggregate(life.studies.configurations(study.id), life.studies.trials(study.id))
    text = summary(study, parse_spec(study.spec), results)
    assert "val\\_accuracy" in text


def test_a_table_has_a_line_for_each_configuration_and_gaps_where_nothing_is_known(life: Life) -> None:
    study = life.create()
    driver = life.start(study)
    first, second = life.propose(driver, {"lambda": 0.5, "rho": 0.1})
    life.train(driver, first, 0.9)
    life.fail(driver, second)
    life.propose(driver, {"lambda": "1/t", "rho": 0.1})
    table = configurations_csv(
        aggregate(life.studies.configurations(study.id), life.studies.trials(study.id))
    ).splitlines()
    assert table[0].startswith("number,id,lambda,rho,complete,trials_pending,trials_succeeded,trials_failed,objective_")
    assert f"1,{study.id}-1,0.5,0.1,False,0,1,1,0.9,,1,,,0.9," in table[1]
    assert f"2,{study.id}-2,1/t,0.1,False,2,0,0,,,,,," in table[2]


class TestConfirmed:
    def study(
        self, life: Life, fresh: tuple[float | None, ...] = (0.6, 0.6), *, number: int = 1
    ) -> tuple[Study, StudySpec, list[ConfigurationResult]]:
        """fresh: what the trials came to that confirm the configuration of this number; None: the trial failed."""
        study = life.create(confirm={"top_k": 1, "seeds": [7, 8]})
        driver = life.start(study)
        for lam, accuracy in ((0.0, 0.7), (1.0, 0.9)):
            for trial in life.propose(driver, {"lambda": lam, "rho": 0.1}):
                life.train(driver, trial, accuracy)
        life.run(driver, driver.add_confirming_trials(f"{study.id}-{number}", [7, 8]), fresh)
        life.succeed(driver)
        results = aggregate(life.studies.configurations(study.id), life.studies.trials(study.id))
        return life.studies.get(study.id), parse_spec(study.spec), results

    def test_both_numbers_of_the_best_are_metrics(self, life: Life) -> None:
        content = runs.study_content(*self.study(life))
        metrics = {point.key: point.value for point in content.metrics}
        assert metrics["objective_mean"] == pytest.approx(0.7)
        assert metrics["objective_confirmed_mean"] == pytest.approx(0.6)
        assert metrics["objective_confirmed_n"] == 2
        assert "objective_confirmed_std" in metrics
        assert (content.tags["best.lambda"], content.tags["best.by"]) == ("0", "confirmed")
        assert "best.confirmation" not in content.tags

    def test_so_are_the_other_metrics_on_fresh_seeds(self, life: Life) -> None:
        study, spec, results = self.study(life)
        metrics = {point.key: point.value for point in runs.study_content(study, spec, results).metrics}
        assert metrics["val_accuracy_mean"] == pytest.approx(0.7)
        assert metrics["val_accuracy_confirmed_mean"] == pytest.approx(0.6)
        assert metrics["val_accuracy_confirmed_n"] == 2
        assert metrics.keys() <= runs.summary_metrics(results), "else they stayed after the best has changed"

    @pytest.mark.parametrize(
        ("fresh", "by", "said", "n"),
        [
            ((0.6, None), "confirmed", "1 of 2 trials failed", "1/2"),
            ((None,) * 2, "search", "2 of 2 trials failed", "0/2"),
        ],
    )
    def test_a_confirmation_that_failed_is_told(
        self, life: Life, fresh: tuple[float | None, ...], by: str, said: str, n: str
    ) -> None:
        study, spec, results = self.study(life, fresh, number=2)
        tags = runs.study_content(study, spec, results).tags
        assert (tags["best.by"], tags["best.confirmation"]) == (by, said)
        assert "best.confirmation" in runs.passing_study_tags(tags, spec)
        text = summary(study, spec, results)
        assert f"90.0 ± 0.0 (n = 2) in the search. Confirmation: {said}." in text
        assert f"| {n} |" in text
        head, _, second = (line.split(",") for line in configurations_csv(results).splitlines())
        row = dict(zip(head, second, strict=True))
        assert (row["confirming_trials"], row["objective_seed_8"]) == ("2", "")

    def test_both_are_in_the_summary_and_in_the_table(self, life: Life) -> None:
        study, spec, results = self.study(life)
        text = summary(study, spec, results)
        assert "60.0 ± 0.0 (n = 2) on seeds that the search never saw, 70.0 ± 0.0 (n = 2) in the search" in text
        assert "| confirmed | n |" in text
        head, first, second = (line.split(",") for line in configurations_csv(results).splitlines())
        assert dict(zip(head, first, strict=True))["objective_confirmed_mean"] == "0.6"
        assert dict(zip(head, first, strict=True))["objective_seed_8"] == "0.6"
        assert dict(zip(head, first, strict=True))["val_accuracy_confirmed_mean"] == "0.6"
        assert dict(zip(head, second, strict=True))["objective_confirmed_mean"] == ""


def test_a_trial_says_what_it_is_for_and_why_it_was_stopped(life: Life, database: Database) -> None:
    study = life.create()
    driver = life.start(study)
    first, second = life.propose(driver, {"lambda": 0.0, "rho": 0.1})
    life.begin(driver, first)
    driver.record([TrialEnded(first.id, 1, TrialState.EARLY_STOPPED, 0.5, note="behind 3 others")])
    life.fail(driver, second)

    def tags(number: int) -> dict[str, str]:
        backlog = ExportStore(database).backlog(study.id, max_trials=10)
        assert backlog is not None
        return runs.trial_content(backlog.study, backlog.trials[number], "parent").tags

    assert (tags(0)["samstudy.purpose"], tags(0)["samstudy.note"]) == ("SEARCH", "behind 3 others")
    assert "samstudy.error" not in tags(0)
    assert "ValueError: no" in tags(1)["samstudy.error"]
    life.succeed(driver)
    LifecycleStore(database).retry(study.id)
    assert "samstudy.error" not in tags(1)
    driver = life.start(study)
    life.begin(driver, second, 2)
    driver.record([TrialEnded(second.id, 2, TrialState.SUCCEEDED, 0.7)])
    assert tags(1)["samstudy.state"] == "SUCCEEDED"
    assert "samstudy.error" not in tags(1)


def test_a_paused_study_is_scheduled_in_mlflow(life: Life, database: Database) -> None:
    study = life.create()
    driver = life.start(study)
    trial, _ = life.propose(driver, {"lambda": 0.0, "rho": 0.1})
    life.begin(driver, trial)
    LifecycleStore(database).pause(study.id)
    driver.record([AttemptPaused(trial.id, 1)])
    driver.leave()
    assert runs.study_status(life.studies.get(study.id)) == "SCHEDULED"
    assert runs.trial_status(life.studies.trial(study.id, trial.id)) == "SCHEDULED"

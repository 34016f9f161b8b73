"""What the runs hold, and what a person reads there, without MLflow."""

from __future__ import annotations

from typing import Any

import pytest

from service.analysis.aggregation import aggregate
from service.spec import parse_spec
from service.study import TrialState
from service.tracking import runs
from service.tracking.files import configurations_csv, surface_axes
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


@pytest.mark.parametrize(
    ("parameters", "axes"),
    [
        (["sampling", "rho", "lambda"], ("lambda", "rho")),
        (["lr", "rho"], ("rho", "lr")),
        (["lr", "momentum", "epochs"], ("lr", "momentum")),
        (["lambda"], None),
    ],
)
def test_lambda_and_rho_span_the_surface_where_they_are_searched(
    parameters: list[str], axes: tuple[str, str] | None
) -> None:
    assert surface_axes(parameters) == axes

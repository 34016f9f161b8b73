"""What the experiments ask of the service: sound studies, in the published setting where they say so."""

from __future__ import annotations

from typing import Any

import pytest

from search_spaces import SearchSpace
from service.reproduction import ExperimentName, Scale
from service.reproduction.catalog import experiment
from service.reproduction.experiment import Experiment
from service.spec import StudySpec, parse_spec, plan
from trainers.catalog import facts_of


def every_experiment() -> list[Experiment]:
    return [experiment(name, scale) for name in ExperimentName for scale in Scale]


def values_of(spec: StudySpec, name: str) -> list[Any]:
    assert isinstance(spec.search_space, SearchSpace)
    return list(spec.search_space.parameters[name].ends())


def trials(of: Experiment) -> int:
    return sum(plan(spec).trials for spec in of.studies.values())


@pytest.mark.parametrize("name", list(ExperimentName))
@pytest.mark.parametrize("scale", list(Scale))
def test_every_study_can_be_submitted_as_it_is(name: ExperimentName, scale: Scale) -> None:
    for spec in experiment(name, scale).studies.values():
        assert parse_spec(spec.to_mapping()) == spec


def test_files_of_different_experiments_have_different_names() -> None:
    names = {of.name for of in every_experiment()}
    assert names == {
        "figure-lambda-sweep",  # the figures are the same at both scales
        "figure-constant-vs-decreasing",
        "figure-importance",
        "table-lambda-rho",
        "table-lambda-rho-paper",
    }


def test_checkpoints_lie_at_epochs_that_are_reported() -> None:
    for of in every_experiment():
        for spec in of.studies.values():
            assert spec.checkpoint.every_epochs % int(spec.train.get("report_every_epochs", 1)) == 0


def test_the_sweep_takes_full_gradients_of_a_problem_without_noise() -> None:
    (spec,) = experiment(ExperimentName.LAMBDA_SWEEP, Scale.SMALL).studies.values()
    assert values_of(spec, "lambda") == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert spec.train["batch_size"] == spec.train["n_samples"] == spec.train["n_features"] == 100
    assert (spec.train["targets"], spec.train["regulariser"], spec.train["spectrum"]) == ("consistent", 0, "geometric")
    assert (spec.train["epochs"], spec.train["condition_number"]) == (10_000, 10)
    assert (spec.train["lr"], spec.train["rho"]) == ("theory", "theory")


@pytest.mark.parametrize("scale", list(Scale))
def test_constant_and_decreasing_steps_differ_in_both_schedules_and_nothing_else(scale: Scale) -> None:
    studies = experiment(ExperimentName.CONSTANT_VS_DECREASING, scale).studies
    constant, decreasing = (dict(studies[part].train) for part in ("constant", "decreasing"))
    assert (constant.pop("lr_schedule"), decreasing.pop("lr_schedule")) == ("constant", "decreasing")
    assert (constant.pop("rho_schedule"), decreasing.pop("rho_schedule")) == ("constant", "decreasing")
    assert constant == decreasing
    assert (constant["batch_size"], constant["sampling"]) == (1, "uniform_with_replacement")
    assert constant["epochs"] * 100 == 1_000_000
    for spec in studies.values():
        assert values_of(spec, "lambda") == [0.0, 0.5, 1.0]
        assert len(spec.replicates.seeds) == 5


@pytest.mark.parametrize("scale", list(Scale))
def test_importance_is_compared_on_the_default_problem_one_index_a_step(scale: Scale) -> None:
    (spec,) = experiment(ExperimentName.IMPORTANCE, scale).studies.values()
    assert values_of(spec, "sampling") == ["uniform_with_replacement", "lipschitz"]
    assert values_of(spec, "lambda") == [0.0, 0.5, 1.0]
    assert (spec.train["batch_size"], spec.train["epochs"] * 100) == (1, 300_000)
    assert len(spec.replicates.seeds) == 5
    config = spec.train_config({"sampling": "lipschitz", "lambda": 0.5}, seed=0)
    assert (config.dataset, config.spectrum, config.targets, config.regulariser) == (
        "ridge",
        "outlier",
        "independent",
        "auto",
    )


@pytest.mark.parametrize("scale", list(Scale))
def test_the_table_has_five_lambdas_four_rhos_three_seeds_and_sgd(scale: Scale) -> None:
    of = experiment(ExperimentName.LAMBDA_RHO, scale)
    assert trials(of) == 63
    assert values_of(of.studies["grid"], "lambda") == [0.0, 0.5, 1.0, "1/t", "1-1/t"]
    assert values_of(of.studies["grid"], "rho") == [0.1, 0.2, 0.3, 0.4]
    assert values_of(of.studies["sgd"], "rho") == [0.0]
    assert of.studies["sgd"].train == of.studies["grid"].train
    assert of.studies["grid"].train["momentum"] == 0.9
    assert of.studies["grid"].train["weight_decay"] == 5e-4


def test_the_table_at_paper_scale_is_the_published_network_on_the_published_data_on_a_gpu() -> None:
    spec = experiment(ExperimentName.LAMBDA_RHO, Scale.PAPER).studies["grid"]
    assert (spec.train["model"], spec.train["dataset"], spec.train["epochs"]) == ("wrn_28_10", "cifar10", 200)
    assert spec.resources_per_trial.gpu == 1
    assert "not stated by them" in experiment(ExperimentName.LAMBDA_RHO, Scale.PAPER).about.lower()


def test_the_table_at_paper_scale_learns_from_all_images_and_says_what_is_not_run() -> None:
    of = experiment(ExperimentName.LAMBDA_RHO, Scale.PAPER)
    for study in of.studies.values():
        config = study.train_config(
            {"rho": 0.1, "lambda": 0.5} if "lambda" in study.space.parameters else {"rho": 0}, 0
        )
        assert facts_of(config.to_mapping()).train_size == 50_000
        assert study.objective.metric == "test_accuracy"
    for said in ("on all 50,000 training images", "PreActResNet-18 and CIFAR-100, are not run"):
        assert said in of.extent


@pytest.mark.parametrize(
    ("name", "small", "paper"),
    [
        (ExperimentName.LAMBDA_SWEEP, "nothing is left out", "nothing is left out"),
        (
            ExperimentName.CONSTANT_VS_DECREASING,
            "all 1,000,000 steps and all 5 runs of the authors' notebook",
            "all 1,000,000 steps and all 5 runs",
        ),
        (
            ExperimentName.IMPORTANCE,
            "all 300,000 steps and all 5 runs of the authors' notebook",
            "all 300,000 steps and all 5 runs",
        ),
        (ExperimentName.LAMBDA_RHO, "small_cnn and 5 epochs of 6,000 images of Fashion-MNIST", "WRN-28-10 on CIFAR-10"),
    ],
)
def test_how_much_of_the_published_setting_is_run_is_said(name: ExperimentName, small: str, paper: str) -> None:
    assert small in experiment(name, Scale.SMALL).extent
    assert paper in experiment(name, Scale.PAPER).extent


def test_the_small_table_says_that_it_is_on_other_data() -> None:
    of = experiment(ExperimentName.LAMBDA_RHO, Scale.SMALL)
    assert of.studies["grid"].train["dataset"] == "fashion_mnist"
    assert "with another network on other data" in of.about

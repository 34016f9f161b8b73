from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from search_spaces import NAMED_SPACES
from service.errors import InvalidSpecError
from service.spec import AshaScheduler, Plan, StudySpec, accepted_spec, load_spec, parse_spec, plan, stored_plan

EXAMPLES = Path(__file__).parents[2] / "examples"
FLOAT = {"type": "float", "low": 0.01, "high": 0.5}


def raw_spec(**changes: Any) -> dict[str, Any]:
    objective = {"metric": "val_accuracy", "mode": "max"}
    return {"name": "s", "search_space": "paper_lambda_rho", "objective": objective, **changes}


def problems(raw: object) -> dict[str, str]:
    """Message by field of everything that is wrong with the spec."""
    with pytest.raises(InvalidSpecError) as caught:
        parse_spec(raw)
    found = [(problem.field, problem.message) for problem in caught.value.problems]
    assert len(found) == len(set(found))
    return dict(found)


def space(**parameters: Any) -> dict[str, Any]:
    return raw_spec(search_space=parameters, algorithm={"name": "random"}, budget={"max_trials": 4})


def choice(*choices: object) -> dict[str, Any]:
    return {"type": "categorical", "choices": list(choices)}


def test_three_lines_make_a_spec() -> None:
    spec = parse_spec(raw_spec())
    assert plan(spec) == Plan(configurations=20, trials=20)
    assert spec.space is NAMED_SPACES["paper_lambda_rho"].space
    assert spec.configuration_budget() is None


def test_every_problem_comes_in_one_answer() -> None:
    raw = raw_spec(
        lables={},
        search_space={"rho": {"type": "float", "low": 2, "high": 1}, "lamda": choice(0.5)},
        objective={"metric": "val_acuracy", "mode": "max", "targt": 1},
        train={"epoch": 3, "lr": 0},
        algorithm={"name": "gp"},
        replicates={"seeds": [0, 1, 0]},
        budget={"max_trials": 0, "max_gpu_hours": -2},
    )
    found = problems(raw)
    assert found.pop("objective.metric").startswith("trials on digits do not report 'val_acuracy'; did you mean")
    assert found == {
        "lables": "unknown key 'lables'; did you mean 'labels'?",
        "search_space.rho.low": "low must be at most high, got low 2.0 and high 1.0",
        "search_space.lamda": "unknown field 'lamda'; did you mean 'lambda'?",
        "objective.targt": "unknown key 'targt'; did you mean 'target'?",
        "train.epoch": "unknown field 'epoch'; did you mean 'epochs'?",
        "train.lr": "lr must be a number above 0 or 'theory', got 0",
        "algorithm.name": "algorithm 'gp' is not there yet; those that are: grid, random, qmc, tpe",
        "replicates.seeds[2]": "every seed must be there once, and 0 is there before",
        "budget.max_trials": "must be at least 1, got 0",
        "budget.max_gpu_hours": "must be above 0, got -2",
    }


def test_unreadable_values_do_not_hide_the_rest() -> None:
    found = problems(raw_spec(name=float("nan"), labels={1: "a"}, train={"lr": 10**400, "epochs": "3"}))
    assert set(found) == {"name", "labels", "train.lr", "train.epochs"}
    assert found["name"] == "must be a finite number, got nan"
    assert found["labels"] == "a key must be text, got 1; put it in quotes"


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"name": ""}, "name", "must not be empty"),
        ({"name": "x" * 101}, "name", "at most 100 characters long, got 101"),
        ({"name": " x"}, "name", "begin or end with a blank"),
        ({"name": "a\nb"}, "name", "line breaks"),
        ({"name": "a/b"}, "name", "slash"),
        ({"name": "."}, "name", "dots only"),
        ({"name": ".."}, "name", "dots only"),
        ({"name": "......"}, "name", "dots only"),
        ({"name": "%2e%2e"}, "name", "must not contain %2e"),
        ({"name": "a%2fb"}, "name", "must not contain %2f"),
        ({"name": "a%5Cb"}, "name", "must not contain %5C"),
        ({"name": 3}, "name", "must be text, got 3"),
        ({"name": "\ud800"}, "name", "surrogate"),
        ({"description": "x" * 2001}, "description", "at most 2,000"),
        ({"description": "bell \x07"}, "description", "control"),
        ({"labels": {"k": 1}}, "labels.k", "must be text, got 1"),
        ({"labels": {"k": "\n"}}, "labels.k", "line breaks"),
        ({"labels": {"": "v"}}, "labels.''", "1 to 63"),
        ({"labels": {"team ": "v"}}, "labels.team ", "must not begin or end with a blank"),
        ({"labels": {"a:b": "v"}}, "labels.a:b", "must not contain ':'"),
        ({"labels": {str(index): "" for index in range(33)}}, "labels", "at most 32 entries, got 33"),
        ({"train": {"seed": 1}}, "train.seed", "replicates.seeds"),
        ({"train": {"epochs": True}}, "train.epochs", "got True"),
        ({"train": {"epochs": [1]}}, "train.epochs", "text, a number or a boolean"),
        ({"train": 3}, "train", "must be a mapping"),
        ({"train": {"lambda": 0.5}}, "search_space.lambda", "fixed in train too"),
        ({"train": {"model": "small_cnn", "batch_size": 1150}}, "train.batch_size", "at most 1149"),
        ({"search_space": "paper_lambda"}, "search_space", "did you mean 'paper_lambda_rho'?"),
        ({"search_space": {}}, "search_space", "at least one parameter"),
        ({"search_space": None}, "search_space", "must be the name"),
        ({"search_space": "lambda_rho_continuous"}, "search_space", "a grid needs a step for rho"),
        ({"objective": [{"metric": "a"}]}, "objective", "several objectives are not supported yet"),
        ({"objective": {"metric": "val_loss"}}, "objective.mode", "is required"),
        (
            {"objective": {"metric": "val_accuracy", "mode": "max", "target": 90}},
            "objective.target",
            "must be between 0 and 1, as an accuracy is (90 % is 0.9), got 90.0",
        ),
        (
            {"confirm": {"top_k": 600, "seeds": list(range(1, 21))}},
            "confirm.top_k",
            "must be at most 500 with 20 seeds, as a study has at most 10,000 trials that confirm its best, got 600",
        ),
        (
            {"search_space": {"batch_size": {"type": "int", "low": 16, "high": 128, "log": True}}},
            "search_space.batch_size.log",
            "a grid has every step of batch_size, with log too",
        ),
        ({"objective": {"metric": "val_loss", "mode": "down"}}, "objective.mode", "one of 'max', 'min'"),
        ({"scheduler": {"name": "pbt"}}, "scheduler.name", "those that are: none, asha, hyperband, median"),
        ({"scheduler": {"name": "foo"}}, "scheduler.name", "must be one of 'none', 'asha', 'hyperband', 'median', got"),
        ({"scheduler": {"name": "hyperband", "brackets": 4}}, "scheduler.brackets", "begins to at 1 · 3^3 = 27"),
        ({"scheduler": {"name": "hyperband", "brackets": 0}}, "scheduler.brackets", "must be at least 1, got 0"),
        ({"scheduler": {"name": "median", "grace_period": 21}}, "scheduler.grace_period", "at most the 20 epochs"),
        ({"scheduler": {"name": "median", "min_trials": 0}}, "scheduler.min_trials", "must be at least 1, got 0"),
        ({"scheduler": {}}, "scheduler.name", "is required"),
        ({"scheduler": {"name": "none", "grace_period": 1}}, "scheduler.grace_period", "unknown key"),
        ({"scheduler": {"name": "asha", "grace_period": 21}}, "scheduler.grace_period", "at most the 20 epochs"),
        ({"replicates": {"seeds": []}}, "replicates.seeds", "must not be empty"),
        ({"replicates": {"seeds": [True]}}, "replicates.seeds[0]", "must be an integer, got True"),
        ({"replicates": {"seeds": [-1]}}, "replicates.seeds[0]", "at least 0, got -1"),
        ({"replicates": {"seeds": [2**32]}}, "replicates.seeds[0]", "at most 4,294,967,295, got 4294967296"),
        (
            {"replicates": {"seeds": [1, 2, 3]}, "budget": {"max_trials": 61}},
            "budget.max_trials",
            "must be a multiple of 3, the number of seeds, got 61 (remainder 1)",
        ),
        ({"algorithm": {"name": "tpe"}}, "budget.max_trials", "tpe needs a number of trials"),
        ({"budget": {"max_wallclock_s": 0}}, "budget.max_wallclock_s", "must be above 0, got 0"),
        ({"resources_per_trial": {"cpu": 0}}, "resources_per_trial.cpu", "must be above 0, got 0"),
        ({"resources_per_trial": {"cpu": 1e-11}}, "resources_per_trial.cpu", "multiple of 0.0001, got 1e-11"),
        ({"resources_per_trial": {"gpu": 1e-320}}, "resources_per_trial.gpu", "multiple of 0.0001, got 1e-320"),
        ({"resources_per_trial": {"gpu": 1.5}}, "resources_per_trial.gpu", "whole number, got 1.5"),
        ({"train": {"device": "cuda"}}, "resources_per_trial.gpu", "device cuda needs a gpu"),
        (
            {"checkpoint": {"keep": "first"}},
            "checkpoint.keep",
            "one of 'latest', 'best', 'latest_and_best', 'none', got 'first'",
        ),
        ({"checkpoint": {"every_epochs": -1}}, "checkpoint.every_epochs", "at least 0"),
        ({"failure": []}, "failure", "must be a mapping"),
        ({"allow_test_objective": "yes"}, "allow_test_objective", "true or false"),
    ],
)
def test_a_problem_is_named_with_its_field_and_rule(changes: dict[str, Any], field: str, words: str) -> None:
    found = problems(raw_spec(**changes))
    assert words in found.get(field, ""), found
    assert len(found) == 1


@pytest.mark.parametrize(
    ("parameters", "field", "words"),
    [
        ({"seed": choice(1, 2)}, "search_space.seed", "replicates.seeds"),
        ({"rho": {**FLOAT, "low": -1}}, "search_space.rho.low", "at least 0 or 'theory', got -1.0"),
        ({"lambda": {**FLOAT, "high": 1.5}}, "search_space.lambda.high", "got 1.5"),
        ({"lambda": choice(0.5, "2/t")}, "search_space.lambda.choices[1]", "got '2/t'"),
        ({"epochs": FLOAT}, "search_space.epochs.type", "takes integers"),
        ({"dataset": FLOAT}, "search_space.dataset.type", "must be categorical"),
        ({"rho": {"low": 0, "high": 1}}, "search_space.rho.type", "is required"),
        ({"rho": 3}, "search_space.rho", "must be a mapping"),
        ({"rho": {**FLOAT, "type": "real"}}, "search_space.rho.type", "got 'real'"),
        ({"rho": {**FLOAT, "low": "x"}}, "search_space.rho.low", "must be a number, got 'x'"),
        ({"rho": {**FLOAT, "when": {"lamda": [1]}}, "lambda": choice(1)}, "search_space.rho.when.lamda", "'lambda'"),
        ({"dataset": choice("digits", "ridge")}, "search_space.dataset", "mlp does not do regression"),
        ({"batch_size": {"type": "int", "low": 8, "high": 1150}}, "search_space.batch_size", "got 1150"),
    ],
)
def test_a_space_must_fit_the_training_configuration(parameters: dict[str, Any], field: str, words: str) -> None:
    assert words in problems(space(**parameters)).get(field, "")


def test_a_default_that_does_not_fit_is_named_as_one() -> None:
    raw = raw_spec(train={"dataset": "ridge"}, objective={"metric": "val_loss", "mode": "min"})
    message = "mlp does not do regression, the task of ridge (mlp is the default)"
    assert problems(raw) == {"train.model": message}


def test_a_combination_is_refused_only_where_the_space_allows_it() -> None:
    both = {"dataset": choice("digits", "ridge"), "model": choice("linear", "mlp")}
    objective = {"metric": "val_loss", "mode": "min"}
    assert set(problems({**space(**both), "objective": objective})) == {"search_space.model"}
    both["model"] = {**choice("mlp"), "when": {"dataset": ["digits"]}}
    assert set(problems({**space(**both), "objective": objective})) == {"search_space.model"}
    both = {"dataset": choice("digits", "ridge"), "model": choice("linear")}
    assert parse_spec({**space(**both), "objective": objective}).objective.metric == "val_loss"


def test_the_metric_must_be_reported_on_every_dataset_in_play() -> None:
    raw = {**space(dataset=choice("digits", "ridge")), "train": {"model": "linear"}}
    message = problems(raw)["objective.metric"]
    assert message.startswith("trials on digits and ridge do not report 'val_accuracy'")
    assert "val_loss" in message


def test_a_large_space_of_ordinary_fields_is_checked_without_walking_all_its_combinations() -> None:
    """Each rule is asked about the combinations of its own few fields only."""
    parameters = {
        "lambda": choice(0.0, 0.5, 1.0, "1/t", "1-1/t"),
        **dict.fromkeys(("rho", "lr", "momentum", "weight_decay"), FLOAT),
        "batch_size": choice(16, 32, 64, 128),
        "sampling": choice("uniform", "nice", "lipschitz", "gradient_norm", "loss"),
        "optimizer": choice("sgd", "adamw"),
        "lr_schedule": choice("constant", "cosine", "linear", "step"),
        "perturbation": choice("l2", "adaptive"),
    }
    raw = {**space(**parameters), "algorithm": {"name": "random"}, "budget": {"max_trials": 30}}
    assert parse_spec(raw).configuration_budget() is not None


def test_theory_among_the_choices_is_checked_where_it_can_be_chosen() -> None:
    parameters = {"rho": choice("theory", 0.1), "momentum": choice(0.0, 0.9)}
    raw = {**space(**parameters), "train": {"dataset": "ridge", "model": "linear", "batch_size": 1, "lambda": 0.5}}
    assert "momentum must be 0 with rho theory, got 0.9" in problems(raw)["search_space.momentum"]


def test_a_test_metric_must_be_asked_for_and_has_no_best_epoch() -> None:
    objective = {"metric": "test_accuracy", "mode": "max"}
    assert "allow_test_objective: true" in problems(raw_spec(objective=objective))["objective.metric"]
    assert parse_spec(raw_spec(objective=objective, allow_test_objective=True))
    best = raw_spec(objective={**objective, "at": "best"}, allow_test_objective=True)
    assert set(problems(best)) == {"objective.at"}
    pruned = raw_spec(objective=objective, allow_test_objective=True, scheduler={"name": "asha"})
    assert set(problems(pruned)) == {"objective.metric"}


def test_asha_needs_results_at_the_same_epochs() -> None:
    raw = raw_spec(
        scheduler={"name": "asha"}, search_space={"report_every_epochs": choice(1, 2)}, train={"dataset": "digits"}
    )
    assert "fix report_every_epochs in train" in problems(raw)["search_space.report_every_epochs"]
    raw = raw_spec(scheduler={"name": "asha", "grace_period": 2}, train={"report_every_epochs": 3})
    assert "at least the 3 epochs between two results" in problems(raw)["scheduler.grace_period"]


def test_asha_needs_one_number_of_epochs() -> None:
    raw = {**space(epochs={"type": "int", "low": 1, "high": 9}), "scheduler": {"name": "asha"}}
    assert set(problems(raw)) == {"search_space.epochs"}


def test_a_grid_too_large_to_be_meant_needs_a_number_of_trials() -> None:
    steps = {"type": "float", "low": 0.0, "high": 1.0, "step": 0.001}
    grid = {"lambda": steps, "rho": steps}
    assert "at most 10,000 trials, got 1,002,001" in problems(raw_spec(search_space=grid))["budget.max_trials"]
    spec = parse_spec(raw_spec(search_space=grid, budget={"max_trials": 12}, replicates={"seeds": [3, 4]}))
    assert plan(spec) == Plan(configurations=6, trials=12)
    assert spec.configuration_budget() == 6


def test_a_budget_above_the_grid_is_the_grid() -> None:
    assert plan(parse_spec(raw_spec(budget={"max_trials": 1000}))) == Plan(20, 20)


def test_a_trial_trains_with_the_fixed_fields_the_point_and_the_seed() -> None:
    spec = parse_spec(raw_spec(train={"epochs": 3}))
    config = spec.train_config({"lambda": "1/t", "rho": 0.2}, seed=7)
    assert (config.epochs, config.lam, config.rho, config.seed) == (3, "1/t", 0.2, 7)


def test_no_invalid_spec_exists_however_it_was_made() -> None:
    with pytest.raises(ValidationError, match="remainder 1"):
        StudySpec.model_validate(raw_spec(budget={"max_trials": 3}, replicates={"seeds": [0, 1]}))


@pytest.mark.parametrize("body", [None, 3, "name: x", [], [raw_spec()], float("nan"), object()])
def test_a_body_that_is_no_mapping_is_refused(body: object) -> None:
    assert "must be a mapping" in problems(body)["spec"]


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": {"metric": "val_accuracy", "mode": "max", "at": "last", "target": 90.0}},
        {"confirm": {"top_k": 1000, "seeds": list(range(1, 20))}},
        {"search_space": {"batch_size": {"type": "int", "low": 16, "high": 32}}},
    ],
    ids=["target", "confirm", "log"],
)
def test_a_study_that_an_older_version_accepted_goes_on(changes: dict[str, Any]) -> None:
    sound = changes if "search_space" in changes else {}
    stored = parse_spec(raw_spec(**sound)).to_mapping()
    if sound:
        stored["search_space"]["batch_size"]["log"] = True
    else:
        stored |= changes
    with pytest.raises(InvalidSpecError):
        parse_spec(stored)
    assert accepted_spec(stored).to_mapping() == stored
    assert stored_plan(stored) is not None
    with pytest.raises(InvalidSpecError) as refused:
        accepted_spec({**stored, "budget": {"max_trials": -1}})
    assert [problem.field for problem in refused.value.problems] == ["budget.max_trials"]


def test_depth_and_size_are_bounded() -> None:
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    assert any("nested too deeply" in message for message in problems(raw_spec(train=deep)).values())
    assert "at most 20,000 values" in problems(raw_spec(train=[0] * 30_000))["spec"]


def test_the_schema_describes_every_section() -> None:
    schema = StudySpec.model_json_schema()
    assert schema["required"] == ["name", "search_space", "objective"]
    assert set(schema["properties"]) == set(StudySpec.model_fields)
    assert schema["additionalProperties"] is False
    json.dumps(schema)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
WORDS = st.sampled_from(["float", "int", "categorical", "grid", "tpe", "asha", "digits", "ridge", "test_loss", "1/t"])
KEYS = st.sampled_from(
    ["type", "low", "high", "step", "log", "choices", "when", "name", "seeds", "metric", "mode", "max_trials", "lambda"]
)
NEAR_JSON = JSON | WORDS | st.dictionaries(KEYS, JSON | WORDS | st.dictionaries(KEYS, JSON | WORDS), max_size=5)


@given(st.dictionaries(st.sampled_from([*StudySpec.model_fields, "x"]), NEAR_JSON))
@settings(max_examples=100, deadline=None)
def test_any_json_is_a_spec_or_a_list_of_problems(changes: dict[str, Any]) -> None:
    try:
        spec = parse_spec(raw_spec(**changes))
    except InvalidSpecError as error:
        found = error.problems
    else:
        assert parse_spec(json.loads(json.dumps(spec.to_mapping()))) == spec
        assert accepted_spec(json.loads(json.dumps(spec.to_mapping()))) == spec
        return
    assert found
    assert all(problem.field and problem.message.encode() for problem in found)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_an_example_is_a_spec_and_survives_json(path: Path) -> None:
    spec = load_spec(path)
    assert parse_spec(json.loads(json.dumps(spec.to_mapping()))) == spec


def test_the_examples_are_as_large_as_they_say() -> None:
    assert plan(load_spec(EXAMPLES / "lambda_rho_digits.yaml")) == Plan(40, 80)
    pruned = load_spec(EXAMPLES / "asha_tpe_digits.yaml")
    assert plan(pruned) == Plan(40, 49, confirming_trials=9)
    assert pruned.scheduler == AshaScheduler(grace_period=2, reduction_factor=3)


def write(folder: Path, text: str, name: str = "spec.yaml") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


MINIMAL = "name: s\nsearch_space: paper_lambda_rho\nobjective: {metric: val_loss, mode: min}\n"


def test_yaml_reads_numbers_and_words_as_people_mean_them(tmp_path: Path) -> None:
    text = MINIMAL + "train: {lr: 1e-3, weight_decay: 5.e-4}\nlabels: {day: 2026-01-31, keep: no}\n"
    spec = load_spec(write(tmp_path, text))
    assert spec.train == {"lr": 0.001, "weight_decay": 0.0005}
    text = "train: {lr: !!float 1}\nallow_test_objective: !!bool true\nlabels: {day: !!str 2026, keep: ! no}\n"
    tagged = load_spec(write(tmp_path, MINIMAL + text))
    assert (tagged.train, tagged.allow_test_objective) == ({"lr": 1.0}, True)
    assert tagged.labels == {"day": "2026", "keep": "no"}


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        (MINIMAL + "train: {lr: 0.1,\n", "line 5, column 1", ""),
        (MINIMAL + "train:\n  lr: 0.1\n  lr: 0.2\n", "line 6, column 3", "the key 'lr' is there twice"),
        ("a: &a [1]\nb: *a\n", "line 2, column 4", "aliases are not supported"),
        *(
            (f"a: {tag} {value}\n", "line 1, column 4", f"tags such as 'tag:yaml.org,2002:{tag[2:]}' are not supported")
            for tag, value in (
                ("!!python/object:os.system", "1"),
                ("!!map", "[x]"),
                ("!!timestamp", "x"),
            )
        ),
        ("a: !!bool maybe\n", "line 1, column 4", "'maybe' is neither true nor false"),
        ("a: !!int [1]\n", "line 1, column 4", "expected a scalar node"),
        ("a: !!str {a: 1}\n", "line 1, column 4", "expected a scalar node"),
        ("a: !!bool [1]\n", "line 1, column 4", "expected a scalar node"),
        ("? [a]\n: 1\n", "line 1, column 3", "a key must be text"),
        ("a: " + "9" * 5_000, "line 1, column 4", "is no number"),
        ("a: 1\n---\nb: 1\n", "line 2, column 1", ""),
        ("[" * 5_000, "spec", "nested too deeply"),
        ("", "spec", "must be a mapping of names to values, got nothing"),
        ("x" * 600_000, "spec", "larger than"),
        ("a: \x07", "spec", "is no YAML"),
    ],
)
def test_a_file_that_is_no_yaml_says_where(tmp_path: Path, text: str, field: str, words: str) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        load_spec(write(tmp_path, text))
    problem = caught.value.problems[0]
    assert problem.field == field
    assert words in problem.message


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ('{"name": 1,\n}', "line 2, column 1", "property name"),
        ('{"name": "a", "name": "b"}', "spec", "the key 'name' is there twice"),
        ("[" * 200_000, "spec", "nested too deeply"),
        ('{"name": NaN}', "name", "finite"),
    ],
)
def test_a_file_that_is_no_json_says_where(tmp_path: Path, text: str, field: str, words: str) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        load_spec(write(tmp_path, text, "spec.json"))
    found = {problem.field: problem.message for problem in caught.value.problems}
    assert words in found[field]


def test_the_key_that_is_there_twice_is_found_at_once_among_many(tmp_path: Path) -> None:
    keys = [*(f"k{number}" for number in range(40_000)), "k39999"]
    text = "{" + ",".join(f'"{key}":0' for key in keys) + "}"
    started = time.monotonic()
    with pytest.raises(InvalidSpecError, match="the key 'k39999' is there twice"):
        load_spec(write(tmp_path, text, "spec.json"))
    assert time.monotonic() - started < 3  # it took half a minute while each key was counted


def test_a_json_file_is_read_too(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps(raw_spec()), "spec.json")
    assert load_spec(path) == parse_spec(raw_spec())


def test_text_that_an_older_version_accepted_is_read_again() -> None:
    old = parse_spec(raw_spec()).to_mapping() | {
        "name": "lambda\u2013rho",
        "labels": {"te\u2013am": "a\u200bb"},
        "description": "a\u200bb",
    }
    assert set(problems(old)) == {"name", "labels.te\u2013am", "description"}
    assert accepted_spec(old).to_mapping() == old


def test_the_plan_of_a_stored_spec_is_that_of_its_sections_whatever_it_is_called() -> None:
    stored = parse_spec(raw_spec()).to_mapping()
    assert stored_plan(stored) == Plan(configurations=20, trials=20)
    assert stored_plan(stored | {"name": "..", "labels": {"a:b": "v"}, "description": "\u200b"}) == stored_plan(stored)
    assert stored_plan(stored | {"replicates": {"seeds": [0, 1, 2]}}) == Plan(configurations=20, trials=60)
    assert stored_plan(stored | {"search_space": "of another version"}) is None


@pytest.mark.parametrize("name", ["..", "%2E%2e", "a%2fb"])
def test_so_are_names_and_labels_that_look_like_paths_and_filters(name: str) -> None:
    old = parse_spec(raw_spec()).to_mapping() | {"name": name, "labels": {"a:b": "v"}}
    assert set(problems(old)) == {"name", "labels.a:b"}
    assert accepted_spec(old).to_mapping() == old


@pytest.mark.parametrize("name", ["v1.0", "...and more", ".5", "95%", "100% 2e-3", "50%25"])
def test_dots_and_percents_may_stand_in_a_name(name: str) -> None:
    assert parse_spec(raw_spec(name=name, labels={"a": "b:c"})).name == name


def test_what_this_version_cannot_run_is_refused_although_it_was_accepted() -> None:
    old = parse_spec(raw_spec()).to_mapping() | {"name": "lambda\u2013rho"}
    with pytest.raises(InvalidSpecError) as caught:
        accepted_spec(old | {"train": {"model": "of yore"}, "budget": {"max_trials": float("inf")}})
    assert [problem.field for problem in caught.value.problems] == ["budget.max_trials"]
    with pytest.raises(InvalidSpecError) as caught:
        accepted_spec(old | {"train": {"model": "of yore"}})
    assert [problem.field for problem in caught.value.problems] == ["train.model"]

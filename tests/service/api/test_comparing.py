"""GET /studies:compare: one quantity on all sides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from service.store.reports import EpochReported, TrialEnded
from service.study import Study, TrialState
from tests.service.api.stores import on_sqlite

if TYPE_CHECKING:
    from tests.service.conftest import Life

pytestmark = on_sqlite
"""Results are compared above the store; tests of findings and of studies read them from both."""

ACCURACY = [[0.90, 0.80], [0.94, 0.82]]
LOSS = [[0.3, 0.5], [0.2, 0.6]]
BEST_ACCURACY, LAST_ACCURACY = {"0": 0.90, "1": 0.94}, {"0": 0.80, "1": 0.82}
BEST_LOSS, LAST_LOSS = {"0": 0.3, "1": 0.2}, {"0": 0.5, "1": 0.6}


def overfitted(life: Life, metric: str, mode: str, at: str = "last", *, confirmed: bool = False) -> Study:
    """A study with this objective and one configuration, whose trials were best before their last epoch."""
    objective = {"metric": metric, "mode": mode, "at": at}
    confirm = {"confirm": {"top_k": 1, "seeds": [100, 101]}} if confirmed else {}
    study = life.create(objective=objective, **confirm)
    driver = life.start(study)
    trials = life.propose(driver, {"lambda": 0.0, "rho": 0.1})
    groups = [trials, driver.add_confirming_trials(trials[0].configuration_id, [100, 101])] if confirmed else [trials]
    for group in groups:
        for trial, accuracies, losses in zip(group, ACCURACY, LOSS, strict=True):
            life.begin(driver, trial)
            values = accuracies if metric == "val_accuracy" else losses
            reached = values[-1] if at == "last" else max(values) if mode == "max" else min(values)
            epochs = zip(accuracies, losses, strict=True)
            driver.record(
                [
                    EpochReported(trial.id, 1, epoch, {"val_accuracy": accuracy, "val_loss": loss})
                    for epoch, (accuracy, loss) in enumerate(epochs, 1)
                ]
            )
            driver.record([TrialEnded(trial.id, 1, TrialState.SUCCEEDED, reached)])
    life.succeed(driver)
    return life.studies.get(study.id)


def compared(api: TestClient, *studies: Study, **parameters: str) -> Any:
    answer = api.get("/studies:compare", params={"ids": ",".join(study.id for study in studies), **parameters})
    assert answer.status_code == 200, answer.text
    return answer.json()


def sides(answer: Any) -> list[dict[str, float]]:
    return [side["by_seed"] for side in answer["studies"]]


@pytest.mark.parametrize(("at", "values"), [("best", BEST_ACCURACY), ("last", LAST_ACCURACY)])
def test_an_objective_that_all_share_is_compared_at_its_epoch(
    api: TestClient, life: Life, at: str, values: dict[str, float]
) -> None:
    answer = compared(api, *(overfitted(life, "val_accuracy", "max", at) for _ in range(2)))
    assert (answer["metric"], answer["at"]) == ("val_accuracy", at)
    assert sides(answer) == [values, values]
    assert answer["differences"][0]["difference"] == 0.0


def test_best_epochs_are_not_compared_with_last_ones(api: TestClient, life: Life) -> None:
    best, last = overfitted(life, "val_accuracy", "max", "best"), overfitted(life, "val_accuracy", "max", "last")
    for pair in ((best, last), (last, best)):
        answer = compared(api, *pair)
        assert (answer["at"], sides(answer)) == ("last", [LAST_ACCURACY, LAST_ACCURACY])
        assert answer["differences"][0]["difference"] == 0.0


def test_a_metric_that_only_some_optimise_is_compared_at_the_last_epoch(api: TestClient, life: Life) -> None:
    a, b = overfitted(life, "val_accuracy", "max", "best"), overfitted(life, "val_loss", "min", "best")
    for metric, values in (("val_accuracy", LAST_ACCURACY), ("val_loss", LAST_LOSS)):
        answer = compared(api, a, b, metric=metric)
        assert (answer["at"], sides(answer)) == ("last", [values, values])


def test_a_metric_that_none_optimises_is_compared_at_the_last_epoch(api: TestClient, life: Life) -> None:
    studies = [overfitted(life, "val_accuracy", "max", "best") for _ in range(2)]
    answer = compared(api, *studies, metric="val_loss")
    assert (answer["at"], sides(answer)) == ("last", [LAST_LOSS, LAST_LOSS])


def test_one_study_of_three_with_another_objective_decides_for_all(api: TestClient, life: Life) -> None:
    studies = [overfitted(life, "val_loss", "min", at) for at in ("best", "best", "last")]
    assert sides(compared(api, *studies[:2])) == [BEST_LOSS, BEST_LOSS]
    assert sides(compared(api, *studies)) == [LAST_LOSS, LAST_LOSS, LAST_LOSS]


def test_so_with_the_trials_that_confirm(api: TestClient, life: Life) -> None:
    best, last = (overfitted(life, "val_accuracy", "max", at, confirmed=True) for at in ("best", "last"))
    answer = compared(api, best, last)
    assert (answer["values"], answer["at"]) == ("confirmed", "last")
    assert sides(answer) == [{"100": 0.80, "101": 0.82}] * 2


@pytest.mark.parametrize("asked", [{}, {"metric": "val_accuracy"}])
def test_a_metric_that_one_maximises_and_another_minimises_is_422(
    api: TestClient, life: Life, asked: dict[str, str]
) -> None:
    up, down = overfitted(life, "val_accuracy", "max"), overfitted(life, "val_accuracy", "min")
    answer = api.get("/studies:compare", params={"ids": f"{up.id},{down.id}", **asked})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    (error,) = answer.json()["errors"]
    assert error["field"] == "metric"
    assert f"maximised by study {up.id} and minimised by study {down.id}" in error["message"]
    assert compared(api, up, down, metric="val_loss")["at"] == "last"


def test_a_metric_that_no_trial_could_report_is_422_also_where_none_has_reported_yet(
    api: TestClient, life: Life
) -> None:
    ids = ",".join(life.create().id for _ in range(2))
    answer = api.get("/studies:compare", params={"ids": ids, "metric": "val_acuracy"})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["field"] == "metric"
    assert "no trial reports 'val_acuracy'; what they report:" in error["message"]
    assert "val_accuracy" in error["message"]
    assert "bound" in error["message"]
    assert api.get("/studies:compare", params={"ids": ids, "metric": "train_loss"}).json()["differences"]


def test_what_was_not_trained_alike_is_said(api: TestClient, life: Life) -> None:
    """A number beside it would be taken for the methods' doing."""
    accuracies = {(0.0, 0.1): (0.9, 0.8)}
    digits, fashion = (
        life.finished(accuracies),
        life.finished(accuracies, train={"dataset": "fashion_mnist", "epochs": 9}),
    )
    (difference,) = compared(api, digits, fashion)["differences"]
    assert "they were not trained alike: dataset digits and fashion_mnist, " in difference["note"]
    assert "epochs" in difference["note"]
    for like in (life.finished(accuracies), life.create(train={"dataset": "fashion_mnist"})):  # the latter has no best
        (difference,) = compared(api, digits, like)["differences"]
        assert "alike" not in str(difference["note"])


def test_what_was_not_tested_has_no_part_in_the_correction(api: TestClient, life: Life) -> None:
    values = [(0.90, 0.92), (0.80, 0.85), (0.70, 0.78), (0.89, 0.91)]
    a, b, c, shifted = (life.finished({(0.0, 0.1): accuracies}) for accuracies in values)
    of_b, of_c, of_shifted = compared(api, a, b, c, shifted)["differences"]
    assert of_shifted["difference"] == pytest.approx(0.01)
    assert [of_shifted[name] for name in ("p_value", "p_adjusted", "low", "high", "test")] == [None] * 5
    assert of_shifted["note"] == "the differences do not vary: 2 pairs are no basis for a test"
    least, most = sorted([of_b, of_c], key=lambda difference: difference["p_value"])
    assert least["p_adjusted"] == pytest.approx(2 * least["p_value"])
    assert most["p_adjusted"] == pytest.approx(max(2 * least["p_value"], most["p_value"]))


def confirmed(life: Life, accuracies: tuple[float | None, ...]) -> Study:
    """A study with one configuration, whose confirming trials came to these; None: the trial failed."""
    seeds = list(range(100, 100 + len(accuracies)))
    study = life.create(confirm={"top_k": 1, "seeds": seeds})
    driver = life.start(study)
    trials = life.propose(driver, {"lambda": 0.0, "rho": 0.1})
    life.run(driver, trials, (0.90, 0.92))
    life.run(driver, driver.add_confirming_trials(trials[0].configuration_id, seeds), accuracies)
    life.succeed(driver)
    return life.studies.get(study.id)


class TestMissingValues:
    def test_a_comparison_names_the_seeds_whose_trials_failed(self, api: TestClient, life: Life) -> None:
        whole = life.finished({(0.0, 0.1): (0.90, 0.91, 0.92, 0.93, 0.94)})
        partial = life.finished({(0.0, 0.1): (0.80, 0.82, None, 0.85, None)})
        for metric in ("val_accuracy", "val_loss"):  # the objective, and what is read from the last epoch
            answer = compared(api, whole, partial, metric=metric)
            (difference,) = answer["differences"]
            assert f"{partial.id} has no value for seeds 2 and 4: their trials failed" in difference["note"]
            assert whole.id not in difference["note"]
            missing = [side["missing_by_seed"] for side in answer["studies"]]
            assert missing == [{}, {"2": "FAILED", "4": "FAILED"}]
        assert compared(api, whole, partial)["differences"][0]["test"] == "paired t"

    def test_on_either_side(self, api: TestClient, life: Life) -> None:
        first = life.finished({(0.0, 0.1): (0.90, None, 0.92, 0.95)})
        other = life.finished({(0.0, 0.1): (0.80, 0.82, None, 0.84)})
        assert compared(api, first, other)["differences"][0]["note"] == (
            f"{first.id} has no value for seed 1: its trial failed; "
            f"{other.id} has no value for seed 2: its trial failed"
        )

    def test_nothing_is_said_where_nothing_is_missing(self, api: TestClient, life: Life) -> None:
        a, b = (life.finished({(0.0, 0.1): values}) for values in ((0.90, 0.92), (0.80, 0.85)))
        assert compared(api, a, b)["differences"][0]["note"] is None

    def test_of_confirmed_values_it_names_the_fresh_seeds(self, api: TestClient, life: Life) -> None:
        whole, partial = confirmed(life, (0.80, 0.81, 0.83)), confirmed(life, (0.70, None, 0.75))
        for metric in ("val_accuracy", "val_loss"):
            answer = compared(api, whole, partial, metric=metric)
            assert answer["values"] == "confirmed"
            assert f"{partial.id} has no value for seed 101: its trial failed" in answer["differences"][0]["note"]
            assert [side["missing_by_seed"] for side in answer["studies"]] == [{}, {"101": "FAILED"}]

    def test_where_confirming_has_failed_it_is_said_why_the_search_is_compared(
        self, api: TestClient, life: Life
    ) -> None:
        whole, lost = confirmed(life, (0.80, 0.81)), confirmed(life, (None, None))
        answer = compared(api, whole, lost)
        assert answer["values"] == "search"
        assert answer["differences"][0]["note"].endswith(f"; {lost.id} is not confirmed: 2 of 2 trials failed")

    def test_a_metric_that_a_trial_did_not_report_is_missing(self, api: TestClient, life: Life) -> None:
        whole, study = overfitted(life, "val_accuracy", "max"), life.create()
        driver = life.start(study)
        for trial, metrics in zip(
            life.propose(driver, {"lambda": 0.0, "rho": 0.1}),
            ({"val_accuracy": 0.8, "val_loss": 0.3}, {"val_accuracy": 0.9}),
            strict=True,
        ):
            life.begin(driver, trial)
            driver.record([EpochReported(trial.id, 1, 3, metrics)])
            driver.record([TrialEnded(trial.id, 1, TrialState.SUCCEEDED, metrics["val_accuracy"])])
        note = compared(api, whole, study, metric="val_loss")["differences"][0]["note"]
        assert f"{study.id} has no value for seed 1: its trial reported none" in note
        assert compared(api, whole, study)["studies"][1]["missing_by_seed"] == {}


def test_the_interval_is_documented_as_not_corrected(api: TestClient) -> None:
    properties = api.get("http://testserver/openapi.json").json()["components"]["schemas"]["StudyDifference"][
        "properties"
    ]
    assert all("not corrected for several comparisons" in properties[end]["description"] for end in ("low", "high"))

"""Lists page by page: every row that was there comes exactly once, whatever is added meanwhile."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from service.store.reports import EpochReported
from tests.service.api.stores import on_sqlite

if TYPE_CHECKING:
    from tests.service.conftest import Life

LAMBDAS = (0.0, 0.5, 1.0, "1/t", "1-1/t")
RHOS = (0.05, 0.1, 0.2, 0.4)


def refusal(answer: Any) -> tuple[int, str, list[str]]:
    return answer.status_code, answer.json()["code"], [error["field"] for error in answer.json()["errors"]]


def read_all(api: TestClient, path: str, name: str, meanwhile: Any = lambda: None, **parameters: Any) -> list[Any]:
    """The rows of every page, something happening after each."""
    rows: list[Any] = []
    token = None
    while True:
        answer = api.get(path, params={**parameters, **({"page_token": token} if token else {})})
        assert answer.status_code == 200, answer.text
        rows += answer.json()[name]
        token = answer.json()["next_page_token"]
        if token is None:
            return rows
        assert len(answer.json()[name]) == parameters["page_size"]
        meanwhile()


def forged(values: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode()


class TestStudies:
    @pytest.mark.parametrize("order_by", ["-created_at", "created_at", "name", "-name"])
    @pytest.mark.parametrize("page_size", [1, 2, 3, 7])
    def test_every_old_study_comes_once_and_in_order_while_others_are_added(
        self, api: TestClient, life: Life, order_by: str, page_size: int
    ) -> None:
        there, late = [life.create(name=name) for name in "mdtbd"], list("agzdmbtx")

        def add_one() -> None:
            if late:
                life.create(name=late.pop())

        found = read_all(api, "studies", "studies", add_one, order_by=order_by, page_size=page_size)
        ids = [study["id"] for study in found]
        assert len(ids) == len(set(ids))
        key = order_by.removeprefix("-")
        expected = sorted(there, key=lambda study: (getattr(study, key), study.id), reverse=order_by.startswith("-"))
        assert [id_ for id_ in ids if id_ in {study.id for study in there}] == [study.id for study in expected]

    def test_filters_must_all_match(self, api: TestClient, life: Life) -> None:
        studies = [life.create(name=name) for name in ("Sweep-A", "sweep_b", "100%")]

        def names(**parameters: Any) -> list[str]:
            answer = api.get("studies", params={"order_by": "created_at", **parameters})
            return [study["name"] for study in answer.json()["studies"]]

        assert names(name_contains="SWEEP") == ["Sweep-A", "sweep_b"]
        assert names(name_contains="_") == ["sweep_b"]
        assert names(name_contains="0%") == ["100%"]
        assert names(name_contains="\\") == []
        assert names(owner="local", name_contains="b") == ["sweep_b"]
        assert names(owner="nobody") == []
        middle = studies[1].created_at.isoformat()
        assert names(created_after=middle) == ["100%"]
        assert names(created_before=middle) == ["Sweep-A"]

    @on_sqlite
    @pytest.mark.parametrize(
        ("parameters", "field"),
        [
            ({"created_after": "2026-01-01T00:00:00"}, "created_after"),
            ({"created_before": "0001-01-01T00:00:00+14:00"}, "created_before"),
            ({"created_before": "yesterday"}, "created_before"),
            ({"order_by": "owner"}, "order_by"),
            ({"archived": "perhaps"}, "archived"),
            ({"name_contains": "a\x00"}, "name_contains"),
        ],
    )
    def test_what_cannot_be_read_is_named(self, api: TestClient, parameters: dict[str, str], field: str) -> None:
        assert refusal(api.get("studies", params=parameters)) == (422, "invalid_request", [field])

    def test_a_token_is_good_for_its_own_list_only(self, api: TestClient, life: Life) -> None:
        for _ in range(3):
            life.create()
        first = {"page_size": 1, "state": ["QUEUED", "RUNNING"]}
        token = api.get("studies", params=first).json()["next_page_token"]
        same = {"page_size": 2, "state": ["RUNNING", "QUEUED"], "page_token": token}
        assert len(api.get("studies", params=same).json()["studies"]) == 2
        for other in ({"order_by": "name"}, {"state": "QUEUED"}, {"name": "x"}, {"archived": True}):
            answer = api.get("studies", params={**first, **other, "page_token": token})
            assert refusal(answer) == (422, "invalid_request", ["page_token"])
            assert "other filters or another order" in answer.json()["detail"]

    @pytest.mark.parametrize("character", ["\N{GRINNING FACE}", '"', "ß"])
    def test_the_longest_name_makes_a_token_that_is_taken(self, api: TestClient, life: Life, character: str) -> None:
        there = [life.create(name=100 * character).id for _ in range(3)]
        found = read_all(api, "studies", "studies", order_by="name", page_size=1)
        assert [study["id"] for study in found] == sorted(there)

    def test_a_token_that_somebody_changed_is_refused(self, api: TestClient, life: Life) -> None:
        for _ in range(2):
            life.create()
        token = api.get("studies", params={"page_size": 1}).json()["next_page_token"]
        fingerprint, created_at, study_id = json.loads(base64.urlsafe_b64decode(token))
        for made_up in (
            [fingerprint, created_at],
            [fingerprint, created_at, study_id, 1],
            [fingerprint, created_at.removesuffix("+00:00"), study_id],
            [fingerprint, "0001-01-01T00:00:00+14:00", study_id],
            [fingerprint, 3, study_id],
            [fingerprint, created_at, "a\x00"],
            [fingerprint, created_at, "\ud800"],
            [fingerprint, created_at, None],
            [["x"] * 16, created_at, study_id],
            {"a": 1, "b": 2, "c": 3},
        ):
            answer = api.get("studies", params={"page_token": forged(made_up)})
            assert refusal(answer) == (422, "invalid_request", ["page_token"]), made_up
        deep = base64.urlsafe_b64encode(b"[" * 700).decode()
        assert refusal(api.get("studies", params={"page_token": deep})) == (422, "invalid_request", ["page_token"])


class TestConfigurations:
    @pytest.mark.parametrize(
        ("mode", "order_by"), [("max", "number"), ("min", "-number"), ("max", "objective"), ("min", "objective")]
    )
    def test_every_old_configuration_comes_once_and_in_order_while_others_are_added(
        self, api: TestClient, life: Life, order_by: str, mode: str
    ) -> None:
        study = life.create(objective={"metric": "val_accuracy", "mode": mode})
        driver = life.start(study)
        points = ({"lambda": lam, "rho": rho} for rho in RHOS for lam in LAMBDAS)
        accuracies = [(0.5, 0.5), (0.9, 0.8), (0.7, None), (0.9, 0.8), (None, None), (0.4, 0.6), (0.7, 0.3)]
        for values in accuracies:
            for trial, value in zip(life.propose(driver, next(points)), values, strict=True):
                if value is not None:
                    life.train(driver, trial, value)
        path = f"studies/{study.id}/configurations"

        def add_one() -> None:
            for trial in life.propose(driver, next(points)):
                life.train(driver, trial, 0.65)

        found = read_all(api, path, "configurations", add_one, order_by=order_by, page_size=2)
        numbers = [result["configuration"]["number"] for result in found]
        assert len(numbers) == len(set(numbers))
        old = [number for number in numbers if number <= len(accuracies)]
        # 2 and 4 are the same in everything; 1 and 6 have the same mean, and 1 the smaller spread; 3 and 5 lack trials
        best_first = [2, 4, 1, 6, 7, 3, 5]
        worst_first = [1, 6, 7, 2, 4, 3, 5]
        by_objective = {"max": best_first, "min": worst_first}[mode]
        if order_by == "objective":
            assert sorted(old[:5], key=by_objective.index) == old[:5]
        assert (
            old
            == {"number": [1, 2, 3, 4, 5, 6, 7], "-number": [7, 6, 5, 4, 3, 2, 1], "objective": by_objective}[order_by]
        )

    def test_a_token_of_another_study_is_refused(self, api: TestClient, life: Life) -> None:
        accuracies = {(0.0, 0.1): (0.9, 0.8), (0.5, 0.1): (0.9, 0.8)}
        one, other = life.finished(accuracies), life.finished(accuracies)
        token = api.get(f"studies/{one.id}/configurations", params={"page_size": 1}).json()["next_page_token"]
        for path in (f"studies/{other.id}/configurations", f"studies/{one.id}/trials"):
            answer = api.get(path, params={"page_size": 1, "page_token": token})
            assert refusal(answer) == (422, "invalid_request", ["page_token"])

    def test_configurations_can_be_filtered(self, api: TestClient, life: Life) -> None:
        study = life.create()
        driver = life.start(study)
        for trial in life.propose(driver, {"lambda": 0.0, "rho": 0.1}):
            life.train(driver, trial, 0.9)
        api.post(f"studies/{study.id}/configurations", json={"point": {"lambda": 1.0, "rho": 0.1}})

        def numbers(**parameters: Any) -> list[int]:
            answer = api.get(f"studies/{study.id}/configurations", params=parameters)
            return [result["configuration"]["number"] for result in answer.json()["configurations"]]

        assert numbers() == [1, 2]
        assert numbers(origin="USER") == [2]
        assert numbers(complete=True) == [1]
        assert numbers(complete=True, origin="USER") == []


@pytest.mark.parametrize(
    ("path", "order_by"),
    [("trials", "number"), ("trials", "-number"), ("configurations", "-number"), ("configurations", "objective")],
)
def test_no_number_in_a_token_is_one_that_the_store_cannot_hold(
    api: TestClient, life: Life, path: str, order_by: str
) -> None:
    study = life.finished({(0.0, 0.1): (0.9, 0.8), (0.5, 0.1): (0.9, 0.8)})
    list_ = {"page_size": 1, "order_by": order_by}
    token = api.get(f"studies/{study.id}/{path}", params=list_).json()["next_page_token"]
    fingerprint, *values = json.loads(base64.urlsafe_b64decode(token))
    for index, value in enumerate(values):
        for number, is_held in ((2**31 - 1, True), (1 - 2**31, True), (2**31, False), (-(2**31), False)):
            changed = forged([fingerprint, *values[:index], number, *values[index + 1 :]])
            answer = api.get(f"studies/{study.id}/{path}", params={**list_, "page_token": changed})
            if is_held or isinstance(value, float):
                assert answer.status_code == 200, (index, number)
            else:
                assert refusal(answer) == (422, "invalid_request", ["page_token"]), (index, number)


class TestTrials:
    @pytest.mark.parametrize("order_by", ["number", "-number"])
    def test_every_old_trial_comes_once_and_in_order_while_others_are_added(
        self, api: TestClient, life: Life, order_by: str
    ) -> None:
        study = life.create()
        driver = life.start(study)
        points = ({"lambda": lam, "rho": rho} for rho in RHOS for lam in LAMBDAS)
        old = [trial.number for _ in range(4) for trial in life.propose(driver, next(points))]
        found = read_all(
            api,
            f"studies/{study.id}/trials",
            "trials",
            lambda: life.propose(driver, next(points)),
            order_by=order_by,
            page_size=3,
        )
        numbers = [trial["number"] for trial in found]
        assert numbers == sorted(set(numbers), reverse=order_by == "-number")
        assert set(old) <= set(numbers)

    def test_what_a_trial_has_reported_comes_once_and_in_order_while_it_trains(
        self, api: TestClient, life: Life
    ) -> None:
        driver = life.start(life.create())
        trials = life.propose(driver, {"lambda": 0.0, "rho": 0.1})
        for trial in trials:
            life.begin(driver, trial)

        def report(epoch: int) -> None:
            driver.record([EpochReported(trial.id, 1, epoch, {"val_accuracy": epoch / 100}) for trial in trials])

        for epoch in (2, 4, 6, 8, 10):
            report(epoch)
        late = iter((12, 14, 16))
        path = f"studies/{trials[0].study_id}/trials/{trials[0].id}/results"
        found = read_all(api, path, "results", lambda: report(next(late)), page_size=3)
        assert [result["epoch"] for result in found] == [2, 4, 6, 8, 10, 12]
        token = api.get(path, params={"page_size": 1}).json()["next_page_token"]
        other = api.get(path.replace(trials[0].id, trials[1].id), params={"page_token": token})
        assert refusal(other) == (422, "invalid_request", ["page_token"])

    def test_trials_can_be_filtered(self, api: TestClient, life: Life) -> None:
        study = life.create(confirm={"top_k": 1, "seeds": [7]})
        driver = life.start(study)
        first, _ = life.propose(driver, {"lambda": 0.0, "rho": 0.1})
        life.train(driver, first, 0.9)
        life.propose(driver, {"lambda": 1.0, "rho": 0.1})
        driver.add_confirming_trials(first.configuration_id, [7])

        def numbers(**parameters: Any) -> list[int]:
            answer = api.get(f"studies/{study.id}/trials", params=parameters)
            return [trial["number"] for trial in answer.json()["trials"]]

        assert numbers() == [1, 2, 3, 4, 5]
        assert numbers(state=["SUCCEEDED", "FAILED"]) == [1]
        assert numbers(purpose="CONFIRM") == [5]
        assert numbers(configuration_id=first.configuration_id, state="PENDING") == [2, 5]
        answer = api.get(f"studies/{study.id}/trials", params={"page_size": 1001, "purpose": "TEST"})
        assert refusal(answer) == (422, "invalid_request", ["purpose", "page_size"])

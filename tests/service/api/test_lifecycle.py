"""What users ask of a study: verbs, changes under If-Match, clones, points, deletion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from service.store import tables
from service.store.changing import StudyChanges
from service.store.database import Database
from service.store.exporting import ExportStore
from service.store.lifecycle import LifecycleStore
from service.store.reconciling import ReconcilingStore
from service.store.studies import StudyStore
from service.study import Study, StudyState
from tests.service.api.stores import on_sqlite

if TYPE_CHECKING:
    from tests.service.conftest import Life

ACCURACIES = {(0.0, 0.1): (0.90, 0.92), (1.0, 0.1): (0.95, 0.97)}


def problem(answer: Any) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["code"]


def fields(answer: Any) -> list[str]:
    return [error["field"] for error in answer.json()["errors"]]


def said(answer: Any) -> tuple[int, str]:
    assert answer.headers["ETag"] == f'"{answer.json()["version"]}"'
    return answer.status_code, answer.json()["state"]


class TestVerbs:
    def test_what_is_done_at_once_is_200_and_can_be_asked_again(self, api: TestClient, life: Life) -> None:
        path = f"studies/{life.create().id}"
        for verb, state in (("pause", "PAUSED"), ("pause", "PAUSED"), ("cancel", "CANCELLED"), ("cancel", "CANCELLED")):
            assert said(api.post(f"{path}/{verb}")) == (200, state)

    def test_what_is_on_its_way_is_202(self, api: TestClient, life: Life) -> None:
        for verb in ("pause", "stop", "cancel"):
            study = life.create()
            driver = life.start(study)
            life.begin(driver, life.propose(driver, {"lambda": 0.0, "rho": 0.1})[0])
            for _ in range(2):
                assert said(api.post(f"studies/{study.id}/{verb}")) == (202, "STOPPING")

    def test_a_paused_study_that_is_resumed_waits_for_its_driver(self, api: TestClient, life: Life) -> None:
        path = f"studies/{life.create().id}"
        api.post(f"{path}/pause")
        assert said(api.post(f"{path}/resume")) == (202, "QUEUED")

    def test_resuming_a_running_study_changes_nothing(self, api: TestClient, life: Life) -> None:
        study = life.create()
        life.start(study)
        assert said(api.post(f"studies/{study.id}/resume")) == (200, "RUNNING")

    def test_a_study_that_nothing_has_begun_of_stops_at_once(self, api: TestClient, life: Life) -> None:
        assert said(api.post(f"studies/{life.create().id}/stop")) == (200, "CANCELLED")

    def test_failed_trials_are_retried(self, api: TestClient, life: Life) -> None:
        study = life.create()
        driver = life.start(study)
        trial = life.propose(driver, {"lambda": 0.0, "rho": 0.1})[0]
        life.fail(driver, trial)
        life.succeed(driver)
        assert said(api.post(f"studies/{study.id}/retry")) == (202, "QUEUED")
        retried = api.get(f"studies/{study.id}/trials/{trial.id}").json()
        assert (retried["state"], retried["error"]) == ("PENDING", None)

    def test_a_retry_without_time_left_is_409(self, api: TestClient, life: Life, database: Database) -> None:
        study = life.create(budget={"max_wallclock_s": 60})
        driver = life.start(study)
        trial = life.propose(driver, {"lambda": 0.0, "rho": 0.1})[0]
        life.fail(driver, trial)
        life.succeed(driver)
        with database.writing() as connection:
            connection.execute(tables.studies.update().values(elapsed_s=61.0))
        refused = api.post(f"studies/{study.id}/retry")
        assert problem(refused) == (409, "invalid_transition")
        assert "has used up budget.max_wallclock_s: raise that first" in refused.json()["detail"]
        kept = api.get(f"studies/{study.id}/trials/{trial.id}").json()
        assert (kept["state"], kept["error"]) == ("FAILED", kept["attempts"][0]["error"])

    @pytest.mark.parametrize("verb", ["pause", "resume", "stop", "cancel", "retry"])
    def test_what_a_finished_study_cannot_do_is_409(self, api: TestClient, life: Life, verb: str) -> None:
        study = life.finished(ACCURACIES)
        assert problem(api.post(f"studies/{study.id}/{verb}")) == (409, "invalid_transition")

    @pytest.mark.parametrize(
        "verb", ["pause", "resume", "stop", "cancel", "retry", "archive", "unarchive", "clone", "export-again"]
    )
    def test_a_study_that_is_not_there_is_404(self, api: TestClient, verb: str) -> None:
        assert problem(api.post(f"studies/nowhere/{verb}")) == (404, "study_not_found")

    def test_an_archived_study_is_out_of_sight_and_can_be_read(self, api: TestClient, life: Life) -> None:
        study = life.finished(ACCURACIES)

        def listed(**parameters: Any) -> list[str]:
            return [found["id"] for found in api.get("studies", params=parameters).json()["studies"]]

        for _ in range(2):
            assert said(api.post(f"studies/{study.id}/archive")) == (200, "SUCCEEDED")
        assert listed() == []
        assert listed(archived=True) == [study.id]
        assert api.get(f"studies/{study.id}").json()["archived_at"] is not None
        assert api.post(f"studies/{study.id}/unarchive").json()["archived_at"] is None
        assert listed() == [study.id]

    def test_a_running_study_cannot_be_archived_or_deleted(self, api: TestClient, life: Life) -> None:
        study = life.create()
        life.start(study)
        assert problem(api.post(f"studies/{study.id}/archive")) == (409, "invalid_transition")
        assert problem(api.delete(f"studies/{study.id}")) == (409, "invalid_transition")


def test_a_stopped_study_says_why_what_is_retried_waits(api: TestClient, life: Life, database: Database) -> None:
    ReconcilingStore(database).lead("controller", "me", 60)
    study = life.create()
    driver = life.start(study)
    life.fail(driver, life.propose(driver, {"lambda": 0.0, "rho": 0.1}, (0,))[0])
    api.post(f"studies/{study.id}/stop")
    driver.leave()
    assert said(api.post(f"studies/{study.id}/retry")) == (202, "QUEUED")
    driver = life.start(study)
    driver.heartbeat(60, "no node has a GPU")
    shown = api.get(f"studies/{study.id}").json()
    (trial,) = api.get(f"studies/{study.id}/trials").json()["trials"]
    assert (shown["state"], shown["pending_reason"], trial["pending_reason"]) == (
        "STOPPING",
        *["no node has a GPU"] * 2,
    )


class TestPatch:
    def test_a_change_needs_the_version_it_is_meant_for(self, api: TestClient, life: Life) -> None:
        path, change = f"studies/{life.create().id}", {"description": "new"}
        assert problem(api.patch(path, json=change)) == (428, "precondition_required")
        read = api.get(path)
        changed = api.patch(path, json=change, headers={"If-Match": read.headers["ETag"]})
        assert (changed.status_code, changed.json()["description"]) == (200, "new")
        assert changed.json()["spec"]["description"] == "new"
        assert changed.headers["ETag"] != read.headers["ETag"] == '"1"'
        split = [("If-Match", '"99"'), ("If-Match", changed.headers["ETag"])]  # a list may be split over lines
        changed = api.patch(path, json=change, headers=split)
        assert changed.status_code == 200
        stale = api.patch(path, json={"description": "late"}, headers={"If-Match": read.headers["ETag"]})
        assert problem(stale) == (412, "version_conflict")
        assert api.get(path).json()["description"] == "new"

    def test_a_star_means_whatever_it_is_by_now(self, api: TestClient, life: Life) -> None:
        answer = api.patch(f"studies/{life.create().id}", json={"labels": {"a": "b"}}, headers={"If-Match": "*"})
        assert (answer.status_code, answer.json()["labels"]) == (200, {"a": "b"})

    @on_sqlite
    @pytest.mark.parametrize("if_match", ["1", "", ",", "W/1", '"1', '"1" "2"', '*, "1"', 'w/"1"', '"1", 2', '"a b"'])
    def test_an_if_match_that_is_no_list_of_tags_is_422(self, api: TestClient, life: Life, if_match: str) -> None:
        answer = api.patch(f"studies/{life.create().id}", json={"labels": {}}, headers={"If-Match": if_match})
        assert (*problem(answer), fields(answer)) == (422, "invalid_request", ["If-Match"])

    @pytest.mark.parametrize("if_match", ['"1"', '"1", "2"', '"7","1"', ', W/"1" ,, "a,b", "1",', '"é", "1"'])
    def test_one_tag_of_several_that_matches_is_enough(self, api: TestClient, life: Life, if_match: str) -> None:
        header = {"If-Match": if_match.encode("latin-1")}
        answer = api.patch(f"studies/{life.create().id}", json={"description": "new"}, headers=header)
        assert (answer.status_code, answer.json()["description"]) == (200, "new")

    @pytest.mark.parametrize("if_match", ['"one"', 'W/"1"', '"01"', '""', '"2", "3"', '"2,1"', '"9999999999999"'])
    def test_tags_that_do_not_match_are_412_and_change_nothing(
        self, api: TestClient, life: Life, if_match: str
    ) -> None:
        study = life.create()
        answer = api.patch(f"studies/{study.id}", json={"description": "new"}, headers={"If-Match": if_match})
        assert problem(answer) == (412, "version_conflict")
        assert life.studies.get(study.id) == study

    def test_a_study_that_is_not_there_is_404_whatever_the_tag(self, api: TestClient) -> None:
        for if_match in ("*", '"1"', '"one"'):
            answer = api.patch("studies/nowhere", json={"description": "new"}, headers={"If-Match": if_match})
            assert problem(answer) == (404, "study_not_found")

    def test_an_id_that_cannot_be_read_is_told_once(self, api: TestClient) -> None:
        answer = api.patch("studies/a%00b", json={"description": "new"}, headers={"If-Match": '"1"'})
        assert (*problem(answer), fields(answer)) == (422, "invalid_request", ["study_id"])

    def test_what_is_left_out_stays(self, api: TestClient, life: Life) -> None:
        study = life.create(budget={"max_trials": 10, "max_failed_trials": 2}, description="d")
        answer = api.patch(f"studies/{study.id}", json={"budget": {"max_trials": 20}}, headers={"If-Match": "*"})
        budget = answer.json()["spec"]["budget"]
        assert (budget["max_trials"], budget["max_failed_trials"]) == (20, 2)
        assert (answer.json()["description"], answer.json()["labels"]) == ("d", {"team": "vision"})

    @on_sqlite
    @pytest.mark.parametrize(
        ("change", "named", "code"),
        [
            ({"name": "x"}, ["name"], "invalid_request"),
            ({"budget": 3}, ["budget"], "invalid_request"),
            ({"budget": None}, ["budget"], "invalid_request"),
            ({"labels": {"a": 1}}, ["labels.a"], "invalid_request"),
            ({"labels": None}, ["labels"], "invalid_request"),
            ({"description": "x" * 3_000}, ["description"], "invalid_request"),
            ({}, ["body"], "invalid_request"),
            ([], ["body"], "invalid_request"),
            ({"confirm": None}, ["confirm"], "invalid_request"),
            ({"confirm": {"top_k": 2}}, ["confirm.seeds"], "invalid_request"),
            ({"confirm": {"seeds": [0]}}, ["confirm.seeds[0]"], "invalid_spec"),
            ({"confirm": {"top_k": 1000, "seeds": list(range(9, 20))}}, ["confirm.top_k"], "invalid_spec"),
            ({"budget": {"max_trails": 3}}, ["budget.max_trails"], "invalid_spec"),
            ({"budget": {"max_trials": 3}}, ["budget.max_trials"], "invalid_spec"),
            ({"budget": {"max_wallclock_s": -1, "max_trials": 0}}, None, "invalid_spec"),
            ({"budget": {"max_trials": {"a": []}}}, ["budget.max_trials"], "invalid_spec"),
        ],
    )
    def test_every_bad_field_is_named_and_nothing_changes(
        self, api: TestClient, life: Life, change: Any, named: list[str] | None, code: str
    ) -> None:
        study = life.create()
        answer = api.patch(f"studies/{study.id}", json=change, headers={"If-Match": "*"})
        assert problem(answer) == (422, code)
        assert fields(answer) == (named or ["budget.max_trials", "budget.max_wallclock_s"])
        assert life.studies.get(study.id) == study

    def test_a_higher_limit_reopens_a_finished_study(self, api: TestClient, life: Life) -> None:
        study = life.finished(ACCURACIES, budget={"max_trials": 4})
        answer = api.patch(f"studies/{study.id}", json={"budget": {"max_trials": 8}}, headers={"If-Match": "*"})
        assert said(answer) == (200, "QUEUED")
        assert (answer.json()["reason"], answer.json()["finished_at"]) == (None, None)

    def test_the_best_of_a_finished_study_is_confirmed_on_more_seeds(self, api: TestClient, life: Life) -> None:
        study = life.finished(ACCURACIES, budget={"max_trials": 4})
        change = {"confirm": {"top_k": 2, "seeds": [10, 11]}}
        answer = api.patch(f"studies/{study.id}", json=change, headers={"If-Match": "*"})
        assert said(answer) == (200, "QUEUED")
        assert answer.json()["spec"]["confirm"] == change["confirm"]
        changed = [event for event in life.studies.events(study.id) if event.kind == "study.changed"]
        assert changed[-1].data["confirm"] == change["confirm"]


@on_sqlite
@pytest.mark.parametrize(
    ("method", "verb", "body"),
    [
        *(
            ("POST", f"/{verb}", None)
            for verb in ("pause", "resume", "stop", "cancel", "retry", "archive", "unarchive")
        ),
        ("POST", "/export-again", None),
        ("POST", "/configurations", {"point": {"lambda": 0.5, "rho": 0.2}}),
        ("PATCH", "", {"description": "late"}),
        ("DELETE", "", None),
    ],
)
class TestVersions:
    def test_a_study_that_has_changed_since_it_was_read_is_left_alone(
        self, api: TestClient, life: Life, method: str, verb: str, body: Any
    ) -> None:
        study = life.create()
        path = f"studies/{study.id}"
        api.patch(path, json={"description": "changed"}, headers={"If-Match": "*"})
        changed = life.studies.get(study.id)
        refused = api.request(method, path + verb, json=body, headers={"If-Match": f'"{study.version}"'})
        assert problem(refused) == (412, "version_conflict")
        assert life.studies.get(study.id) == changed

    def test_a_change_that_comes_in_between_is_noticed(
        self, api: TestClient, life: Life, monkeypatch: pytest.MonkeyPatch, method: str, verb: str, body: Any
    ) -> None:
        study, get = life.create(), StudyStore.get

        def overtaken(store: StudyStore, study_id: str) -> Study:
            read = get(store, study_id)
            if read.version == study.version:
                life.lifecycle.patch(study_id, StudyChanges(description="changed"), if_version=None)
            return read

        monkeypatch.setattr("service.store.studies.StudyStore.get", overtaken)
        headers = {"If-Match": f'"{study.version}"'}
        assert problem(api.request(method, f"studies/{study.id}{verb}", json=body, headers=headers)) == (
            412,
            "version_conflict",
        )
        kept = life.studies.get(study.id)
        assert (kept.description, kept.version, kept.state) == ("changed", study.version + 1, study.state)


class TestClone:
    def test_a_clone_has_the_spec_and_nothing_else_of_the_original(self, api: TestClient, life: Life) -> None:
        original = life.finished(ACCURACIES)
        answer = api.post(f"studies/{original.id}/clone")
        clone = answer.json()
        assert (answer.status_code, clone["state"], clone["cloned_from"]) == (201, "QUEUED", original.id)
        assert clone["spec"] == original.spec
        assert answer.headers["Location"] == f"/api/v1/studies/{clone['id']}"
        assert answer.headers["ETag"] == '"1"'
        assert api.get(f"studies/{clone['id']}/trials").json()["trials"] == []

    def test_sections_in_the_body_replace_those_of_the_original(self, api: TestClient, life: Life) -> None:
        original = life.create()
        changes = {"name": "again", "budget": {"max_trials": 10}}
        clone = api.post(f"studies/{original.id}/clone", json=changes).json()
        assert (clone["name"], clone["spec"]["budget"]["max_trials"]) == ("again", 10)
        assert clone["spec"]["train"] == original.spec["train"]

    def test_a_key_makes_one_clone(self, api: TestClient, life: Life, a_spec: dict[str, Any]) -> None:
        original, headers = life.create(), {"Idempotency-Key": "k"}
        first = api.post(f"studies/{original.id}/clone", headers=headers)
        again = api.post(f"studies/{original.id}/clone", headers=headers, json={})
        assert (first.status_code, again.status_code) == (201, 200)
        assert first.json()["id"] == again.json()["id"]
        assert problem(api.post("studies", json=a_spec, headers=headers)) == (409, "idempotency_conflict")

    def test_a_key_makes_one_clone_though_the_original_has_changed_since(self, api: TestClient, life: Life) -> None:
        original, request = life.create(), {"headers": {"Idempotency-Key": "k"}, "json": {"name": "again"}}
        first = api.post(f"studies/{original.id}/clone", **request)
        api.patch(f"studies/{original.id}", json={"labels": {"new": "label"}}, headers={"If-Match": "*"})
        again = api.post(f"studies/{original.id}/clone", **request)
        assert (first.status_code, again.status_code) == (201, 200)
        assert first.json()["id"] == again.json()["id"]
        other = api.post(f"studies/{original.id}/clone", **{**request, "json": {"name": "other"}})
        assert problem(other) == (409, "idempotency_conflict")

    def test_a_key_makes_one_clone_though_the_original_would_not_fit_by_now_or_is_gone(
        self, api: TestClient, life: Life
    ) -> None:
        original = life.finished({}, replicates={"seeds": [0]}, budget={"max_trials": 6})
        path, request = f"studies/{original.id}", {"headers": {"Idempotency-Key": "k"}}
        request["json"] = {"replicates": {"seeds": [0, 1, 2]}}
        first = api.post(f"{path}/clone", **request)
        assert first.status_code == 201
        api.patch(f"studies/{first.json()['id']}", json={"budget": {"max_trials": 9}}, headers={"If-Match": "*"})
        assert api.patch(path, json={"budget": {"max_trials": 7}}, headers={"If-Match": "*"}).status_code == 200
        assert api.post(f"{path}/clone", json=request["json"]).status_code == 422
        again = api.post(f"{path}/clone", **request)
        assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
        api.post(f"{path}/cancel")
        assert api.delete(path, params={"runs": "delete"}).status_code == 204
        again = api.post(f"{path}/clone", **request)
        assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
        assert api.post(f"{path}/clone", json=request["json"]).status_code == 404

    def test_a_clone_in_other_words_is_the_same_clone(self, api: TestClient, life: Life) -> None:
        path, headers = f"studies/{life.create().id}/clone", {"Idempotency-Key": "k"}
        first = api.post(path, json={"budget": {"max_trials": 4}}, headers=headers)
        again = api.post(path, json={"budget": {"max_wallclock_s": None, "max_trials": 4}}, headers=headers)
        assert (first.status_code, again.status_code) == (201, 200)

    def test_a_clone_can_be_planned(self, api: TestClient, life: Life) -> None:
        original = life.create()
        changes = {"confirm": {"top_k": 2, "seeds": [7, 8, 9]}}
        answer = api.post(f"studies/{original.id}/clone", json=changes, params={"validate_only": True})
        assert answer.json() == {"configurations": 20, "trials": 46, "confirming_trials": 6}
        assert len(api.get("studies").json()["studies"]) == 1

    @on_sqlite
    @pytest.mark.parametrize(("changes", "field"), [({"budgte": {}}, "budgte"), ([], "spec"), ({"name": ""}, "name")])
    def test_bad_changes_are_refused_with_their_path(
        self, api: TestClient, life: Life, changes: Any, field: str
    ) -> None:
        answer = api.post(f"studies/{life.create().id}/clone", json=changes)
        assert (*problem(answer), fields(answer)) == (422, "invalid_spec", [field])


class TestPoints:
    def test_a_point_becomes_a_configuration_with_a_trial_for_each_seed(self, api: TestClient, life: Life) -> None:
        study = life.create()
        answer = api.post(f"studies/{study.id}/configurations", json={"point": {"lambda": "1/t", "rho": 0.2}})
        assert answer.status_code == 201
        made = answer.json()
        assert (made["configuration"]["origin"], made["trial_states"]) == ("USER", {"PENDING": 2})
        assert answer.headers["Location"] == f"/api/v1/studies/{study.id}/configurations/{made['configuration']['id']}"
        assert api.get(answer.headers["Location"].removeprefix("/api/v1/")).json() == made

    def test_the_same_point_twice_is_409(self, api: TestClient, life: Life) -> None:
        path, body = f"studies/{life.create().id}/configurations", {"point": {"lambda": 1.0, "rho": 0.2}}
        assert api.post(path, json=body).status_code == 201
        assert problem(api.post(path, json={"point": {"rho": 0.2, "lambda": 1}})) == (409, "configuration_exists")

    @on_sqlite
    @pytest.mark.parametrize(
        ("body", "field", "code"),
        [
            ({"point": {"lambda": 0.123, "rho": 0.2}}, "point.lambda", "invalid_point"),
            ({"point": {"lambda": 1.0}}, "point.rho", "invalid_point"),
            ({"point": {"lambda": 1.0, "rho": 0.2, "lr": 1}}, "point.lr", "invalid_point"),
            ({"point": {"lambda": [1.0], "rho": 0.2}}, "point.lambda", "invalid_request"),
            ({"points": {}, "point": {}}, "points", "invalid_request"),
            ({}, "point", "invalid_request"),
            ([1], "body", "invalid_request"),
        ],
    )
    def test_what_is_no_point_of_the_space_is_422(
        self, api: TestClient, life: Life, body: Any, field: str, code: str
    ) -> None:
        study = life.create()
        answer = api.post(f"studies/{study.id}/configurations", json=body)
        assert problem(answer) == (422, code)
        assert field in fields(answer)
        assert life.studies.configurations(study.id) == []

    def test_a_study_that_has_ended_takes_no_point(self, api: TestClient, life: Life) -> None:
        study = life.finished(ACCURACIES)
        answer = api.post(f"studies/{study.id}/configurations", json={"point": {"lambda": 0.5, "rho": 0.2}})
        assert problem(answer) == (409, "invalid_transition")


class TestDelete:
    def test_a_deleted_study_is_gone(self, api: TestClient, life: Life) -> None:
        study, other = life.finished(ACCURACIES), life.create()
        answer = api.delete(f"studies/{study.id}", params={"runs": "delete"})
        assert (answer.status_code, answer.content) == (204, b"")
        assert problem(api.get(f"studies/{study.id}")) == (404, "study_not_found")
        assert problem(api.delete(f"studies/{study.id}")) == (404, "study_not_found")
        assert [found["id"] for found in api.get("studies").json()["studies"]] == [other.id]

    def test_runs_that_stay_have_to_show_the_study_as_it_is(
        self, api: TestClient, life: Life, database: Database
    ) -> None:
        study = life.finished(ACCURACIES)
        assert problem(api.delete(f"studies/{study.id}")) == (409, "invalid_transition")
        ExportStore(database).study_exported(study.id, revision=study.revision)
        assert api.delete(f"studies/{study.id}").status_code == 204

    @pytest.mark.parametrize(("method", "verb"), [("DELETE", ""), ("POST", "/archive"), ("POST", "/retry")])
    def test_a_study_that_has_changed_since_it_was_read_is_left_alone(
        self, method: str, verb: str, api: TestClient, life: Life
    ) -> None:
        study = life.finished({(0.0, 0.1): (0.9, None)})
        path = f"studies/{study.id}"
        read = api.get(path)
        api.patch(path, json={"description": "changed"}, headers={"If-Match": "*"})
        refused = api.request(method, path + verb, headers={"If-Match": read.headers["ETag"]})
        assert problem(refused) == (412, "version_conflict")
        assert api.get(path).json()["archived_at"] is None
        params = {"runs": "delete"} if method == "DELETE" else {}
        done = api.request(method, path + verb, params=params, headers={"If-Match": api.get(path).headers["ETag"]})
        assert done.is_success, done.text

    def test_what_becomes_of_its_runs_is_one_of_two_words(self, api: TestClient, life: Life) -> None:
        answer = api.delete(f"studies/{life.finished(ACCURACIES).id}", params={"runs": "burn"})
        assert (*problem(answer), fields(answer)) == (422, "invalid_request", ["runs"])

    def test_a_clone_outlives_its_original(self, api: TestClient, life: Life) -> None:
        original = life.finished(ACCURACIES)
        clone = api.post(f"studies/{original.id}/clone").json()
        api.delete(f"studies/{original.id}", params={"runs": "delete"})
        assert api.get(f"studies/{clone['id']}").json()["cloned_from"] == original.id


def test_runs_in_mlflow_can_be_written_anew(api: TestClient, life: Life, database: Database) -> None:
    study, store = life.finished(ACCURACIES), ExportStore(database)
    store.set_study_run(study.id, experiment_id="1", run_id="r")
    store.study_exported(study.id, revision=study.revision)
    assert api.get(f"studies/{study.id}").json()["is_exported"]
    answer = api.post(f"studies/{study.id}/export-again")
    assert (answer.status_code, answer.json()["mlflow_run_id"], answer.json()["is_exported"]) == (202, None, False)


def test_what_waits_says_why(api: TestClient, life: Life, database: Database) -> None:
    study = life.create(budget={"max_concurrent_trials": 1})
    driver = life.start(study)
    first, second = life.propose(driver, {"lambda": 0.0, "rho": 0.1})

    def reasons() -> list[str | None]:
        listed = api.get(f"studies/{study.id}/trials").json()["trials"]
        assert [api.get(f"studies/{study.id}/trials/{t['id']}").json()["pending_reason"] for t in listed] == [
            trial["pending_reason"] for trial in listed
        ]
        return [trial["pending_reason"] for trial in listed]

    driver.heartbeat(60, "no node has a GPU")
    assert reasons() == ["no node has a GPU"] * 2
    assert api.get(f"studies/{study.id}").json()["pending_reason"] == "no node has a GPU"
    driver.heartbeat(60)
    life.begin(driver, first)
    assert reasons() == [None, "budget.max_concurrent_trials is 1, and 1 train"]
    LifecycleStore(database).pause(study.id)
    assert reasons()[1] == "its study is being paused"
    life.lose(driver, first)
    assert driver.leave() is StudyState.PAUSED
    assert reasons() == ["its study is paused"] * 2
    LifecycleStore(database).resume(study.id)
    assert reasons()[0] == "its study is queued: no controller runs that would start it"
    assert second.attempt == 0


class TestStudiesOfOlderVersions:
    """Names, labels and descriptions that an older version accepted and this one would not."""

    def test_such_a_study_is_changed_searched_and_read_like_any_other(
        self, api: TestClient, life: Life, database: Database
    ) -> None:
        study = life.create()
        with database.writing() as connection:
            old = {**study.spec, "name": "lambda\u2013rho", "labels": {"te\u2013am": "a"}}
            connection.execute(tables.studies.update().values(name=old["name"], labels=old["labels"], spec=old))
        path = f"studies/{study.id}"
        shown = api.get(path)
        assert (shown.json()["name"], shown.json()["progress"]["trials_planned"]) == ("lambda\u2013rho", 40)
        assert api.get(f"{path}/surface").status_code == 200
        changed = api.patch(path, json={"budget": {"max_trials": 30}}, headers={"If-Match": shown.headers["ETag"]})
        assert (changed.status_code, changed.json()["spec"]["budget"]["max_trials"]) == (200, 30)
        assert api.post(f"{path}/configurations", json={"point": {"lambda": 0.5, "rho": 0.2}}).status_code == 201
        again = api.post(f"{path}/clone", json={})
        assert (problem(again)[0], set(fields(again))) == (422, {"labels.te\u2013am", "name"})
        assert api.post(f"{path}/clone", json={"name": "lambda-rho", "labels": {}}).status_code == 201

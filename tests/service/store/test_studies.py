from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from service.errors import (
    ConfigurationNotFoundError,
    IdempotencyConflictError,
    InvalidRequestError,
    StudyNotFoundError,
    TrialNotFoundError,
)
from service.store.studies import NewStudy, StudyFilter
from service.study import Intent, StudyState, TrialState


def new_study(**changes: Any) -> NewStudy:
    fields: dict[str, Any] = {"name": "s", "description": "", "labels": {}, "spec": {}, "owner": "ada"}
    return NewStudy(**{**fields, "request_digest": "digest", "idempotency_key": "key", **changes})


def names(stores: Any, **wanted: Any) -> list[str]:
    return [study.name for study in stores.studies.page(StudyFilter(**wanted), page_size=100).studies]


def test_a_new_study_is_queued_as_it_was_given(stores: Any) -> None:
    spec = {"name": "λ × ρ", "nested": {"a": [1, 2.5, None, True]}}
    study = stores.create(name="λ × ρ", labels={"team": "vision"}, spec=spec)
    assert (study.state, study.intent, study.driver_attempt) == (StudyState.QUEUED, Intent.RUN, 0)
    assert (study.name, study.labels, study.spec) == ("λ × ρ", {"team": "vision"}, spec)
    assert stores.studies.get(study.id) == study


def test_the_same_key_and_body_is_the_same_study(stores: Any) -> None:
    first, is_new = stores.studies.create(new_study())
    assert is_new
    assert stores.studies.create(new_study()) == (first, False)


def test_the_same_key_with_another_body_is_a_conflict(stores: Any) -> None:
    stores.studies.create(new_study())
    with pytest.raises(IdempotencyConflictError):
        stores.studies.create(new_study(request_digest="another"))
    assert len(names(stores)) == 1


def test_the_key_of_another_owner_is_another_key(stores: Any) -> None:
    first, _ = stores.studies.create(new_study())
    second, is_new = stores.studies.create(new_study(owner="bob", request_digest="another"))
    assert is_new
    assert second.id != first.id


def test_without_a_key_every_request_makes_a_study(stores: Any) -> None:
    made = [stores.studies.create(new_study(idempotency_key=None))[0].id for _ in range(2)]
    assert made[0] != made[1]


def test_a_key_used_by_many_at_once_makes_one_study(stores: Any) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: stores.studies.create(new_study()), range(8)))
    assert len({study.id for study, _ in made}) == 1
    assert sum(is_new for _, is_new in made) == 1


def test_pages_stay_stable_while_studies_are_added(stores: Any) -> None:
    for number in range(5):
        stores.create(name=f"{number}")
    seen, token = [], None
    while True:
        page = stores.studies.page(StudyFilter(), page_size=2, page_token=token)
        seen += [study.name for study in page.studies]
        stores.create(name="late")
        token = page.next_page_token
        if token is None:
            break
    assert seen == ["4", "3", "2", "1", "0"]


def test_studies_of_the_same_instant_are_on_one_page_each(timed_stores: Any) -> None:
    ids = {timed_stores.create().id for _ in range(5)}
    seen, token = [], None
    for _ in range(5):
        page = timed_stores.studies.page(StudyFilter(), page_size=1, page_token=token)
        seen += [study.id for study in page.studies]
        token = page.next_page_token
    assert set(seen) == ids
    assert token is None


def test_a_full_last_page_has_no_next_one(stores: Any) -> None:
    stores.create()
    assert stores.studies.page(StudyFilter(), page_size=1).next_page_token is None


@pytest.mark.parametrize(
    "token", ["", "garbage", "é", "e30=", "W10=", "WyJ4IiwgInkiXQ==", "WzEsIDJd", "bnVsbA==", "\x00"]
)
def test_a_page_token_that_is_none_is_refused(stores: Any, token: str) -> None:
    with pytest.raises(InvalidRequestError, match="page_token"):
        stores.studies.page(StudyFilter(), page_size=1, page_token=token)


def test_a_list_shows_what_matches_every_filter(stores: Any) -> None:
    stores.create(name="a", labels={"team": "vision", "run": "1"})
    stores.create(name="b", labels={"team": "vision"})
    stores.drive(stores.create(name="c"))
    assert names(stores) == ["c", "b", "a"]
    assert names(stores, states=[StudyState.RUNNING]) == ["c"]
    assert names(stores, states=[StudyState.RUNNING, StudyState.QUEUED], name="b") == ["b"]
    assert names(stores, labels=[("team", "vision")]) == ["b", "a"]
    assert names(stores, labels=[("team", "vision"), ("run", "1")]) == ["a"]
    assert names(stores, labels=[("run", "2"), ("run", "1")]) == []
    assert names(stores, labels=[("team", "language")]) == []
    assert names(stores, labels=[("nobody", "vision")]) == []
    assert names(stores, name="A") == []


@pytest.mark.parametrize(
    "key",
    ["é", "λ", 'a"b', "a.b", "$", "$.a", "[0]", "0", "x\\y", "o'k", "%", "*", "a b", "#>>'{}'", "'; DROP TABLE x"],
)
def test_any_key_can_be_a_label(stores: Any, key: str) -> None:
    stores.create(name="with", labels={key: "v", "other": key})
    stores.create(name="without", labels={"a": "v"})
    assert names(stores, labels=[(key, "v")]) == ["with"]
    assert names(stores, labels=[("other", key)]) == ["with"]
    assert names(stores, labels=[(key, "w")]) == []


def test_counts_are_by_state(stores: Any) -> None:
    study, other = stores.create(), stores.create()
    driver = stores.drive(study)
    stores.succeed(driver, stores.begin(driver))
    stores.propose(driver, seeds=[0, 1])
    assert stores.studies.trial_counts([study.id, other.id]) == {
        study.id: {TrialState.SUCCEEDED: 1, TrialState.PENDING: 2},
        other.id: {},
    }


def test_what_is_not_there_is_not_found(stores: Any) -> None:
    studies = stores.studies
    for ask in (
        studies.get,
        studies.standing,
        studies.best,
        studies.configurations,
        studies.summaries,
        studies.trials,
        studies.metric_names,
        studies.events,
    ):
        with pytest.raises(StudyNotFoundError):
            ask("nope")
    with pytest.raises(StudyNotFoundError):
        next(studies.trial_rows("nope"))
    study, other = stores.create(), stores.create()
    trial = stores.begin(stores.drive(other))
    with pytest.raises(ConfigurationNotFoundError):
        studies.configuration(study.id, trial.configuration_id)
    for ask_for_trial in (studies.trial, studies.trial_standing, studies.attempts, studies.results):
        with pytest.raises(TrialNotFoundError):
            ask_for_trial(study.id, trial.id)
        with pytest.raises((StudyNotFoundError, TrialNotFoundError)):
            ask_for_trial("nope", trial.id)


def test_configurations_and_trials_come_in_order(stores: Any) -> None:
    study = stores.create()
    driver = stores.drive(study)
    for _ in range(11):
        stores.propose(driver, seeds=[3, 1])
    configurations = stores.studies.configurations(study.id)
    assert [configuration.number for configuration in configurations] == list(range(1, 12))
    assert stores.studies.configuration(study.id, configurations[1].id) == configurations[1]
    trials = stores.studies.trials(study.id)
    assert [trial.number for trial in trials] == list(range(1, 23))
    of_one = stores.studies.trials(study.id, configuration_id=configurations[1].id)
    assert [(trial.number, trial.seed) for trial in of_one] == [(3, 3), (4, 1)]


def test_events_go_on_after_the_last_one_seen(stores: Any) -> None:
    study, other = stores.create(), stores.create()
    driver = stores.drive(study)
    stores.drive(other)
    stores.succeed(driver, stores.begin(driver))
    every = stores.studies.events(study.id)
    assert [event.id for event in every] == sorted(event.id for event in every)
    assert {event.study_id for event in every} == {study.id}
    seen = stores.studies.events(study.id, limit=2)
    assert seen + stores.studies.events(study.id, after=seen[-1].id) == every
    assert stores.studies.events(study.id, after=every[-1].id) == []

"""Of a study's events most are its trials'; those of another kind are found without a look at them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, insert

from service.store import records, tables
from service.store.sleeping import sleeps_of
from service.store.watching import WatchingStore
from service.study import Study

QUESTIONS: dict[str, Callable[[Any, Study], object]] = {
    "the state that was told last": lambda stores, study: ask(stores, records.told_state, study),
    "the sleeps of a study's drivers": lambda stores, study: ask(stores, sleeps_of, study),
    "how long the queue waits": lambda stores, _: WatchingStore(stores.database).look().queued,
}


def ask(stores: Any, question: Callable[[Connection, str], object], study: Study) -> object:
    with stores.database.reading() as connection:
        return question(connection, study.id)


@pytest.fixture
def study(stores: Any) -> Study:
    """A study in the queue with thousands of events of trials."""
    created: Study = stores.create()
    row = {"study_id": created.id, "kind": "trial.state", "data": {}, "at": datetime(2026, 1, 1, tzinfo=UTC)}
    with stores.database.writing() as connection:
        connection.execute(insert(tables.events), [row] * 5_000)
        connection.exec_driver_sql("ANALYZE")
    return created


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_the_events_of_trials_are_not_looked_at(
    question: Callable[[Any, Study], object], stores: Any, study: Study
) -> None:
    asked: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "events.kind =" in statement:
            asked.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        question(stores, study)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    ((statement, parameters),) = asked
    explain = "EXPLAIN QUERY PLAN" if stores.database.is_sqlite else "EXPLAIN"
    with stores.database.reading() as connection:
        plan = connection.exec_driver_sql(f"{explain} {statement}", parameters).all()
    assert "ix_events_study_id_kind_id" in str(plan)

"""What an answer costs must not grow with the study: how many statements it takes, and how many rows they fetch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, event
from starlette.testclient import TestClient

if TYPE_CHECKING:
    from service.study import Study
    from tests.service.conftest import Life


class Cost:
    """What was asked of the store since `begin`."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.statements = self.rows = 0

    def count_statement(self, _connection: Any, _cursor: Any, statement: str, *_: object) -> None:
        self.statements += not statement.startswith("BEGIN")

    def count_rows(self, connection: Any, *_: object) -> None:
        connection.row_factory = self._row

    def _row(self, _cursor: Any, row: tuple[Any, ...]) -> tuple[Any, ...]:
        self.rows += 1
        return row


@pytest.fixture
def store_kind() -> str:
    """The statements are the same on PostgreSQL, and only SQLite's driver lets its rows be counted."""
    return "sqlite"


@pytest.fixture
def cost() -> Iterator[Cost]:
    cost = Cost()
    event.listen(Engine, "before_cursor_execute", cost.count_statement)
    event.listen(Engine, "checkout", cost.count_rows)
    yield cost
    event.remove(Engine, "before_cursor_execute", cost.count_statement)
    event.remove(Engine, "checkout", cost.count_rows)


@pytest.fixture
def studies(life: Life) -> tuple[Study, Study]:
    """Two studies that are alike but for their size: 4 and 40 configurations, the best of them confirmed."""
    return _study(life, 4), _study(life, 40)


def _study(life: Life, configurations: int) -> Study:
    points = {(number / 100, 0.1): (0.5 + number / 100, 0.5) for number in range(configurations)}
    return life.finished(points, confirm={"top_k": 1, "seeds": [7]})


def test_what_is_read_of_a_study_does_not_grow_with_it(
    api: TestClient, cost: Cost, studies: tuple[Study, Study], subtests: pytest.Subtests
) -> None:
    for path in ("", "/best", "/trials?page_size=5", "/configurations?page_size=2&order_by=objective"):
        with subtests.test(path):
            small, large = (_cost_of(api, cost, f"studies/{study.id}{path}") for study in studies)
            assert small == large


def test_a_list_takes_the_same_statements_however_many_studies_it_shows(
    api: TestClient, cost: Cost, life: Life
) -> None:
    life.create()
    one, _ = _cost_of(api, cost, "studies")
    for _ in range(20):
        life.create()
    assert _cost_of(api, cost, "studies")[0] == one


def _cost_of(api: TestClient, cost: Cost, path: str) -> tuple[int, int]:
    """Statements and rows of the second answer: the first may fill what is kept."""
    answers = []
    for _ in range(2):
        cost.begin()
        answers.append(api.get(path))
    assert [answer.status_code for answer in answers] == [200, 200]
    assert cost.statements > 0
    return cost.statements, cost.rows

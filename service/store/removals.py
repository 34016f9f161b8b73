"""What deleted studies have left outside the store, until it is removed there too."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, select, update

from service.store import tables
from service.store.database import Database


@dataclass(frozen=True, slots=True)
class Removal:
    """A study that was deleted `age_s` seconds ago. delete_runs: its runs in MLflow are to go too.

    experiment_id: where its runs are; None where the store did not know of any.
    """

    study_id: str
    experiment_id: str | None
    delete_runs: bool
    age_s: float


class RemovalStore:
    """The removals that `LifecycleStore.delete` has asked for."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def pending(self) -> list[Removal]:
        """The oldest first."""
        table = tables.removals
        with self._database.reading() as connection:
            now = self._database.now(connection)
            rows = connection.execute(select(table).order_by(table.c.requested_at, table.c.study_id))
            return [
                Removal(
                    study_id=row.study_id,
                    experiment_id=row.mlflow_experiment_id,
                    delete_runs=row.delete_runs,
                    age_s=(now - row.requested_at).total_seconds(),
                )
                for row in rows
            ]

    def failed(self, study_id: str, error: str) -> None:
        """Keeps what went wrong; the removal stays."""
        with self._database.writing() as connection:
            connection.execute(
                update(tables.removals).where(tables.removals.c.study_id == study_id).values(error=error)
            )

    def done(self, study_id: str) -> None:
        """Nothing is left of the study."""
        with self._database.writing() as connection:
            connection.execute(delete(tables.removals).where(tables.removals.c.study_id == study_id))

"""One study of a service, to be waited for, steered and read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from service.analysis.aggregation import ConfigurationResult
from service.analysis.surface import Surface
from service.answers import ConfigurationSortOrder, StudyDetail, TrialOverview
from service.study import Event, Scalar, Study, TrialState

if TYPE_CHECKING:
    from service.client.client import Client


class StudyHandle:
    """One study of a service."""

    def __init__(self, client: Client, study: Study) -> None:
        self.id = study.id
        self._client = client
        self.submitted = study

    def __repr__(self) -> str:
        return f"StudyHandle({self.id!r}, url={self._client.url!r})"

    def detail(self) -> StudyDetail:
        """The study as it is now."""
        return self._client.study(self.id)

    def wait(self, timeout_s: float | None = None) -> StudyDetail:
        """Waits until the study has ended, however. Raises TimeoutError after `timeout_s`; the study goes on then."""
        for _ in self._client.events(self.id, timeout_s=timeout_s):
            pass
        return self.detail()

    def cancel(self) -> Study:
        """Ends the study now. Raises InvalidTransitionError where it has ended."""
        return self._client.cancel(self.id)

    def pause(self) -> Study:
        """Begins no new trials; running ones save their state and leave."""
        return self._client.pause(self.id)

    def resume(self) -> Study:
        """Lets it go on after a pause."""
        return self._client.resume(self.id)

    def stop(self) -> Study:
        """Begins no new trials and lets those that have begun end."""
        return self._client.stop(self.id)

    def retry(self) -> Study:
        """Runs its failed trials again, once it has ended."""
        return self._client.retry(self.id)

    def enqueue(self, point: Mapping[str, Scalar]) -> ConfigurationResult:
        """Has it try a point of its space before what its search proposes."""
        return self._client.enqueue(self.id, point)

    def configurations(self, *, order_by: ConfigurationSortOrder = "number") -> list[ConfigurationResult]:
        """Every configuration with its results over seeds."""
        return self._client.configurations(self.id, order_by=order_by)

    def trials(self, *, states: Sequence[TrialState] = ()) -> list[TrialOverview]:
        """Trials in the order of their numbers."""
        return self._client.trials(self.id, states=states)

    def best(self) -> ConfigurationResult | None:
        """The best confirmed configuration, else the best whose search trials all succeeded, else that of most seeds.

        None where no trial succeeded.
        """
        return self._client.best(self.id)

    def surface(
        self, *, x: str = "lambda", y: str = "rho", panel: str | None = None, metric: str | None = None
    ) -> Surface:
        """The objective over two parameters, or another metric of the last epoch."""
        return self._client.surface(self.id, x=x, y=y, panel=panel, metric=metric)

    def events(self, *, after: int = 0, timeout_s: float | None = None) -> Iterator[Event]:
        """What happened after the event with this id, as it happens, until the study has ended."""
        return self._client.events(self.id, after=after, timeout_s=timeout_s)

"""Which configurations are confirmed: after the search its best run again, on seeds that it never saw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from service.analysis.aggregation import most_seeds_first, summarise
from service.analysis.counting import counted
from service.spec_sections import Confirm, Mode
from service.study import Purpose
from service.tuning.search_progress import ConfigurationProgress


class Confirmation:
    """What is yet to be confirmed of a study. Its best are chosen once, until the search has something new after all.

    confirm: the spec's; None where nothing is confirmed.
    """

    def __init__(self, confirm: Confirm | None, mode: Mode) -> None:
        self._confirm = confirm
        self._mode = mode
        self._chosen: list[ConfigurationProgress] | None = None

    def choose_again(self) -> None:
        """The search has something new."""
        self._chosen = None

    def missing(
        self, configurations: Iterable[ConfigurationProgress]
    ) -> Iterator[tuple[ConfigurationProgress, list[int]]]:
        """The best of the configurations, each with the fresh seeds that it lacks; none that lacks none."""
        if self._confirm is None:
            return
        if self._chosen is None:
            self._chosen = best_of_search(configurations, self._confirm.top_k, self._mode)
        for configuration in self._chosen:
            known = {trial.seed for trial in configuration.trials if trial.purpose is Purpose.CONFIRM}
            seeds = [seed for seed in self._confirm.seeds if seed not in known]
            if seeds:
                yield configuration, seeds


def best_of_search(
    configurations: Iterable[ConfigurationProgress], number: int, mode: Mode
) -> list[ConfigurationProgress]:
    """So many configurations, the best first, in the API's order; without those of which no seed counts.

    It looks at all trials, which may be ten thousand.
    """
    keys = {
        configuration: most_seeds_first(summarise(values), configuration.number, mode)
        for configuration in configurations
        if (values := counted(configuration.search_trials))
    }
    return sorted(keys, key=lambda configuration: keys[configuration])[:number]

"""SearchProgress: the configurations of a study, where they come from and what the search learns of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from search_spaces.parameters import Point, point_key
from service.analysis.counting import is_whole, reaches
from service.analysis.moments import mean_of
from service.spec import StudySpec
from service.store.driving import NewConfigurationsError
from service.study import Configuration, Purpose, Trial
from service.tuning.algorithms import Algorithm, Outcome
from service.tuning.trial_progress import TrialProgress


class ConfigurationLog(Protocol):
    """Where new configurations and trials are recorded before anything of them runs."""

    def add_configuration(
        self, point: Point, point_key: str, seeds: Sequence[int], *, last_known: int
    ) -> tuple[Configuration, list[Trial]]:
        """Records the point with one trial for each seed. Raises NewConfigurationsError."""

    def add_confirming_trials(self, configuration_id: str, seeds: Sequence[int]) -> list[Trial]:
        """Records trials of a configuration that is there."""

    def configurations_after(self, number: int) -> list[tuple[Configuration, list[Trial]]]:
        """What users have enqueued since the configuration with this number."""


@dataclass(slots=True, eq=False)
class ConfigurationProgress:
    """A configuration and all of its trials, those that confirm it too."""

    id: str
    number: int
    point: Point
    trials: list[TrialProgress] = field(default_factory=list)

    @property
    def search_trials(self) -> list[TrialProgress]:
        """Its trials but for those that confirm it."""
        return [trial for trial in self.trials if trial.purpose is Purpose.SEARCH]


class SearchProgress:
    """The search of one study: it proposes configurations, takes over those of users, and learns what they are worth.

    A new configuration is answered as the trials that were recorded with it; whoever has them run puts their progress
    into the configuration's `trials`, from which the search learns.

    configurations: by id, in the order of their numbers. last_configuration: the number of the last of them.
    is_exhausted: whether the algorithm has no other point. has_reached_target: whether a configuration is that good.
    """

    def __init__(self, spec: StudySpec, algorithm: Algorithm, log: ConfigurationLog) -> None:
        self._seeds = spec.replicates.seeds
        self._objective = spec.objective
        self._algorithm = algorithm
        self._log = log
        self._unrecorded: Point | None = None
        self.configurations: dict[str, ConfigurationProgress] = {}
        self.last_configuration = 0
        self.is_exhausted = False
        self.has_reached_target = False

    def is_over(self, max_trials: int | None) -> bool:
        """Whether it proposes no more, of at most so many trials; None: of any number."""
        is_full = max_trials is not None and len(self.configurations) >= max_trials // len(self._seeds)
        return self.has_reached_target or self.is_exhausted or is_full

    def add(self, configuration: Configuration) -> None:
        """Takes in a configuration that is recorded."""
        self.configurations[configuration.id] = ConfigurationProgress(
            configuration.id, configuration.number, dict(configuration.point)
        )
        self.last_configuration = max(self.last_configuration, configuration.number)

    def replay(self) -> None:
        """Tells the algorithm every configuration, and what is known of it, before it proposes the first."""
        for configuration in self.configurations.values():
            self._algorithm.known(configuration.point)
            self.learn(configuration)

    def propose(self) -> list[Trial]:
        """Asks for a configuration and records it, unless the space is used up; answers its trials.

        Where users have enqueued others meanwhile, it takes over these instead. Raises StoreUnavailableError; the next
        call then goes on with the same point.
        """
        point = self._unrecorded or self._algorithm.propose()
        if point is None:
            self.is_exhausted = True
            return []
        self._unrecorded = point  # the log may be unavailable for a while
        try:
            configuration, trials = self._log.add_configuration(
                point, point_key(point), self._seeds, last_known=self.last_configuration
            )
        except NewConfigurationsError:
            return self.take_over()
        self._unrecorded = None
        self.add(configuration)
        return trials

    def take_over(self) -> list[Trial]:
        """The trials of what users have enqueued, or of what was recorded without an answer.

        The algorithm does not propose it again. Raises StoreUnavailableError.
        """
        new: list[Trial] = []
        for configuration, trials in self._log.configurations_after(self.last_configuration):
            self.add(configuration)
            self._algorithm.known(configuration.point)
            if self._unrecorded is not None and point_key(self._unrecorded) == point_key(configuration.point):
                self._unrecorded = None  # a user has enqueued this very point, or the log's answer was lost
            new += trials
        return new

    def learn(self, configuration: ConfigurationProgress) -> None:
        """Tells the algorithm what a configuration is worth, once all trials of the search on it have ended."""
        trials = configuration.search_trials
        if not trials or not all(trial.state.is_final for trial in trials):
            return
        outcome, mean = _worth_of(trials)
        self._algorithm.learn(configuration.point, outcome, mean)
        if outcome == "complete" and mean is not None:
            self.has_reached_target |= reaches(mean, self._objective.target, self._objective.mode)


def _worth_of(trials: Sequence[TrialProgress]) -> tuple[Outcome, float | None]:
    """What the search learns of a configuration whose trials of the search have ended.

    That is the mean over all that have an objective, those that were stopped early too. What lacks a seed is never
    complete and reaches no target; what diverges with one of them is worth nothing, however good the others are.
    """
    if any(trial.has_diverged for trial in trials):
        return "pruned", None
    values = [one.objective for one in trials if one.objective is not None and math.isfinite(one.objective)]
    if not values:
        return "failed", None
    return "complete" if is_whole(trials) else "pruned", mean_of(values)

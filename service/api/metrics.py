"""What Prometheus reads: the latency of requests, this process, and the whole service as the store shows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from http import HTTPMethod

from prometheus_client import CollectorRegistry, Histogram, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.api.asking import Question
from service.errors import StoreUnavailableError
from service.store.watching import Sight, WatchingStore
from service.study import StudyState, TrialState

LOOK_S = 5.0
"""How long a look at the store is good for, however many ask."""
PATIENCE_S = 5.0
"""How long the store may take before it counts as down."""

_METHODS = frozenset(HTTPMethod)
_OTHER = "other"


def method_label(method: str) -> str:
    """The method of a request as metrics and the access log have it: HTTP lets a client make up any word."""
    return method if method in _METHODS else _OTHER


class Metrics:
    """The registry of one API process."""

    def __init__(
        self,
        store: WatchingStore,
        *,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = CollectorRegistry()
        self._latency = Histogram(
            "samstudy_http_request_duration_seconds",
            "Time until an answer begins",
            ["method", "route", "status"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5),
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(_StoreCollector(store, patience_s, clock))

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts an answer; route: the template, so that ids make no series of their own."""
        self._latency.labels(method_label(method), route, str(status)).observe(seconds)

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format. A store that is down is a metric, not an error."""
        return generate_latest(self._registry)


class _StoreCollector(Collector):
    """Looks at the store when it is asked, and again no sooner than after LOOK_S."""

    def __init__(self, store: WatchingStore, patience_s: float, clock: Callable[[], float]) -> None:
        self._store = store
        self._question = Question(self._look, good_for_s=LOOK_S, patience_s=patience_s, clock=clock)

    def describe(self) -> list[Metric]:
        """Registering it asks the store nothing."""
        return []

    def collect(self) -> Iterator[Metric]:
        try:
            seen = self._question.answer()
        except TimeoutError:
            seen = None
        yield _gauge("samstudy_store_up", "1 where the study store answers", 0 if seen is None else 1)
        if seen is not None:
            yield from _families(seen)

    def _look(self) -> Sight | None:
        try:
            return self._store.look()
        except StoreUnavailableError:
            return None


def _families(seen: Sight) -> Iterator[Metric]:
    studies = GaugeMetricFamily("samstudy_studies", "Studies by state", labels=["state"])
    for study_state in StudyState:
        studies.add_metric([study_state], seen.studies.get(study_state, 0))
    yield studies
    trials = GaugeMetricFamily("samstudy_trials", "Trials by state", labels=["state"])
    for trial_state in TrialState:
        trials.add_metric([trial_state], seen.trials.get(trial_state, 0))
    yield trials
    said = "Running trials whose attempt has had a warning, such as a checkpoint that could not be written"
    yield _gauge("samstudy_trials_with_warning", said, seen.warned)

    oldest = "samstudy_queue_age_seconds"
    yield _gauge(oldest, "How long the oldest QUEUED study has been in the queue; 0: none is", seen.queued.oldest_s)
    yield _gauge("samstudy_drivers", "Studies that have a driver", seen.drivers)
    yield _gauge("samstudy_drivers_overdue", "Drivers whose lease has run out", seen.overdue_drivers)
    yield _gauge("samstudy_idle_studies", "Studies that have a driver and train nothing", seen.idle.count)
    said = "How long the longest of them has had no event; 0: there is none"
    yield _gauge("samstudy_idle_age_seconds", said, seen.idle.oldest_s)
    if seen.driver_lease_s is not None:
        said = "What is left of the driver's lease that runs out first; negative since it ran out"
        yield _gauge("samstudy_driver_lease_remaining_seconds", said, seen.driver_lease_s)

    leads = seen.controller is not None and seen.controller.seconds_left > 0
    yield _gauge("samstudy_controller_leading", "1 where a controller leads", int(leads))
    if seen.controller is not None:
        said = "What is left of the leading controller's lease; negative since it ran out"
        yield _gauge("samstudy_controller_lease_remaining_seconds", said, seen.controller.seconds_left)
        info = GaugeMetricFamily("samstudy_controller_info", "Who holds, or held last, the lease", labels=["holder"])
        info.add_metric([seen.controller.holder], 1)
        yield info

    yield _gauge("samstudy_export_behind_studies", "Studies that MLflow does not show as they are", seen.behind.count)
    yield _gauge("samstudy_export_lag_seconds", "Age of the oldest change that MLflow lacks", seen.behind.oldest_s)
    said = "Messages to webhooks, neither delivered nor given up"
    yield _gauge("samstudy_webhook_deliveries_pending", said, seen.deliveries.count)
    said = "Age of the oldest pending message to a webhook"
    yield _gauge("samstudy_webhook_delivery_age_seconds", said, seen.deliveries.oldest_s)
    said = "Deleted studies of which something is left in the storage or MLflow"
    yield _gauge("samstudy_removals_pending", said, seen.removals.count)
    yield _gauge("samstudy_removal_age_seconds", "Age of the oldest pending removal", seen.removals.oldest_s)


def _gauge(name: str, said: str, value: float) -> Metric:
    return GaugeMetricFamily(name, said, value=value)

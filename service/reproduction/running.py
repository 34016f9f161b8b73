"""An experiment through a service: its studies found again or submitted, watched, and their results collected."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import version
from uuid import uuid4

from service.client import Client
from service.errors import SamstudyError
from service.reproduction.experiment import Experiment, StudyResults
from service.reproduction.sources import sources_digest
from service.spec import parse_spec
from service.study import Study, StudyState, TrialState

EXPERIMENT_LABEL, PART_LABEL, KEY_LABEL = "reproduces", "part", "reproduction"
"""The labels by which a study of an experiment is found again."""


class ReproductionFailedError(SamstudyError):
    """A study of the experiment ended without results to report."""

    status = 500
    code = "reproduction_failed"
    title = "The experiment did not come to its end"


def run_experiment(
    client: Client, experiment: Experiment, *, watch: Callable[[str], object] | None = None, fresh: bool = False
) -> dict[str, StudyResults]:
    """Runs the experiment's studies and answers with their results, by part.

    Studies of the same experiment, spec, version and sources that are there already are taken as they are, whether they
    have ended or still run; those that failed or were cancelled are not. fresh: makes new ones in any case.
    watch: returns once the study with this id has ended; by default silently.
    Raises ReproductionFailedError, and what the client raises.
    """
    study_ids = {part: study_for(client, experiment, part, fresh=fresh).id for part in experiment.studies}
    wait = watch or (lambda study_id: client.handle(study_id).wait())
    for study_id in study_ids.values():
        wait(study_id)
    return {part: collect(client, study_id) for part, study_id in study_ids.items()}


def study_for(client: Client, experiment: Experiment, part: str, *, fresh: bool = False) -> Study:
    """The newest study of this part that is of use, or one that is submitted now.

    The Idempotency-Key names the newest study that there is, archived or not, so that two commands at a time make one
    study. fresh: one of its own.
    """
    key = study_key(experiment, part)
    of_part = {KEY_LABEL: key}
    found = [study for archived in (False, True) for study in client.studies(labels=of_part, archived=archived)]
    newest = max(found, key=lambda study: study.created_at, default=None)
    if newest and not fresh and newest.state not in (StudyState.FAILED, StudyState.CANCELLED):
        return newest
    labels = {EXPERIMENT_LABEL: experiment.name, PART_LABEL: part, KEY_LABEL: key}
    spec = experiment.studies[part]
    labelled = parse_spec({**spec.to_mapping(), "labels": {**spec.labels, **labels}})
    after = newest.id if newest else "none"
    idempotency_key = uuid4().hex if fresh else f"{experiment.name}-{part}-{key}-after-{after}"
    return client.submit(labelled, idempotency_key=idempotency_key).submitted


def study_key(experiment: Experiment, part: str) -> str:
    """What makes two runs of a part the same: the experiment, the spec, and samstudy's version and sources.

    The sources are those of the packages that train, so that a change of them is not answered with old numbers.
    """
    described = {
        "experiment": experiment.name,
        "part": part,
        "spec": experiment.studies[part].to_mapping(),
        "version": version("samstudy"),
        "sources": sources_digest(),
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def collect(client: Client, study_id: str) -> StudyResults:
    """Everything that the study found. Raises ReproductionFailedError where it did not succeed.

    Nor has it where trials diverged and none was to fail: a mean over the others would be too good.
    """
    study = client.study(study_id)
    if study.state is not StudyState.SUCCEEDED:
        why = f": {study.error}" if study.error else ""
        raise ReproductionFailedError(f"study {study.id} ({study.name}) is {study.state}{why}")
    trials = client.trials(study_id)
    lost = [trial for trial in trials if trial.state is not TrialState.SUCCEEDED]
    if lost and study.spec["budget"]["max_failed_trials"] == 0:
        raise ReproductionFailedError(
            f"{len(lost)} of the {len(trials)} trials of study {study.id} ({study.name}) did not succeed; "
            f"{lost[0].id} is {lost[0].state}: {lost[0].note or lost[0].error or 'no reason is known'}"
        )
    return StudyResults(
        study=study,
        configurations=tuple(client.configurations(study_id)),
        trials=tuple(trials),
        results={trial.id: tuple(client.results(study_id, trial.id)) for trial in trials},
    )

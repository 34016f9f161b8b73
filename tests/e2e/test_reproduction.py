"""An experiment's whole way: its study through the real service, its report beside it in MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from mlflow import MlflowClient

from service.cli.serving import wait_for_export
from service.client import Client
from service.reproduction.experiment import Experiment, Report, StudyResults
from service.reproduction.running import run_experiment
from service.spec import parse_spec
from service.tracking.attachments import NotAttachedError, attach
from tests.e2e.conftest import Service


def a_small_experiment() -> Experiment:
    spec = parse_spec(
        {
            "name": "a small experiment",
            "train": {"dataset": "digits", "model": "linear", "epochs": 2},
            "search_space": {"lambda": {"type": "categorical", "choices": [0.0, 1.0]}},
            "objective": {"metric": "val_accuracy", "mode": "max"},
            "replicates": {"seeds": [0, 1]},
        }
    )

    def report(results: Mapping[str, StudyResults]) -> Report:
        (study,) = results.values()
        return Report("\n".join(str(result.objective) for result in study.configurations), {"small.txt": b"found"})

    return Experiment("small", "Small", "about", {"only": spec}, report)


def test_an_experiment_runs_once_and_its_report_lies_in_mlflow(
    service: Service, client: Client, tmp_path: Path
) -> None:
    of = a_small_experiment()
    results = run_experiment(client, of)
    study = results["only"]
    assert len(study.trials) == 4
    assert study.not_succeeded == 0
    assert all(len(study.results[trial.id]) == 2 for trial in study.trials)
    again = run_experiment(client, of)["only"]
    assert (again.study.id, again.results) == (study.study.id, study.results)

    wait_for_export(client, study.study.id)
    shown = client.study(study.study.id)
    assert shown.mlflow_run_id is not None
    assert shown.mlflow_url is not None
    address, _, _ = shown.mlflow_url.partition("/#/")
    assert address == service.addresses.mlflow_url
    attach(address, shown.mlflow_run_id, of.report(results).files)
    mlflow = MlflowClient(address)
    assert "small.txt" in {item.path for item in mlflow.list_artifacts(shown.mlflow_run_id)}
    assert Path(mlflow.download_artifacts(shown.mlflow_run_id, "small.txt", str(tmp_path))).read_bytes() == b"found"
    with pytest.raises(NotAttachedError, match="0123"):
        attach(address, "0123" * 8, {"small.txt": b""})


@pytest.mark.soak
def test_the_command_writes_the_page_the_figure_and_the_index(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from service.cli import main
    from service.settings import settings

    monkeypatch.setenv("SAMSTUDY_HOME", str(service.home))
    settings.cache_clear()
    for _ in range(2):  # the second time it takes what the first has run
        assert main(["reproduce", "figure-lambda-sweep", "--output", str(tmp_path)]) == 0
        said = capsys.readouterr().out
        assert "using the service that runs" in said
        assert "figure-lambda-sweep.md" in said
    settings.cache_clear()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"README.md", *(f"figure-lambda-sweep.{ending}" for ending in ("md", "png", "html"))}
    assert "λ = 0 (USAM) ends at" in (tmp_path / "figure-lambda-sweep.md").read_text()

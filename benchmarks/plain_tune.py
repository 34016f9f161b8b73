"""The script that a user would write without samstudy: a Ray Tune grid with its MLflow callback, nothing tuned.

`benchmarks/study_overhead.py` runs it beside the service; it trains exactly what the service trains.
"""

from __future__ import annotations

import argparse

from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback

from trainers.config import TrainConfig
from trainers.loop import train


def trainable(config: dict[str, object]) -> None:
    """One trial: every epoch's metrics go to Tune, which hands them to MLflow."""
    for result in train(TrainConfig.from_mapping(config), threads=1):
        tune.report(result.metrics)


def main() -> None:
    """Runs the grid: 5 values of λ × 4 of ρ × seeds."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--mlflow-url", required=True)
    arguments.add_argument("--seeds", type=int, default=2)
    arguments.add_argument("--epochs", type=int, default=5)
    arguments.add_argument("--reuse-actors", action="store_true")
    arguments.add_argument("--experiment", default="plain")
    options = arguments.parse_args()
    tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={
            "dataset": "digits",
            "model": "mlp",
            "epochs": options.epochs,
            "batch_size": 64,
            "lr": 0.05,
            "lambda": tune.grid_search([0.0, 0.5, 1.0, "1/t", "1-1/t"]),
            "rho": tune.grid_search([0.05, 0.1, 0.2, 0.4]),
            "seed": tune.grid_search(list(range(options.seeds))),
        },
        tune_config=tune.TuneConfig(metric="val_accuracy", mode="max", reuse_actors=options.reuse_actors),
        run_config=tune.RunConfig(
            callbacks=[MLflowLoggerCallback(tracking_uri=options.mlflow_url, experiment_name=options.experiment)]
        ),
    ).fit()


if __name__ == "__main__":
    main()

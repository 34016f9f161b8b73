"""Steps on a synthetic problem: written out (`trainers.closed_form`) against the model, autograd and UnifiedSAM.

    python benchmarks/synthetic_steps.py [--rounds 5]

One thread, the default `ridge` problem (n = d = 100), the theorems' step sizes, λ = 0.5. In every round each
configuration trains for as many steps both ways, one after the other; sampling, diagnostics and the theorem's bound are
included, evaluation is not. The times are medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from unittest import mock

import torch

from trainers import assembly
from trainers.config import TrainConfig
from trainers.loop import Training

_CASES = {
    "one index, uniform": {"batch_size": 1, "sampling": "uniform_with_replacement"},
    "one index, lipschitz": {"batch_size": 1, "sampling": "lipschitz"},
    "ten indices, nice": {"batch_size": 10, "sampling": "nice"},
    "full gradient": {"batch_size": 100, "sampling": "uniform"},
}
_STEPS = 2_000


def main() -> None:
    """Prints the times and their ratio as a Markdown table."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    arguments.add_argument("--rounds", type=int, default=5)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    print("| a step with | written out, µs | by model and optimizer, µs | ratio |")
    print("| --- | ---: | ---: | ---: |")
    for name, case in _CASES.items():
        written_out = _training(case)
        with mock.patch.object(assembly, "closed_form_of", return_value=None):
            by_model = _training(case)
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(options.rounds):
            for training, of in zip((written_out, by_model), times, strict=True):
                of.append(_step_s(training, int(case["batch_size"])))
        own, other = map(statistics.median, times)
        print(f"| {name} | {1e6 * own:.1f} | {1e6 * other:.0f} | {other / own:.1f} |")


def _training(case: dict[str, object]) -> Training:
    settings = {"dataset": "ridge", "model": "linear", "momentum": 0.0, "lr": "theory", "rho": "theory", "lambda": 0.5}
    return Training(TrainConfig.from_mapping({**settings, "landscape": "none", "epochs": 100_000, **case}))


def _step_s(training: Training, batch_size: int) -> float:
    epochs = _STEPS * batch_size // 100
    started = time.perf_counter()
    training._train_epochs(epochs)
    return (time.perf_counter() - started) / _STEPS


if __name__ == "__main__":
    main()

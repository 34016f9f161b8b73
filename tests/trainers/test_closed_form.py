"""Steps with written-out gradients: those of a plain simulation, and of the model and the optimizer they stand for."""

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from tests.trainers.simulation import unified_sam
from trainers import assembly
from trainers.catalog import SAMPLINGS
from trainers.closed_form import ClosedFormSteps, Sizes
from trainers.config import TrainConfig
from trainers.loop import DivergedError, EpochResult, Training, train
from trainers.problems import Problem, ProblemSettings, problem
from trainers.sampling import MiniBatch

STATIC = [name for name, facts in SAMPLINGS.items() if facts.is_static]
PLAIN = {"model": "linear", "momentum": 0.0, "lr": 0.01, "rho": 0.1, "epochs": 3, "landscape": "none"}


def a_problem(kind: str, *, n_samples: int = 30, n_features: int = 6) -> Problem:
    return problem(ProblemSettings.of(kind, n_samples=n_samples, n_features=n_features))


def batches_of(indices: list[list[int]], weights: list[list[float]]) -> list[MiniBatch]:
    return [MiniBatch(torch.tensor(i), torch.tensor(w)) for i, w in zip(indices, weights, strict=True)]


def a_config(**changes: object) -> TrainConfig:
    return TrainConfig.from_mapping({"dataset": "ridge", "batch_size": 30, **PLAIN, **changes})


def always(lr: float, rho: float, lam: float) -> Callable[[int], Sizes]:
    return lambda _: Sizes(lr, rho, lam)


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_steps_are_those_of_a_plain_simulation(kind: str, batch_size: int, lam: float) -> None:
    found, generator, steps = a_problem(kind), np.random.default_rng(0), 50
    indices = generator.integers(30, size=(steps, 1, batch_size))
    weights = generator.uniform(0.5, 2, size=indices.shape).astype(np.float32).astype(np.float64)
    start = generator.standard_normal(6)
    rhos, lrs = 0.3 / np.arange(1, steps + 1), np.linspace(0.2, 0.01, steps)

    points = unified_sam(found, (indices, weights), lambda t: (float(rhos[t]), float(lrs[t])), start, lam=lam)
    *_, expected = points
    x = torch.from_numpy(start.copy())
    batches = batches_of(indices[:, 0].tolist(), weights[:, 0].tolist())
    sums, losses = ClosedFormSteps(found).run(x, batches, lambda t: Sizes(float(lrs[t]), float(rhos[t]), lam))

    assert x.numpy() == pytest.approx(expected[0], rel=1e-12, abs=1e-14)
    assert (sums.steps, sums.examples, sums.skipped) == (steps, steps * batch_size, 0)
    assert [len(of_batch) for of_batch in losses] == [batch_size] * steps


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_the_sums_are_of_losses_and_norms_at_the_weights(kind: str) -> None:
    found = a_problem(kind)
    start = torch.linspace(-1, 1, 6, dtype=torch.float64)
    weights = torch.tensor([0.5, 2.0])
    gradient = (weights.unsqueeze(1) * found.gradients(start)[[3, 7]]).mean(0)
    values = found.values(start)[[3, 7]]
    sums, (losses,) = ClosedFormSteps(found).run(
        start.clone(), [MiniBatch(torch.tensor([3, 7]), weights)], always(0.1, 0.2, 0.25)
    )
    norm = float(gradient.norm())
    assert sums.loss / 2 == pytest.approx(float((weights * values).mean()), rel=1e-13)
    assert sums.grad_norm == pytest.approx(norm, rel=1e-13)
    assert sums.perturbation_norm == pytest.approx(0.2 * (0.75 * norm + 0.25), rel=1e-13)
    unregularised = values - 0.5 * found.regulariser * start.square().sum()
    assert losses.numpy() == pytest.approx(unregularised.numpy(), rel=1e-12)


def test_a_radius_of_zero_is_plain_gradient_descent() -> None:
    found = a_problem("logistic")
    start = torch.linspace(-1, 1, 6, dtype=torch.float64)
    x = start.clone()
    sums, _ = ClosedFormSteps(found).run(x, batches_of([list(range(30))], [[1.0] * 30]), always(0.5, 0.0, 1.0))
    assert x.numpy() == pytest.approx((start - 0.5 * found.gradient(start)).numpy(), rel=1e-13)
    assert sums.perturbation_norm == 0


def test_where_there_is_no_gradient_there_is_no_ascent() -> None:
    found = problem(ProblemSettings.of("ridge", n_samples=4, n_features=4, targets="consistent", regulariser=0))
    x = torch.zeros(4, dtype=torch.float64)
    steps = ClosedFormSteps(found)
    steps._targets = np.zeros(4)  # then x = 0 is the minimum, exactly
    sums, _ = steps.run(x, batches_of([[0, 1]], [[1.0, 1.0]]), always(0.1, 0.5, 1.0))
    assert (sums.grad_norm, sums.perturbation_norm, sums.skipped) == (0, 0, 0)
    assert not x.any()


@pytest.mark.parametrize("far", [1e3, 1e6, -1e6])
def test_losses_and_gradients_hold_far_out(far: float) -> None:
    found = a_problem("logistic")
    x = torch.full((6,), far, dtype=torch.float64)
    expected = x - 1e-3 * found.gradient(x)
    sums, (losses,) = ClosedFormSteps(found).run(x, batches_of([list(range(30))], [[1.0] * 30]), always(1e-3, 0.0, 0.0))
    assert x.numpy() == pytest.approx(expected.numpy(), rel=1e-14)
    assert math.isfinite(sums.loss)
    assert bool(torch.isfinite(losses).all())


@pytest.mark.parametrize("at", [1e155, 1e300, math.inf, math.nan])
def test_a_gradient_without_a_finite_norm_skips_the_step_and_is_in_no_sum(at: float) -> None:
    found = a_problem("ridge")
    x = torch.full((6,), at, dtype=torch.float64)
    before = x.clone()
    sums, _ = ClosedFormSteps(found).run(x, batches_of([[0, 1], [2]], [[1.0, 1.0], [1.0]]), always(0.1, 0.5, 0.5))
    assert sums.skipped == 2
    assert (sums.steps, sums.examples, sums.loss, sums.grad_norm) == (0, 0, 0, 0)
    assert x.equal(before) or (math.isnan(at) and bool(x.isnan().all()))


def test_a_second_gradient_without_a_finite_norm_skips_the_step() -> None:
    found = a_problem("ridge")
    x = torch.ones(6, dtype=torch.float64)
    sums, _ = ClosedFormSteps(found).run(x, batches_of([[0]], [[1.0]]), always(0.1, 1e300, 0.0))
    assert (sums.skipped, sums.steps) == (1, 1)
    assert x.equal(torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("threads", [1, 2])
def test_blas_takes_as_many_threads_as_torch(threads: int) -> None:
    def blas_threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    seen: list[set[int]] = []

    def sizes(_: int) -> Sizes:
        seen.append(blas_threads())
        return Sizes(0.1, 0.1, 0.5)

    own, before = torch.get_num_threads(), blas_threads()
    torch.set_num_threads(threads)
    try:
        ClosedFormSteps(a_problem("ridge")).run(torch.zeros(6, dtype=torch.float64), batches_of([[0]], [[1.0]]), sizes)
    finally:
        torch.set_num_threads(own)
    assert seen == [{threads}]
    assert blas_threads() == before


# In training.


def by_model(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> Training:
    """A run of the same configuration through the model, autograd and UnifiedSAM."""
    with monkeypatch.context() as patch:
        patch.setattr(assembly, "closed_form_of", lambda *_: None)
        return Training(config)


def assert_alike(results: list[EpochResult], expected: list[EpochResult]) -> None:
    assert len(results) == len(expected)
    for result, other in zip(results, expected, strict=True):
        assert result.metrics.keys() == other.metrics.keys()
        for name in result.metrics.keys() - {"samples_per_s"}:
            assert result.metrics[name] == pytest.approx(other.metrics[name], rel=1e-9, abs=1e-13), name


def results_of(training: Training) -> list[EpochResult]:
    return [training.next_result() for _ in range(training.config.epochs - training.epochs_done)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lambda": 0.5},
        {"lambda": "1/t", "lr_schedule": "cosine", "rho_schedule": "linear", "rho_end": 0.01},
        {"lambda": 0.0, "rho": 0.0},
        {"batch_size": 1, "lr": "theory", "rho": "theory", "lambda": 0.5},
        {
            "batch_size": 1,
            "lr": "theory",
            "rho": "theory",
            "lambda": 0.5,
            "lr_schedule": "decreasing",
            "rho_schedule": "decreasing",
        },
    ],
    ids=str,
)
@pytest.mark.parametrize("sampling", STATIC)
@pytest.mark.parametrize("dataset", ["ridge", "logistic"])
def test_a_run_reports_what_the_model_and_the_optimizer_would(
    dataset: str, sampling: str, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = a_config(dataset=dataset, sampling=sampling, **changes)
    assert_alike(list(train(config)), results_of(by_model(config, monkeypatch)))


def test_either_way_goes_on_from_the_state_of_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    config = a_config(sampling="lipschitz", **{"lambda": "1-1/t"}, lr_schedule="cosine")
    whole = list(train(config))
    for first, second in (
        (Training(config), by_model(config, monkeypatch)),
        (by_model(config, monkeypatch), Training(config)),
    ):
        results = [first.next_result()]
        second.load_state_dict(first.state_dict())
        assert_alike(results + results_of(second), whole)


def test_a_run_that_leaves_the_numbers_says_so_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    config = a_config(lr=1e9, epochs=40)
    errors = []
    for training in (Training(config), by_model(config, monkeypatch)):
        with pytest.raises(DivergedError) as raised:
            results_of(training)
        errors.append(str(raised.value))
    assert errors[0].split(" is ")[0] == errors[1].split(" is ")[0]


def test_steps_that_are_skipped_are_reported_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    config = a_config(dataset="logistic", rho=1e30, **{"lambda": 0.0}, lr=1e-3, regulariser=1e6, epochs=2)
    reported = [
        [result.metrics["skipped_steps"] for result in results_of(training)]
        for training in (Training(config), by_model(config, monkeypatch))
    ]
    assert reported[0] == reported[1]
    assert reported[0][-1] > 0


def test_a_copy_of_a_run_goes_on_as_it_does() -> None:
    training = Training(a_config(sampling="lipschitz", lr_schedule="cosine"))
    training.next_result()
    again = copy.deepcopy(training)
    assert again._optimizer.param_groups[0]["lr"] == training._sizes.learning_rate(training._optimizer.t - 1)
    assert_alike(results_of(again), results_of(training))


@pytest.mark.parametrize(
    "changes",
    [
        {"momentum": 0.9},
        {"weight_decay": 0.1},
        {"optimizer": "adam"},
        {"perturbation": "adaptive"},
        {"gradient_clip": 1.0},
        {"max_perturbation": 1.0},
        {"micro_batch_size": 10},
        {"compile": "default"},
        {"sampling": "loss"},
        {"sampling": "gradient_norm"},
        {"dataset": "digits"},
    ],
    ids=str,
)
def test_what_is_not_written_out_goes_through_the_model_and_the_optimizer(changes: dict[str, object]) -> None:
    def is_written_out(config: TrainConfig) -> bool:
        return assembly.closed_form_of(config, assembly.problem_of(config), torch.device("cpu")) is not None

    assert is_written_out(a_config())
    assert not is_written_out(a_config(**changes))
    assert assembly.closed_form_of(a_config(), assembly.problem_of(a_config()), torch.device("cuda")) is None


def test_the_weights_stay_where_the_model_has_them() -> None:
    training = Training(a_config())
    (weight,) = training._params
    place, before = weight.data_ptr(), weight.detach().clone()
    training.next_result()
    (after,) = training._model.parameters()
    assert after.data_ptr() == place
    assert not after.detach().equal(before)

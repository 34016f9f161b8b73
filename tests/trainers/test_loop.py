import itertools
import math
import pickle
from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch

from trainers import checkpoint, loop
from trainers.catalog import DATASETS, MODELS, SAMPLINGS
from trainers.config import LARGEST_FLOAT, TrainConfig, reported_metrics
from trainers.datasets.ridge import ridge_problem
from trainers.loop import DeviceUnavailableError, DivergedError, EpochResult, Training, train


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def a_config(**changes: object) -> TrainConfig:
    return TrainConfig.from_mapping({"epochs": 3, "rho": 0.1, "lambda": 0.5, "batch_size": 100, **changes})


def numbers(results: list[EpochResult]) -> list[dict[str, float]]:
    """Everything but the speed."""
    return [{k: v for k, v in result.metrics.items() if k != "samples_per_s"} for result in results]


COMBINATIONS = [
    {"dataset": dataset, "model": model.name, "sampling": sampling.name}
    for dataset in ("digits", "ridge")
    for model in MODELS.values()
    for sampling in SAMPLINGS.values()
    if DATASETS[dataset].task in model.tasks
    if DATASETS[dataset].task in sampling.tasks
    if DATASETS[dataset].is_image or not model.needs_images
]


@pytest.mark.parametrize("choice", COMBINATIONS, ids=lambda choice: "-".join(choice.values()))
def test_a_run_cut_after_any_epoch_and_resumed_equals_the_uninterrupted_one(choice: dict[str, str]) -> None:
    lr = 0.01 if choice["dataset"] == "ridge" else 0.1
    config = a_config(**choice, lr=lr, batch_size=30, lr_schedule="cosine", **{"lambda": "1/t"})
    whole = Training(config)
    results, states = [], []
    while whole.epochs_done < config.epochs:
        results.append(whole.run_epoch())
        states.append(checkpoint.dumps(whole.state_dict()))
    for cut in (1, 2):
        resumed = Training(config)
        resumed.load_state_dict(checkpoint.loads(states[cut - 1]))
        rest = [resumed.run_epoch() for _ in range(config.epochs - cut)]
        assert [result.epoch for result in rest] == list(range(cut + 1, config.epochs + 1))
        assert numbers(rest) == numbers(results[cut:])


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_every_base_optimizer_learns_and_resumes_exactly(optimizer: str) -> None:
    config = a_config(optimizer=optimizer, lr=0.1 if optimizer == "sgd" else 0.003, weight_decay=1e-4)
    first = Training(config)
    first.run_epoch()
    resumed = Training(config)
    resumed.load_state_dict(first.state_dict())
    results = [(first.run_epoch(), resumed.run_epoch()) for _ in range(2)]
    assert numbers([one for one, _ in results]) == numbers([other for _, other in results])
    assert results[-1][0].metrics["val_accuracy"] > 0.8


def test_a_run_that_goes_on_from_another_ones_state_keeps_its_own_settings() -> None:
    donor = Training(a_config(rho=0.5, momentum=0.9, **{"lambda": 0.0}))
    donor.run_epoch()
    other = Training(a_config(rho=0.05, momentum=0.5, **{"lambda": 1.0}))
    other.load_state_dict(donor.state_dict())
    result = other.run_epoch()
    assert result.epoch == 2
    assert result.metrics["perturbation_norm"] == pytest.approx(0.05, rel=1e-5)
    (group,) = other.state_dict()["optimizer"]["param_groups"]
    assert (group["rho"], group["lam"], group["momentum"]) == (0.05, 1.0, 0.5)


def test_a_state_is_a_copy_that_training_on_does_not_change() -> None:
    training = Training(a_config())
    training.run_epoch()
    state = training.state_dict()
    before = checkpoint.dumps(state)
    training.run_epoch()
    assert checkpoint.dumps(state) == before


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(sampling: str) -> None:
    torch.manual_seed(1)
    first = numbers(list(train(a_config(sampling=sampling))))
    torch.manual_seed(2)
    assert numbers(list(train(a_config(sampling=sampling)))) == first
    assert numbers(list(train(a_config(sampling=sampling, seed=1)))) != first


def test_initialisation_and_sampling_do_not_share_a_random_stream() -> None:
    training = Training(a_config(seed=5))
    initial = torch.Generator().manual_seed(5).get_state()
    assert not torch.equal(training.state_dict()["sampler"]["generator"], initial)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("model", ["linear", "mlp", "small_cnn"])
def test_every_sampling_learns_the_digits(model: str, sampling: str) -> None:
    last = list(train(a_config(model=model, sampling=sampling, batch_size=64, epochs=4)))[-1]
    assert last.metrics["val_accuracy"] > 0.85
    assert last.metrics["test_accuracy"] > 0.85


@pytest.mark.parametrize(
    "choice", [{}, {"dataset": "ridge", "model": "linear", "lr": 0.01, "batch_size": 10}], ids=["digits", "ridge"]
)
def test_an_epoch_reports_the_declared_metrics_and_the_test_ones_once_at_the_end(choice: dict[str, object]) -> None:
    config = a_config(**choice)
    results = list(train(config))
    names = reported_metrics(config.dataset)
    assert [result.epoch for result in results] == [1, 2, 3]
    assert [result.is_last for result in results] == [False, False, True]
    for result in results[:-1]:
        assert set(result.metrics) == {name for name in names if not name.startswith("test_")}
    assert set(results[-1].metrics) == set(names)
    for result in results:
        assert all(type(value) is float and math.isfinite(value) for value in result.metrics.values())


def test_schedules_are_reported_as_of_the_epochs_last_step() -> None:
    results = list(train(a_config(lr_schedule="cosine", **{"lambda": "1/t"})))
    steps = math.ceil(DATASETS["digits"].train_size / 100)
    assert [r.metrics["lambda"] for r in results] == [1 / (steps * epoch) for epoch in (1, 2, 3)]
    expected = [0.1 * 0.5 * (1 + math.cos(math.pi * (steps * e - 1) / (3 * steps))) for e in (1, 2, 3)]
    assert [r.metrics["lr"] for r in results] == pytest.approx(expected)
    assert {r.metrics["rho"] for r in results} == {0.1}


def test_the_perturbation_of_sam_has_the_radius_rho_and_uniform_weights_the_whole_batch() -> None:
    for result in train(a_config(batch_size=1149, **{"lambda": 1.0})):
        assert result.metrics["perturbation_norm"] == pytest.approx(0.1, rel=1e-5)
        assert result.metrics["effective_sample_size"] == 1149


def test_importance_weights_lower_the_effective_sample_size() -> None:
    for result in train(a_config(sampling="lipschitz")):
        assert 1 < result.metrics["effective_sample_size"] < 99


def test_rho_zero_trains_without_perturbation_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    original = Training._loss_and_gradient

    def counted(self: Training, batch: loop.MiniBatch) -> torch.Tensor:
        passes.append(len(batch.indices))
        return original(self, batch)

    monkeypatch.setattr(Training, "_loss_and_gradient", counted)
    (result,) = train(a_config(rho=0, epochs=1))
    assert result.metrics["perturbation_norm"] == 0
    assert sum(passes) == 1149
    (result,) = train(a_config(epochs=1))
    assert sum(passes) == 3 * 1149


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_running_statistics_move_once_per_step(sampling: str) -> None:
    training = Training(a_config(model="small_cnn", sampling=sampling))
    training.run_epoch()
    assert int(training.state_dict()["model"]["1.num_batches_tracked"]) == math.ceil(1149 / 100)


@pytest.mark.parametrize(("rho", "is_on"), [(0.0, False), (0.1, True)])
def test_gradient_norm_sampling_knows_how_many_passes_a_step_takes(rho: float, is_on: bool) -> None:
    """τ = 1.7 pays for two passes (above 1 + 3/6), not for one (below 1 + 3/3)."""
    training = Training(a_config(sampling="gradient_norm", rho=rho, epochs=1))
    state = training.state_dict()
    state["sampler"]["tau"] = 1.7
    training.load_state_dict(state)
    whole_batches = 1149 / math.ceil(1149 / 100)
    assert (training.run_epoch().metrics["effective_sample_size"] < whole_batches - 1) is is_on


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("names", [("lr",), ("rho",), ("weight_decay",), ("lr", "rho", "weight_decay")])
def test_the_largest_numbers_diverge_or_skip_steps_and_nothing_worse(optimizer: str, names: tuple[str, ...]) -> None:
    with suppress(DivergedError):
        list(train(a_config(optimizer=optimizer, **dict.fromkeys(names, LARGEST_FLOAT))))


def test_a_run_that_diverges_says_in_which_epoch_and_of_what() -> None:
    with pytest.raises(DivergedError, match=r"training diverged: \w+ is (inf|nan) in epoch \d") as caught:
        list(train(a_config(dataset="ridge", model="linear", lr=1e6, batch_size=10)))
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.epoch == caught.value.epoch >= 1


def test_no_epoch_comes_after_the_last() -> None:
    training = Training(a_config(epochs=1))
    training.run_epoch()
    with pytest.raises(RuntimeError, match="all 1 epochs are done"):
        training.run_epoch()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none_is_an_error_that_says_so() -> None:
    with pytest.raises(DeviceUnavailableError, match="torch finds no CUDA device"):
        Training(a_config(device="cuda"))


def test_threads_sets_torchs_threads() -> None:
    Training(a_config(), threads=2)
    assert torch.get_num_threads() == 2


def test_full_gradient_descent_on_ridge_converges_at_the_rate_of_its_constants() -> None:
    """Gradient descent with step 1/L contracts f − f* by at least 1 − μ/L a step (μ = 0.04, L = 1.03)."""
    problem = ridge_problem()
    best = float(problem.value(problem.solution()))
    config = a_config(dataset="ridge", model="linear", batch_size=100, rho=0, momentum=0, lr=1 / 1.03, epochs=60)
    gaps = [result.metrics["val_loss"] - best for result in train(config)]
    assert gaps[0] > 1e-2
    for earlier, later in itertools.pairwise(gaps):
        assert later <= (1 - 0.04 / 1.03) * earlier + 1e-7


@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_importance_sampling_comes_closer_on_ridge_when_each_sampling_takes_a_step_that_fits_its_bound(
    lam: float,
) -> None:
    """One row a step, γ = 0.05/L_S with L_S = L_max for uniform and L_avg for importance sampling (Theorem 3.2)."""
    problem = ridge_problem()
    best = float(problem.value(problem.solution()))
    bounds = {"uniform": float(problem.smoothness().max()), "lipschitz": float(problem.smoothness().mean())}
    gaps = {}
    for sampling, bound in bounds.items():
        choice = {"dataset": "ridge", "model": "linear", "sampling": sampling, "batch_size": 1, "epochs": 30}
        config = a_config(**choice, momentum=0, rho=1e-3, lr=0.05 / bound, **{"lambda": lam})
        gaps[sampling] = list(train(config))[-1].metrics["val_loss"] - best
    assert 0 < gaps["lipschitz"] < 0.7 * gaps["uniform"]

"""What holds for every sampler."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trainers.catalog import SAMPLINGS
from trainers.facts import SamplingFacts
from trainers.metrics import SAMPLING
from trainers.sampling import MiniBatch, Sampler, build_sampler, effective_sample_size

N = 23


def shares(facts: SamplingFacts) -> list[float]:
    """Little of the uniform distribution, the share that the configuration leaves open, and half; loss needs some."""
    if not facts.is_importance:
        return [0.0]
    return sorted({0.1 if facts.name == "loss" else 0.0, facts.uniform_share, 0.5})


CONFIGURATIONS = [
    pytest.param(kind, share, id=f"{kind}-{share}") for kind, facts in SAMPLINGS.items() for share in shares(facts)
]


def norms(indices: Tensor) -> Tensor:
    """The norm of every example's gradient, of which a few are large."""
    return 0.3 + 0.1 * (indices % 3) + 6.0 * (indices % 7 == 6)


def a_sampler(kind: str, share: float = 0.0, *, batch_size: int = 5, seed: int = 0, size: int = N) -> Sampler:
    """Of a regression; gradient_norm is on."""
    sampler = build_sampler(
        kind,
        size=size,
        batch_size=batch_size,
        generator=torch.Generator().manual_seed(seed),
        task="regression",
        smoothness=norms(torch.arange(size)).double(),
        score=norms,
        uniform_share=share,
    )
    if kind == "gradient_norm":
        sampler.load_state_dict({**sampler.state_dict(), "tau": torch.tensor(100.0)})
    return sampler


def an_epoch(sampler: Sampler) -> Iterator[MiniBatch]:
    """Trains on an epoch, as it were: the losses become smaller and change places."""
    for step, batch in enumerate(sampler.batches()):
        yield batch
        sampler.observe(batch, 0.5 * norms(batch.indices + step).square() / (1 + step))


@pytest.mark.parametrize(("kind", "share"), CONFIGURATIONS)
@pytest.mark.parametrize(("batch_size", "last"), [(5, 3), (1, 1), (N, N), (22, 1)])
def test_an_epoch_has_all_its_batches_and_the_last_is_smaller(
    kind: str, share: float, batch_size: int, last: int
) -> None:
    batches = list(an_epoch(a_sampler(kind, share, batch_size=batch_size)))
    sizes = [len(batch.indices) for batch in batches]
    assert sizes == (math.ceil(N / batch_size) - 1) * [batch_size] + [last]
    for batch in batches:
        assert batch.indices.dtype == torch.int64
        assert batch.weights.dtype == torch.float32
        assert batch.weights.shape == batch.indices.shape
        assert bool(((batch.indices >= 0) & (batch.indices < N)).all())
        assert bool((batch.weights > 0).all())


@pytest.mark.parametrize(("kind", "share"), CONFIGURATIONS)
def test_every_batch_of_a_training_run_is_unbiased(kind: str, share: float) -> None:
    """Over 1,000 runs of two epochs, each batch agrees with the mean within four standard errors, known to 8 %."""
    values = norms(torch.arange(N)) * (1 + 0.2 * torch.randn(N, generator=torch.Generator().manual_seed(1)))
    table = []
    for seed in range(1000):
        sampler = a_sampler(kind, share, seed=seed)
        row = [(b.weights * values[b.indices]).mean() for _ in range(2) for b in an_epoch(sampler)]
        table.append(torch.stack(row))
    estimates = torch.stack(table).double()
    standard_errors = estimates.std(0) / math.sqrt(len(estimates))
    assert bool((standard_errors < 0.08 * values.mean()).all())
    assert bool(((estimates.mean(0) - values.double().mean()).abs() < 4 * standard_errors).all())


@pytest.mark.parametrize(("kind", "share"), CONFIGURATIONS)
def test_a_sampler_resumes_bit_for_bit_from_a_state_of_tensors_alone(kind: str, share: float) -> None:
    sampler, resumed = a_sampler(kind, share), a_sampler(kind, share, seed=99)
    for _ in range(3):
        list(an_epoch(sampler))
    file = io.BytesIO()
    torch.save(sampler.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(2):
        for ours, theirs in zip(an_epoch(sampler), an_epoch(resumed), strict=True):
            assert torch.equal(ours.indices, theirs.indices)
            assert torch.equal(ours.weights, theirs.weights)
        assert sampler.diagnostics() == resumed.diagnostics()
    for ours, theirs in zip(sampler.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert isinstance(ours, Tensor)
        assert isinstance(theirs, Tensor)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("kind", "share"), CONFIGURATIONS)
def test_taking_a_state_changes_nothing_and_the_state_does_not_change(kind: str, share: float) -> None:
    watched, alone = a_sampler(kind, share), a_sampler(kind, share)
    for _ in range(3):
        state = watched.state_dict()
        before = {name: value.clone() for name, value in state.items() if isinstance(value, Tensor)}
        for ours, theirs in zip(an_epoch(watched), an_epoch(alone), strict=True):
            assert torch.equal(ours.indices, theirs.indices)
            assert torch.equal(ours.weights, theirs.weights)
        assert watched.diagnostics() == alone.diagnostics() == alone.diagnostics()
        assert all(torch.equal(state[name], value) for name, value in before.items())


@pytest.mark.parametrize(("kind", "share"), CONFIGURATIONS)
def test_a_state_without_what_it_must_have_is_refused(kind: str, share: float) -> None:
    sampler = a_sampler(kind, share)
    for state in ({}, {"generator": 3, "tau": "1", "scores": [1.0]}):
        with pytest.raises(ValueError, match=r"the (sampler's )?state"):
            sampler.load_state_dict(state)


class HostReads(TorchDispatchMode):
    """Counts the operations that wait for the device, as their result is a Python value or a shape."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += any(func.__name__.startswith(name) for name in self.WAITING)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("kind", "share"), CONFIGURATIONS)
def test_nothing_is_read_back_but_tau_as_an_epoch_begins(kind: str, share: float) -> None:
    sampler = a_sampler(kind, share)
    list(an_epoch(sampler))
    with HostReads() as reads:
        list(an_epoch(sampler))
    assert reads.count == (kind == "gradient_norm")


@pytest.mark.parametrize(("kind", "share"), CONFIGURATIONS)
@pytest.mark.parametrize("batch_size", [1, 5, N])
def test_the_diagnostics_are_those_of_the_batches(kind: str, share: float, batch_size: int) -> None:
    sampler = a_sampler(kind, share, batch_size=batch_size)
    for _ in range(2):
        batches = list(an_epoch(sampler))
    found = sampler.diagnostics()
    assert set(found) == set(SAMPLING)
    assert all(math.isfinite(value) for value in found.values())
    sample_sizes = torch.stack([effective_sample_size(batch.weights.double()) for batch in batches])
    assert found["effective_sample_size"] == pytest.approx(float(sample_sizes.mean()), rel=1e-6)
    assert found["largest_weight"] == pytest.approx(max(float(batch.weights.max()) for batch in batches))
    assert found["importance_share"] == SAMPLINGS[kind].is_importance
    if not SAMPLINGS[kind].is_importance:
        assert found["variance_ratio"] == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("kind", "share"), CONFIGURATIONS)
def test_losses_that_are_not_finite_are_passed_over(kind: str, share: float, bad: float) -> None:
    """All of one epoch, or every second one."""
    sampler = a_sampler(kind, share)
    for step in (1, 2):
        for batch in sampler.batches():
            losses = norms(batch.indices)
            losses[::step] = bad
            sampler.observe(batch, losses)
        assert all(math.isfinite(value) for value in sampler.diagnostics().values())
    assert all(bool(torch.isfinite(batch.weights).all()) for batch in an_epoch(sampler))


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_the_global_random_state_has_no_part(kind: str) -> None:
    torch.manual_seed(1)
    first = [batch.indices for batch in an_epoch(a_sampler(kind, 0.1))]
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = [batch.indices for batch in an_epoch(a_sampler(kind, 0.1))]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, second, strict=True))

"""Which settings, groups and parameters are taken, and which are refused."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.trainers.unified_sam.reference import (
    a_model,
)
from trainers.unified_sam import UnifiedSAM


@pytest.mark.parametrize("rho", ["0.1", None, True, [0.1], 10**400])
def test_a_rho_that_is_no_finite_number_is_refused(rho: object) -> None:
    with pytest.raises(ValueError, match=r"rho must be a finite number of at least 0 or a Schedule, got ") as caught:
        UnifiedSAM([nn.Parameter(torch.ones(2))], torch.optim.SGD, rho=rho, lr=0.1)  # type: ignore[arg-type]
    assert str(caught.value).endswith(repr(rho))


@pytest.mark.parametrize("lam", ["0.5", None, True, False, [0.5]])
def test_a_lambda_that_is_neither_number_nor_schedule_is_refused(lam: object) -> None:
    with pytest.raises(
        ValueError, match=r"lam must be a number in \[0, 1\], '1/t', '1-1/t' or a Schedule within \[0, 1\], got "
    ) as caught:
        UnifiedSAM([nn.Parameter(torch.ones(2))], torch.optim.SGD, lam=lam, lr=0.1)  # type: ignore[arg-type]
    assert str(caught.value).endswith(repr(lam))


@pytest.mark.parametrize("synchronise", [1, 0, None, "no"])
def test_a_synchronise_that_is_neither_true_nor_false_is_refused(synchronise: object) -> None:
    message = f"synchronise must be True or False, got {synchronise!r}"
    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=message):
        UnifiedSAM([weight], torch.optim.SGD, synchronise=synchronise, lr=0.1)  # type: ignore[arg-type]
    optimizer = UnifiedSAM([weight], torch.optim.SGD, lr=0.1)
    optimizer.synchronise = synchronise  # type: ignore[assignment]
    with pytest.raises(ValueError, match=message):
        optimizer.first_step()


def test_rho_and_lambda_are_checked_at_construction_and_for_added_groups() -> None:
    weight = nn.Parameter(torch.ones(2))
    for rho in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"rho must be a finite number of at least 0 or a Schedule, got {rho}"):
            UnifiedSAM([weight], torch.optim.SGD, rho=rho, lam=1.0, lr=0.1)
    for lam in (-0.1, 1.5, math.nan, "t"):
        with pytest.raises(ValueError, match="lam must"):
            UnifiedSAM([weight], torch.optim.SGD, rho=0.1, lam=lam, lr=0.1)
    with pytest.raises(ValueError, match=r"got 1\.5"):
        UnifiedSAM([{"params": [weight], "lam": 1.5}], torch.optim.SGD, rho=0.1, lam=1.0, lr=0.1)
    optimizer = UnifiedSAM([weight], torch.optim.SGD, rho=0.1, lam=1.0, lr=0.1)
    with pytest.raises(ValueError, match="got -1"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "rho": -1})
    assert len(optimizer.param_groups) == 1


def test_an_added_group_is_trained_with_the_defaults() -> None:
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = UnifiedSAM([first], torch.optim.SGD, rho=0.1, lam="1/t", lr=0.1, momentum=0.5)
    optimizer.add_param_group({"params": [second], "lr": 0.2})

    def closure() -> Tensor:
        loss = (first + second).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert first.tolist() == pytest.approx([0.9, 0.9])
    assert second.tolist() == pytest.approx([0.8, 0.8])
    assert optimizer.param_groups[1]["lam"] == "1/t"


def test_complex_parameters_and_several_devices_are_refused() -> None:
    real, elsewhere = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, device="meta"))
    with pytest.raises(ValueError, match=r"parameters must be real floating-point numbers, got torch\.complex64"):
        UnifiedSAM([nn.Parameter(torch.ones(2, dtype=torch.complex64))], torch.optim.SGD, lr=0.1)
    with pytest.raises(ValueError, match="all parameters must be on one device, got cpu, meta"):
        UnifiedSAM([real, elsewhere], torch.optim.SGD, lr=0.1)
    optimizer = UnifiedSAM([real], torch.optim.SGD, lr=0.1)
    with pytest.raises(ValueError, match="one device"):
        optimizer.add_param_group({"params": [elsewhere]})
    assert len(optimizer.param_groups) == len(optimizer.base.param_groups) == 1


def test_groups_given_by_the_caller_keep_their_settings() -> None:
    model = a_model()
    groups = [{"params": list(model.parameters()), "rho": 0.3, "lam": "1/t"}]
    first, second = (UnifiedSAM(groups, torch.optim.SGD, rho=0.1, lr=0.1) for _ in range(2))
    for optimizer in (first, second):
        assert (optimizer.param_groups[0]["rho"], optimizer.param_groups[0]["lam"]) == (0.3, "1/t")


def test_a_base_optimizer_that_maximises_is_refused_whenever_it_is_to() -> None:
    message = "maximize must be False, got True: minimise the negative instead"
    weight, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=message):
        UnifiedSAM([weight], torch.optim.SGD, lr=0.1, maximize=True)
    with pytest.raises(ValueError, match=message):
        UnifiedSAM([weight], partial(torch.optim.Adam, maximize=True), lr=0.1)
    with pytest.raises(ValueError, match=message):
        UnifiedSAM([{"params": [weight], "maximize": True}], torch.optim.SGD, lr=0.1)
    optimizer = UnifiedSAM([weight], torch.optim.SGD, lr=0.1, maximize=False)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [other], "maximize": True})
    assert len(optimizer.param_groups) == 1
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0]["maximize"] = True
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    optimizer.param_groups[0]["maximize"] = True
    with pytest.raises(ValueError, match=message):
        optimizer.first_step()

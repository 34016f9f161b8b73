"""Copies, pickles and saved states: what they carry, and what is refused."""

import copy
import io
import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.trainers.unified_sam.reference import (
    a_model,
    in_two_groups,
    same,
    train,
    weights_of,
)
from trainers.schedules import Schedule
from trainers.unified_sam import UnifiedSAM

pytestmark = pytest.mark.usefixtures("numbers")

Carry = Callable[[nn.Module, UnifiedSAM], tuple[nn.Module, UnifiedSAM]]


def by_file(model: nn.Module, optimizer: UnifiedSAM) -> tuple[nn.Module, UnifiedSAM]:
    """Through a file that may hold tensors and plain data only, into an optimizer with other settings."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twin = a_model(seed=5)
    twin.load_state_dict(model.state_dict())
    other = in_two_groups(twin, rho=9.0, lam=0.0, lr=9.0, momentum=0.1, clip_norm=9.0)
    other.load_state_dict(torch.load(file, weights_only=True))
    return twin, other


def by_pickle(model: nn.Module, optimizer: UnifiedSAM) -> tuple[nn.Module, UnifiedSAM]:
    return pickle.loads(pickle.dumps((model, optimizer)))


def by_deepcopy(model: nn.Module, optimizer: UnifiedSAM) -> tuple[nn.Module, UnifiedSAM]:
    return copy.deepcopy((model, optimizer))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("carry", [by_file, by_pickle, by_deepcopy])
@pytest.mark.parametrize("lam", ["1/t", "1-1/t"])
def test_a_resumed_run_continues_exactly(lam: str, carry: Carry, fused: bool) -> None:
    model = a_model()
    optimizer = in_two_groups(model, rho=0.2, lam=lam, lr=0.1, momentum=0.9, fused=fused)
    train(optimizer, model, range(5))
    at_the_cut = weights_of(model)
    twin, resumed = carry(model, optimizer)
    train(optimizer, model, range(5, 10))
    assert same(weights_of(twin), at_the_cut)
    train(resumed, twin, range(5, 10))
    assert resumed.t == 10
    assert same(weights_of(model), weights_of(twin))
    assert not same(weights_of(model), at_the_cut)


def test_a_state_of_another_optimizer_is_refused() -> None:
    model = a_model()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.2, lam=1.0, lr=0.1)
    with pytest.raises(ValueError, match="not a state of UnifiedSAM"):
        optimizer.load_state_dict(torch.optim.SGD(model.parameters(), lr=0.1).state_dict())


@pytest.mark.parametrize(
    ("saved", "loading"),
    [(torch.optim.Adam, torch.optim.SGD), (torch.optim.AdamW, torch.optim.Adam), (torch.optim.Adam, torch.optim.AdamW)],
)
def test_a_state_of_another_base_optimizer_is_refused_and_changes_nothing(
    saved: type[torch.optim.Optimizer], loading: type[torch.optim.Optimizer]
) -> None:
    models = [a_model() for _ in range(3)]
    theirs, optimizer, twin = (
        UnifiedSAM(model.parameters(), base, rho=0.1, lr=0.01)
        for model, base in zip(models, (saved, loading, loading), strict=True)
    )
    for each, model in zip((theirs, optimizer, twin), models, strict=True):
        train(each, model, range(2))
    message = f"the base optimizer must be {saved.__name__}, whose state it is, got {loading.__name__}"
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(theirs.state_dict())
    for each, model in zip((optimizer, twin), models[1:], strict=True):
        train(each, model, range(2, 4))
    assert same(weights_of(models[1]), weights_of(models[2]))


def test_a_state_that_does_not_say_its_base_optimizer_is_loaded() -> None:
    """One that was saved before it was said."""
    model, twin = a_model(), a_model()
    optimizer = in_two_groups(model, rho=0.1, lr=0.1, momentum=0.9)
    resumed = in_two_groups(twin, rho=0.1, lr=0.1, momentum=0.9)
    train(optimizer, model, range(3))
    state = copy.deepcopy(optimizer.state_dict())
    del state["unified_sam"]["base"]
    twin.load_state_dict(model.state_dict())
    resumed.load_state_dict(state)
    train(optimizer, model, range(3, 5))
    train(resumed, twin, range(3, 5))
    assert same(weights_of(model), weights_of(twin))


@pytest.mark.parametrize("carry", [by_file, by_pickle, by_deepcopy])
def test_a_run_with_every_option_continues_exactly(carry: Carry) -> None:
    model = a_model()
    rho, lam = Schedule("linear", 0.1, 0.5, total_steps=10, warmup_steps=2), Schedule("1-1/t", steps_per_t=2)
    optimizer = in_two_groups(
        model, rho=rho, lam=lam, eta=0.1, max_perturbation=0.3, clip_norm=0.2, lr=0.1, momentum=0.9
    )
    optimizer.param_groups[0]["adaptive"] = True
    optimizer.param_groups[1]["lam"] = "1/t"
    train(optimizer, model, range(5))
    twin, resumed = carry(model, optimizer)
    train(optimizer, model, range(5, 10))
    train(resumed, twin, range(5, 10))
    assert resumed.t == 10
    assert same(weights_of(model), weights_of(twin))
    assert [group["rho"] for group in resumed.param_groups] == [rho, rho]
    assert [group["lam"] for group in resumed.param_groups] == [lam, "1/t"]
    assert (resumed.max_perturbation, resumed.clip_norm) == (0.3, 0.2)


@pytest.mark.parametrize(
    "given",
    [
        {"rho": np.float32(0.5), "lam": np.str_("1/t"), "eta": np.float32(0.5)},
        {"rho": Schedule("decreasing", start=np.float64(0.5)), "lam": Fraction(1, 2)},
        {"rho": Schedule("1/t", start=Fraction(1, 2)), "max_perturbation": np.float32(0.25), "clip_norm": np.int64(1)},
        {"rho": 0.5, "max_perturbation": Fraction(1, 4), "clip_norm": Fraction(1, 8)},
    ],
    ids=str,
)
def test_numbers_of_every_kind_are_taken_and_carried_as_pythons_own(given: dict[str, Any]) -> None:
    def own(value: Any) -> Any:
        return str(value) if isinstance(value, str) else value if isinstance(value, Schedule) else float(value)

    model, twin = a_model(), a_model()
    optimizer = in_two_groups(model, **given, lr=0.1, momentum=0.9)
    other = in_two_groups(twin, **{name: own(value) for name, value in given.items()}, lr=0.1, momentum=0.9)
    train(optimizer, model, range(3))
    train(other, twin, range(3))
    resumed_model, resumed = by_file(model, optimizer)
    for each, net in ((optimizer, model), (other, twin), (resumed, resumed_model)):
        train(each, net, range(3, 6))
    assert same(weights_of(model), weights_of(twin))
    assert same(weights_of(model), weights_of(resumed_model))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state["param_groups"][0].update(rho=-1.0), "rho must be"),
        (lambda state: state["param_groups"][0].update(lam={"kind": "1/t²"}), "kind must be one of"),
        (lambda state: state["param_groups"][0].update(lam={"kin": "1/t"}), "the fields of a schedule are"),
        (lambda state: state["param_groups"][0].pop("eta"), "the state has no eta"),
        (lambda state: state.pop("state"), "the state has no state"),
        (lambda state: state["unified_sam"].update(clip_norm=0), "clip_norm must be"),
        (lambda state: state["unified_sam"].update(t=-3), "t must be an integer of at least 0, got -3"),
        (lambda state: state["unified_sam"].update(t=2.5), "t must be an integer of at least 0, got 2.5"),
        (lambda state: state["unified_sam"].update(skipped_steps=0.5), "skipped_steps must be an int64 tensor"),
        (lambda state: state["unified_sam"].update(synchronise=None), "synchronise must be True or False, got None"),
        (lambda state: [state["unified_sam"].pop(name) for name in ("t", "synchronise")], "no t, synchronise"),
        (lambda state: state["param_groups"].pop(), "parameter group"),
    ],
)
def test_a_state_that_breaks_a_rule_is_refused_and_changes_nothing(
    spoil: Callable[[dict[str, Any]], object], message: str
) -> None:
    model, twin = a_model(), a_model()
    optimizer, other = (in_two_groups(net, rho=0.1, lam="1/t", lr=0.1, momentum=0.9) for net in (model, twin))
    train(optimizer, model, range(3))
    train(other, twin, range(3))
    state = copy.deepcopy(optimizer.state_dict())
    spoil(state)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    train(optimizer, model, range(3, 6))
    train(other, twin, range(3, 6))
    assert same(weights_of(model), weights_of(twin))


def test_named_parameters_keep_their_names() -> None:
    model = a_model()
    optimizer = UnifiedSAM(model.named_parameters(), torch.optim.SGD, rho=0.1, lr=0.1, momentum=0.9)
    train(optimizer, model, range(2))
    names = [name for name, _ in model.named_parameters()]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == names
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["param_names"] == names


@pytest.mark.parametrize("carry", [by_file, by_pickle, by_deepcopy])
def test_what_it_has_counted_and_how_replicas_ascend_are_carried(carry: Carry) -> None:
    model = a_model()
    optimizer = in_two_groups(model, synchronise=False, lr=0.1, momentum=0.9)
    train(optimizer, model, range(2))
    for param in model.parameters():
        param.grad = torch.full_like(param, torch.nan)
    optimizer.first_step()
    optimizer.second_step()
    assert (optimizer.t, int(optimizer.skipped_steps)) == (3, 1)
    _, resumed = carry(model, optimizer)
    assert (resumed.t, int(resumed.skipped_steps), resumed.synchronise) == (3, 1, False)
    train(optimizer, model, range(3, 4))
    assert (resumed.t, int(resumed.skipped_steps)) == (3, 1)


def test_the_hooks_of_a_state_run_as_those_of_any_optimizer() -> None:
    optimizer, calls = in_two_groups(a_model()), []

    def renamed(_: object, state: dict[str, Any]) -> dict[str, Any]:
        calls.append("before loading")
        return {name.removeprefix("own_"): value for name, value in state.items()}

    optimizer.register_state_dict_pre_hook(lambda _: calls.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda _, state: {f"own_{name}": value for name, value in state.items()})
    optimizer.register_load_state_dict_pre_hook(renamed)
    optimizer.register_load_state_dict_post_hook(lambda _: calls.append("after loading"))
    state = optimizer.state_dict()
    assert all(name.startswith("own_") for name in state)
    optimizer.load_state_dict(state)
    assert calls == ["before saving", "before loading", "after loading"]
    assert all(name.startswith("own_") for name in state)

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from trainers.batchnorm import RunningStatistics, frozen_running_statistics

KINDS = {
    "1d": (lambda: nn.BatchNorm1d(3), (16, 3)),
    "2d": (lambda: nn.BatchNorm2d(3), (16, 3, 4, 4)),
    "3d": (lambda: nn.BatchNorm3d(3), (16, 3, 2, 2, 2)),
    "synchronised": (lambda: nn.SyncBatchNorm(3), (16, 3, 4, 4)),
    "cumulative": (lambda: nn.BatchNorm1d(3, momentum=None), (16, 3)),
    "instance": (lambda: nn.InstanceNorm2d(3, track_running_stats=True), (16, 3, 4, 4)),
    "without statistics": (lambda: nn.BatchNorm1d(3, track_running_stats=False), (16, 3)),
    "instance without statistics": (lambda: nn.InstanceNorm2d(3), (16, 3, 4, 4)),
}


def some(shape: tuple[int, ...], seed: int) -> Tensor:
    return 5 + 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_statistics_normalise_by_the_batch_and_do_not_move(kind: str) -> None:
    build, shape = KINDS[kind]
    model, twin = nn.Sequential(build()), nn.Sequential(build())
    for number in range(3):
        inputs = some(shape, number)
        outputs = model(inputs)
        assert torch.equal(outputs, twin(inputs))
        after_the_first_pass = {name: value.clone() for name, value in model.state_dict().items()}
        with frozen_running_statistics(model):
            second = some(shape, 100 + number)
            assert torch.equal(model(second), build()(second))
        state = model.state_dict()
        assert all(torch.equal(state[name], value) for name, value in after_the_first_pass.items())
        assert all(torch.equal(state[name], value) for name, value in twin.state_dict().items())
        if "0.num_batches_tracked" in state:
            assert int(state["0.num_batches_tracked"]) == (0 if "instance" in kind else number + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_modules_in_evaluation_mode_go_on_using_their_statistics(kind: str) -> None:
    build, shape = KINDS[kind]
    model = build()
    model(some(shape, 0))
    model.eval()
    expected = model(some(shape, 1))
    with frozen_running_statistics(model):
        assert torch.equal(model(some(shape, 1)), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_training", [False, True])
def test_the_mode_may_change_while_they_are_frozen(kind: str, is_training: bool) -> None:
    build, shape = KINDS[kind]
    model = build()
    model(some(shape, 0))
    before = statistics_of(model)
    expected = copy.deepcopy(model).train(is_training)(some(shape, 1))
    model.train(not is_training)
    with frozen_running_statistics(model):
        model.train(is_training)
        assert torch.equal(model(some(shape, 1)), expected)
        model.train(not is_training)
    assert all(torch.equal(value, before[name]) for name, value in statistics_of(model).items())


@pytest.mark.parametrize("build", [nn.LazyBatchNorm2d, lambda: nn.LazyInstanceNorm2d(track_running_stats=True)])
@pytest.mark.parametrize("is_training", [False, True])
def test_lazy_modules_make_their_statistics_as_ever(build: Callable[[], nn.Module], is_training: bool) -> None:
    model, twin = build().train(is_training), build().train(is_training)
    inputs = some((16, 3, 4, 4), 0)
    with frozen_running_statistics(model):
        assert torch.equal(model(inputs), twin(inputs))
    assert statistics_of(model).keys() == statistics_of(twin).keys() != set()
    with frozen_running_statistics(model):
        model(inputs)
    assert all(torch.equal(value, statistics_of(twin)[name]) for name, value in statistics_of(model).items())


def test_an_exception_thaws_them() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True))
    with pytest.raises(MemoryError), frozen_running_statistics(model):
        raise MemoryError
    assert all(module.track_running_stats for module in model)
    assert model[1].running_mean is not None


class Reluctant(nn.BatchNorm1d):
    """It fails to be frozen."""

    @property
    def track_running_stats(self) -> bool:
        return True

    @track_running_stats.setter
    def track_running_stats(self, value: bool) -> None:
        if not value:
            raise KeyboardInterrupt


def test_an_interrupt_while_they_are_being_frozen_thaws_them() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True), Reluctant(3))
    with pytest.raises(KeyboardInterrupt), frozen_running_statistics(model):
        pass
    assert all(module.track_running_stats for module in model)
    assert model[1].running_mean is not None


def test_a_compiled_or_wrapped_model_is_frozen_too() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        compiled(some((16, 3), 0))
        with frozen_running_statistics(compiled):
            compiled(some((16, 3), 1))
    twin = nn.BatchNorm1d(3)
    twin(some((16, 3), 0))
    twin(some((16, 3), 0))
    assert torch.equal(model[0].running_mean, twin.running_mean)


def statistics_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.named_buffers() if not is_lazy(value)}


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("is_wanted", [False, True])
@pytest.mark.parametrize("spoil", [1.0, math.inf, math.nan])
def test_statistics_are_put_back_if_that_is_wanted(is_wanted: bool, as_tensor: bool, spoil: float) -> None:
    """Every kind at once, in float32, float64 and bfloat16, the first in evaluation mode and the last one lazy."""
    others = [nn.BatchNorm1d(3).double(), nn.BatchNorm1d(3).bfloat16(), nn.LazyBatchNorm1d()]
    model = nn.ModuleList([*(build() for build, _ in KINDS.values()), *others])
    model[0].eval()
    statistics = RunningStatistics(model)
    statistics.keep()
    before = statistics_of(model)
    inputs = [*(some(shape, 1) for _, shape in KINDS.values()), some((16, 3), 1).double(), some((16, 3), 1).bfloat16()]
    for module, batch in zip(model, inputs, strict=False):
        module(spoil * batch)
    moved = statistics_of(model)
    never = {"5.num_batches_tracked", "10.num_batches_tracked"}  # instances are not counted, and the last did not run
    assert {name for name in before if torch.equal(before[name], moved[name])} == {
        *(name for name in before if name.startswith("0.")),
        *never,
    }
    statistics.put_back(torch.tensor(is_wanted) if as_tensor else is_wanted)
    expected, after = before if is_wanted else moved, statistics_of(model)
    for name, value in expected.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_what_is_put_back_does_not_depend_on_the_mode_in_which_it_was_kept(as_tensor: bool) -> None:
    model = nn.ModuleList([nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True)]).eval()
    statistics, before = RunningStatistics(model), statistics_of(model)
    statistics.keep()
    for module in model.train():
        module(some((16, 3, 4, 4), 1))
    model.eval()
    statistics.put_back(torch.tensor(True) if as_tensor else True)
    assert all(torch.equal(value, before[name]) for name, value in statistics_of(model).items())


@pytest.mark.parametrize("is_wanted", [False, True])
def test_what_modules_share_is_put_back_once_and_other_buffers_are_left_alone(is_wanted: bool) -> None:
    first, second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    second.running_mean = first.running_mean
    first.register_buffer("mask", torch.tensor([True, False, True]))
    statistics = RunningStatistics(nn.ModuleList([first, second]))
    statistics.keep()
    first(some((16, 3), 1))
    moved = first.running_mean.clone()
    statistics.put_back(torch.tensor(is_wanted))
    assert torch.equal(second.running_mean, torch.zeros(3) if is_wanted else moved)
    assert first.mask.tolist() == [True, False, True]


def test_without_a_model_there_is_nothing_to_keep() -> None:
    statistics = RunningStatistics(None)
    statistics.keep()
    with statistics.frozen():
        statistics.put_back(True)

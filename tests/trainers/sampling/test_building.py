import math
from typing import Any

import pytest
import torch

from trainers.catalog import SAMPLINGS
from trainers.sampling import build_sampler


def build(kind: str, **arguments: Any) -> object:
    complete = {
        "size": 10,
        "batch_size": 3,
        "generator": torch.Generator(),
        "task": "binary",
        "smoothness": torch.ones(10),
        "score": torch.ones_like,
        "uniform_share": 0.1,
    }
    return build_sampler(kind, **{**complete, **arguments})


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_there_is_a_sampler_for_every_kind_of_the_catalog(kind: str) -> None:
    assert hasattr(build(kind), "batches")


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("best", {}, "sampling must be one of uniform, .*, got 'best'"),
        ("uniform", {"size": 0}, "size must be at least 1, got 0"),
        ("nice", {"batch_size": 0}, r"batch_size must lie in \[1, 10\].*, got 0"),
        ("nice", {"batch_size": 11}, r"batch_size must lie in \[1, 10\].*, got 11"),
        ("lipschitz", {"uniform_share": 1.5}, r"uniform_share must lie in \[0, 1\], got 1.5"),
        ("lipschitz", {"uniform_share": math.nan}, r"uniform_share must lie in \[0, 1\], got nan"),
        ("loss", {"uniform_share": 0.0}, r"uniform_share must lie in \(0, 1\] for loss sampling, got 0.0"),
        ("lipschitz", {"smoothness": None}, "lipschitz sampling needs smoothness"),
        ("lipschitz", {"smoothness": torch.ones(9)}, r"smoothness must be of shape \(10,\), got \(9,\)"),
        ("lipschitz", {"smoothness": torch.full((10,), math.nan)}, "finite and at least 0"),
        ("lipschitz", {"smoothness": torch.arange(10.0) - 1}, "finite and at least 0"),
        ("lipschitz", {"smoothness": torch.arange(10.0), "uniform_share": 0.0}, "would never be drawn, got 0.0"),
        ("gradient_norm", {"score": None}, "gradient_norm sampling needs score"),
        ("gradient_norm", {"presample_factor": 1}, "presample_factor must be at least 2, got 1"),
        ("gradient_norm", {"passes": 3}, "passes must be 1 or 2, got 3"),
    ],
)
def test_a_bad_value_is_refused_with_the_rule(kind: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(kind, **arguments)


def test_the_mixture_lets_an_example_of_constant_zero_be_drawn() -> None:
    assert build("lipschitz", smoothness=torch.arange(10.0), uniform_share=0.1)

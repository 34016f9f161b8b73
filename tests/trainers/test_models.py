import pytest
import torch

from trainers.catalog import DATASETS, MODELS
from trainers.models import BUILDERS, build_model

FITTING = [
    (model, dataset)
    for model, facts in MODELS.items()
    for dataset, data in DATASETS.items()
    if data.task in facts.tasks and (data.is_image or not facts.needs_images)
]


def test_every_model_of_the_catalog_can_be_built() -> None:
    assert set(BUILDERS) == set(MODELS)


@pytest.mark.parametrize(("model", "dataset"), FITTING)
def test_a_model_maps_a_batch_to_one_output_per_class(model: str, dataset: str) -> None:
    facts = DATASETS[dataset]
    outputs = build_model(model, facts, seed=0)(torch.zeros(4, *facts.shape))
    assert outputs.shape == (4, facts.classes)


def test_initialisation_depends_on_the_seed_alone_and_leaves_the_global_random_state() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build_model("mlp", DATASETS["digits"], seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = (build_model("mlp", DATASETS["digits"], seed=seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_the_mlp_for_digits_has_128_hidden_units() -> None:
    shapes = [tuple(param.shape) for param in build_model("mlp", DATASETS["digits"], seed=0).parameters()]
    assert shapes == [(128, 64), (128,), (10, 128), (10,)]


def test_the_regression_of_the_paper_has_no_bias() -> None:
    assert [tuple(p.shape) for p in build_model("linear", DATASETS["ridge"], seed=0).parameters()] == [(1, 100)]

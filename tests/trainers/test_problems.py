import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainers.problem_settings import ProblemSettings
from trainers.problems import Problem, problem
from trainers.sampling.scores import smoothness_constants

SHAPES = [(2, 1), (2, 2), (3, 7), (12, 5)]
SPECTRA = [(1.0, "outlier"), (1.5, "outlier"), (30.0, "geometric")]
RIDGE, LOGISTIC = (
    [
        ProblemSettings.of(
            kind,
            n_samples=n,
            n_features=d,
            condition_number=kappa,
            spectrum=spectrum,
            targets=targets,
            regulariser=r,
        )
        for (n, d), (kappa, spectrum), targets, r in itertools.product(
            SHAPES, SPECTRA, ("independent", "consistent"), regularisers
        )
        if d > 1 or kappa == 1
    ]
    for kind, regularisers in (("ridge", (0.0, 0.1)), ("logistic", (1e-8, 0.1)))
)
EVERY = [*RIDGE, *LOGISTIC]


def points(found: Problem, count: int, *, scale: float = 1.0) -> Tensor:
    """(count, d) points around the solution."""
    generator = torch.Generator().manual_seed(count)
    shifts = torch.randn(count, len(found.solution), generator=generator, dtype=torch.float64)
    return found.solution + scale * shifts


# The problems of the paper.


def test_the_default_ridge_is_the_published_experiment() -> None:
    """Numerically the same problem as a rendition in NumPy of what the paper describes."""
    found = problem(ProblemSettings.of("ridge"))
    generator = np.random.RandomState(0)
    eigenvalues = np.concatenate(([1.0, 10.0], generator.uniform(1, 2, 98)))
    orthogonal, _ = np.linalg.qr(generator.standard_normal((100, 100)))
    assert np.array_equal(found.features.numpy(), orthogonal @ np.diag(eigenvalues) @ orthogonal.T)
    assert np.array_equal(found.targets.numpy(), generator.standard_normal(100))
    assert found.regulariser == 0.03


def test_the_constants_of_the_default_ridge_are_those_of_the_paper() -> None:
    found = problem(ProblemSettings.of("ridge"))
    assert [found.mu, found.L] == pytest.approx([0.04, 1.03])
    assert float(found.smoothness.mean()) == pytest.approx(3.3, abs=0.1)
    assert 8 < float(found.smoothness.max()) < 10


def test_the_default_logistic_has_the_size_and_regulariser_of_the_paper() -> None:
    found = problem(ProblemSettings.of("logistic"))
    assert found.features.shape == (200, 10)
    assert set(found.targets.tolist()) == {-1.0, 1.0}
    assert found.regulariser == found.mu == 1 / 200


@pytest.mark.parametrize("settings", EVERY, ids=str)
def test_the_rows_have_the_condition_number_asked_for(settings: ProblemSettings) -> None:
    singular_values = torch.linalg.svdvals(problem(settings).features)
    assert float(singular_values[0] / singular_values[-1]) == pytest.approx(settings.condition_number, rel=1e-10)
    smallest = settings.condition_number**-0.5 if settings.spectrum == "geometric" else 1.0
    assert float(singular_values[-1]) == pytest.approx(smallest, rel=1e-10)


def test_a_geometric_spectrum_rises_by_a_constant_factor_and_an_outlier_one_has_one_outlier() -> None:
    geometric = problem(ProblemSettings.of("ridge", n_samples=9, n_features=5, spectrum="geometric")).features
    singular_values = torch.linalg.svdvals(geometric)
    torch.testing.assert_close(singular_values[:-1] / singular_values[1:], torch.full((4,), 10**0.25).double())
    outlier = problem(ProblemSettings.of("ridge", n_samples=9, n_features=5, spectrum="outlier")).features
    assert bool((torch.linalg.svdvals(outlier)[1:] <= 2).all())


def test_consistent_labels_are_separated_by_a_plane_through_the_origin() -> None:
    settings = ProblemSettings.of("logistic", targets="consistent", regulariser=1e-6)
    found = problem(settings)
    assert bool((found.targets * (found.features @ found.solution) > 0).all())


def test_a_problem_is_built_once() -> None:
    assert problem(ProblemSettings.of("ridge")) is problem(ProblemSettings.of("ridge"))


# Values and derivatives.


@pytest.mark.parametrize("settings", EVERY, ids=str)
def test_every_gradient_is_that_of_central_differences(settings: ProblemSettings) -> None:
    found, step = problem(settings), 1e-5
    for x in points(found, 2):
        shifts = step * torch.eye(len(x), dtype=torch.float64)
        slopes = (found.values(x + shifts) - found.values(x - shifts)) / (2 * step)  # (d, n)
        scale = float(found.smoothness.max() + slopes.abs().max())
        torch.testing.assert_close(found.gradients(x), slopes.T, rtol=0, atol=1e-8 * scale)
        torch.testing.assert_close(found.gradient(x), found.gradients(x).mean(0), rtol=1e-12, atol=1e-12 * scale)
        curved = (found.gradient(x + shifts) - found.gradient(x - shifts)) / (2 * step)
        torch.testing.assert_close(found.hessian(x), curved, rtol=0, atol=1e-8 * scale)


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_values_and_gradients_take_many_points_at_once(kind: str) -> None:
    found = problem(ProblemSettings.of(kind))
    batch = points(found, 3)
    for compute in (found.value, found.values, found.gradient, found.gradients, found.suboptimality):
        torch.testing.assert_close(compute(batch), torch.stack([compute(x) for x in batch]))


def test_the_logistic_loss_neither_overflows_nor_loses_digits() -> None:
    found = problem(ProblemSettings.of("logistic", n_samples=2, n_features=1, condition_number=1, regulariser=1e-8))
    slope = found.targets * found.features[:, 0]
    for margin in (-1e6, -800.0, -30.0, 0.0, 30.0, 800.0):
        x = torch.tensor([margin / float(slope[0])], dtype=torch.float64)
        expected = -margin if margin < -700 else float(np.log1p(np.exp(-margin)))
        assert float(found.values(x)[0]) == pytest.approx(expected + 0.5e-8 * float(x) ** 2, rel=1e-13)
        assert bool(torch.isfinite(found.gradients(x)).all())


@pytest.mark.parametrize("settings", [ProblemSettings.of("ridge"), ProblemSettings.of("logistic")], ids=str)
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_the_objective_of_its_dataset_is_the_problem(settings: ProblemSettings, scale: float) -> None:
    """Value and gradient, through torch's autograd in float64, also where margins are large."""
    found = problem(settings)
    split, objective = found.dataset().train, found.dataset().objective
    assert split.inputs.dtype == split.targets.dtype == torch.float64
    model = nn.Linear(settings.n_features, 1, bias=False).double()
    x = points(found, 1, scale=scale)[0]
    model.weight.data.copy_(x)
    loss = objective.per_example(model, model(split.inputs), split.targets).mean()
    (gradient,) = torch.autograd.grad(loss, model.weight)
    torch.testing.assert_close(loss.detach(), found.value(x), rtol=1e-13, atol=0)
    torch.testing.assert_close(gradient[0], found.gradient(x), rtol=1e-12, atol=1e-13)


def test_every_split_is_the_problem_itself() -> None:
    dataset = problem(ProblemSettings.of("ridge")).dataset()
    assert dataset.validation is dataset.train
    assert dataset.test is dataset.train


# Constants.


@pytest.mark.parametrize("settings", RIDGE, ids=str)
def test_ridge_has_the_extreme_eigenvalues_of_its_hessian(settings: ProblemSettings) -> None:
    found = problem(settings)
    eigenvalues = torch.linalg.eigvalsh(found.hessian(found.solution))
    expected = [float(eigenvalues[eigenvalues > 1e-9].min()), float(eigenvalues[-1])]
    assert [found.mu, found.L] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("settings", LOGISTIC, ids=str)
def test_logistic_is_steepest_in_curvature_at_the_origin(settings: ProblemSettings) -> None:
    found = problem(settings)
    roughest = torch.linalg.eigvalsh(found.hessian(torch.zeros_like(found.solution)))[-1]
    assert float(roughest) == pytest.approx(found.L, rel=1e-12)
    for x in points(found, 5):
        eigenvalues = torch.linalg.eigvalsh(found.hessian(x))
        assert float(eigenvalues[-1]) <= found.L * (1 + 1e-12)
        assert float(eigenvalues[0]) >= found.mu - 1e-13 * found.L


@pytest.mark.parametrize("settings", EVERY, ids=str)
def test_each_example_is_as_smooth_as_its_constant_says_and_no_smoother(settings: ProblemSettings) -> None:
    """‖∇f_i(x) − ∇f_i(y)‖ ≤ L_i ‖x − y‖, with equality about the origin along a_i."""
    found = problem(settings)
    one, other = points(found, 20), points(found, 21)[:20]
    slopes = torch.linalg.vector_norm(found.gradients(one) - found.gradients(other), dim=2)
    distances = torch.linalg.vector_norm(one - other, dim=1, keepdim=True)
    assert bool((slopes <= found.smoothness * distances * (1 + 1e-10)).all())
    steps = 1e-4 * found.features / torch.linalg.vector_norm(found.features, dim=1, keepdim=True)
    examples = torch.arange(settings.n_samples)
    changes = (found.gradients(steps) - found.gradients(-steps))[examples, examples]
    torch.testing.assert_close(torch.linalg.vector_norm(changes, dim=1) / 2e-4, found.smoothness, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("settings", EVERY, ids=str)
def test_the_sampler_finds_the_same_smoothness_constants_from_the_rows(settings: ProblemSettings) -> None:
    found = problem(settings)
    dataset = found.dataset()
    objective = dataset.objective
    from_rows = smoothness_constants(
        dataset.train.inputs, objective.task, regulariser=objective.regulariser, has_bias=False
    )
    torch.testing.assert_close(from_rows, found.smoothness)


@pytest.mark.parametrize("settings", EVERY, ids=str)
def test_the_pl_inequality_holds_everywhere(settings: ProblemSettings) -> None:
    found = problem(settings)
    for scale in (0.1, 1.0, 10.0):
        x = points(found, 20, scale=scale)
        squared_slopes = found.gradient(x).square().sum(1)
        assert bool((squared_slopes >= 2 * found.mu * found.suboptimality(x) * (1 - 1e-9)).all())


@pytest.mark.parametrize("settings", RIDGE, ids=str)
def test_no_larger_pl_constant_would_do_for_ridge(settings: ProblemSettings) -> None:
    found = problem(settings)
    eigenvalues, vectors = torch.linalg.eigh(found.hessian(found.solution))
    flattest = vectors[:, eigenvalues > 1e-9][:, 0]
    x = found.solution + flattest
    assert float(found.gradient(x).square().sum()) == pytest.approx(2 * found.mu * float(found.suboptimality(x)))


@pytest.mark.parametrize("settings", [ProblemSettings.of("logistic"), *LOGISTIC], ids=str)
def test_no_larger_pl_constant_would_do_for_logistic(settings: ProblemSettings) -> None:
    """Along x* + t·u the quotient ‖∇f‖² / 2δ falls to r as t grows, wherever u points."""
    found = problem(settings)
    scale = float(found.features.norm(dim=1).max()) / found.regulariser
    for direction in points(found, 3) - found.solution:
        x = found.solution + torch.tensor([1e1, 1e3, 1e6]).double().unsqueeze(1) * scale * direction
        quotients = found.gradient(x).square().sum(1) / (2 * found.suboptimality(x)) / found.mu
        excess = (quotients - 1).tolist()
        assert bool((quotients > 1 - 1e-9).all())
        assert excess[1] == pytest.approx(0, abs=1e-3)
        assert excess[2] == pytest.approx(0, abs=1e-9)


# The minimum.


@pytest.mark.parametrize("settings", RIDGE, ids=str)
def test_the_minimum_of_ridge_is_that_of_least_squares_over_stacked_rows(settings: ProblemSettings) -> None:
    found, d = problem(settings), settings.n_features
    extra = np.sqrt(settings.n_samples * settings.regulariser) * np.eye(d)
    rows = np.concatenate((found.features.numpy(), extra))
    values = np.concatenate((found.targets.numpy(), np.zeros(d)))
    solution, *_ = np.linalg.lstsq(rows, values, rcond=1e-12)
    np.testing.assert_allclose(found.solution.numpy(), solution, rtol=0, atol=1e-11 * (1 + np.abs(solution).max()))
    expected = np.square(rows @ solution - values).sum() / (2 * settings.n_samples)
    assert found.f_star == pytest.approx(expected, rel=1e-12, abs=1e-25)


@pytest.mark.parametrize("settings", LOGISTIC, ids=str)
def test_the_minimum_of_logistic_is_certified_by_its_gradient(settings: ProblemSettings) -> None:
    """f(x) − f* ≤ ‖∇f(x)‖²/(2r), by strong convexity, whatever has found x."""
    found = problem(settings)
    assert found.f_star == float(found.value(found.solution))
    gap = float(found.gradient(found.solution).square().sum()) / (2 * found.regulariser)
    assert gap <= 1e-13 * found.f_star


@pytest.mark.parametrize("settings", EVERY, ids=str)
def test_suboptimality_is_the_distance_to_the_minimum_in_value(settings: ProblemSettings) -> None:
    found = problem(settings)
    x = points(found, 20)
    difference = found.value(x) - found.f_star
    torch.testing.assert_close(found.suboptimality(x), difference, rtol=1e-9, atol=1e-12)
    assert float(found.suboptimality(found.solution)) == pytest.approx(0, abs=1e-15)


def test_suboptimality_of_ridge_keeps_its_digits_next_to_the_minimum() -> None:
    found = problem(ProblemSettings.of("ridge"))
    shift = points(found, 1)[0] - found.solution
    far = float(found.suboptimality(found.solution + shift))
    assert float(found.suboptimality(found.solution + 1e-8 * shift)) == pytest.approx(1e-16 * far, rel=1e-6)


@pytest.mark.parametrize("settings", EVERY, ids=str)
def test_sigma_star_compares_the_minimum_with_those_of_the_examples(settings: ProblemSettings) -> None:
    """inf f_i found by ternary search along a_i, where each minimiser lies."""
    found = problem(settings)
    directions = found.targets.unsqueeze(1) * found.features
    low, high = torch.zeros(settings.n_samples).double(), torch.full((settings.n_samples,), 1e6).double()
    examples = torch.arange(settings.n_samples)

    def along(multiples: Tensor) -> Tensor:
        return found.values(multiples.unsqueeze(1) * directions)[examples, examples]

    for _ in range(100):  # the interval is then 10⁶ (2/3)¹⁰⁰ < 10⁻¹¹ wide
        left, right = low + (high - low) / 3, high - (high - low) / 3
        is_left = along(left) <= along(right)
        low, high = torch.where(is_left, low, left), torch.where(is_left, right, high)
    expected = found.f_star - float(along((low + high) / 2).mean())
    assert found.sigma_star == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert found.sigma_star >= 0


@pytest.mark.parametrize("settings", [each for each in RIDGE if each.interpolates], ids=str)
def test_one_point_minimises_every_example_where_ridge_interpolates(settings: ProblemSettings) -> None:
    found = problem(settings)
    assert found.f_star == found.sigma_star == 0
    assert float(found.gradients(found.solution).abs().max()) < 1e-12 * float(found.smoothness.max())


def test_only_ridge_without_a_regulariser_interpolates_and_only_with_a_solution() -> None:
    assert ProblemSettings.of("ridge", targets="consistent", regulariser=0).interpolates
    assert ProblemSettings.of("ridge", n_samples=5, n_features=7, regulariser=0).interpolates
    assert not ProblemSettings.of("ridge", n_samples=7, n_features=5, regulariser=0).interpolates
    assert not ProblemSettings.of("ridge", targets="consistent").interpolates
    assert not ProblemSettings.of("logistic", targets="consistent").interpolates


# What is refused.


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("lasso", {}, "kind must be one of 'ridge', 'logistic', got 'lasso'"),
        ("ridge", {"n_samples": 1}, "n_samples must be at least 2, got 1"),
        ("ridge", {"n_samples": 50.7}, "n_samples must be an integer, got 50.7"),
        ("ridge", {"n_features": 3.0}, "n_features must be an integer, got 3.0"),
        ("ridge", {"n_features": True}, "n_features must be an integer, got True"),
        ("ridge", {"n_samples": "many"}, "n_samples must be a number or 'auto', got 'many'"),
        ("ridge", {"n_features": 0}, "n_features must be at least 1, got 0"),
        ("ridge", {"condition_number": 0.5}, r"condition_number must lie in \[1, 1e\+06\], got 0.5"),
        ("ridge", {"condition_number": float("nan")}, "condition_number must lie in"),
        ("ridge", {"n_features": 1}, "condition_number must be 1 where n_features is 1, got 10.0"),
        ("ridge", {"spectrum": "flat"}, "spectrum must be one of 'outlier', 'geometric', got 'flat'"),
        ("ridge", {"targets": "noisy"}, "targets must be one of 'independent', 'consistent', got 'noisy'"),
        ("ridge", {"regulariser": -1.0}, "regulariser must be at least 0 and finite for ridge, got -1.0"),
        ("ridge", {"regulariser": float("inf")}, "regulariser must be at least 0 and finite for ridge, got inf"),
        ("logistic", {"regulariser": 0.0}, "regulariser must be at least 1e-08 and finite for logistic, got 0.0"),
    ],
)
def test_a_problem_that_cannot_be_is_refused_with_the_rule(kind: str, changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProblemSettings.of(kind, **changes)  # type: ignore[arg-type]


def test_sizes_are_integers_of_any_kind() -> None:
    sized = ProblemSettings.of("ridge", n_samples=np.int64(50), n_features=np.int32(3))  # type: ignore[arg-type]
    assert sized == ProblemSettings.of("ridge", n_samples=50, n_features=3)
    assert type(sized.n_samples) is type(sized.n_features) is int
    with pytest.raises(ValueError, match=r"n_samples must be an integer, got 50\.5"):
        replace(sized, n_samples=50.5)  # type: ignore[arg-type]

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from trainers.curvature import largest_eigenvalue, rademacher, trace


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_spectrum(*eigenvalues: float, dtype: torch.dtype = torch.float64) -> Tensor:
    basis, _ = torch.linalg.qr(random(len(eigenvalues), len(eigenvalues), seed=7))
    return (basis * torch.tensor(eigenvalues, dtype=torch.float64) @ basis.T).to(dtype)


@pytest.mark.parametrize(
    "spectrum",
    [
        [1.0, 2.0, 3.0],
        [-50.0, -3.0, 0.5, 2.0],  # a power iteration would answer −50
        [-5.0, -4.0, -1.0],
        [-2.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0],
        [4.0, 4.0, 4.0, 4.0],
        [7.0, 7.0, 1e-9, -7.0],
        [3.0],
        [-3.0],
        [*(0.001 * i for i in range(200)), 9.9, 10.0],
    ],
    ids=lambda spectrum: str(spectrum[-4:]),
)
@pytest.mark.parametrize(("dtype", "precision"), [(torch.float64, 1e-9), (torch.float32, 2e-6)])
def test_the_largest_eigenvalue_is_the_largest_and_not_the_largest_in_magnitude(
    spectrum: list[float], dtype: torch.dtype, precision: float
) -> None:
    matrix = with_spectrum(*spectrum, dtype=dtype)
    found, _ = largest_eigenvalue(lambda v: matrix @ v, random(len(spectrum), seed=1, dtype=dtype), tolerance=1e-5)
    assert found == pytest.approx(max(spectrum), abs=precision * max(map(abs, spectrum)))


def test_random_matrices_agree_with_a_full_eigendecomposition() -> None:
    for seed in range(20):
        square = random(100, 100, seed=seed)
        matrix = square + square.T
        found, _ = largest_eigenvalue(lambda v: matrix @ v, random(100, seed=99), tolerance=1e-7, max_products=200)  # noqa: B023
        assert found == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]), rel=1e-9)


def test_the_answer_never_exceeds_the_largest_eigenvalue_however_few_products_it_takes() -> None:
    matrix = with_spectrum(*(float(i) for i in range(-300, 100)))
    found = [largest_eigenvalue(lambda v: matrix @ v, random(400, seed=1), max_products=k)[0] for k in range(1, 60, 7)]
    assert found == sorted(found)
    assert found[-1] <= 99 * (1 + 1e-12)


def test_it_ends_when_it_has_converged_and_is_then_closer_than_the_tolerance_says() -> None:
    matrix = with_spectrum(*(0.001 * i for i in range(500)), 3.0, 10.0)
    products = 0

    def product(vector: Tensor) -> Tensor:
        nonlocal products
        products += 1
        return matrix @ vector

    found, bound = largest_eigenvalue(product, random(502, seed=2), tolerance=1e-3)
    assert products <= 15
    assert bound <= 1e-3 * found
    assert found == pytest.approx(10, rel=1e-6)


@pytest.mark.parametrize("lowest", [-10.0, -100.0, -1000.0])
def test_it_has_not_converged_because_the_answer_is_small_beside_a_negative_eigenvalue(lowest: float) -> None:
    eigenvalues = torch.cat((torch.tensor([lowest]), torch.linspace(0, 1, 3999))).double()
    found, _ = largest_eigenvalue(lambda vector: eigenvalues * vector, random(4000), max_products=60)
    assert found == pytest.approx(1, rel=2e-3)


def test_an_answer_that_has_not_converged_says_how_far_it_may_be() -> None:
    eigenvalues = torch.cat((torch.linspace(-1000, -1, 3999), torch.tensor([0.5]))).double()
    found, bound = largest_eigenvalue(lambda vector: eigenvalues * vector, random(4000), max_products=5)
    assert bound > 1e-3 * abs(found)
    assert float((eigenvalues - found).abs().min()) <= bound


def test_a_product_that_is_not_finite_makes_an_eigenvalue_that_is_not() -> None:
    for bad in (math.nan, math.inf):
        assert all(map(math.isnan, largest_eigenvalue(lambda v, bad=bad: v * bad, random(5))))  # type: ignore[misc]


def test_the_mean_over_all_sign_vectors_is_the_trace_exactly() -> None:
    square = random(6, 6)
    matrix = square + square.T
    signs = [torch.tensor(signs, dtype=torch.float64) for signs in itertools.product((-1, 1), repeat=6)]
    estimate, error = trace(lambda v: matrix @ v, signs)
    assert float(estimate) == pytest.approx(float(matrix.trace()), rel=1e-12)
    off_diagonal = matrix - matrix.diag().diag()
    variance = 2 * float(off_diagonal.square().sum())  # of one form (Avron and Toledo 2011)
    assert float(error) == pytest.approx(math.sqrt(variance / (len(signs) - 1)), rel=1e-12)


def test_the_standard_error_says_how_far_off_the_estimate_is() -> None:
    square = random(40, 40)
    matrix = square + square.T
    generator = torch.Generator().manual_seed(5)
    squares = []
    for _ in range(300):
        probes = (rademacher(matrix[0], generator) for _ in range(30))
        estimate, error = trace(lambda v: matrix @ v, probes)
        squares.append(float((estimate - matrix.trace()) / error) ** 2)
    assert sum(squares) / len(squares) == pytest.approx(1, abs=0.25)


def test_a_diagonal_matrix_needs_one_probe_whose_error_is_unknown() -> None:
    probe = rademacher(torch.zeros(3), torch.Generator().manual_seed(0))
    estimate, error = trace(lambda v: torch.tensor([1.0, -2.0, 4.0]) * v, [probe])
    assert (float(estimate), math.isnan(error)) == (3, True)


def test_signs_are_fair_and_come_from_the_generator_alone() -> None:
    like = torch.zeros(10_001)
    before = torch.get_rng_state()
    signs = rademacher(like, torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(signs, rademacher(like, torch.Generator().manual_seed(3)))
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.04
    assert signs.dtype == like.dtype

"""The spectrum of a symmetric matrix of which only products with vectors can be had, such as a Hessian."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""v ↦ Hv, (d,) → (d,), with H symmetric."""

_PRODUCTS_PER_CHECK = 5
"""Convergence is looked at once in so many products, because looking waits for the device."""


def largest_eigenvalue(
    product: Product, start: Tensor, *, max_products: int = 60, tolerance: float = 1e-3
) -> tuple[float, float]:
    """The largest (not the largest in magnitude) eigenvalue λ of H, by Lanczos' method, and how far it may be from one.

    The second number is a bound: an eigenvalue of H lies within it of the first. It exceeds tolerance·|λ| where
    max_products were too few.

    start: (d,), a random vector, so that it is not orthogonal to the eigenvector that is looked for.
    tolerance: ends where an eigenvalue of H is known to lie within tolerance·|λ| of the answer λ. The answer is then
    much closer to it, because its error goes with the square of that bound; it never exceeds the largest eigenvalue by
    more than rounding. Both are NaN where a product is not finite.

    Against a power iteration, Lanczos needs no shift for negative eigenvalues and about the square root of the
    products. It is run without reorthogonalisation, so that three vectors are held, whatever the number of products.
    Rounding then repeats eigenvalues that have converged and makes no false ones (Paige 1980), which does not matter
    where only the largest is read.
    """
    vector = start / torch.linalg.vector_norm(start)
    before, link = torch.zeros_like(vector), torch.zeros_like(vector[0])
    diagonal: list[Tensor] = []
    links: list[Tensor] = []
    eigenvalue = bound = torch.nan
    for count in range(1, max_products + 1):
        image = product(vector) - link * before
        diagonal.append(vector @ image)
        image = image - diagonal[-1] * vector
        link = torch.linalg.vector_norm(image)
        links.append(link)
        before, vector = vector, image / link
        if count % _PRODUCTS_PER_CHECK == 0 or count == max_products:
            entries = torch.stack((torch.stack(diagonal), torch.stack(links))).double().cpu()
            eigenvalue, bound = _largest_ritz_value(*entries, precision=torch.finfo(start.dtype).eps)
            if not bound > tolerance * abs(eigenvalue):
                break
    return eigenvalue, bound


def trace(product: Product, probes: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Two tensors (): Hutchinson's estimate of tr H, the mean of zᵀHz, and its standard error (NaN for a single probe).

    probes: vectors z (d,) with independent entries of ±1, see `rademacher`, which have the smallest variance.
    """
    forms = torch.stack([probe @ product(probe) for probe in probes]).double()
    spread = forms.std() if len(forms) > 1 else torch.full_like(forms[0], torch.nan)
    return forms.mean(), spread / len(forms) ** 0.5


def rademacher(like: Tensor, generator: torch.Generator) -> Tensor:
    """A vector of independent entries, each −1 or 1 with probability ½, of the shape and dtype of `like`."""
    bits = torch.randint(2, like.shape, generator=generator, device=generator.device, dtype=torch.int8)
    return bits.to(like.device, like.dtype) * 2 - 1


def _largest_ritz_value(diagonal: Tensor, links: Tensor, *, precision: float) -> tuple[float, float]:
    """The largest eigenvalue of the tridiagonal matrix, and a bound of its distance to H's spectrum.

    Where a link vanishes, the vectors before it span an invariant subspace: what comes after is rounding, left out.
    """
    scale = torch.maximum(diagonal.abs(), links).cummax(0).values
    (ends,) = torch.nonzero(links <= precision * scale, as_tuple=True)
    size = int(ends[0]) + 1 if len(ends) else len(diagonal)
    diagonal, links = diagonal[:size], links[:size]
    if not bool(torch.isfinite(diagonal.sum() + links.sum())):
        return torch.nan, torch.nan
    inner = links[:-1]
    ritz_values, ritz_vectors = torch.linalg.eigh(diagonal.diag() + inner.diag(1) + inner.diag(-1))
    residual = links[-1] * ritz_vectors[-1, -1].abs()
    return float(ritz_values[-1]), float(residual)

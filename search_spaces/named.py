"""Search spaces by name. A named space never changes: studies refer to it by name. A better one gets a new name."""

from __future__ import annotations

from typing import NamedTuple

from search_spaces.parameters import CategoricalParameter, FloatParameter, IntParameter
from search_spaces.space import SearchSpace


class NamedSpace(NamedTuple):
    """A search space that a spec can name instead of writing it out."""

    name: str
    description: str
    space: SearchSpace


NAMED_SPACES: dict[str, NamedSpace] = {
    named.name: named
    for named in (
        NamedSpace(
            "paper_lambda_rho",
            "the grid of the paper's deep-net experiments (arXiv 2503.02225): five λ × four ρ",
            SearchSpace(
                {
                    "lambda": CategoricalParameter(choices=(0.0, 0.5, 1.0, "1/t", "1-1/t")),
                    "rho": CategoricalParameter(choices=(0.1, 0.2, 0.3, 0.4)),
                }
            ),
        ),
        NamedSpace(
            "lambda_rho_continuous",
            "every constant λ from USAM to SAM, and ρ over its useful orders of magnitude",
            SearchSpace(
                {
                    "lambda": FloatParameter(low=0.0, high=1.0),
                    "rho": FloatParameter(low=0.01, high=0.5, log=True),
                }
            ),
        ),
        NamedSpace(
            "sampling_lambda_rho",
            "how mini-batches are drawn beside λ and ρ; candidates per draw only where gradients are scored",
            SearchSpace(
                {
                    "sampling": CategoricalParameter(choices=("uniform", "lipschitz", "gradient_norm")),
                    "presample_factor": IntParameter(low=2, high=8, when={"sampling": ("gradient_norm",)}),
                    "lambda": CategoricalParameter(choices=(0.0, 0.5, 1.0, "1/t", "1-1/t")),
                    "rho": FloatParameter(low=0.01, high=0.5, log=True),
                }
            ),
        ),
    )
}

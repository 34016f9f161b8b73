"""Search spaces: parameters, conditions and named spaces as pure data."""

from search_spaces.named import NAMED_SPACES, NamedSpace
from search_spaces.parameters import (
    CategoricalParameter,
    FloatParameter,
    IntParameter,
    Parameter,
    Point,
    Scalar,
    point_key,
    scalar_key,
)
from search_spaces.space import GridNeedsStepError, SearchSpace, structure_problems

__all__ = [
    "NAMED_SPACES",
    "CategoricalParameter",
    "FloatParameter",
    "GridNeedsStepError",
    "IntParameter",
    "NamedSpace",
    "Parameter",
    "Point",
    "Scalar",
    "SearchSpace",
    "point_key",
    "scalar_key",
    "structure_problems",
]

"""Query parameters that a route does not have: refused, since whoever misspells one wants something else."""

from __future__ import annotations

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant

from search_spaces.checking import near_miss, shown
from service.errors import FieldProblem, InvalidRequestError

_MOST_PROBLEMS = 10


async def known_parameters(request: Request) -> None:
    """Raises InvalidRequestError, with the name that may have been meant."""
    if not request.query_params:
        return
    known = _names(request.scope["route"].dependant)
    unknown = [name for name in dict.fromkeys(request.query_params) if name not in known]
    if not unknown:
        return
    all_known = f"; those there are: {', '.join(sorted(known))}" if known else "; there are none"
    problems = [
        FieldProblem(shown(name)[1:-1], f"unknown parameter {shown(name)}{near_miss(name, known) or all_known}")
        for name in unknown[:_MOST_PROBLEMS]
    ]
    raise InvalidRequestError("; ".join(problem.message for problem in problems), problems=problems)


def _names(dependant: Dependant) -> set[str]:
    """The query parameters of a route, those of what it depends on among them."""
    own = {parameter.alias for parameter in dependant.query_params}
    return own.union(*map(_names, dependant.dependencies))


KnownParameters = Depends(known_parameters)

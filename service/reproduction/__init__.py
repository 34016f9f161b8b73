"""The paper's experiments (arXiv 2503.02225) as studies of this service, and what is made of their results.

`catalog` knows the experiments by name; each has a module that builds its studies and its report, which are pure
functions. `running` brings the studies through a service, `pages` writes what came out as Markdown.
"""

from __future__ import annotations

from enum import StrEnum


class ExperimentName(StrEnum):
    """What can be reproduced."""

    LAMBDA_SWEEP = "figure-lambda-sweep"
    CONSTANT_VS_DECREASING = "figure-constant-vs-decreasing"
    IMPORTANCE = "figure-importance"
    LAMBDA_RHO = "table-lambda-rho"


class Scale(StrEnum):
    """small: fits two CPU cores; the table is then a smaller one. paper: the published setting."""

    SMALL = "small"
    PAPER = "paper"

"""Unified SAM as an optimizer around any optimizer of torch (arXiv 2503.02225, eq. 2).

`optimizer` has the class, `ascent` the formulas; the others are what a step needs around them.
"""

from trainers.unified_sam.optimizer import UnifiedSAM

__all__ = ["UnifiedSAM"]

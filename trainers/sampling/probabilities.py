"""Scores to probabilities to weights. Everything acts along the last dimension, one distribution a row."""

from __future__ import annotations

import torch
from torch import Tensor


def importance_probabilities(scores: Tensor) -> Tensor:
    """p_i = s_i / Σ s_j, float64, of the scores' shape (…, n).

    Uniform where the scores say nothing: all are zero, or one is negative or not finite.
    """
    scores = scores.double()
    total = scores.sum(-1, keepdim=True)
    is_sound = (total > 0) & (total < torch.inf) & (scores.amin(-1, keepdim=True) >= 0)
    return torch.where(is_sound, scores / total, 1 / scores.shape[-1])


def mixture_probabilities(probabilities: Tensor, uniform_share: float) -> Tensor:
    """(1 − α)·p_i + α/n, with α = uniform_share in [0, 1]: partially uniform, so that no weight exceeds 1/α."""
    return (1 - uniform_share) * probabilities + uniform_share / probabilities.shape[-1]


def importance_weights(probabilities: Tensor) -> Tensor:
    """w_i = 1 / (n p_i) for each of the n examples that were drawn from; its mean under p is 1."""
    return (probabilities.shape[-1] * probabilities).reciprocal()


def effective_sample_size(weights: Tensor) -> Tensor:
    """(Σ w)² / Σ w², a count in [1, b]: how many equally weighted examples the (…, b) weights are worth."""
    return weights.sum(-1).square() / weights.square().sum(-1)


def variance_gain(probabilities: Tensor) -> Tensor:
    """τ = √(B Σ p_i²), at least 1: rms over mean of the scores behind the (…, B) probabilities.

    Where the scores are the gradients' norms, drawing by them divides the second moment of one drawn, weighted
    gradient by τ² (Katharopoulos and Fleuret 2018, section 3.3).
    """
    return torch.sqrt(probabilities.shape[-1] * probabilities.square().sum(-1))

"""Mini-batches: which examples, and the weights that keep the stochastic gradient unbiased.

A mini-batch stands for the loss (1/b) Σ w_i f_i over its b examples; every sampler here has E[(1/b) Σ w_i ∇f_i] = ∇f,
for the smaller batch at an epoch's end too. Of `uniform`, which shuffles, that holds for each batch by itself and not
given the earlier ones of its epoch; of all others it holds given everything before. `build_sampler` makes them by name;
`Sampler` says how they are used.
"""

from trainers.sampling.building import build_sampler
from trainers.sampling.gradient_norm import GradientNormSampler
from trainers.sampling.importance import ImportanceSampler, ImprobableExampleError
from trainers.sampling.loss import LossSampler
from trainers.sampling.probabilities import (
    effective_sample_size,
    importance_probabilities,
    importance_weights,
    mixture_probabilities,
    variance_gain,
)
from trainers.sampling.sampler import MiniBatch, Sampler
from trainers.sampling.scores import (
    output_gradient_norms,
    output_gradient_norms_from_losses,
    smoothness_constants,
    smoothness_of_chunks,
)
from trainers.sampling.uniform import NiceSampler, UniformSampler, UniformWithReplacementSampler

__all__ = [
    "GradientNormSampler",
    "ImportanceSampler",
    "ImprobableExampleError",
    "LossSampler",
    "MiniBatch",
    "NiceSampler",
    "Sampler",
    "UniformSampler",
    "UniformWithReplacementSampler",
    "build_sampler",
    "effective_sample_size",
    "importance_probabilities",
    "importance_weights",
    "mixture_probabilities",
    "output_gradient_norms",
    "output_gradient_norms_from_losses",
    "smoothness_constants",
    "smoothness_of_chunks",
    "variance_gain",
]

"""Pseudo numerical methods for diffusion models on manifolds (arXiv 2202.09778).

Fewer evaluations of a diffusion model that is trained already. The scheduler for diffusers pipelines is in
``offprints.pndm.diffusers``, which needs the extra ``offprints-pndm[diffusers]``.
"""

from offprints.pndm.mixtures import GaussianMixtureEps
from offprints.pndm.plans import adams_bashforth, num_model_calls
from offprints.pndm.sampling import pndm_sample
from offprints.pndm.schedules import AlphaSchedule, inference_times
from offprints.pndm.transfers import transfer

__all__ = [
    "AlphaSchedule",
    "GaussianMixtureEps",
    "adams_bashforth",
    "inference_times",
    "num_model_calls",
    "pndm_sample",
    "transfer",
]

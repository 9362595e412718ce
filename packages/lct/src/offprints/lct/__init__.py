"""Improved Training Technique for Latent Consistency Models (arXiv 2502.01441)."""

from offprints.lct.conversion import replace_norms
from offprints.lct.coupling import ot_couple, ot_permutation
from offprints.lct.latents import LatentNormalizer, impulse_statistics
from offprints.lct.losses import (
    CauchyLoss,
    GemanMcClureLoss,
    PseudoHuberLoss,
    cauchy_loss,
    geman_mcclure_loss,
    pseudo_huber_loss,
)
from offprints.lct.model import LatentConsistencyModel
from offprints.lct.norms import NonScalingLayerNorm
from offprints.lct.sampling import TWO_STEP_SIGMAS, consistency_sample
from offprints.lct.schedules import (
    adaptive_c,
    discretization_curriculum,
    initial_c,
    karras_sigmas,
    lognormal_index_probabilities,
)
from offprints.lct.training import LatentConsistencyLoss, LatentConsistencyOutput

__all__ = [
    "TWO_STEP_SIGMAS",
    "CauchyLoss",
    "GemanMcClureLoss",
    "LatentConsistencyLoss",
    "LatentConsistencyModel",
    "LatentConsistencyOutput",
    "LatentNormalizer",
    "NonScalingLayerNorm",
    "PseudoHuberLoss",
    "adaptive_c",
    "cauchy_loss",
    "consistency_sample",
    "discretization_curriculum",
    "geman_mcclure_loss",
    "impulse_statistics",
    "initial_c",
    "karras_sigmas",
    "lognormal_index_probabilities",
    "ot_couple",
    "ot_permutation",
    "pseudo_huber_loss",
    "replace_norms",
]

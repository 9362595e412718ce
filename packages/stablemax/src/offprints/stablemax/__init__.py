"""StableMax and perpGrad: grokking at the edge of numerical stability (arXiv 2501.04697)."""

from offprints.stablemax.activations import log_stablemax, stablemax
from offprints.stablemax.data import modular_arithmetic, sparse_parity
from offprints.stablemax.diagnostics import (
    nlm_alignment,
    softmax_collapse_fraction,
    zero_gradient_fraction,
    zero_loss_fraction,
)
from offprints.stablemax.linear import linear_exact_cross_entropy, linear_stablemax_cross_entropy
from offprints.stablemax.losses import (
    ExactCrossEntropyLoss,
    StableMaxCrossEntropyLoss,
    exact_cross_entropy,
    stablemax_cross_entropy,
)
from offprints.stablemax.models import GrokMLP, GrokTransformer
from offprints.stablemax.monitor import CollapseMonitor
from offprints.stablemax.orthograd import OrthoGrad, orthogonalize_gradients_
from offprints.stablemax.training import GrokConfig, GrokResult, train_grokking

__all__ = [
    "CollapseMonitor",
    "ExactCrossEntropyLoss",
    "GrokConfig",
    "GrokMLP",
    "GrokResult",
    "GrokTransformer",
    "OrthoGrad",
    "StableMaxCrossEntropyLoss",
    "exact_cross_entropy",
    "linear_exact_cross_entropy",
    "linear_stablemax_cross_entropy",
    "log_stablemax",
    "modular_arithmetic",
    "nlm_alignment",
    "orthogonalize_gradients_",
    "softmax_collapse_fraction",
    "sparse_parity",
    "stablemax",
    "stablemax_cross_entropy",
    "train_grokking",
    "zero_gradient_fraction",
    "zero_loss_fraction",
]

"""SuSana Distancia is all you need: Enforcing class separability in metric learning via two novel distance-based loss
functions for few-shot image classification (arXiv 2305.09062)."""

from offprints.susana.losses import PseudoHuberLoss, pseudo_huber_loss

__all__ = ["pseudo_huber_loss", "PseudoHuberLoss"]  # noqa: RUF022 - in order of importance

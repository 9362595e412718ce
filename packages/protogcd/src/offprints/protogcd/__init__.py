"""ProtoGCD: Unified and Unbiased Prototype Learning for Generalized Category Discovery (arXiv 2504.03755)."""

from offprints.protogcd.losses import PseudoHuberLoss, pseudo_huber_loss

__all__ = ["pseudo_huber_loss", "PseudoHuberLoss"]  # noqa: RUF022 - in order of importance

"""Comp-sum losses, their guarantees, and adversarial training with them (arXiv 2304.07288)."""

from offprints.comp_sum.adversarial import (
    SmoothAdversarialCompSumLoss,
    nu_ramp,
    rho_margin,
    rho_margin_comp_sum_loss,
    smooth_adversarial_comp_sum_loss,
)
from offprints.comp_sum.attacks import pgd_attack
from offprints.comp_sum.bounds import h_consistency_bound, inverse_transform, transform
from offprints.comp_sum.evaluation import autoattack_accuracy, robust_accuracy
from offprints.comp_sum.gaps import conditional_risk_minimum, minimizability_gap
from offprints.comp_sum.losses import CompSumLoss, comp_sum_loss, phi
from offprints.comp_sum.training import adv_comp_sum_loss, trades_loss

__all__ = [  # noqa: RUF022 - in order of importance
    "comp_sum_loss",
    "CompSumLoss",
    "h_consistency_bound",
    "minimizability_gap",
    "conditional_risk_minimum",
    "transform",
    "inverse_transform",
    "phi",
    "adv_comp_sum_loss",
    "trades_loss",
    "nu_ramp",
    "smooth_adversarial_comp_sum_loss",
    "SmoothAdversarialCompSumLoss",
    "rho_margin_comp_sum_loss",
    "rho_margin",
    "pgd_attack",
    "robust_accuracy",
    "autoattack_accuracy",
]

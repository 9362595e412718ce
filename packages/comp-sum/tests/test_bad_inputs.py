"""Every bad input gets an error that names the argument."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from offprints.comp_sum import (
    CompSumLoss,
    SmoothAdversarialCompSumLoss,
    adv_comp_sum_loss,
    autoattack_accuracy,
    comp_sum_loss,
    conditional_risk_minimum,
    h_consistency_bound,
    inverse_transform,
    minimizability_gap,
    nu_ramp,
    pgd_attack,
    phi,
    rho_margin,
    rho_margin_comp_sum_loss,
    robust_accuracy,
    smooth_adversarial_comp_sum_loss,
    trades_loss,
    transform,
)
from offprints.shared.testing import check_errors

Z, Y = torch.zeros(3, 4), torch.tensor([0, 3, 1])


def test_losses() -> None:
    for bad in (-0.1, math.nan, math.inf):
        check_errors(
            [
                (lambda bad=bad: comp_sum_loss(Z, Y, tau=bad), ValueError, "tau"),
                (lambda bad=bad: CompSumLoss(tau=bad), ValueError, "tau"),
                (lambda bad=bad: phi(Z, bad), ValueError, "tau"),
                (lambda bad=bad: transform(0.5, bad, 3), ValueError, "tau"),
                (lambda bad=bad: smooth_adversarial_comp_sum_loss(Z, Z, Y, tau=bad), ValueError, "tau"),
            ]
        )
    cases: list[Any] = [
        (lambda: comp_sum_loss(Z, Y, tau="1"), TypeError, "tau"),
        (lambda: comp_sum_loss(Z[:, :1], Y * 0), ValueError, "logits"),
        (lambda: comp_sum_loss(Z[0], Y), ValueError, "logits"),
        (lambda: comp_sum_loss(Z[None], Y), ValueError, "logits"),
        (lambda: comp_sum_loss(Z.long(), Y), TypeError, "logits"),
        (lambda: comp_sum_loss(Z[:0], Y[:0]), ValueError, "logits"),
        (lambda: comp_sum_loss(Z, Y[:2]), ValueError, "target"),
        (lambda: comp_sum_loss(Z, Y[:, None]), ValueError, "target"),
        (lambda: comp_sum_loss(Z, Y + 1), ValueError, "target must hold labels in [0, 4), got 4"),
        (lambda: comp_sum_loss(Z, Y - 1), ValueError, "target"),
        (lambda: comp_sum_loss(Z, torch.tensor([0, -100, 1])), ValueError, "target"),
        (lambda: comp_sum_loss(Z, Z.softmax(1)), TypeError, "target"),
        (lambda: comp_sum_loss(Z, Y > 0), TypeError, "target"),
        (lambda: comp_sum_loss(Z, Y, reduction="max"), ValueError, "reduction"),
        (lambda: CompSumLoss(reduction="max"), ValueError, "reduction"),
        (lambda: phi(-Z - 1, 1.0), ValueError, "u"),
        (lambda: rho_margin(Z, 0.0), ValueError, "rho"),
        (lambda: rho_margin_comp_sum_loss(Z, Y, rho=-1.0), ValueError, "rho"),
        (lambda: smooth_adversarial_comp_sum_loss(Z, Z, Y, rho=0.0), ValueError, "rho"),
        (lambda: smooth_adversarial_comp_sum_loss(Z, Z, Y, nu=-1.0), ValueError, "nu"),
        (lambda: smooth_adversarial_comp_sum_loss(Z, Z[:, :3], Y), ValueError, "adv_logits"),
        (lambda: smooth_adversarial_comp_sum_loss(Z, Z[:1], Y), ValueError, "adv_logits"),
        (lambda: SmoothAdversarialCompSumLoss(nu=-0.1), ValueError, "nu"),
        (lambda: SmoothAdversarialCompSumLoss(rho=0), ValueError, "rho"),
    ]
    check_errors(cases)


def test_calculator() -> None:
    p = torch.full((2, 4), 0.25)
    cases: list[Any] = [
        (lambda: transform(1.5, 1.0, 3), ValueError, "beta"),
        (lambda: transform(torch.tensor([0.1, -0.1]), 1.0, 3), ValueError, "beta"),
        (lambda: transform(torch.tensor(math.nan), 1.0, 3), ValueError, "beta"),
        (lambda: transform(Y, 1.0, 3), TypeError, "beta"),
        (lambda: inverse_transform(-0.1, 1.0, 3), ValueError, "t"),
        (lambda: inverse_transform(torch.tensor([-1.0]), 0.5, 3), ValueError, "t"),
        (lambda: transform(0.5, 1.0, 1), ValueError, "num_classes"),
        (lambda: inverse_transform(0.5, 1.0, 2.5), TypeError, "num_classes"),
        (lambda: h_consistency_bound(-0.1, tau=1.0, num_classes=3), ValueError, "excess"),
        (lambda: h_consistency_bound(0.1, tau=1.0, num_classes=3, surrogate_gap=-0.2), ValueError, "surrogate_gap"),
        (lambda: h_consistency_bound(0.1, tau=1.0, num_classes=3, zero_one_gap=-0.2), ValueError, "zero_one_gap"),
        (lambda: conditional_risk_minimum(p - 0.5, 1.0), ValueError, "p"),
        (lambda: conditional_risk_minimum(p * 1.01, 1.0), ValueError, "p"),
        (lambda: conditional_risk_minimum(p.double() + 1e-5, 1.0), ValueError, "p"),
        (lambda: conditional_risk_minimum(torch.ones(2, 1), 1.0), ValueError, "p"),
        (lambda: minimizability_gap(math.nan, p, 1.0), ValueError, "best_risk"),
        (lambda: minimizability_gap(1.0, p, 1.0, weights=torch.ones(3)), ValueError, "weights"),
        (lambda: minimizability_gap(1.0, p, 1.0, weights=torch.zeros(2)), ValueError, "weights"),
        (lambda: minimizability_gap(1.0, p, 1.0, weights=torch.tensor([1.0, -0.5])), ValueError, "weights"),
        (lambda: nu_ramp(-1, 10), ValueError, "step"),
        (lambda: nu_ramp(1, 0), ValueError, "total_steps"),
        (lambda: nu_ramp(1, 10, nu=-1.0), ValueError, "nu"),
        (lambda: nu_ramp(1, 10, fraction=1.5), ValueError, "fraction"),
    ]
    check_errors(cases)


def test_a_float32_softmax_is_a_distribution() -> None:
    p = torch.randn(50, 1000, generator=torch.Generator().manual_seed(0)).softmax(1)
    torch.testing.assert_close(
        conditional_risk_minimum(p, 1.0), torch.special.entr(p.double()).sum(1), rtol=1e-5, atol=0
    )


X, T = torch.full((3, 4), 0.5), torch.tensor([0, 2, 1])


def attack(x: Tensor = X, target: Tensor = T, model: Any = None, **changed: Any) -> Tensor:
    model = nn.Linear(4, 3) if model is None else model
    return pgd_attack(model, x, target, **({"eps": 0.1, "step_size": 0.05, "steps": 2} | changed))


def test_attacks() -> None:
    cases: list[Any] = [
        (lambda: attack(eps=-0.1), ValueError, "eps"),
        (lambda: attack(steps=-1), ValueError, "steps"),
        (lambda: attack(steps=1.5), TypeError, "steps"),
        (lambda: attack(step_size=0.0), ValueError, "step_size"),
        (lambda: attack(objective="cw"), ValueError, "objective"),
        (lambda: attack(norm="l1"), ValueError, "norm"),
        (lambda: attack(random_start="normal"), ValueError, "random_start"),
        (lambda: attack(clip=(1.0, 0.0)), ValueError, "clip"),
        (lambda: attack(clip=1.0), TypeError, "clip"),
        (lambda: attack(generator=3), TypeError, "generator"),
        (lambda: attack(X * math.nan), ValueError, "x"),
        (lambda: attack(X + 0.6), ValueError, "x must lie in"),
        (lambda: attack(X - 0.50001), ValueError, "x must lie in"),
        (lambda: attack(X.long()), TypeError, "x"),
        (lambda: attack(X[:0], T[:0]), ValueError, "x"),
        (lambda: attack(target=T[:2]), ValueError, "target"),
        (lambda: attack(target=T + 1), ValueError, "target"),
        (lambda: attack(target=T + 1, objective="kl"), ValueError, "target"),
        (lambda: attack(target=T + 1, objective="dlr"), ValueError, "target"),
        (lambda: attack(target=T + 1, steps=0), ValueError, "target"),
        (lambda: attack(x_init=X[:2]), ValueError, "x_init"),
        (lambda: attack(x_init=X * math.inf), ValueError, "x_init"),
        (lambda: attack(model=3), TypeError, "model"),
        (lambda: attack(model=lambda x: None), TypeError, "model"),
        (lambda: attack(model=lambda x: x[:1]), ValueError, "model"),
        (lambda: attack(model=lambda x: x * math.nan), ValueError, "model"),
        (lambda: attack(model=nn.Linear(4, 2), target=T * 0, objective="dlr"), ValueError, "objective"),
        (lambda: robust_accuracy(nn.Linear(4, 3), X, T, eps=0.1, step_size=0.1, restarts=0), ValueError, "restarts"),
        (lambda: robust_accuracy(nn.Linear(4, 3), X, T, eps=0.1, step_size=0.1, stride=2), TypeError, "stride"),
        (lambda: robust_accuracy(nn.Linear(4, 3), X, T + 1, eps=0.1, step_size=0.1), ValueError, "target"),
        (lambda: autoattack_accuracy(nn.Linear(4, 3), X, T, eps=0.0), ValueError, "eps"),
        (lambda: autoattack_accuracy(nn.Linear(4, 3), X, T, eps=0.1, norm="l1"), ValueError, "norm"),
        (lambda: trades_loss(nn.Linear(4, 3), X, T, beta=-1.0), ValueError, "beta"),
        (lambda: trades_loss(nn.Linear(4, 3), X + 1, T), ValueError, "x must lie in"),
        (lambda: adv_comp_sum_loss(nn.Linear(4, 3), X, T, nu=-1.0), ValueError, "nu"),
        (lambda: adv_comp_sum_loss(nn.Linear(4, 3), X, T, objective="none"), ValueError, "objective"),
    ]
    check_errors(cases)
    assert attack(X - 0.5 - 1e-7).min() >= 0  # what rounding leaves outside is not refused, and ends in the box

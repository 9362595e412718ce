"""Adversarial training behind one signature: the loss of a batch, attack included, for TRADES and adv-comp-sum."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from offprints.comp_sum._models import Model, check_inputs, check_model, scores
from offprints.comp_sum._rows import comp_sum
from offprints.comp_sum.adversarial import smooth_adversarial_comp_sum_loss
from offprints.comp_sum.attacks import Ascent, Objective, ascend, check_init
from offprints.shared.validation import check_number


def _attacked(
    model: Model, x: Tensor, target: Tensor, x_init: Tensor | None, objective: Objective, **given: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores at x and at its adversarial examples, in the model's own mode, and the labels."""
    check_model(model)
    settings = Ascent.checked(**given, objective=objective, norm="linf", random_start="gaussian", clip=(0.0, 1.0))
    labels = check_inputs(x, target, settings.clip)
    check_init(x_init, x)
    x_adv, _ = ascend(model, x, labels, settings, x_init=x_init)
    # A model may work in place, on what is not the caller's.
    return scores(model, x.clone()), scores(model, x_adv), labels


def _divergence(clean: Tensor, adv: Tensor) -> Tensor:
    """Mean over the batch of KL(softmax(clean) || softmax(adv)).

    The shares are given as logarithms: of one that has rounded to 0 the derivative of x log x would be NaN.
    """
    return F.kl_div(torch.log_softmax(adv, 1), torch.log_softmax(clean, 1), reduction="batchmean", log_target=True)


def trades_loss(
    model: Model,
    x: Float[Tensor, "batch *shape"],
    target: Int[Tensor, " batch"],
    *,
    beta: float = 6.0,
    eps: float = 8 / 255,
    step_size: float = 2 / 255,
    steps: int = 10,
    x_init: Float[Tensor, "batch *shape"] | None = None,
) -> Tensor:
    """Compute the TRADES loss: cross-entropy at x, plus `beta` times the divergence of the scores at x' from these.

    x' maximizes that divergence in the ball of radius `eps` (maximum norm) and the box [0, 1]; gradients flow through
    both scores. The attack runs in evaluation mode, the loss in the mode that the model is in, which stays as it is.

    Args:
        model: A module or function that gives scores ``[B, C]``.
        x: Inputs ``[B, ...]`` in [0, 1].
        target: Labels ``[B]`` of any integer type.
        beta: Strength of the second term, at least 0.
        eps: Radius of the ball, at least 0.
        step_size: Length of an attack's step.
        steps: Steps of the attack.
        x_init: Where the attack starts; None for x + 0.001 N(0, 1), from torch's global stream.

    Raises:
        TypeError: as `pgd_attack`.
        ValueError: as `pgd_attack`; `beta` is negative.

    Example:
        >>> model = torch.nn.Linear(2, 3)
        >>> loss = trades_loss(model, torch.rand(4, 2), torch.tensor([0, 1, 2, 0]), eps=0.1)
        >>> loss.backward()
        >>> model.weight.grad.shape
        torch.Size([3, 2])
    """
    beta = check_number(beta, "beta", low=0)
    given = {"eps": eps, "step_size": step_size, "steps": steps}
    clean, adv, labels = _attacked(model, x, target, x_init, "kl", **given)
    loss = comp_sum(clean, labels, 1.0, "mean")
    if beta == 0:
        return loss
    return loss + beta * _divergence(clean, adv)


def adv_comp_sum_loss(
    model: Model,
    x: Float[Tensor, "batch *shape"],
    target: Int[Tensor, " batch"],
    *,
    tau: float = 1.0,
    rho: float = 1.0,
    nu: float = 1.0,
    eps: float = 8 / 255,
    step_size: float = 2 / 255,
    steps: int = 10,
    objective: Objective = "kl",
    x_init: Float[Tensor, "batch *shape"] | None = None,
) -> Tensor:
    """Compute the loss of adv-comp-sum: `smooth_adversarial_comp_sum_loss` with the supremum replaced by an attack.

    The attack takes place in the ball of radius `eps` (maximum norm) and the box [0, 1]. It runs in evaluation mode,
    the loss in the mode that the model is in, which stays as it is. Raise `nu` slowly (`nu_ramp`).

    Args:
        model: A module or function that gives scores ``[B, C]``.
        x: Inputs ``[B, ...]`` in [0, 1].
        target: Labels ``[B]`` of any integer type.
        tau: The member of the family, at least 0.
        rho: The margin, positive.
        nu: Strength of the penalty, at least 0.
        eps: Radius of the ball, at least 0.
        step_size: Length of an attack's step.
        steps: Steps of the attack.
        objective: What the attack maximizes, as in `pgd_attack`.
        x_init: Where the attack starts; None for x + 0.001 N(0, 1), from torch's global stream.

    Raises:
        TypeError: as `pgd_attack`.
        ValueError: as `pgd_attack` and `smooth_adversarial_comp_sum_loss`.

    Example:
        >>> model = torch.nn.Linear(2, 3)
        >>> x, target = torch.rand(4, 2), torch.tensor([0, 1, 2, 0])
        >>> loss = adv_comp_sum_loss(model, x, target, nu=nu_ramp(30, 100), eps=0.1)
        >>> loss.backward()
        >>> bool(model.weight.grad.isfinite().all())
        True
    """
    tau = check_number(tau, "tau", low=0)
    rho = check_number(rho, "rho", low=0, open_low=True)
    nu = check_number(nu, "nu", low=0)
    given = {"eps": eps, "step_size": step_size, "steps": steps}
    clean, adv, labels = _attacked(model, x, target, x_init, objective, **given)
    return smooth_adversarial_comp_sum_loss(clean, adv, labels, tau=tau, rho=rho, nu=nu)

"""Adversarial comp-sum losses: the rho-margin loss, its smooth upper bound, and the ramp of the penalty."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offprints.comp_sum._rows import comp_sum, power, row_norms
from offprints.comp_sum.losses import REDUCTIONS, check_scores, check_target
from offprints.shared.device import working_dtype
from offprints.shared.validation import Reduction, check_choice, check_number, check_same_shape, check_tensor, reduce


def rho_margin(u: Float[Tensor, "*shape"], rho: float = 1.0) -> Float[Tensor, "*shape"]:
    """Compute the rho-margin function Phi_rho(u) = min(max(0, 1 - u / rho), 1), elementwise.

    Args:
        u: Margins of any shape; half types are computed in float32.
        rho: The margin from which on nothing is lost, positive.

    Raises:
        TypeError: `u` is not a floating tensor, `rho` is not a number.
        ValueError: `u` is empty, `rho` is not positive.

    Example:
        >>> rho_margin(torch.tensor([-1.0, 0.5, 2.0]))
        tensor([1.0000, 0.5000, 0.0000])
    """
    check_tensor(u, "u", finite=False)
    rho = check_number(rho, "rho", low=0, open_low=True)
    return (1 - u.to(working_dtype(u)) / rho).clamp(0, 1)


def rho_margin_comp_sum_loss(
    logits: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"],
    *,
    tau: float = 1.0,
    rho: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute Phi_tau(sum over y' != y of Phi_rho(z_y - z_y')), the rho-margin comp-sum loss.

    At the scores of an adversarial example this is the adversarial rho-margin loss, for which the theory holds: the
    adversarial zero-one regret is at most the regret of this loss over Phi_tau(1). Scores of NaN give a NaN loss.

    Args:
        logits: Scores ``[B, C]`` of at least two classes.
        target: Labels ``[B]`` of any integer type.
        tau: The member of the family, at least 0.
        rho: The margin, positive.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Raises:
        TypeError: as `comp_sum_loss`.
        ValueError: as `comp_sum_loss`; `rho` is not positive.

    Example:
        >>> rho_margin_comp_sum_loss(torch.tensor([[2.0, 1.5, -1.0]]), torch.tensor([0]))  # log(1 + 1/2)
        tensor(0.4055)
    """
    check_scores(logits)
    labels = check_target(target, logits)
    tau = check_number(tau, "tau", low=0)
    check_choice(reduction, "reduction", REDUCTIONS)
    label = labels.unsqueeze(1)
    z = logits.to(working_dtype(logits))
    terms = rho_margin(z.gather(1, label) - z, rho)
    u = terms.scatter(1, label, 0).sum(1)  # the label's own term, Phi_rho(0) = 1, is not in the sum
    return reduce(power(torch.log1p(u), tau), reduction)


def smooth_adversarial_comp_sum_loss(
    logits: Float[Tensor, "batch classes"],
    adv_logits: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"],
    *,
    tau: float = 1.0,
    rho: float = 1.0,
    nu: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the smooth adversarial comp-sum loss: l_tau of z / rho, plus nu ||Delta(x') - Delta(x)||_2.

    Delta(x) is the vector of z_y - z_j over the classes j, so that the second term is how far the margins move between
    the clean and the adversarial scores; it is not squared, and `rho` does not scale it. The loss is at least the
    rho-margin loss at x' from nu = sqrt(C - 1) / rho on. Gradients flow through both scores; where they are equal the
    penalty has the gradient 0.

    Half types are computed in float32 and give a float32 loss. Scores of NaN give a NaN loss; where both are
    -inf a class is masked.

    Args:
        logits: Scores ``[B, C]`` of the clean inputs x.
        adv_logits: Scores ``[B, C]`` of their adversarial examples x'.
        target: Labels ``[B]`` of any integer type.
        tau: The member of the family, at least 0.
        rho: The margin, positive.
        nu: Strength of the penalty, at least 0. From the first step on, 1 makes a small network constant: `nu_ramp`.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Raises:
        TypeError: as `comp_sum_loss`.
        ValueError: as `comp_sum_loss`; `adv_logits` of another shape, `rho` not positive, `nu` negative.

    Example:
        >>> clean, adv = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.5]])
        >>> smooth_adversarial_comp_sum_loss(clean, adv, torch.tensor([0]))  # log(1 + e^-2) + 1.5
        tensor(1.6269)
    """
    check_scores(logits)
    check_tensor(adv_logits, "adv_logits", finite=False)
    check_same_shape(adv_logits, logits, ("adv_logits", "logits"))
    labels = check_target(target, logits)
    tau = check_number(tau, "tau", low=0)
    rho = check_number(rho, "rho", low=0, open_low=True)
    nu = check_number(nu, "nu", low=0)
    check_choice(reduction, "reduction", REDUCTIONS)
    compute = working_dtype(logits, adv_logits)
    clean, adv = logits.to(compute), adv_logits.to(compute)
    losses = comp_sum(clean if rho == 1 else clean / rho, labels, tau, "none")
    if nu > 0:
        moved = adv - clean
        shift = moved.gather(1, labels.unsqueeze(1)) - moved
        masked = (clean == -torch.inf) & (adv == -torch.inf)
        losses = losses + nu * row_norms(shift.masked_fill(masked, 0))
    return reduce(losses, reduction)


class SmoothAdversarialCompSumLoss(nn.Module):
    """Module form of `smooth_adversarial_comp_sum_loss`; `nu` may be set anew at every step.

    Example:
        >>> criterion = SmoothAdversarialCompSumLoss(nu=0.5)
        >>> criterion(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.5]]), torch.tensor([0]))
        tensor(0.8769)
    """

    def __init__(self, *, tau: float = 1.0, rho: float = 1.0, nu: float = 1.0, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.tau = check_number(tau, "tau", low=0)
        self.rho = check_number(rho, "rho", low=0, open_low=True)
        self.nu = check_number(nu, "nu", low=0)
        check_choice(reduction, "reduction", REDUCTIONS)
        self.reduction: Reduction = reduction

    def forward(
        self,
        logits: Float[Tensor, "batch classes"],
        adv_logits: Float[Tensor, "batch classes"],
        target: Int[Tensor, " batch"],
    ) -> Tensor:
        """Compute the loss of clean and adversarial scores ``[B, C]`` against labels ``[B]``."""
        settings = {"tau": self.tau, "rho": self.rho, "nu": self.nu}
        return smooth_adversarial_comp_sum_loss(logits, adv_logits, target, **settings, reduction=self.reduction)

    def extra_repr(self) -> str:
        """Show the settings in the module's representation."""
        return f"tau={self.tau}, rho={self.rho}, nu={self.nu}, reduction={self.reduction!r}"


def nu_ramp(step: int, total_steps: int, *, nu: float = 0.5, fraction: float = 0.5) -> float:
    """Strength of the penalty at a step: it grows linearly to `nu` over the first `fraction` of the steps, then stays.

    With the full strength from the first step on, the penalty outweighs the loss of an untrained network, which then
    becomes constant. The ramp, and nu = 0.5, are choices of this package and not the paper's.

    Args:
        step: Number of the step, from 0 on; steps beyond the last keep `nu`.
        total_steps: Steps of the training, at least 1.
        nu: Final strength, at least 0.
        fraction: Share of the steps over which it grows, in [0, 1]; 0 for no ramp.

    Raises:
        TypeError: an argument is not a number, `step` or `total_steps` not an integer.
        ValueError: an argument is out of its range.

    Example:
        >>> [nu_ramp(step, 100) for step in (0, 25, 50, 100)]
        [0.0, 0.25, 0.5, 0.5]
    """
    step = check_number(step, "step", low=0, integer=True)
    total_steps = check_number(total_steps, "total_steps", low=1, integer=True)
    nu = check_number(nu, "nu", low=0)
    fraction = check_number(fraction, "fraction", low=0, high=1)
    growing = fraction * total_steps
    return float(nu * step / growing) if step < growing else float(nu)

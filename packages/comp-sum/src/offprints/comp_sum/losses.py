"""The comp-sum losses l_tau = Phi_tau(sum over y' != y of e^(h(x,y') - h(x,y))), for every tau >= 0."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offprints.comp_sum._rows import comp_sum, power, transforming
from offprints.shared.device import working_dtype
from offprints.shared.validation import (
    Reduction,
    check_choice,
    check_labels,
    check_number,
    check_same_device,
    check_tensor,
    should_check,
)

REDUCTIONS = ("mean", "sum", "none")


def check_scores(logits: Tensor, name: str = "logits") -> Tensor:
    """Check ``[B, C]`` scores of at least two classes; their values are left to the loss."""
    check_tensor(logits, name, ndim=2, finite=False)
    if logits.shape[1] < 2:
        raise ValueError(f"{name} must have at least 2 classes, got shape {tuple(logits.shape)}")
    return logits


def check_target(target: Tensor, logits: Tensor, *, values: bool = True, of: str = "logits") -> Tensor:
    """Check labels ``[B]`` of ``logits`` ``[B, C]``, return them as int64; ``values=False`` leaves out their range."""
    if not (isinstance(target, Tensor) and target.dtype == torch.int64 and target.shape == logits.shape[:1]):
        target = check_labels(target, "target", length=len(logits))
        if target.ndim != 1:
            raise ValueError(f"target must have shape ({len(logits)},), got {tuple(target.shape)}")
    if target.device != logits.device:
        check_same_device(target, logits, names=("target", of))
    return check_labels(target, "target", num_classes=logits.shape[1]) if values else target


def phi(u: Float[Tensor, "*shape"], tau: float) -> Float[Tensor, "*shape"]:
    """Compute Phi_tau(u) = ((1 + u)^(1-tau) - 1) / (1 - tau), and log(1 + u) for tau = 1, elementwise.

    It is evaluated as expm1((1-tau) log1p(u)) / (1-tau), which stays exact for small u and for tau near 1. Half types
    are computed in float32.

    Args:
        u: Non-negative numbers of any shape; infinity is allowed.
        tau: The member of the family, at least 0.

    Raises:
        TypeError: `u` is not a floating tensor, `tau` is not a number.
        ValueError: `u` is empty, negative or NaN; `tau` is negative, NaN or infinite.

    Example:
        >>> u = torch.tensor([0.0, 1.0, 3.0])
        >>> phi(u, 0.0)
        tensor([0., 1., 3.])
        >>> phi(u, 2.0)  # u / (1 + u)
        tensor([0.0000, 0.5000, 0.7500])
    """
    check_tensor(u, "u", finite=False)
    tau = check_number(tau, "tau", low=0)
    if should_check(u) and not bool((u.detach() >= 0).all()):
        raise ValueError(f"u must not be negative or NaN, got {float(u.detach().min())}")
    return power(torch.log1p(u.to(working_dtype(u))), tau)


def comp_sum_loss(
    logits: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"],
    *,
    tau: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the comp-sum loss l_tau = Phi_tau(sum over y' != y of e^(z_y' - z_y)) = (S_y^(tau-1) - 1) / (1-tau).

    S is the softmax. tau = 0 is the sum-exponential loss, 1 the logistic loss (cross-entropy), 1 < tau < 2 generalized
    cross-entropy with q = tau - 1, and 2 the mean absolute error 1 - S_y. The gradient is S_y^(tau-1) (S - e_y).

    Both keep their full relative accuracy where the softmax has rounded to 1: the loss is 1e-26 at a margin of 60, not
    0. Half types are computed in float32 and give a float32 loss; the gradient has the type of `logits`. Below tau = 1
    the loss grows like e^((1-tau) margin) and overflows to infinity where float32 does: clip gradients.

    NaN and +inf give a NaN loss, as in `F.cross_entropy`, so that a gradient scaler sees them; -inf masks a class. Soft
    labels and an index to ignore are not supported and are refused.

    Args:
        logits: Scores ``[B, C]`` of at least two classes.
        target: Labels ``[B]`` of any integer type.
        tau: The member of the family, at least 0.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Returns:
        A number, or ``[B]`` for `"none"`.

    Raises:
        TypeError: `logits` are not floating, `target` is not of an integer type, `tau` is not a number.
        ValueError: shapes that do not fit, an empty batch, fewer than two classes, a label outside [0, C), `tau`
            negative, NaN or infinite, an unknown `reduction`.

    Example:
        >>> logits, target = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
        >>> comp_sum_loss(logits, target)  # cross-entropy
        tensor(0.1698)
        >>> comp_sum_loss(logits, target, tau=2.0)  # 1 - softmax
        tensor(0.1562)
    """
    check_scores(logits)
    tau = check_number(tau, "tau", low=0)
    check_choice(reduction, "reduction", REDUCTIONS)
    # On the CPU the fast code meets a label out of range by itself and refuses it by name.
    labels = check_target(target, logits, values=logits.device.type != "cpu" or transforming())
    return comp_sum(logits, labels, tau, reduction)


class CompSumLoss(nn.Module):
    """Module form of `comp_sum_loss`.

    Example:
        >>> criterion = CompSumLoss(tau=1.7, reduction="sum")
        >>> criterion(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
        tensor(1.6475)
    """

    def __init__(self, *, tau: float = 1.0, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.tau = check_number(tau, "tau", low=0)
        check_choice(reduction, "reduction", REDUCTIONS)
        self.reduction: Reduction = reduction

    def forward(self, logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]) -> Tensor:
        """Compute the loss of scores ``[B, C]`` against labels ``[B]``."""
        return comp_sum_loss(logits, target, tau=self.tau, reduction=self.reduction)

    def extra_repr(self) -> str:
        """Show the settings in the module's representation."""
        return f"tau={self.tau}, reduction={self.reduction!r}"

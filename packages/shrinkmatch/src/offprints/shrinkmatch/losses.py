"""The shrunk loss: the top class of an uncertain sample, asked of its strong view among the kept classes."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.shared.device import working_dtype
from offprints.shared.validation import (
    Reduction,
    check_bool,
    check_choice,
    check_same_device,
    check_same_shape,
    check_tensor,
    reduce,
)
from offprints.shrinkmatch.class_space import ShrunkSpace, check_pseudo_labels, check_threshold, find_space

Target = Literal["hard", "soft"]
TARGETS = ("hard", "soft")
REDUCTIONS = ("mean", "sum", "none")


def shrink_loss(
    logits: Float[Tensor, "batch classes"],
    probs: Float[Tensor, "batch classes"],
    *,
    threshold: float = 0.95,
    reweight: bool = True,
    target: Target = "hard",
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """The loss of uncertain samples in their shrunk class spaces (steps 3 and 4).

    For a row that is *reached* (see `shrink_class_space`): ``p_(0) (logsumexp_kept(z) - z_top)``. Rows that are
    certain, or not reached, have the loss 0 and no gradient, and so have all rows where there are fewer than three
    classes. One sort and no loop over rows, no waiting for the device: it compiles as one graph.

    Args:
        logits: ``(B, C)``, of the strong view (of the auxiliary head, if there is one); the gradient flows here.
        probs: ``(B, C)``, pseudo-labels of the weak view, rows that sum to 1; no gradient flows.
        threshold: In (0, 1].
        reweight: Principle 1, multiply by the original largest probability.
        target: ``"hard"``, the top class; ``"soft"``, ``probs`` renormalized over the kept classes (the paper's
            ablation, weaker).
        reduction: ``"mean"`` divides by B, the number of all rows.

    Returns:
        A scalar, or ``(B,)`` for ``"none"``; in the type of ``logits``, float32 for half types.

    Raises:
        TypeError: not floating tensors, an argument of the wrong kind.
        ValueError: not 2-D, empty, not finite, of different shapes or on different devices; ``probs`` negative or with
            rows that do not sum to 1 (tolerances as in `shrink_class_space`); ``threshold``, ``target`` or
            ``reduction`` not allowed.

    Example:
        >>> weak, strong = torch.tensor([[0.5, 0.45, 0.04, 0.01]]), torch.tensor([[1.0, 2.0, 0.0, -1.0]])
        >>> shrink_loss(strong, weak)  # the second and third class are removed
        tensor(0.0635)
    """
    threshold = check_threshold(threshold)
    reweight = check_bool(reweight, "reweight")
    check_choice(target, "target", TARGETS)
    check_choice(reduction, "reduction", REDUCTIONS)
    check_tensor(logits, "logits", ndim=2)
    check_pseudo_labels(probs)
    check_same_shape(logits, probs, ("logits", "probs"))
    check_same_device(logits, probs, names=("logits", "probs"))
    p = probs.detach().to(working_dtype(probs))
    rows = shrunk_rows(logits.to(working_dtype(logits)), p, find_space(p, threshold), reweight=reweight, target=target)
    return reduce(rows, reduction)


def shrunk_rows(logits: Tensor, p: Tensor, space: ShrunkSpace, *, reweight: bool, target: str) -> Tensor:
    """The loss of each row, ``(B,)``, of checked inputs in float32 or float64."""
    top = space.order[:, :1]
    log_probs = logits.masked_fill(~space.kept, -torch.inf).log_softmax(1)
    if target == "hard":
        losses = -log_probs.gather(1, top).squeeze(1)
    else:
        shares = p.masked_fill(~space.kept, 0.0)
        shares = (shares / shares.sum(1, keepdim=True)).to(log_probs.dtype)
        losses = -(shares * log_probs.masked_fill(~space.kept, 0.0)).sum(1)  # a share of 0 times -inf would be NaN
    if reweight:
        losses = losses * p.gather(1, top).squeeze(1).to(losses.dtype)
    return torch.where(space.reached, losses, 0.0)  # chosen and not multiplied: an infinite loss times 0 would be NaN


class ShrinkLoss(nn.Module):
    """`shrink_loss` as a module.

    Args:
        threshold: In (0, 1].
        reweight: Principle 1.
        target: ``"hard"`` or ``"soft"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or not allowed.

    Example:
        >>> loss = ShrinkLoss(threshold=0.9, reduction="none")
        >>> loss(torch.zeros(2, 4), torch.tensor([[0.5, 0.4, 0.09, 0.01], [0.97, 0.01, 0.01, 0.01]]))
        tensor([0.3466, 0.0000])
    """

    def __init__(
        self,
        *,
        threshold: float = 0.95,
        reweight: bool = True,
        target: Target = "hard",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.threshold = check_threshold(threshold)
        self.reweight = check_bool(reweight, "reweight")
        check_choice(target, "target", TARGETS)
        check_choice(reduction, "reduction", REDUCTIONS)
        self.target: Target = target
        self.reduction: Reduction = reduction

    def forward(
        self, logits: Float[Tensor, "batch classes"], probs: Float[Tensor, "batch classes"]
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """As `shrink_loss`."""
        return shrink_loss(
            logits,
            probs,
            threshold=self.threshold,
            reweight=self.reweight,
            target=self.target,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """The settings, as they appear in the module's repr."""
        return (
            f"threshold={self.threshold:g}, reweight={self.reweight}, target={self.target!r},"
            f" reduction={self.reduction!r}"
        )

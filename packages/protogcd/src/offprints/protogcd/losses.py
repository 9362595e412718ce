"""The Pseudo-Huber loss: squared near zero, absolute far away.

REPLACE: this file stands for the concepts of the paper, one file each, named in the field's terms.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.shared.device import working_dtype
from offprints.shared.validation import Reduction, check_number, check_same_shape, check_tensor, reduce


def pseudo_huber_loss(
    preds: Float[Tensor, "batch *shape"],
    targets: Float[Tensor, "batch *shape"],
    *,
    scale: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute `scale**2 * (sqrt(1 + (r / scale)**2) - 1)` of the residuals `r`, equation (1) of the paper.

    Half types are computed in float32; the result is returned in that type.

    Args:
        preds: Predictions of any shape.
        targets: Values of the same shape.
        scale: Residuals below it count squared (half of the square), those above count absolute.
        reduction: "mean", "sum" or "none".

    Returns:
        A number, or the shape of `preds` for "none".

    Raises:
        TypeError: An argument is no floating tensor, or `scale` no number.
        ValueError: Shapes that differ, an empty batch, values that are not finite, `scale` not positive.

    Example:
        >>> preds, targets = torch.tensor([0.0, 3.0]), torch.zeros(2)
        >>> pseudo_huber_loss(preds, targets, reduction="none")
        tensor([0.0000, 2.1623])
    """
    check_tensor(preds, "preds", min_ndim=1)
    check_tensor(targets, "targets", min_ndim=1)
    check_same_shape(preds, targets, ("preds", "targets"))
    check_number(scale, "scale", low=0, open_low=True)
    dtype = working_dtype(preds, targets)
    residual = preds.to(dtype) - targets.to(dtype)
    # The conjugate form: small residuals keep their digits, and large ones do not overflow.
    values = residual * (residual / (1 + torch.hypot(torch.ones_like(residual), residual / scale)))
    return reduce(values, reduction)


class PseudoHuberLoss(nn.Module):
    """The module of `pseudo_huber_loss`.

    Example:
        >>> loss = PseudoHuberLoss(scale=0.5)
        >>> loss(torch.tensor([1.0]), torch.tensor([1.0]))
        tensor(0.)
    """

    def __init__(self, *, scale: float = 1.0, reduction: Reduction = "mean") -> None:
        super().__init__()
        check_number(scale, "scale", low=0, open_low=True)
        self.scale = scale
        self.reduction: Reduction = reduction

    def forward(self, preds: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss of a batch."""
        return pseudo_huber_loss(preds, targets, scale=self.scale, reduction=self.reduction)

    def extra_repr(self) -> str:
        """Show the hyperparameters in the module's representation."""
        return f"scale={self.scale}, reduction={self.reduction!r}"

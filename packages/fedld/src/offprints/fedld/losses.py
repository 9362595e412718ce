"""Margin control: the regularizer of local training."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offprints.shared.device import working_dtype
from offprints.shared.validation import (
    Reduction,
    check_bool,
    check_choice,
    check_labels,
    check_number,
    check_tensor,
    reduce,
)


def margin_control_loss(
    logits: Float[Tensor, "B K"],
    target: Int[Tensor, " B"],
    *,
    penalty: float = 0.1,
    per_sample: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy plus `penalty * log(1 + ||P||^2)`, with P the softmax of the logits.

    The norm is the Frobenius norm of the whole batch matrix, as in the paper's code: the term lies between
    `penalty * log(1 + B / K)` and `penalty * log(1 + B)` and grows with the logarithm of the batch size B. Its pull on
    a sample, beside that of the mean cross-entropy, hardly depends on B. With `per_sample=True` each sample has a term
    of its own, `penalty * log(1 + ||P_b||^2)`: its pull is weaker, by half for samples that the model is sure of, and
    neither value nor pull depends on the batch.

    Half types are computed and returned in float32.

    Args:
        logits: Scores of K classes for B samples.
        target: The right classes.
        penalty: Weight of the term; 0 is the plain cross-entropy.
        per_sample: One term a sample instead of one for the batch.
        reduction: "mean"; also "sum" and "none" where `per_sample` is True, since the term of a batch belongs to no
            sample.

    Returns:
        A number, or `[B]` for the reduction "none".

    Raises:
        TypeError: `logits` is not a floating tensor, `target` not a tensor of integers, `penalty` not a number.
        ValueError: Other shapes, an empty batch, NaN or infinity, a label out of range, `penalty` negative, another
            reduction than "mean" without `per_sample`.

    Example:
        >>> logits, target = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
        >>> margin_control_loss(logits, target, penalty=0.1)
        tensor(0.3075)
        >>> margin_control_loss(logits, target, per_sample=True, reduction="none")
        tensor([0.1852, 0.3607])
    """
    check_tensor(logits, "logits", ndim=2)
    target = check_labels(target, "target", num_classes=logits.shape[1])
    check_tensor(target, "target", shape=(len(logits),), floating=False)
    _check_options(penalty, per_sample, reduction)
    return margin_control(logits, target, penalty, per_sample, reduction)


def margin_control(
    logits: Tensor, target: Tensor, penalty: float, per_sample: bool = False, reduction: Reduction = "mean"
) -> Tensor:
    """The same without any check: local training lets NaN pass, for the server to see."""
    log_p = torch.log_softmax(logits.to(working_dtype(logits)), dim=1)
    cross_entropy = -log_p.gather(1, target.unsqueeze(1)).squeeze(1)
    squares = (2 * log_p).exp()
    if per_sample:
        return reduce(cross_entropy + penalty * squares.sum(1).log1p(), reduction)
    return cross_entropy.mean() + penalty * squares.sum().log1p()


def _check_options(penalty: float, per_sample: bool, reduction: str) -> None:
    check_number(penalty, "penalty", low=0)
    check_choice(reduction, "reduction", ("mean", "sum", "none"))
    if not check_bool(per_sample, "per_sample") and reduction != "mean":
        raise ValueError(f"reduction must be 'mean' unless per_sample is True, got {reduction!r}")


class MarginControlLoss(nn.Module):
    """The module of `margin_control_loss`.

    Example:
        >>> loss = MarginControlLoss(penalty=0.0)
        >>> loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        tensor(0.6931)
    """

    def __init__(self, *, penalty: float = 0.1, per_sample: bool = False, reduction: Reduction = "mean") -> None:
        super().__init__()
        _check_options(penalty, per_sample, reduction)
        self.penalty = penalty
        self.per_sample = per_sample
        self.reduction: Reduction = reduction

    def forward(self, logits: Float[Tensor, "B K"], target: Int[Tensor, " B"]) -> Tensor:
        """The loss of a batch."""
        return margin_control_loss(
            logits, target, penalty=self.penalty, per_sample=self.per_sample, reduction=self.reduction
        )

    def extra_repr(self) -> str:
        """Show the hyperparameters in the module's representation."""
        return f"penalty={self.penalty}, per_sample={self.per_sample}, reduction={self.reduction!r}"

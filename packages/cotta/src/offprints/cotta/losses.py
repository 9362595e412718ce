"""The consistency loss between student and teacher (equation 4 of the paper)."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from offprints.shared.device import working_dtype
from offprints.shared.validation import check_choice, check_same_shape, check_tensor, reduce

Reduction = Literal["mean", "sum", "none"]


def cross_entropies(
    student_logits: Float[Tensor, "B K *S"], teacher_logits: Float[Tensor, "B K *S"], symmetric: bool
) -> Float[Tensor, "B *S"]:
    """The loss of each sample or pixel, without checks; half types are computed in float32."""
    wide = working_dtype(student_logits)
    log_s = student_logits.to(wide).log_softmax(1)
    log_t = teacher_logits.detach().to(wide).log_softmax(1)
    if symmetric:
        return -0.5 * (log_t.exp() * log_s + log_s.exp() * log_t).sum(1)
    return -(log_t.exp() * log_s).sum(1)


def consistency_loss(
    student_logits: Float[Tensor, "B K *S"],
    teacher_logits: Float[Tensor, "B K *S"],
    *,
    symmetric: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of the student's prediction under the teacher's: -sum_k softmax(t)_k log softmax(s)_k.

    No gradient reaches the teacher. The loss is at least the entropy of the teacher's prediction, and equals it exactly
    where both predictions are the same; its gradient in the student's logits is softmax(s) - softmax(t).

    Args:
        student_logits: Logits; the class axis is 1, further axes are pixels.
        teacher_logits: Logits of the same shape.
        symmetric: Half of this and half of the cross-entropy of the teacher under the student, as the official code
            has it for ImageNet.
        reduction: ``"mean"`` over samples and pixels, ``"sum"``, or ``"none"``: one value per sample (and pixel).

    Raises:
        TypeError: an argument is not a floating tensor.
        ValueError: different shapes, fewer than two axes, empty, NaN or infinite, or an unknown reduction.
    """
    check_tensor(student_logits, "student_logits")
    check_tensor(teacher_logits, "teacher_logits")
    check_same_shape(student_logits, teacher_logits, ("student_logits", "teacher_logits"))
    if student_logits.ndim < 2:
        raise ValueError(f"student_logits must have at least 2 dimensions, got shape {tuple(student_logits.shape)}")
    check_choice(reduction, "reduction", ("mean", "sum", "none"))
    loss = reduce(cross_entropies(student_logits, teacher_logits, symmetric), reduction)
    return loss.to(student_logits.dtype)


class ConsistencyLoss(nn.Module):
    """:func:`consistency_loss` as a module.

    Args:
        symmetric: As in the function.
        reduction: As in the function.
    """

    def __init__(self, *, symmetric: bool = False, reduction: Reduction = "mean") -> None:
        super().__init__()
        check_choice(reduction, "reduction", ("mean", "sum", "none"))
        self.symmetric = symmetric
        self.reduction = reduction

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The loss of logits ``[B, K, ...]``."""
        return consistency_loss(student_logits, teacher_logits, symmetric=self.symmetric, reduction=self.reduction)

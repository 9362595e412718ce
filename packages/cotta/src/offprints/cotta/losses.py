"""The consistency loss between student and teacher (equation 1 of the paper)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.shared.device import working_dtype
from offprints.shared.validation import Reduction, check_bool, check_choice, check_same_shape, check_tensor, reduce

Logits = Float[Tensor, "B K *S"]


def log_probabilities(student_logits: Logits, teacher_logits: Logits) -> tuple[Logits, Logits]:
    """Of student and teacher, the teacher's without gradient; half types are computed in float32."""
    wide = working_dtype(student_logits, teacher_logits)
    return student_logits.to(wide).log_softmax(1), teacher_logits.detach().to(wide).log_softmax(1)


def expected(p: Logits, log_q: Logits) -> Float[Tensor, "B *S"]:
    """sum_k p_k log q_k, where a class without probability counts nothing, even if its logit is -inf."""
    return (p * log_q.masked_fill(p == 0, 0)).sum(1)


def cross_entropies(student_logits: Logits, teacher_logits: Logits, symmetric: bool) -> Float[Tensor, "B *S"]:
    """The loss of each sample or pixel, without checks."""
    log_s, log_t = log_probabilities(student_logits, teacher_logits)
    if symmetric:
        return -0.5 * (expected(log_t.exp(), log_s) + expected(log_s.exp(), log_t))
    return -expected(log_t.exp(), log_s)


@torch.no_grad()
def training_signal(student_logits: Logits, teacher_logits: Logits, symmetric: bool) -> Float[Tensor, ""]:
    """The largest entry of the gradient of a sample's (a pixel's) loss in the student's logits."""
    log_s, log_t = log_probabilities(student_logits, teacher_logits)
    s = log_s.exp()
    gradient = s - log_t.exp()
    if symmetric:
        uncertain = log_t.masked_fill(s == 0, 0)
        gradient = 0.5 * (gradient - s * (uncertain - expected(s, log_t).unsqueeze(1)))
    return gradient.abs().amax()


def rounding(*dtypes: torch.dtype) -> float:
    """How far probabilities of the same weights may differ by rounding, from the coarsest of the types in which they
    were computed.

    6e-6 in float32, 2e-12 in float64, 0.006 and 0.026 in the half types.
    """
    return max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.75


def consistency_loss(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    symmetric: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of the student's prediction under the teacher's: -sum_k softmax(t)_k log softmax(s)_k (equation 1).

    No gradient reaches the teacher. The loss is at least the entropy of the teacher's prediction, and equals it exactly
    where both predictions are the same; its gradient in the student's logits is softmax(s) - softmax(t).

    Args:
        student_logits: Logits of at least two classes; the class axis is 1, further axes are pixels.
        teacher_logits: Logits of the same shape.
        symmetric: Half of this and half of the cross-entropy of the teacher under the student, as the official code
            has it for ImageNet.
        reduction: ``"mean"`` over samples and pixels, ``"sum"``, or ``"none"``: one value per sample (and pixel). The
            mean and the sum of logits in half precision are float32: they could overflow.

    Raises:
        TypeError: an argument is not a floating tensor.
        ValueError: different shapes, fewer than two axes or classes, empty, NaN or infinite, or an unknown reduction.

    Example:
        >>> student = torch.tensor([[2.0, 0.0]], requires_grad=True)
        >>> consistency_loss(student, torch.tensor([[0.0, 0.0]])).backward()
        >>> student.grad  # softmax(student) - softmax(teacher)
        tensor([[ 0.3808, -0.3808]])
    """
    check_tensor(student_logits, "student_logits", min_ndim=2)
    check_tensor(teacher_logits, "teacher_logits")
    check_same_shape(student_logits, teacher_logits, ("student_logits", "teacher_logits"))
    if student_logits.shape[1] < 2:
        raise ValueError(f"student_logits must have at least 2 classes, got shape {tuple(student_logits.shape)}")
    check_bool(symmetric, "symmetric")
    loss = reduce(cross_entropies(student_logits, teacher_logits, symmetric), reduction)
    return loss.to(student_logits.dtype) if reduction == "none" else loss.to(working_dtype(student_logits))


class ConsistencyLoss(nn.Module):
    """`consistency_loss` as a module.

    Args:
        symmetric: As in the function.
        reduction: As in the function.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0]])
        >>> ConsistencyLoss()(logits, logits)  # log 2, the entropy
        tensor(0.6931)
    """

    def __init__(self, *, symmetric: bool = False, reduction: Reduction = "mean") -> None:
        super().__init__()
        check_choice(reduction, "reduction", ("mean", "sum", "none"))
        self.symmetric = check_bool(symmetric, "symmetric")
        self.reduction = reduction

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The loss of logits ``[B, K, ...]``."""
        return consistency_loss(student_logits, teacher_logits, symmetric=self.symmetric, reduction=self.reduction)

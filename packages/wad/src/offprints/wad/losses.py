"""The student's loss: supervised cross-entropy, and weighted cross-entropy to the pseudo-labels."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.shared.device import float32_region, working_dtype
from offprints.shared.validation import check_bool, check_labels, check_same_device, check_tensor
from offprints.wad._checks import require


class WADOutput(NamedTuple):
    """What `WADLoss` returns, scalars.

    Attributes:
        loss: `supervised + distillation`.
        supervised: Mean cross-entropy of the labeled batch.
        distillation: Mean of weight times cross-entropy of the unlabeled batch.
        effective_weight: Mean weight of the unlabeled batch: how much of it the student listens to. Weights shrink
            with the number of classes and where features collapse.

    Example:
        >>> logits, labels = torch.zeros(2, 3), torch.tensor([0, 1])
        >>> WADLoss()(logits, labels, logits, labels, torch.tensor([0.5, 0.0])).effective_weight
        tensor(0.2500)
    """

    loss: Float[Tensor, ""]
    supervised: Float[Tensor, ""]
    distillation: Float[Tensor, ""]
    effective_weight: Float[Tensor, ""]


class WADLoss(nn.Module):
    """`mean CE(f(x), y) + mean(w * CE(f(u), pseudo_label))`, step 3 of the method.

    The second mean divides by the size of the batch, not by the sum of the weights: a batch of unknown samples counts
    little as a whole. Computed in float32 for half types, and then returned in float32.

    Args:
        normalize_weights: Divide by the sum of the weights instead (by 1 where it is 0). Not the paper's: small weights
            then no longer make the whole term small.

    Raises:
        TypeError: `normalize_weights` is not a boolean.

    Example:
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
        >>> output = WADLoss()(logits, labels, logits, labels, torch.tensor([1.0, 0.0]))
        >>> output.supervised, output.distillation
        (tensor(0.2201), tensor(0.0635))
    """

    def __init__(self, *, normalize_weights: bool = False) -> None:
        super().__init__()
        self.normalize_weights = check_bool(normalize_weights, "normalize_weights")

    def forward(
        self,
        logits_x: Float[Tensor, "labeled classes"],
        labels_x: Int[Tensor, " labeled"],
        logits_u: Float[Tensor, "unlabeled classes"],
        pseudo_labels: Int[Tensor, " unlabeled"],
        weights: Float[Tensor, " unlabeled"],
    ) -> WADOutput:
        """The loss of a labeled and an unlabeled batch, and its parts.

        Args:
            logits_x: `(B, K)` of the labeled batch, K at least 2.
            labels_x: `(B,)` integers in [0, K).
            logits_u: `(M, K)` of the unlabeled batch.
            pseudo_labels: `(M,)` integers in [0, K).
            weights: `(M,)`, not negative.

        Raises:
            TypeError: logits or weights that are not floating tensors, labels that are not integer tensors.
            ValueError: empty batches, other shapes, labels out of range, NaN, infinities, negative weights.
        """
        check_tensor(logits_x, "logits_x", ndim=2)
        check_tensor(logits_u, "logits_u", ndim=2)
        classes = logits_x.shape[1]
        if classes < 2 or logits_u.shape[1] != classes:
            raise ValueError(
                "logits_x and logits_u must have the same number of classes, at least 2,"
                f" got {classes} and {logits_u.shape[1]}"
            )
        labels_x = check_class_labels(labels_x, "labels_x", len(logits_x), classes)
        pseudo_labels = check_class_labels(pseudo_labels, "pseudo_labels", len(logits_u), classes)
        check_tensor(weights, "weights", shape=(len(logits_u),))
        require((weights.detach() >= 0).all(), "weights must not be negative, a smaller one was got")
        names = ("logits_x", "labels_x", "logits_u", "pseudo_labels", "weights")
        check_same_device(logits_x, labels_x, logits_u, pseudo_labels, weights, names=names)
        return weighted_distillation(
            logits_x, labels_x, logits_u, pseudo_labels, weights, normalize_weights=self.normalize_weights
        )

    def extra_repr(self) -> str:
        """Show the option in the module's representation."""
        return f"normalize_weights={self.normalize_weights}"


def check_class_labels(y: Tensor, name: str, length: int, classes: int) -> Int[Tensor, " batch"]:
    """One label a row, int64.

    Raises:
        TypeError: not an integer tensor.
        ValueError: more than one axis, another length, out of range.
    """
    labels = check_labels(y, name, length=length, num_classes=classes)
    if labels.ndim != 1:
        raise ValueError(f"{name} must have 1 dimension, got shape {tuple(labels.shape)}")
    return labels


def weighted_distillation(
    logits_x: Float[Tensor, "labeled classes"],
    labels_x: Int[Tensor, " labeled"],
    logits_u: Float[Tensor, "unlabeled classes"],
    pseudo_labels: Int[Tensor, " unlabeled"],
    weights: Float[Tensor, " unlabeled"],
    *,
    normalize_weights: bool,
) -> WADOutput:
    """The same of arguments that were checked, or that a training makes: nothing waits for an accelerator."""
    dtype = working_dtype(logits_x, logits_u, weights)
    with float32_region(logits_x.device):
        weights = weights.to(dtype)
        supervised = F.cross_entropy(logits_x.to(dtype), labels_x)
        terms = weights * F.cross_entropy(logits_u.to(dtype), pseudo_labels, reduction="none")
        if normalize_weights:
            total = weights.sum()
            distillation = terms.sum() / total.where(total > 0, 1)
        else:
            distillation = terms.mean()
        return WADOutput(supervised + distillation, supervised, distillation, weights.mean())

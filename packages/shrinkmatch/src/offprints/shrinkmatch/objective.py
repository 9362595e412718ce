"""The whole loss of a step: supervised, certain and shrunk parts (steps 1 to 6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.shared.device import working_dtype
from offprints.shared.distributed import all_reduce_
from offprints.shared.validation import (
    check_bool,
    check_choice,
    check_labels,
    check_number,
    check_same_device,
    check_same_shape,
    check_tensor,
)
from offprints.shrinkmatch.alignment import DistributionAlignment, check_momentum, keep_wide
from offprints.shrinkmatch.class_space import ShrunkSpace, check_threshold, find_space
from offprints.shrinkmatch.losses import TARGETS, shrunk_rows

PSEUDO_LABELS = ("soft", "hard")


class ShrinkMatchOutput(NamedTuple):
    """The loss of one step and what it is made of; scalars. Gradients flow from the first four.

    Attributes:
        loss: ``supervised + unlabeled_weight * (certain + certain_ratio * shrink)``.
        supervised: Cross-entropy of the labeled samples.
        certain: FixMatch's loss of the certain samples, over all unlabeled samples.
        shrink: The shrunk loss of the uncertain samples, over all unlabeled samples, before it is multiplied by
            ``certain_ratio``.
        certain_ratio: r, the running share of certain samples, this batch's included.
        mask_ratio: The share of certain samples in this batch, over all processes; in evaluation mode this process's.
        mean_removed: Classes removed, mean over the uncertain samples of this batch and process; 0 if there are none.

    Example:
        >>> criterion = ShrinkMatchLoss(num_classes=4)
        >>> out = criterion(torch.zeros(1, 4), torch.tensor([2]), torch.eye(4), torch.zeros(4, 4))
        >>> out.loss, out.mask_ratio, out.mean_removed
        (tensor(1.3863), tensor(0.), tensor(2.))
    """

    loss: Float[Tensor, ""]
    supervised: Float[Tensor, ""]
    certain: Float[Tensor, ""]
    shrink: Float[Tensor, ""]
    certain_ratio: Float[Tensor, ""]
    mask_ratio: Float[Tensor, ""]
    mean_removed: Float[Tensor, ""]


class ShrinkMatchLoss(nn.Module):
    """The loss of a training step on logits of any network.

    The running ratio of certain samples and the distribution alignment are in buffers, and so in the ``state_dict``;
    they change in training mode alone, averaged over processes: training steps are made by all of them together, other
    calls by any. (The official CIFAR code begins the ratio anew every epoch.)

    Principle 2 begins with the first batch's ratio, which is near 0 for random weights: with the paper's
    ``ratio_momentum`` the shrunk loss stays nearly off for a thousand steps. Take 0.95 for short trainings.

    Args:
        num_classes: C, at least 2.
        threshold: In (0, 1]; with 1 nothing is certain but a probability of 1.
        align: Distribution alignment, ``"queue"``, ``"ema"`` or None.
        pseudo_label: Target of the certain samples, ``"soft"`` (CIFAR, ImageNet) or ``"hard"`` (STL-10, SVHN).
        target: Target of the shrunk loss, ``"hard"`` or ``"soft"``.
        unlabeled_weight: Weight of both unlabeled parts, at least 0.
        ratio_momentum: Of the running ratio, in [0, 1).
        reweight_sample: Principle 1, the shrunk loss of a sample times its largest probability.
        reweight_ratio: Principle 2, the shrunk loss of a batch times the running ratio.
        across_processes: False where each process trains a network of its own.

    Attributes:
        alignment: The `DistributionAlignment`, or None.
        certain_ratio: r, a buffer.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or not allowed.

    Example:
        >>> criterion = ShrinkMatchLoss(num_classes=4, ratio_momentum=0.95)
        >>> labeled, weak, strong = torch.randn(2, 4), 5 * torch.randn(8, 4), torch.randn(8, 4).requires_grad_()
        >>> criterion(labeled, torch.tensor([0, 3]), weak, strong).loss.backward()
        >>> strong.grad.shape
        torch.Size([8, 4])
    """

    certain_ratio: Tensor
    updates: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        threshold: float = 0.95,
        align: Literal["queue", "ema"] | None = "queue",
        pseudo_label: Literal["soft", "hard"] = "soft",
        target: str = "hard",
        unlabeled_weight: float = 1.0,
        ratio_momentum: float = 0.999,
        reweight_sample: bool = True,
        reweight_ratio: bool = True,
        across_processes: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = check_number(num_classes, "num_classes", low=2, integer=True)
        self.threshold = check_threshold(threshold)
        check_choice(align, "align", ("queue", "ema", None))
        check_choice(pseudo_label, "pseudo_label", PSEUDO_LABELS)
        check_choice(target, "target", TARGETS)
        self.align, self.pseudo_label, self.target = align, pseudo_label, target
        self.unlabeled_weight = check_number(unlabeled_weight, "unlabeled_weight", low=0)
        self.ratio_momentum = check_momentum(ratio_momentum, "ratio_momentum")
        self.reweight_sample = check_bool(reweight_sample, "reweight_sample")
        self.reweight_ratio = check_bool(reweight_ratio, "reweight_ratio")
        self.across_processes = check_bool(across_processes, "across_processes")
        self.alignment = None
        if align is not None:
            self.alignment = DistributionAlignment(self.num_classes, mode=align, across_processes=across_processes)
        self.register_buffer("certain_ratio", torch.zeros((), dtype=torch.float32))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ShrinkMatchLoss:
        return cast("ShrinkMatchLoss", super()._apply(keep_wide(fn), recurse))  # type: ignore[no-untyped-call]

    def forward(
        self,
        logits_x: Float[Tensor, "labeled classes"],
        labels_x: Int[Tensor, " labeled"],
        logits_u_weak: Float[Tensor, "unlabeled classes"],
        logits_u_strong: Float[Tensor, "unlabeled classes"],
        logits_u_aux: Float[Tensor, "unlabeled classes"] | None = None,
    ) -> ShrinkMatchOutput:
        """The loss of one step.

        Args:
            logits_x: ``(B_x, C)``, of the labeled samples.
            labels_x: ``(B_x,)``, integers in [0, C).
            logits_u_weak: ``(B, C)``, of the weak views; no gradient flows.
            logits_u_strong: ``(B, C)``, of the strong views, main head.
            logits_u_aux: ``(B, C)``, of the strong views, auxiliary head; None takes ``logits_u_strong``, which the
                paper's ablation finds weaker (CIFAR-100, 400 labels: 62.4 and 58.9 for 65.0 and 63.5).

        Returns:
            `ShrinkMatchOutput`, in the type of the logits, float32 for half types.

        Raises:
            TypeError: logits that are not floating tensors, labels that are not integers.
            ValueError: not ``(*, C)``, empty, not finite; numbers of rows that differ; labels outside [0, C), also -1:
                unlabeled samples do not belong in ``logits_x``; different devices. Nothing has changed then.
        """
        names = ["logits_x", "logits_u_weak", "logits_u_strong", "logits_u_aux"]
        given: list[Any] = [logits_x, logits_u_weak, logits_u_strong, logits_u_aux]
        if logits_u_aux is None:
            del names[-1], given[-1]
        logits = [self._checked(z, name) for z, name in zip(given, names, strict=True)]
        for z, name in zip(logits[2:], names[2:], strict=True):
            check_same_shape(logits[1], z, ("logits_u_weak", name))
        labels = check_labels(labels_x, "labels_x", length=len(logits[0]), num_classes=self.num_classes)
        if labels.ndim != 1:
            raise ValueError(f"labels_x must have 1 dimension, got shape {tuple(labels.shape)}")
        check_same_device(*logits, labels, self.updates, names=[*names, "labels_x", "the module"])
        first, *views = logits
        return self.compute(first, labels, *views)

    def compute(
        self, logits_x: Tensor, labels: Tensor, weak: Tensor, strong: Tensor, aux: Tensor | None = None
    ) -> ShrinkMatchOutput:
        """`forward` without its checks: for tensors known to be right, and where they would wait for the device."""
        aux = strong if aux is None else aux
        dtype = working_dtype(logits_x, weak, strong, aux)
        with torch.no_grad():
            probs = weak.detach().to(dtype).softmax(1)
            if self.alignment is not None:
                if self.training:
                    self.alignment.update(probs)
                probs = self.alignment.align(probs).to(dtype)
            space = find_space(probs, self.threshold)
            certain = ~space.uncertain
            mask_ratio = certain.to(self.certain_ratio.dtype).mean()
            if self.training and self.across_processes:
                all_reduce_(mask_ratio, op="mean")
            ratio = self._ratio(mask_ratio).to(dtype)
            removed = torch.where(space.uncertain, space.first_kept - 1, 0).sum()
            mean_removed = removed / space.uncertain.sum().clamp(min=1)
            wanted = probs if self.pseudo_label == "soft" else space.order[:, 0]
        supervised = F.cross_entropy(logits_x.to(dtype), labels)
        of_certain = F.cross_entropy(strong.to(dtype), wanted, reduction="none")
        certain_loss = torch.where(certain, of_certain, 0.0).mean()
        rows = shrunk_rows(aux.to(dtype), probs, space, reweight=self.reweight_sample, target=self.target)
        shrink = rows.mean()
        unlabeled = certain_loss + (ratio * shrink if self.reweight_ratio else shrink)
        loss = supervised + self.unlabeled_weight * unlabeled
        return ShrinkMatchOutput(
            loss, supervised, certain_loss, shrink, ratio, mask_ratio.to(dtype), mean_removed.to(dtype)
        )

    def shrunk_space(self, logits_u_weak: Float[Tensor, "unlabeled classes"]) -> ShrunkSpace:
        """The shrunk class space of weak views' logits, aligned by the running mean as it is; nothing changes.

        Called with the batch of the last step it is what that step saw: ``uncertain`` and ``reached`` say which samples
        were certain, rescued (uncertain and reached) or dropped, ``first_kept - 1`` how many classes were removed.

        Raises:
            TypeError: not a floating tensor.
            ValueError: not ``(B, C)``, empty, not finite, on another device.
        """
        check_same_device(
            self._checked(logits_u_weak, "logits_u_weak"), self.updates, names=("logits_u_weak", "the module")
        )
        probs = logits_u_weak.detach().to(working_dtype(logits_u_weak)).softmax(1)
        if self.alignment is not None:
            probs = self.alignment.align(probs).to(probs.dtype)
        return find_space(probs, self.threshold)

    def _checked(self, logits: Tensor, name: str) -> Tensor:
        return check_tensor(logits, name, shape=(None, self.num_classes))

    def _ratio(self, mask_ratio: Tensor) -> Tensor:
        """r with this batch in it; in evaluation mode as it is, or this batch's before the first update."""
        first = self.updates == 0
        if not self.training:
            return torch.where(first, mask_ratio, self.certain_ratio)
        moved = self.ratio_momentum * self.certain_ratio + (1 - self.ratio_momentum) * mask_ratio
        ratio = torch.where(first, mask_ratio, moved)
        self.certain_ratio.copy_(ratio)
        self.updates.add_(1)
        return ratio

    def extra_repr(self) -> str:
        """The settings, as they appear in the module's repr."""
        return (
            f"num_classes={self.num_classes}, threshold={self.threshold:g}, pseudo_label={self.pseudo_label!r},"
            f" target={self.target!r}, unlabeled_weight={self.unlabeled_weight:g},"
            f" ratio_momentum={self.ratio_momentum:g}, reweight_sample={self.reweight_sample},"
            f" reweight_ratio={self.reweight_ratio}"
        )

"""The whole objective of ProtoGCD."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from offprints.protogcd.contrastive import check_views, cosines, of_classes, of_views
from offprints.protogcd.pseudo_labels import (
    check_logits,
    check_schedule,
    check_temperature,
    ratio_schedule,
    swapped,
    tempered,
)
from offprints.protogcd.regularization import check_prototypes, divergence, separation
from offprints.shared.validation import check_labels, check_number, check_same_device, check_tensor


class ProtoGCDOutput(NamedTuple):
    """What `ProtoGCDLoss` returns: the loss, and its terms before they are weighted.

    Attributes:
        loss: The weighted sum.
        classification: Cross-entropy of the labeled samples.
        dapl: `dapl_loss`.
        entropy: `entropy_regularization`.
        separation: `prototype_separation`.
        contrastive: `info_nce`.
        supervised_contrastive: `supervised_contrastive` of the labeled samples.
        ratio: Share of the pseudo-labels that are hard.

    Example:
        >>> logits, projections, prototypes = torch.zeros(4, 2), torch.eye(4), torch.eye(2)
        >>> labels, labeled = torch.tensor([0, 0]), torch.tensor([True, False])
        >>> output = ProtoGCDLoss()(logits, projections, prototypes, labels, labeled, epoch=0)
        >>> output.classification, output.ratio
        (tensor(0.6931), 0.0)
    """

    loss: Float[Tensor, ""]
    classification: Float[Tensor, ""]
    dapl: Float[Tensor, ""]
    entropy: Float[Tensor, ""]
    separation: Float[Tensor, ""]
    contrastive: Float[Tensor, ""]
    supervised_contrastive: Float[Tensor, ""]
    ratio: float


class ProtoGCDLoss(nn.Module):
    """The objective of ProtoGCD for a batch of labeled and unlabeled samples, in two views.

    `(1 - w) (dapl + w_e entropy + w_s separation + InfoNCE) + w (classification + SupCon)` with w the
    `supervised_weight`. All samples count in the first four terms, labeled samples alone in the last two; in a batch
    without labeled samples these are 0. No step waits for an accelerator, and ``torch.compile(fullgraph=True)`` works.

    Args:
        total_epochs: Epochs of the training, for `ratio_schedule`.
        wait_epochs: Epochs without hard labels.
        ramp_epochs: Epochs in which the share of hard labels grows; None: half of `total_epochs`.
        initial_ratio: Share at the beginning of the ramp.
        final_ratio: Share from its end on.
        student_temperature: Of the predictions, also in the entropy, the separation and the classification.
        teacher_temperature: Of the pseudo-labels.
        supervised_weight: In [0, 1].
        entropy_weight: Of the entropy term.
        separation_weight: Of the separation; the paper's code has 0.1 for CIFAR-100 and 0.05 for CUB.
        contrastive_temperature: Of InfoNCE.
        supervised_temperature: Of SupCon.

    Raises:
        TypeError: A number of the wrong kind.
        ValueError: A number out of range; `wait_epochs` and `ramp_epochs` are longer than the training.

    Example:
        >>> head, criterion = PrototypeHead(8, 5, hidden=16), ProtoGCDLoss(total_epochs=30)
        >>> labels, labeled = torch.tensor([0, 1, 0, 0]), torch.tensor([True, True, False, False])
        >>> projections, logits, prototypes = head(torch.randn(8, 8))  # two views of four samples
        >>> criterion(logits, projections, prototypes, labels, labeled, epoch=20).ratio
        1.0
    """

    def __init__(
        self,
        *,
        total_epochs: int = 200,
        wait_epochs: int = 0,
        ramp_epochs: int | None = None,
        initial_ratio: float = 0.0,
        final_ratio: float = 1.0,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.05,
        supervised_weight: float = 0.35,
        entropy_weight: float = 2.0,
        separation_weight: float = 0.1,
        contrastive_temperature: float = 1.0,
        supervised_temperature: float = 0.07,
    ) -> None:
        super().__init__()
        self.total_epochs = check_number(total_epochs, "total_epochs", low=1, integer=True)
        self.wait_epochs = check_number(wait_epochs, "wait_epochs", low=0, integer=True)
        if ramp_epochs is not None:
            check_number(ramp_epochs, "ramp_epochs", low=0, integer=True)
        self.initial_ratio = float(check_number(initial_ratio, "initial_ratio", low=0, high=1))
        self.final_ratio = float(check_number(final_ratio, "final_ratio", low=0, high=1))
        try:
            self.ramp_epochs = check_schedule(self.total_epochs, self.wait_epochs, ramp_epochs, 0, 1)[1]
        except ValueError as error:
            raise ValueError(str(error).replace("wait + ramp", "wait_epochs + ramp_epochs")) from None
        self.student_temperature = check_temperature(student_temperature, "student_temperature")
        self.teacher_temperature = check_temperature(teacher_temperature, "teacher_temperature")
        self.contrastive_temperature = check_temperature(contrastive_temperature, "contrastive_temperature")
        self.supervised_temperature = check_temperature(supervised_temperature, "supervised_temperature")
        self.supervised_weight = float(check_number(supervised_weight, "supervised_weight", low=0, high=1))
        self.entropy_weight = float(check_number(entropy_weight, "entropy_weight", low=0))
        self.separation_weight = float(check_number(separation_weight, "separation_weight", low=0))

    def ratio(self, epoch: int) -> float:
        """Share of the pseudo-labels that are hard in this epoch."""
        return ratio_schedule(
            epoch,
            total_epochs=self.total_epochs,
            wait=self.wait_epochs,
            ramp=self.ramp_epochs,
            initial=self.initial_ratio,
            final=self.final_ratio,
        )

    def forward(
        self,
        logits: Float[Tensor, "rows K"],
        projections: Float[Tensor, "rows dim"],
        prototypes: Float[Tensor, "K features"],
        labels: Int[Tensor, " batch"],
        labeled_mask: Bool[Tensor, " batch"],
        *,
        epoch: int,
    ) -> ProtoGCDOutput:
        """The loss of one batch and its terms.

        Args:
            logits: `(2 B, K)` cosines, the second views after the first.
            projections: `(2 B, E)`.
            prototypes: `(K, D)`.
            labels: `(B,)` integers in [0, K) where the sample is labeled; anything elsewhere.
            labeled_mask: `(B,)` booleans.
            epoch: The epoch, from 0.

        Raises:
            TypeError: Tensors of the wrong type, or an epoch that is no integer.
            ValueError: Shapes that do not fit, an empty batch, values that are not finite, a label out of range, a
                negative epoch.
        """
        ratio = self.ratio(epoch)
        check_views(check_logits(logits), "logits")
        check_tensor(projections, "projections", ndim=2)
        check_prototypes(prototypes)
        rows, classes = logits.shape
        if len(projections) != rows:
            raise ValueError(f"projections must have as many rows as logits, {rows}, got {len(projections)}")
        if len(prototypes) != classes:
            raise ValueError(f"prototypes must have a row for each of the {classes} classes, got {len(prototypes)}")
        labeled = check_tensor(labeled_mask, "labeled_mask", shape=(rows // 2,), floating=False)
        if labeled.dtype != torch.bool:
            raise TypeError(f"labeled_mask must have the type bool, got {labeled.dtype}")
        labels = check_labels(labels, "labels", length=rows // 2)
        check_tensor(labels, "labels", ndim=1, floating=False)
        check_same_device(
            logits, projections, prototypes, labels, labeled,
            names=("logits", "projections", "prototypes", "labels", "labeled_mask"),
        )  # fmt: skip
        labels = check_labels(torch.where(labeled, labels, 0), "labels", num_classes=classes)

        labels, labeled = labels.repeat(2), labeled.repeat(2)
        log_p = tempered(logits, self.student_temperature).log_softmax(-1)
        hits = log_p.gather(1, labels[:, None])[:, 0].masked_fill(~labeled, 0)
        classification = -hits.sum() / labeled.sum().clamp(min=1)
        dapl = swapped(logits, log_p, ratio, self.teacher_temperature)
        entropy = divergence(log_p)
        apart = separation(prototypes, self.student_temperature)
        similarity = cosines(projections)
        contrastive = of_views(similarity, self.contrastive_temperature)
        supervised = of_classes(similarity, labels, labeled, self.supervised_temperature)

        unlabeled_terms = dapl + self.entropy_weight * entropy + self.separation_weight * apart + contrastive
        labeled_terms = classification + supervised
        loss = (1 - self.supervised_weight) * unlabeled_terms + self.supervised_weight * labeled_terms
        return ProtoGCDOutput(loss, classification, dapl, entropy, apart, contrastive, supervised, ratio)

    def extra_repr(self) -> str:
        """Show the hyperparameters in the module's representation."""
        names = [name for name in vars(self) if name.endswith(("epochs", "ratio", "temperature", "weight"))]
        return ", ".join(f"{name}={getattr(self, name):g}" for name in names)

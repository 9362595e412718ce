"""Every bad input that the specification names gets an error that names the argument."""

from __future__ import annotations

import math

import pytest
import torch

from offprints.shared.testing import check_errors
from offprints.shrinkmatch import (
    DistributionAlignment,
    ShrinkLoss,
    ShrinkMatchLoss,
    shrink_class_space,
    shrink_loss,
    split_labels,
)

Z = torch.zeros(4, 3)
P = torch.full((4, 3), 1 / 3)
LABELS = torch.tensor([0, 1, 2, 0])


def spoiled(x: torch.Tensor, value: float) -> torch.Tensor:
    x = x.clone()
    x[1, 1] = value
    return x


@pytest.mark.parametrize(
    "call", [shrink_class_space, lambda p: shrink_loss(Z, p), lambda p: DistributionAlignment(3)(p)]
)
def test_pseudo_labels(call) -> None:
    check_errors(
        [
            (lambda: call(spoiled(P, math.nan)), ValueError, "probs"),
            (lambda: call(spoiled(P, math.inf)), ValueError, "probs"),
            (lambda: call(P[:0]), ValueError, "probs"),
            (lambda: call(P[0]), ValueError, "probs"),
            (lambda: call(P[None]), ValueError, "probs"),
            (lambda: call(1.002 * P), ValueError, "probs must sum to 1"),
            (lambda: call(1.03 * P.bfloat16()), ValueError, "probs must sum to 1"),
            (lambda: call(torch.tensor([[1.5, -0.5, 0.0]] * 4)), ValueError, "probs must not be negative"),
            (lambda: call(Z + torch.tensor([3.0, 0.0, -1.0])), ValueError, "probs"),  # logits
            (lambda: call(P.long()), TypeError, "probs"),
            (lambda: call(P.tolist()), TypeError, "probs"),
        ]
    )
    call(1.0005 * P)
    call((1.01 * P).bfloat16())


def test_shrink_loss() -> None:
    check_errors(
        [
            (lambda: shrink_loss(spoiled(Z, math.nan), P), ValueError, "logits"),
            (lambda: shrink_loss(spoiled(Z, -math.inf), P), ValueError, "logits"),
            (lambda: shrink_loss(Z[:0], P[:0]), ValueError, "logits"),
            (lambda: shrink_loss(Z.long(), P), TypeError, "logits"),
            (lambda: shrink_loss([[0.0]], P), TypeError, "logits"),
            (lambda: shrink_loss(Z[:3], P), ValueError, "logits and probs must have the same shape"),
            (lambda: shrink_loss(Z[:, :2], P), ValueError, "logits and probs must have the same shape"),
            (lambda: shrink_loss(Z, P, threshold=0.0), ValueError, "threshold"),
            (lambda: shrink_loss(Z, P, threshold=1.01), ValueError, "threshold"),
            (lambda: shrink_class_space(P, threshold=-0.5), ValueError, "threshold"),
            (lambda: shrink_loss(Z, P, reduction="max"), ValueError, "reduction"),
            (lambda: shrink_loss(Z, P, target="both"), ValueError, "target"),
            (lambda: shrink_loss(Z, P, reweight="no"), TypeError, "reweight"),
            (lambda: ShrinkLoss(threshold=2.0), ValueError, "threshold"),
            (lambda: ShrinkLoss(reduction="max"), ValueError, "reduction"),
            (lambda: ShrinkLoss(target="both"), ValueError, "target"),
        ]
    )


def test_whole_loss() -> None:
    criterion = ShrinkMatchLoss(num_classes=3)
    check_errors(
        [
            (lambda: criterion(Z[:, :2], LABELS, Z, Z, Z), ValueError, "logits_x"),
            (lambda: criterion(Z, LABELS, Z[:, :2], Z, Z), ValueError, "logits_u_weak"),
            (lambda: criterion(Z, LABELS, Z, Z[:3], Z), ValueError, "logits_u_strong"),
            (lambda: criterion(Z, LABELS, Z, Z, Z[:3]), ValueError, "logits_u_aux"),
            (lambda: criterion(Z, LABELS, spoiled(Z, math.nan), Z, Z), ValueError, "logits_u_weak"),
            (lambda: criterion(Z, LABELS, Z, spoiled(Z, math.inf), Z), ValueError, "logits_u_strong"),
            (lambda: criterion(Z, LABELS, Z, Z, spoiled(Z, math.inf)), ValueError, "logits_u_aux"),
            (lambda: criterion(Z[:0], LABELS[:0], Z, Z, Z), ValueError, "logits_x"),
            (lambda: criterion(Z, LABELS, Z[:0], Z[:0], Z[:0]), ValueError, "logits_u_weak"),
            (lambda: criterion(Z, LABELS - 1, Z, Z), ValueError, "labels_x"),
            (lambda: criterion(Z, LABELS + 1, Z, Z), ValueError, "labels_x"),
            (lambda: criterion(Z, LABELS[:3], Z, Z), ValueError, "labels_x"),
            (lambda: criterion(Z, LABELS[:, None], Z, Z), ValueError, "labels_x"),
            (lambda: criterion(Z, LABELS.float(), Z, Z), TypeError, "labels_x"),
            (lambda: criterion(Z.long(), LABELS, Z, Z), TypeError, "logits_x"),
            (lambda: criterion(Z, LABELS, Z.tolist(), Z), TypeError, "logits_u_weak"),
            (lambda: criterion.shrunk_space(Z[:, :2]), ValueError, "logits_u_weak"),
            (lambda: criterion(Z, LABELS, Z.to("meta"), Z.to("meta")), ValueError, "logits_u_weak"),
        ]
    )
    assert not any(value.any() for value in criterion.state_dict().values()), "nothing has changed"


def test_settings() -> None:
    check_errors(
        [
            (lambda: ShrinkMatchLoss(num_classes=1), ValueError, "num_classes"),
            (lambda: ShrinkMatchLoss(num_classes=3, threshold=0.0), ValueError, "threshold"),
            (lambda: ShrinkMatchLoss(num_classes=3, align="mean"), ValueError, "align"),
            (lambda: ShrinkMatchLoss(num_classes=3, pseudo_label="firm"), ValueError, "pseudo_label"),
            (lambda: ShrinkMatchLoss(num_classes=3, target="firm"), ValueError, "target"),
            (lambda: ShrinkMatchLoss(num_classes=3, unlabeled_weight=-1.0), ValueError, "unlabeled_weight"),
            (lambda: ShrinkMatchLoss(num_classes=3, ratio_momentum=1.0), ValueError, "ratio_momentum"),
            (lambda: DistributionAlignment(3, mode="mean"), ValueError, "mode"),
            (lambda: DistributionAlignment(3, momentum=1.0), ValueError, "momentum"),
            (lambda: DistributionAlignment(3, momentum=-0.1), ValueError, "momentum"),
            (lambda: DistributionAlignment(3, length=0), ValueError, "length"),
            (lambda: DistributionAlignment(4)(P), ValueError, "probs"),
            (lambda: split_labels([0, 0, 1], 2, seed=0), ValueError, "per_class"),
        ]
    )

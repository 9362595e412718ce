"""What a teacher without labels knows of unlabeled samples: pseudo-labels, and weights that are small for unknowns."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprints.shared.device import eagerly, float32_region, working_dtype
from offprints.shared.validation import check_choice, check_labels, check_number, check_same_device
from offprints.wad._checks import check_features, unit_rows

ClassReduction = Literal["max", "topk_mean", "mean"]
REDUCTIONS: tuple[ClassReduction, ...] = ("max", "topk_mean", "mean")
BLOCK = 2**18  # cosines that stay in the cache of a CPU


class Knowledge(NamedTuple):
    """What `teacher_knowledge` returns, a row an unlabeled sample.

    Attributes:
        scores: `(U, K)`, the largest cosine between the sample and the labeled samples of each class.
        pseudo_labels: `(U,)`, int64, the class of the largest score; of equal ones the first.
        weights: `(U,)`, the largest score less the second largest, in [0, 2].

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> teacher_knowledge(z, z, torch.tensor([0, 1]), num_classes=2).weights
        tensor([1., 1.])
    """

    scores: Float[Tensor, "unlabeled classes"]
    pseudo_labels: Int[Tensor, " unlabeled"]
    weights: Float[Tensor, " unlabeled"]


@eagerly()
def teacher_knowledge(
    z_unlabeled: Float[Tensor, "unlabeled dim"],
    z_labeled: Float[Tensor, "labeled dim"],
    y_labeled: Int[Tensor, " labeled"],
    *,
    num_classes: int,
    chunk_size: int = 8192,
    reduction: ClassReduction = "max",
    topk: int = 5,
) -> Knowledge:
    """Label unlabeled samples by the nearest labeled ones, and weigh them by how far the second class is behind.

    The score of a class is the largest cosine to its labeled samples (step 2 of the method), which at the optimum of a
    contrastive loss is the pointwise mutual information up to a constant. The weight is the largest score times the
    ratio of the margin, `s1 * (1 - s2 / s1) = s1 - s2`, computed as the difference: safe where `s1` is 0 or negative.

    The features may come from any encoder; their lengths do not matter. No gradient flows. Half types are computed and
    returned in float32. Values are checked on every device, which waits for an accelerator once.

    Args:
        z_unlabeled: `(U, D)` features.
        z_labeled: `(L, D)` features.
        y_labeled: `(L,)` integers in [0, K), every class at least once.
        num_classes: K, at least 2.
        chunk_size: Unlabeled samples at a time, at most: what bounds the memory beside the result.
        reduction: Score of a class: `"max"`, the paper's; `"topk_mean"`, the mean of its `topk` largest cosines (of all
            where there are fewer), which one mislabeled sample moves less; `"mean"` of all.
        topk: For `"topk_mean"`.

    Raises:
        TypeError: features that are not floating tensors, labels that are not integers.
        ValueError: NaN or infinite features, rows of zeros, other widths or lengths, labels out of range, a class
            without a labeled sample, an option out of range.

    Example:
        >>> z_labeled, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]]), torch.tensor([0, 1, 1])
        >>> known = teacher_knowledge(torch.tensor([[3.0, 0.0], [2.0, 2.0]]), z_labeled, y, num_classes=2)
        >>> known.pseudo_labels, known.weights
        (tensor([0, 0]), tensor([1., 0.]))
    """
    check_features(z_unlabeled, "z_unlabeled")
    check_features(z_labeled, "z_labeled")
    if z_unlabeled.shape[1] != z_labeled.shape[1]:
        raise ValueError(
            "z_unlabeled and z_labeled must have the same number of features,"
            f" got {z_unlabeled.shape[1]} and {z_labeled.shape[1]}"
        )
    check_same_device(z_unlabeled, z_labeled, names=("z_unlabeled", "z_labeled"))
    chunk_size = check_number(chunk_size, "chunk_size", low=1, integer=True)
    check_choice(reduction, "reduction", REDUCTIONS)
    topk = check_number(topk, "topk", low=1, integer=True)
    labels = check_anchor_labels(y_labeled, "y_labeled", len(z_labeled), num_classes).to(z_labeled.device)
    dtype = working_dtype(z_unlabeled, z_labeled)
    return knowledge_of(
        unit_rows(z_unlabeled.detach().to(dtype), "z_unlabeled"),
        unit_rows(z_labeled.detach().to(dtype), "z_labeled"),
        labels,
        num_classes=int(num_classes),
        chunk_size=chunk_size,
        reduction=reduction,
        topk=topk,
    )


def check_anchor_labels(y: Tensor, name: str, length: int, num_classes: int) -> Int[Tensor, " labeled"]:
    """Labels of the labeled samples as int64; every class has one.

    Raises:
        TypeError: not an integer tensor; `num_classes` not an integer.
        ValueError: another length, more than one axis, out of range, a class without a sample, fewer than 2 classes.
    """
    num_classes = check_number(num_classes, "num_classes", low=2, integer=True)
    labels = check_labels(y, name, length=length, num_classes=num_classes, validate=True)
    if labels.ndim != 1:
        raise ValueError(f"{name} must have 1 dimension, got shape {tuple(labels.shape)}")
    present = labels.unique()
    if len(present) < num_classes:
        absent = next(k for k in range(len(present) + 1) if k == len(present) or int(present[k]) != k)
        raise ValueError(
            f"{name} must have every class in [0, {num_classes}), got no labeled sample of class {absent}"
            f" (num_classes={num_classes})"
        )
    return labels


def knowledge_of(
    unlabeled: Float[Tensor, "unlabeled dim"],
    anchors: Float[Tensor, "labeled dim"],
    labels: Int[Tensor, " labeled"],
    *,
    num_classes: int,
    chunk_size: int = 8192,
    reduction: ClassReduction = "max",
    topk: int = 5,
) -> Knowledge:
    """The same of rows of length 1, whose values were checked."""
    counts = torch.bincount(labels, minlength=num_classes).tolist()
    groups = anchors[labels.argsort(stable=True)].split(counts)
    scores = unlabeled.new_empty(len(unlabeled), num_classes)
    if unlabeled.device.type == "cpu":
        chunk_size = min(chunk_size, max(256, BLOCK // max(counts)))
    with float32_region(unlabeled.device):
        for rows, out in zip(unlabeled.split(chunk_size), scores.split(chunk_size), strict=True):
            # A product for each class: its block of cosines stays in the cache, and only its maximum is written.
            for k, group in enumerate(groups):
                out[:, k] = _reduced(group @ rows.T, reduction, topk)
    scores.clamp_(-1, 1)  # what rounding puts outside
    first, second = scores.topk(2, dim=1).values.unbind(1)
    return Knowledge(scores, scores.argmax(1), first - second)


def _reduced(cosines: Float[Tensor, "anchors rows"], reduction: ClassReduction, topk: int) -> Float[Tensor, " rows"]:
    if reduction == "max":
        return cosines.amax(0)
    if reduction == "mean":
        return cosines.mean(0)
    return cosines.topk(min(topk, len(cosines)), dim=0).values.mean(0)

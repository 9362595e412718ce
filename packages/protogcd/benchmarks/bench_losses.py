"""The objective and its parts beside plain renderings of the official formulas, forward and backward, one thread.

The official code is a research repository: what stands beside ours is its formulas, written for this benchmark: boolean
masks that gather positives and negatives, a loop over the views, and a loop over samples in the accuracy. SimGCD's
objective is the same without separation and hard labels. The contrastive terms also stand beside those of
pytorch-metric-learning.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss, SupConLoss
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from offprints.protogcd import ProtoGCDLoss, gcd_accuracy, info_nce, prototype_separation, supervised_contrastive
from offprints.shared.benchmark import Case, compare

RESULTS = Path(__file__).parent / "results" / "losses.json"
EPOCH = 25
LIBRARY = "pytorch-metric-learning"


def masked_info_nce(projections: Tensor, temperature: float) -> Tensor:
    """Positives and negatives gathered by masks, as in the official code."""
    z = F.normalize(projections, dim=1)
    labels = torch.arange(len(z) // 2).repeat(2)
    same = (labels[None] == labels[:, None]).float()
    similarity = z @ z.T
    itself = torch.eye(len(z), dtype=torch.bool)
    same, similarity = same[~itself].view(len(z), -1), similarity[~itself].view(len(z), -1)
    positives, negatives = similarity[same.bool()].view(len(z), -1), similarity[~same.bool()].view(len(z), -1)
    logits = torch.cat([positives, negatives], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(z), dtype=torch.long))


def masked_supcon(projections: Tensor, labels: Tensor, temperature: float) -> Tensor:
    z = F.normalize(projections, dim=1)
    logits = z @ z.T / temperature
    logits = logits - logits.max(1, keepdim=True)[0].detach()
    others = 1 - torch.eye(len(z))
    positives = (labels[:, None] == labels[None]).float() * others
    log_p = logits - (logits.exp() * others).sum(1, keepdim=True).log()
    return -((positives * log_p).sum(1) / positives.sum(1)).mean()


def loop_dapl(logits: Tensor, ratio: float, student: float, teacher: float) -> Tensor:
    """A loop over the views, hard labels written in place."""
    predictions = (logits / student).chunk(2)
    targets = [view.clone() for view in (logits.detach() / teacher).softmax(1).chunk(2)]
    for q in targets:
        top = q.topk(2, 1)[0]
        chosen = (top[:, 0] / (top[:, 1] + 1e-6)).argsort(descending=True)[: int(len(q) * ratio)]
        q[chosen] = F.one_hot(q[chosen].argmax(1), q.shape[1]).to(q.dtype)
    total, count = torch.zeros(()), 0
    for i, q in enumerate(targets):
        for j, prediction in enumerate(predictions):
            if i != j:
                total, count = total - (q * F.log_softmax(prediction, 1)).sum(1).mean(), count + 1
    return total / count


def loop_separation(prototypes: Tensor, temperature: float) -> Tensor:
    k = len(prototypes)
    similarity = prototypes @ prototypes.T / temperature
    mask = 1 - torch.eye(k)
    terms = ((mask * similarity.exp()).sum(1) / (k - 1)).log()
    return temperature / 0.1 * terms[~terms.isnan()].mean()


def official(
    logits: Tensor, projections: Tensor, prototypes: Tensor, labels: Tensor, labeled: Tensor, ratio: float
) -> Tensor:
    """The objective, by these."""
    known = labeled.repeat(2)
    target = labels.repeat(2)[known]
    mean = (logits / 0.1).softmax(1).mean(0)
    entropy = (mean * mean.log()).sum() + np.log(len(mean))
    unlabeled = loop_dapl(logits, ratio, 0.1, 0.05) + 2 * entropy + 0.1 * loop_separation(prototypes, 0.1)
    supervised = F.cross_entropy(logits[known] / 0.1, target)
    contrast = masked_supcon(projections[known], target, 0.07)
    return 0.65 * (unlabeled + masked_info_nce(projections, 1.0)) + 0.35 * (supervised + contrast)


def loop_accuracy(true: np.ndarray, pred: np.ndarray, old: np.ndarray) -> tuple[float, ...]:
    """The table of counts filled sample by sample."""
    size = int(max(true.max(), pred.max())) + 1
    counts = np.zeros((size, size), dtype=int)
    for i in range(pred.size):
        counts[pred[i], true[i]] += 1
    rows, columns = linear_sum_assignment(counts.max() - counts)
    place = dict(zip(columns, rows, strict=True))
    right = {k: counts[place[k], k] for k in range(size)}
    shares = [
        sum(right[k] for k in classes) / sum(sum(counts[:, k]) for k in classes)
        for classes in (set(true[old]), set(true[~old]))
    ]
    return (sum(right.values()) / pred.size, *shares)


def metric_learning_info_nce(projections: Tensor) -> Tensor:
    """The same of pytorch-metric-learning, the views apart."""
    first, second = projections.chunk(2)
    value: Tensor = SelfSupervisedLoss(NTXentLoss(1.0))(first, second)
    return value


def gradients(loss: Callable[..., Any], *inputs: Tensor) -> list[Tensor]:
    value = loss(*inputs)
    leaves = [x for x in inputs if x.requires_grad]
    return list(torch.autograd.grad(getattr(value, "loss", value), leaves))


def close(ours: Any, theirs: Any) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-4, atol=1e-6, check_dtype=False)


def cases(batch: int, classes: int, projection: int, dim: int, samples: int, ids: int) -> list[Case]:
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.rand(2 * batch, classes, generator=generator) - 1).requires_grad_()
    projections = torch.randn(2 * batch, projection, generator=generator).requires_grad_()
    prototypes = F.normalize(torch.randn(classes, dim, generator=generator)).requires_grad_()
    labels = torch.randint(classes // 2, (batch,), generator=generator)
    labeled = torch.rand(batch, generator=generator) < 0.5
    inputs = (logits, projections, prototypes, labels, labeled)
    rows = labeled.repeat(2)
    own, target = projections.detach()[rows].requires_grad_(), labels.repeat(2)[rows]
    criterion = ProtoGCDLoss(total_epochs=100, ramp_epochs=51)
    plain = "official formulas, plainly"
    true = np.random.default_rng(0).integers(0, ids, samples)
    pred = np.where(np.random.default_rng(1).random(samples) < 0.6, true, (true * 7 + 1) % ids)
    old = true < ids // 2
    size = f"B {batch}, K {classes}"
    return [
        Case(
            f"objective, {size}, E {projection}, D {dim}, forward and backward",
            ours=partial(gradients, partial(criterion, epoch=EPOCH), *inputs),
            peers={plain: partial(gradients, partial(official, ratio=criterion.ratio(EPOCH)), *inputs)},
            agree=close,
        ),
        Case(
            f"InfoNCE, {2 * batch} rows, forward and backward",
            ours=partial(gradients, info_nce, projections),
            peers={
                plain: partial(gradients, partial(masked_info_nce, temperature=1.0), projections),
                LIBRARY: partial(gradients, metric_learning_info_nce, projections),
            },
            agree=close,
        ),
        Case(
            f"SupCon, {int(rows.sum())} rows, forward and backward",
            ours=partial(gradients, partial(supervised_contrastive, labels=target), own),
            peers={
                plain: partial(gradients, partial(masked_supcon, labels=target, temperature=0.07), own),
                LIBRARY: partial(gradients, lambda x: SupConLoss(0.07)(x, target), own),
            },
            agree=close,
        ),
        Case(
            f"separation, {classes} x {dim}, forward and backward",
            ours=partial(gradients, prototype_separation, prototypes),
            peers={plain: partial(gradients, partial(loop_separation, temperature=0.1), prototypes)},
            agree=close,
        ),
        Case(
            f"accuracy, {samples} samples, {ids} classes",
            ours=partial(gcd_accuracy, true, pred, old),
            peers={plain: partial(loop_accuracy, true, pred, old)},
            agree=close,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="tiny sizes, nothing is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.small:
        compare(cases(6, 4, 5, 7, 50, 4), rounds=1, seconds=0.01, threads=1)
    else:
        compare(cases(128, 200, 256, 768, 50_000, 100), RESULTS, rounds=5, threads=1)


if __name__ == "__main__":
    main()

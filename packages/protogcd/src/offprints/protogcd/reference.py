"""One step of ProtoGCD as the paper writes it, sample by sample: slow and plain, to be read first.

The tests show that the package's fast code equals it; nothing else uses it. Rows 0..B-1 are the first views of the
samples, rows B..2B-1 the second views.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ratio(epoch: int, wait: int, ramp: int, initial: float, final: float) -> float:
    """The share of a batch that gets hard labels."""
    values = [0.0] * wait + torch.linspace(initial, final, ramp, dtype=torch.float64).tolist()
    return values[epoch] if epoch < len(values) else final


def pseudo_labels(logits: Tensor, share: float, temperature: float) -> Tensor:
    """1. Labels of one view: sharp and soft, but one-hot for the most confident samples."""
    q = (logits.detach() / temperature).softmax(1)
    confidence = [float(row.topk(2)[0][0] / (row.topk(2)[0][1] + 1e-6)) for row in q]
    for i in sorted(range(len(q)), key=lambda i: -confidence[i])[: int(len(q) * share)]:
        q[i] = torch.eye(q.shape[1])[q[i].argmax()]
    return q


def dapl(logits: Tensor, share: float, student: float, teacher: float) -> Tensor:
    """2. Each view is to predict the labels of the other one."""
    first, second = logits.chunk(2)
    total = logits.new_zeros(())
    for target, other in ((first, second), (second, first)):
        q = pseudo_labels(target, share, teacher)
        total = total - (q * (other / student).log_softmax(1)).sum(1).mean() / 2
    return total


def entropy(logits: Tensor, temperature: float) -> Tensor:
    """3. The divergence of the mean prediction from the uniform distribution."""
    mean = (logits / temperature).softmax(1).mean(0)
    return (mean * mean.log()).sum() + torch.tensor(float(logits.shape[1])).log()


def separation(prototypes: Tensor, temperature: float) -> Tensor:
    """4. How close the other prototypes are to each one."""
    terms = []
    for k, one in enumerate(prototypes):
        others = torch.stack([other for j, other in enumerate(prototypes) if j != k])
        terms.append((others @ one / temperature).exp().mean().log())
    return temperature / 0.1 * torch.stack(terms).mean()


def classification(logits: Tensor, labels: Tensor, labeled: Tensor, temperature: float) -> Tensor:
    """5. Cross-entropy of both views of the labeled samples."""
    rows = [-(logits[i] / temperature).log_softmax(0)[labels[i % len(labels)]] for i in _labeled_rows(labeled)]
    return torch.stack(rows).mean() if rows else logits.new_zeros(())


def info_nce(projections: Tensor, temperature: float) -> Tensor:
    """6. Each row is to find the other view of its sample among all other rows."""
    z = torch.nn.functional.normalize(projections)
    terms = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        similarity = z[others] @ z[i] / temperature
        terms.append(similarity.logsumexp(0) - similarity[others.index((i + len(z) // 2) % len(z))])
    return torch.stack(terms).mean()


def supervised_contrastive(projections: Tensor, labels: list[int], temperature: float) -> Tensor:
    """7. Each labeled row is to find the rows of its class among all other labeled rows."""
    z = torch.nn.functional.normalize(projections)
    terms = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        positive = [place for place, j in enumerate(others) if labels[j] == labels[i]]
        if positive:
            terms.append(-(z[others] @ z[i] / temperature).log_softmax(0)[positive].mean())
    return torch.stack(terms).mean() if terms else projections.new_zeros(())


def total(
    logits: Tensor, projections: Tensor, prototypes: Tensor, labels: Tensor, labeled: Tensor, share: float
) -> Tensor:
    """8. The whole objective with the paper's weights and temperatures."""
    rows = _labeled_rows(labeled)
    unsupervised = dapl(logits, share, 0.1, 0.05) + 2.0 * entropy(logits, 0.1) + 0.1 * separation(prototypes, 0.1)
    supervised = classification(logits, labels, labeled, 0.1)
    contrast = supervised_contrastive(projections[rows], [int(labels[i % len(labels)]) for i in rows], 0.07)
    return 0.65 * unsupervised + 0.35 * supervised + 0.65 * info_nce(projections, 1.0) + 0.35 * contrast


def _labeled_rows(labeled: Tensor) -> list[int]:
    return [i for i in range(2 * len(labeled)) if labeled[i % len(labeled)]]

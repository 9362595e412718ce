"""How well a partition fits the graph of neighbors, and exchanges that make it fit better.

k-means on clusters of very different sizes cuts a large one in two and puts two small ones together, since that lowers
its sum of squares. The graph sees both: many edges cross the cut, none join the two. Everything is computed for all
clusters at once.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

WALK = 200  # steps of the lazy random walk that finds the gap inside every cluster
SMALLEST = 4  # samples on each side of a gap
EMPTY = 1 / 3  # the share of edges that an empty cluster counts as
GAIN = 0.5  # the gap must have at most this share of the conductance of the cut that it is exchanged for


def normalized_cut(graph: Float[Tensor, "n n"], labels: Int[Tensor, " n"], clusters: int) -> float:
    """Sum over clusters of the share of their edges' weight that leaves them; an empty cluster counts as ``EMPTY``."""
    (i, j), weight = graph.indices(), graph.values().double()
    degree = weight.new_zeros(clusters).index_add_(0, labels[i], weight).index_add_(0, labels[j], weight)
    crossing = torch.where(labels[i] != labels[j], weight, 0.0)
    leaving = weight.new_zeros(clusters).index_add_(0, labels[i], crossing).index_add_(0, labels[j], crossing)
    return float(torch.where(degree > 0, leaving / degree.clamp(min=1e-300), EMPTY).sum())


def exchanged(graph: Float[Tensor, "n n"], labels: Int[Tensor, " n"], clusters: int) -> Int[Tensor, " n"]:
    """Merge the two clusters that most edges join and split the one with the widest gap, while that is a gain."""
    (i, j), weight = graph.indices().cpu().numpy(), graph.values().double().cpu().numpy()
    found = labels.cpu().numpy().copy()
    for _ in range(clusters):
        joined, one, other = _tightest_pair(found, i, j, weight, clusters)
        gap, beyond = _widest_gap(found, i, j, weight, clusters, without=(one, other))
        if gap >= GAIN * joined:
            break
        found[found == other] = one
        found[beyond] = other
    return torch.from_numpy(found).to(labels.device)


def _tightest_pair(
    labels: np.ndarray, i: np.ndarray, j: np.ndarray, weight: np.ndarray, clusters: int
) -> tuple[float, int, int]:
    """Two clusters, and the conductance of the cut between them in the graph of the two alone: the largest one."""
    between = np.zeros((clusters, clusters))
    np.add.at(between, (labels[i], labels[j]), weight)
    between += between.T
    inside = between.diagonal()
    smaller = np.minimum(inside[:, None], inside[None]) + between
    conductance = np.divide(between, smaller, out=np.zeros_like(between), where=smaller > 0)
    np.fill_diagonal(conductance, -1.0)
    one, other = np.unravel_index(int(conductance.argmax()), conductance.shape)
    return float(conductance[one, other]), int(one), int(other)


def _widest_gap(
    labels: np.ndarray, i: np.ndarray, j: np.ndarray, weight: np.ndarray, clusters: int, without: tuple[int, int]
) -> tuple[float, np.ndarray]:
    """The smallest conductance of a cut inside a cluster, and the samples beyond the cut.

    The slowest mode of a random walk inside every cluster orders its samples; the best of all cuts of that order.
    """
    n = len(labels)
    same = labels[i] == labels[j]
    i, j, weight = i[same], j[same], weight[same]
    degree = np.bincount(i, weight, n) + np.bincount(j, weight, n)
    share = np.divide(1.0, degree, out=np.zeros(n), where=degree > 0)
    volume = np.maximum(np.bincount(labels, degree, clusters), 1e-300)
    mode = np.random.default_rng(0).standard_normal(n)
    for _ in range(WALK):
        mode = mode - (np.bincount(labels, degree * mode, clusters) / volume)[labels]
        norm = np.sqrt(np.bincount(labels, degree * mode**2, clusters) / volume)
        mode = mode / np.where(norm > 0, norm, 1.0)[labels]  # a cluster without an edge has no mode
        walked = share * (np.bincount(i, weight * mode[j], n) + np.bincount(j, weight * mode[i], n))
        mode = (mode + walked) / 2
    order = np.lexsort((mode, labels))
    place = np.empty(n, dtype=np.int64)
    place[order] = np.arange(n)
    first, last = np.minimum(place[i], place[j]), np.maximum(place[i], place[j])
    # An edge is cut by every cut between its ends.
    cut = np.cumsum(np.bincount(first, weight, n) - np.bincount(last, weight, n))
    sizes = np.bincount(labels, minlength=clusters)
    start = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    of = labels[order]
    before = np.cumsum(degree[order])
    before = before - np.concatenate([[0.0], before])[start[of]]
    rank = np.arange(n) - start[of] + 1
    allowed = (rank >= SMALLEST) & (sizes[of] - rank >= SMALLEST) & ~np.isin(of, without)
    smaller = np.minimum(before, volume[of] - before)
    conductance = np.where(allowed, np.maximum(cut, 0) / np.maximum(smaller, 1e-300), np.inf)
    at = int(conductance.argmin())
    cluster = int(of[at])
    members = order[start[cluster] : start[cluster] + sizes[cluster]]
    head, tail = members[: int(rank[at])], members[int(rank[at]) :]
    return float(conductance[at]), tail if len(tail) <= len(head) else head

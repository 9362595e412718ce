"""Episodes: N classes, K support and Q query samples of each, drawn the same on every machine, rank and worker."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Sampler

from offprints.shared.validation import check_number, check_tensor


class EpisodeSampler(Sampler[list[int]]):
    """Draw the indices of episodes; give it to a ``DataLoader`` as ``batch_sampler``, beside `EpisodeCollate`.

    An item is a list of indices: `n_way` times `n_shot` supports, then `n_way` times `n_query` queries, both class by
    class in one order. Every episode has a random stream of its own, made of seed, epoch and its number, so that
    episodes depend on neither the number of ranks nor on which were drawn before. Classes with fewer than
    `n_shot` + `n_query` samples are left out.

    Args:
        labels: The class of every item of the data set: integers, as a sequence, array or tensor.
        n_way: Classes of an episode.
        n_shot: Support samples of a class.
        n_query: Query samples of a class.
        n_episodes: Episodes of an epoch, of all ranks together.
        seed: At least 0; None draws one of the system's entropy, different on every rank.
        rank: This process among `world_size`; it yields the episodes `rank`, `rank` + `world_size`, ... of the list.
        world_size: Number of processes.

    Raises:
        TypeError: Labels or counts are not integers.
        ValueError: Labels are not 1-D or empty, a count is below 1, a seed is negative, `rank` is not in
            [0, `world_size`), fewer than `n_way` classes have enough samples.

    Example:
        >>> labels = [0, 0, 0, 1, 1, 1, 2, 2, 2]
        >>> sampler = EpisodeSampler(labels, n_way=2, n_shot=1, n_query=2, n_episodes=3)
        >>> len(next(iter(sampler))), len(sampler)
        (6, 3)
    """

    def __init__(
        self,
        labels: Sequence[int] | Any,
        *,
        n_way: int,
        n_shot: int,
        n_query: int,
        n_episodes: int,
        seed: int | None = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        values = _integers(labels)
        self.n_way = check_number(n_way, "n_way", low=1, integer=True)
        self.n_shot = check_number(n_shot, "n_shot", low=1, integer=True)
        self.n_query = check_number(n_query, "n_query", low=1, integer=True)
        self.n_episodes = check_number(n_episodes, "n_episodes", low=1, integer=True)
        self.seed = None if seed is None else check_number(seed, "seed", low=0, integer=True)
        self.world_size = check_number(world_size, "world_size", low=1, integer=True)
        self.rank = check_number(rank, "rank", low=0, high=self.world_size, open_high=True, integer=True)
        self.num_items, self.epoch = len(values), 0
        self._entropy = secrets.randbits(128) if self.seed is None else self.seed
        # The items of every class, one after the other, of one stable sort.
        order = np.argsort(values, kind="stable")
        _, starts, counts = np.unique(values[order], return_index=True, return_counts=True)
        enough = counts >= self.n_shot + self.n_query
        if enough.sum() < self.n_way:
            raise ValueError(
                f"labels must have at least n_way classes, {self.n_way}, with n_shot + n_query samples, "
                f"{self.n_shot + self.n_query}, got {int(enough.sum())} of {len(counts)}"
            )
        members = zip(starts[enough], counts[enough], strict=True)
        self._members = [order[start : start + count] for start, count in members]

    def set_epoch(self, epoch: int) -> None:
        """Choose the episodes of this epoch; without it every pass yields the same ones.

        Args:
            epoch: At least 0.
        """
        self.epoch = check_number(epoch, "epoch", low=0, integer=True)

    def __len__(self) -> int:
        """This rank's share of the episodes."""
        return len(range(self.rank, self.n_episodes, self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this rank's episodes."""
        for number in range(self.rank, self.n_episodes, self.world_size):
            yield self._draw(np.random.default_rng([self._entropy, self.epoch, number]))

    def _draw(self, stream: np.random.Generator) -> list[int]:
        size = self.n_shot + self.n_query
        classes = stream.choice(len(self._members), self.n_way, replace=False)
        chosen = [self._members[c][stream.choice(len(self._members[c]), size, replace=False)] for c in classes]
        items = np.stack(chosen)
        indices: list[int] = np.concatenate([items[:, : self.n_shot].ravel(), items[:, self.n_shot :].ravel()]).tolist()
        return indices


def _integers(labels: Any) -> np.ndarray[Any, Any]:
    """Integer labels of any kind as a one-dimensional array."""
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.dtype.kind == "O" and values.ndim == 1 and len(values) and isinstance(values[0], Tensor):
        values = np.asarray([int(value) for value in values])
    if values.ndim == 1 and values.size == 0:
        raise ValueError("labels must not be empty, got shape (0,)")
    if values.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers, got {values.dtype}")
    if values.ndim != 1:
        raise ValueError(f"labels must have 1 dimension, got shape {values.shape}")
    return values


class Episode(NamedTuple):
    """One episode, as `EpisodeCollate` makes it.

    Attributes:
        support: Samples ``[n_way * n_shot, ...]``.
        support_labels: Their classes within the episode ``[n_way * n_shot]``, 0..n_way-1.
        query: Samples ``[n_way * n_query, ...]``.
        query_labels: Their classes ``[n_way * n_query]``.
        class_ids: The data set's labels of the classes ``[n_way]``.

    Example:
        >>> items = [(torch.tensor([float(i)]), label) for i, label in enumerate([7, 3, 7, 3])]
        >>> EpisodeCollate(n_way=2, n_shot=1, n_query=1)(items).class_ids
        tensor([7, 3])
    """

    support: Float[Tensor, "supports ..."]
    support_labels: Int[Tensor, " supports"]
    query: Float[Tensor, "queries ..."]
    query_labels: Int[Tensor, " queries"]
    class_ids: Int[Tensor, " ways"]


class EpisodeCollate:
    """Make an `Episode` of the items that an `EpisodeSampler` chose; classes are numbered in their order.

    Args:
        n_way: Classes of an episode.
        n_shot: Support samples of a class.
        n_query: Query samples of a class.

    Raises:
        TypeError: A count is not an integer.
        ValueError: A count is below 1.

    Example:
        >>> items = [(torch.tensor([float(i)]), label) for i, label in enumerate([7, 3, 7, 3])]
        >>> episode = EpisodeCollate(n_way=2, n_shot=1, n_query=1)(items)
        >>> episode.support.flatten(), episode.query_labels
        (tensor([0., 1.]), tensor([0, 1]))
    """

    def __init__(self, *, n_way: int, n_shot: int, n_query: int) -> None:
        self.n_way = check_number(n_way, "n_way", low=1, integer=True)
        self.n_shot = check_number(n_shot, "n_shot", low=1, integer=True)
        self.n_query = check_number(n_query, "n_query", low=1, integer=True)

    def __call__(self, items: list[tuple[Tensor, int]]) -> Episode:
        """Collate the items of one episode.

        Args:
            items: Samples and labels in the order of `EpisodeSampler`.

        Raises:
            TypeError: An item is not a pair, or a sample not a tensor, as without a transform of the data set.
            ValueError: Another number of items, samples of different shapes, labels that are not class by class.
        """
        n_support = self.n_way * self.n_shot
        if len(items) != n_support + self.n_way * self.n_query:
            raise ValueError(f"items must be {n_support + self.n_way * self.n_query} pairs, got {len(items)}")
        if any(not isinstance(item, tuple | list) or len(item) != 2 for item in items):
            raise TypeError("items must be pairs of a sample and its label")
        tensors = [check_tensor(x, "items", floating=False, finite=False) for x, _ in items]
        if shapes := {tuple(x.shape) for x in tensors if x.shape != tensors[0].shape}:
            raise ValueError(f"items must have samples of one shape, got {tuple(tensors[0].shape)} and {shapes.pop()}")
        samples = torch.stack(tensors)
        labels = torch.tensor([int(label) for _, label in items])
        class_ids = labels[:n_support].view(self.n_way, self.n_shot)[:, 0]
        numbers = torch.arange(self.n_way)
        support_labels = numbers.repeat_interleave(self.n_shot)
        query_labels = numbers.repeat_interleave(self.n_query)
        expected = class_ids[torch.cat([support_labels, query_labels])]
        if not torch.equal(labels, expected) or len(class_ids.unique()) < self.n_way:
            raise ValueError(
                f"items must be {self.n_shot} supports of each of {self.n_way} classes, then {self.n_query} queries of "
                f"each in the same order, got the labels {labels.tolist()[:20]}"
            )
        return Episode(samples[:n_support], support_labels, samples[n_support:], query_labels, class_ids)

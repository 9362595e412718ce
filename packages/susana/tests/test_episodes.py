"""Episodes: what they hold, that they are the same everywhere, and that they become tensors."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from offprints.shared.testing._properties import random_state_untouched
from offprints.susana import EpisodeCollate, EpisodeSampler

COUNTS = {"n_way": 3, "n_shot": 2, "n_query": 4}
LABELS = np.random.default_rng(0).permutation(np.repeat([9, 2, 5, 7, 30], [10, 6, 8, 5, 12]))


def test_an_episode() -> None:
    """Distinct items, supports before queries, class by class, and no class that is too small."""
    sampler = EpisodeSampler(LABELS, **COUNTS, n_episodes=60)
    seen = set()
    for indices in sampler:
        assert len(indices) == len(set(indices)) == 18
        labels = LABELS[indices]
        support, query = labels[:6].reshape(3, 2), labels[6:].reshape(3, 4)
        assert (support == support[:, :1]).all()
        assert (query == support[:, :1]).all()
        assert len(set(support[:, 0])) == 3
        seen |= set(support[:, 0].tolist())
    assert seen == {9, 2, 5, 30}  # 7 has five items, six are needed


def test_the_same_on_every_rank_and_in_every_process() -> None:
    whole = list(EpisodeSampler(LABELS, **COUNTS, n_episodes=11))
    shares = [EpisodeSampler(LABELS, **COUNTS, n_episodes=11, rank=rank, world_size=3) for rank in range(3)]
    assert [len(share) for share in shares] == [4, 4, 3]
    woven = [episode for row in itertools.zip_longest(*shares) for episode in row if episode is not None]
    assert woven == whole
    sampler = EpisodeSampler(torch.from_numpy(LABELS), **COUNTS, n_episodes=11)
    assert list(pickle.loads(pickle.dumps(sampler))) == list(sampler) == whole
    assert list(EpisodeSampler(LABELS.tolist(), **COUNTS, n_episodes=3)) == whole[:3]


def test_epochs_and_seeds() -> None:
    sampler = EpisodeSampler(LABELS, **COUNTS, n_episodes=5)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert first != second
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(EpisodeSampler(LABELS, **COUNTS, n_episodes=5, seed=1)) not in (first, second)
    free = [list(EpisodeSampler(LABELS, **COUNTS, n_episodes=5, seed=None)) for _ in range(2)]
    assert free[0] != free[1]


def test_the_global_random_state_is_left_alone() -> None:
    with random_state_untouched():
        list(EpisodeSampler(LABELS, **COUNTS, n_episodes=5))
        list(EpisodeSampler(LABELS, **COUNTS, n_episodes=5, seed=None))


def test_every_item_is_as_likely() -> None:
    sampler = EpisodeSampler([0] * 6 + [1] * 6, n_way=1, n_shot=1, n_query=2, n_episodes=2000)
    drawn = np.array(list(sampler))
    for column in drawn.T:
        counts = np.bincount(column, minlength=12)
        assert counts.min() > 110  # 167 expected, with a spread of 12
        assert counts.max() < 230


def rows_of(rank: int) -> list[list[int]]:
    return list(EpisodeSampler(LABELS, **COUNTS, n_episodes=5, rank=rank, world_size=2))


def test_two_processes(two_processes) -> None:
    even, odd = two_processes(rows_of)
    whole = list(EpisodeSampler(LABELS, **COUNTS, n_episodes=5))
    assert even == whole[::2]
    assert odd == whole[1::2]


@pytest.mark.parametrize("workers", [0, 1])
def test_through_a_loader(workers: int) -> None:
    x = torch.arange(len(LABELS)).float()[:, None]
    data = TensorDataset(x, torch.from_numpy(LABELS))
    sampler = EpisodeSampler(LABELS, **COUNTS, n_episodes=3)
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=EpisodeCollate(**COUNTS), num_workers=workers)
    for indices, episode in zip(sampler, loader, strict=True):
        assert episode.support.shape == (6, 1)
        assert episode.query.flatten().tolist() == indices[6:]
        assert episode.support_labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert torch.equal(episode.class_ids[episode.support_labels], torch.from_numpy(LABELS[indices[:6]]))
        assert torch.equal(episode.class_ids[episode.query_labels], torch.from_numpy(LABELS[indices[6:]]))


def test_items_that_are_no_episode() -> None:
    collate = EpisodeCollate(n_way=2, n_shot=1, n_query=1)
    x = torch.zeros(1)
    with pytest.raises(ValueError, match="items must be 4 pairs, got 3"):
        collate([(x, 0), (x, 1), (x, 0)])
    for labels in ([0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 2]):
        with pytest.raises(ValueError, match="items"):
            collate([(x, label) for label in labels])
    with pytest.raises(TypeError, match="items"):
        collate([("a picture", label) for label in (0, 1, 0, 1)])  # type: ignore[misc]
    for items in ([(x,)] * 4, [x] * 4, [(x, 0, 1)] * 4):
        with pytest.raises(TypeError, match="items must be pairs"):
            collate(items)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"items must have samples of one shape, got \(1,\) and \(2,\)"):
        collate([(x if label else torch.zeros(2), label) for label in (1, 0, 1, 0)])

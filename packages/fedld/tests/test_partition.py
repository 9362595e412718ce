"""Partitions of labels and the look of images."""

from functools import partial

import numpy as np
import pytest
import torch

from offprints.fedld import FeatureShift, dirichlet_partition, shard_partition
from offprints.shared.testing import check_arguments, check_module, check_split

LABELS = np.random.default_rng(0).integers(0, 6, 240)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 100.0])
def test_dirichlet_is_a_split(alpha: float) -> None:
    check_split(partial(dirichlet_partition, num_clients=5, alpha=alpha, min_size=3), LABELS)


def test_shards_are_a_split() -> None:
    check_split(partial(shard_partition, num_clients=4, classes_per_client=2), LABELS)


def test_small_alpha_is_uneven_and_large_alpha_is_not() -> None:
    def largest_share(alpha: float) -> float:
        counts = np.array(
            [np.bincount(LABELS[part], minlength=6) for part in dirichlet_partition(LABELS, 5, alpha=alpha)]
        )
        return float((counts.max(0) / counts.sum(0)).mean())

    assert largest_share(0.05) > 0.8
    assert largest_share(1e6) < 0.25


@pytest.mark.parametrize("alpha", [1e-320, 1e-6, 1e300])
def test_extreme_alpha(alpha: float) -> None:
    parts = dirichlet_partition(LABELS, 5, alpha=alpha)
    assert sorted(torch.cat(parts).tolist()) == list(range(240))
    assert min(map(len, parts)) >= 1


def test_least_size_holds_where_no_draw_has_it() -> None:
    for min_size in (1, 48):
        parts = dirichlet_partition(LABELS, 5, alpha=1e-3, min_size=min_size)
        assert min(map(len, parts)) >= min_size
        assert sorted(torch.cat(parts).tolist()) == list(range(240))
    assert [len(part) for part in dirichlet_partition(LABELS[:7], 7, alpha=0.1)] == [1] * 7


def test_every_client_owns_so_many_classes() -> None:
    for clients, classes in ((3, 2), (4, 3), (6, 1), (5, 6)):
        parts = shard_partition(LABELS, clients, classes_per_client=classes, seed=3)
        held = [set(LABELS[part].tolist()) for part in parts]
        assert [len(of_client) for of_client in held] == [classes] * clients
        owners = [sum(k in of_client for of_client in held) for k in range(6)]
        assert max(owners) - min(owners) <= 1
        for k in range(6):
            sizes = [int((LABELS[part] == k).sum()) for part in parts if (LABELS[part] == k).any()]
            assert max(sizes) - min(sizes) <= 1  # split evenly


def test_labels_need_not_be_consecutive() -> None:
    odd = np.array([-3, 7, 7, 1000, -3, 1000], dtype=np.int16)
    odd.flags.writeable = False
    assert sorted(torch.cat(dirichlet_partition(odd, 2, alpha=1.0)).tolist()) == list(range(6))
    parts = shard_partition(odd, 3, classes_per_client=1)
    assert sorted(set(odd[part].tolist()).pop() for part in parts) == [-3, 7, 1000]


def test_every_argument_of_the_partitions() -> None:
    labels = torch.arange(60) % 4
    check_arguments(dirichlet_partition, lambda g: {"labels": labels, "num_clients": 3, "alpha": 0.5})
    check_arguments(shard_partition, lambda g: {"labels": labels, "num_clients": 3, "classes_per_client": 2})


# ---- feature shift ---------------------------------------------------------------------------------------------------


def images(generator: torch.Generator) -> tuple[torch.Tensor]:
    return (torch.rand(3, 2, 6, 5, generator=generator),)


def test_feature_shift_conforms() -> None:
    check_module(
        FeatureShift(1, 3),
        images,
        nan="raise",
        errors=[
            (lambda: FeatureShift(3, 3), ValueError, "client"),
            (lambda: FeatureShift(0, 0), ValueError, "num_clients"),
            (lambda: FeatureShift(0, 1, strength=-1.0), ValueError, "strength"),
            (lambda: FeatureShift(0, 1)(torch.rand(1, 3, 4, 4) + 0.5), ValueError, "images"),
            (lambda: FeatureShift(0, 1)(torch.rand(3, 4, 4)), ValueError, "images"),
        ],
        skip={"gradients": "it has no parameters"},
    )
    check_arguments(FeatureShift, lambda g: {"client": 1, "num_clients": 3})


def test_feature_shift_is_one_per_client_and_the_same_for_any_batch() -> None:
    (batch,) = images(torch.Generator().manual_seed(0))
    before = batch.clone()
    seen = [FeatureShift(i, 3, strength=2.0)(batch) for i in range(3)]
    for i, one in enumerate(seen):
        assert one.min() >= 0
        assert one.max() <= 1
        alone = FeatureShift(i, 3, strength=2.0)(batch[1:2])
        torch.testing.assert_close(alone, one[1:2], rtol=0, atol=1e-6)  # as in a batch
        assert not torch.allclose(one, seen[i - 1], atol=0.02)
    assert torch.equal(batch, before)
    assert torch.equal(FeatureShift(0, 3, strength=0.0)(batch), batch)
    assert not torch.equal(FeatureShift(0, 3, seed=1)(batch), FeatureShift(0, 3, seed=0)(batch))


def test_feature_shift_of_one_pixel_and_of_any_channels() -> None:
    for shape in ((1, 1, 1, 1), (2, 3, 4, 1), (1, 7, 2, 2)):
        assert FeatureShift(0, 2)(torch.full(shape, 0.5)).shape == shape

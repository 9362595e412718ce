from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offprints.shared.distributed import GroupMoments, all_reduce_, gather, is_main, on_main, rank, share, world_size


def samples(seed: int, n: int, offset: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, 3, generator=generator, dtype=torch.float64) + offset
    return x, torch.randint(4, (n,), generator=generator)


def assert_moments(moments: GroupMoments, x: torch.Tensor, groups: torch.Tensor) -> None:
    for group in range(4):
        members = x[groups == group].numpy()
        assert moments.count[group] == len(members)
        if len(members):
            np.testing.assert_allclose(moments.mean[group], members.mean(0), rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(moments.std()[group], members.std(0), rtol=1e-9, atol=1e-9)


def test_a_single_process_is_the_main_one() -> None:
    assert (rank(), world_size(), is_main()) == (0, 1, True)
    x = torch.ones(2)
    all_reduce_(x, op="mean")
    assert x.tolist() == [1, 1]
    with pytest.raises(ValueError, match="op"):
        all_reduce_(x, op="min")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="floating"):
        all_reduce_(torch.ones(2, dtype=torch.int64), op="mean")
    with pytest.raises(TypeError, match="bool"):
        all_reduce_(torch.ones(2, dtype=torch.bool))
    with pytest.raises(TypeError, match="tensors"):
        all_reduce_([1.0])  # type: ignore[arg-type]


def refuse() -> None:
    raise ValueError(f"rank {rank()} refuses")


def message_of(function: Callable[[], Any]) -> str:
    with pytest.raises(ValueError, match="refuses") as caught:
        function()
    return str(caught.value)


def reduce_and_merge(number: int) -> dict[str, Any]:
    a = torch.full((2, 3), 1.0 + number).T  # not contiguous
    b = torch.tensor([1 + number, 5])
    c = torch.tensor(10.0 * number)
    calls = []
    original = torch.distributed.all_reduce

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    torch.distributed.all_reduce = counted
    all_reduce_(a, b, c)
    torch.distributed.all_reduce = original
    largest, mean = torch.tensor([3 - number]), torch.tensor([float(number)])
    all_reduce_(largest, op="max")
    all_reduce_(mean, op="mean")
    x, groups = samples(number, 20 + number, offset=1e6)
    if number == 0:  # the last group is seen by the second process alone
        x, groups = x[groups < 3], groups[groups < 3]
    moments = GroupMoments(None, (2, 3))
    moments.update(x, groups)
    moments.all_reduce_()
    alone = torch.distributed.new_group([0])  # the second process is outside
    own = torch.tensor([float(number)])
    all_reduce_(own, op="mean", group=alone)
    return {
        "own": own,
        "place alone": (rank(alone), world_size(alone)),
        "a": a,
        "b": b,
        "c": c,
        "collectives": len(calls),
        "largest": largest,
        "mean": mean,
        "place": (rank(), world_size(), is_main()),
        "gathered": gather(number),
        "shared": share(number + 7),
        "main": on_main(lambda: f"rank {rank()}"),
        "error": message_of(lambda: on_main(refuse)),
        "moments": moments.state_dict(),
        "samples": (x, groups),
    }


def test_two_processes(two_processes: Callable[..., Any]) -> None:
    results = two_processes(reduce_and_merge)
    assert [result["place"] for result in results] == [(0, 2, True), (1, 2, False)]
    assert [result["place alone"] for result in results] == [(0, 1), (-1, -1)]
    x, groups = (torch.cat([result["samples"][part] for result in results]) for part in (0, 1))
    for result in results:
        assert torch.equal(result["a"], torch.full((3, 2), 3.0))
        assert result["b"].tolist() == [3, 10]
        assert result["c"] == 10
        assert (result["gathered"], result["shared"], result["main"]) == ([0, 1], 7, "rank 0")
        assert result["error"] == "rank 0 refuses"
        assert result["collectives"] == 2  # one a type, whatever the number of tensors
        assert result["largest"].tolist() == [3]
        assert result["mean"].tolist() == [0.5]
        assert result["own"].tolist() == [result["place"][0]]
        moments = GroupMoments(None, (2, 3))
        moments.load_state_dict(result["moments"])
        assert_moments(moments, x, groups)


@given(
    n=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    offset=st.sampled_from([0.0, 1e3, -1e8]),
    order=st.randoms(use_true_random=False),
)
def test_any_split_and_merge_gives_the_moments(n: int, cuts: list[int], offset: float, order: Any) -> None:
    x, groups = samples(n, n, offset)
    edges = sorted({0, n, *(min(cut, n) for cut in cuts)})
    parts = [slice(*edge) for edge in pairwise(edges)]
    order.shuffle(parts)
    streamed, merged = GroupMoments(4, (2, 3)), GroupMoments(None, (2, 3))
    for part in parts:
        streamed.update(x[part], groups[part])
        fresh = GroupMoments(None, (2, 3))
        fresh.update(x[part], groups[part])
        merged.merge_(fresh)
    # 1e8 leaves float64 eight digits for the deviations.
    scale = 1e-12 + abs(offset) * 1e-15
    for moments in (streamed, merged):
        for group in range(len(moments.count)):
            members = x[groups == group].numpy()
            assert moments.count[group] == len(members)
            if len(members) > 1:
                np.testing.assert_allclose(moments.mean[group], members.mean(0), rtol=1e-13, atol=scale * 10)
                np.testing.assert_allclose(moments.std(1)[group], members.std(0, ddof=1), rtol=1e-7, atol=scale * 100)


def test_ungrouped_float32_samples_keep_their_precision() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) + 4096
    moments = GroupMoments(1, ())
    moments.update(x[:300])
    moments.update(x[300:])
    moments.update(x[:0])
    np.testing.assert_allclose(moments.std(1)[0], x.double().std(), rtol=1e-12)


@pytest.mark.parametrize("n", [1, 5, 97, 3000])
def test_groups_of_any_size_in_one_batch(n: int) -> None:
    """Runs are filled up, blocks end anywhere, the last group and one in the middle may be empty."""
    generator = torch.Generator().manual_seed(n)
    groups = (torch.rand(n, generator=generator).pow(3) * 9).long()
    groups[groups == 4] = 5
    x = 1e6 + 1e3 * groups.unsqueeze(1) + torch.randn(n, 150, generator=generator, dtype=torch.float64)
    moments = GroupMoments(12, (150,))
    moments.update(x, groups)
    for group in range(12):
        members = x[groups == group].numpy()
        assert moments.count[group] == len(members)
        expected = members.mean(0) if len(members) else np.zeros(150)
        np.testing.assert_allclose(moments.mean[group], expected, rtol=1e-14)
        squares = np.square(members - expected).sum(0)
        np.testing.assert_allclose(moments.m2[group], squares, rtol=1e-6, atol=1e-6)


def test_std_without_enough_samples_is_nan() -> None:
    moments = GroupMoments(2, ())
    moments.update(torch.ones(1), torch.tensor([1]))
    assert moments.std().isnan().tolist() == [True, False]
    assert moments.std(1).isnan().all()


def test_bad_moments() -> None:
    x, groups = samples(0, 5)
    moments = GroupMoments(4, (2, 3))
    for call, error, word in (
        (lambda: GroupMoments(0, ()), ValueError, "num_groups"),
        (lambda: moments.update(x[:, :1], groups), ValueError, "x"),
        (lambda: moments.update(x.long(), groups), TypeError, "x"),
        (lambda: moments.update(x / 0, groups), ValueError, "finite"),
        (lambda: moments.update(x, groups[:3]), ValueError, "groups"),
        (lambda: moments.update(x, groups + 4), ValueError, "groups"),
        (lambda: GroupMoments(4, ()).update(x[:, 0, 0], groups.view(5, 1)), ValueError, "1 dimension"),
        (lambda: GroupMoments(None, (2, 3)).update(x, groups - 5), ValueError, "groups"),
        (lambda: moments.merge_(GroupMoments(4, ())), ValueError, "shape"),
        (lambda: moments.merge_(GroupMoments(5, (2, 3))), ValueError, "at most 4"),
        (lambda: moments.merge_(moments.state_dict()), TypeError, "dict"),
        (lambda: moments.load_state_dict({}), ValueError, "count"),
        (lambda: moments.load_state_dict(GroupMoments(2, (2, 3)).state_dict()), ValueError, r"shape \(4\)"),
        (lambda: moments.std(-1), ValueError, "ddof"),
    ):
        with pytest.raises(error, match=word):
            call()
    assert moments.count.sum() == 0

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from offprints.shared.testing import check_arguments, check_schedule
from offprints.wad import polynomial_decay, select_reliable


def test_schedule() -> None:
    decay = partial(polynomial_decay, alpha=0.1, total_rounds=5)
    check_schedule(lambda r: decay(r), 8, start=0.1, end=0.0, monotone="decreasing")
    assert [decay(r) for r in range(1, 7)] == pytest.approx([0.064, 0.036, 0.016, 0.004, 0, 0], abs=1e-15)
    assert polynomial_decay(1, 0.5, 4, power=3) == pytest.approx(0.5 * 0.75**3)
    assert polynomial_decay(1, 1.0, 0) == 0.0
    assert polynomial_decay(1, 1.0, 1) == 0.0


def test_decay_arguments() -> None:
    check_arguments(polynomial_decay, lambda g: {"round": 2, "alpha": 0.1, "total_rounds": 5, "power": 2})


def test_selection() -> None:
    g = torch.Generator().manual_seed(0)
    logits, pseudo = torch.randn(50, 3, generator=g), torch.randint(3, (50,), generator=g)
    losses = F.cross_entropy(logits, pseudo, reduction="none")
    for fraction, count in ((0.0, 0), (0.019, 0), (0.02, 1), (0.5, 25), (1.0, 50)):
        chosen = select_reliable(logits, pseudo, fraction=fraction)
        assert chosen.dtype == torch.int64
        assert chosen.tolist() == losses.argsort(stable=True)[:count].tolist()


def test_ties_go_to_the_first() -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 1.0], [0.0, 2.0]])
    assert select_reliable(logits, torch.ones(4, dtype=torch.int32), fraction=0.75).tolist() == [1, 3, 0]


def test_a_sure_student() -> None:
    """Cross-entropies that are 0 after rounding still have an order: a pool that is sorted by class loses no class."""
    logits = torch.tensor([[0.0, 90.0], [0.0, 100.0], [0.0, 40.0], [95.0, 0.0]])
    pseudo = torch.tensor([1, 1, 1, 0])
    assert (F.cross_entropy(logits, pseudo, reduction="none") == 0).all()
    assert select_reliable(logits, pseudo, fraction=1.0).tolist() == [1, 3, 0, 2]
    three = torch.tensor([[0.0, 30.0, 29.0], [0.0, 30.0, 10.0]])
    assert select_reliable(three, torch.tensor([1, 1]), fraction=0.5).tolist() == [1]


def test_regions() -> None:
    logits, pseudo = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 3
    expected = select_reliable(logits, pseudo, fraction=0.5)
    for region in (torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), torch.device("meta")):
        with region:
            assert torch.equal(select_reliable(logits, pseudo, fraction=0.5), expected)
    assert torch.equal(select_reliable(logits.requires_grad_(), pseudo, fraction=0.5), expected)
    compiled = torch.compile(lambda x: select_reliable(x, pseudo, fraction=0.5) + 0, backend="eager")
    assert torch.equal(compiled(logits.detach()), expected)


def test_selection_arguments() -> None:
    check_arguments(
        select_reliable,
        lambda g: {
            "logits_u": torch.randn(8, 3, generator=g),
            "pseudo_labels": torch.randint(3, (8,), generator=g),
            "fraction": 0.5,
        },
    )

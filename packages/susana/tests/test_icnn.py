"""The score: its values, what it does not depend on, the traps, its paths and its cost."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offprints.shared.device import peak_memory_mib, reset_peak_memory
from offprints.susana import ICNNLoss, icnn_components, icnn_loss, icnn_score, original_icnn_score
from offprints.susana import neighbors as neighbors_module
from offprints.susana.icnn import loss_of


def drawn(seed: int, n: int = 24, classes: int = 3, d: int = 4, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    centers = torch.randn(classes, d, generator=generator, dtype=torch.float64)
    return spread * centers[y] + torch.randn(n, d, generator=generator, dtype=torch.float64), y


def test_values() -> None:
    """Two classes of two points each on a line, computed by hand."""
    x = torch.tensor([[0.0], [1.0], [3.0], [4.0]], dtype=torch.float64)
    y = torch.tensor([0, 0, 1, 1])
    # avail = 3, so that k = 2 and gamma = 1. Neighbors of 0: 1 (same), 3 (other); of 1: 0 (same), 3 (other); mirrored.
    parts = icnn_components(x, y)
    same = 1 - (1 / 3 + 1 / 2) / 2
    diff = (3 / 3 + 2 / 3) / 2
    assert parts.lambda_same.item() == pytest.approx(same, abs=1e-5)
    assert parts.lambda_diff.item() == pytest.approx(diff, abs=1e-5)
    assert parts.gamma.item() == 1
    assert parts.score.item() == pytest.approx(((same + diff) / 2 + 1) / 2, abs=1e-5)
    a, b = torch.tensor([1 / 3, 0, 1 / 2, 0] * 2), torch.tensor([0, 1, 0, 2 / 3] * 2)
    assert parts.omega.item() == pytest.approx(1 - a.var().item() - b.var().item(), abs=1e-5)
    with_omega = icnn_components(x, y, include_omega=True)
    assert with_omega.score.item() == pytest.approx((with_omega.lambda_ + with_omega.omega + 1).item() / 3)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([1, 3, 4, 6]), st.integers(2, 6))
def test_what_the_score_does_not_depend_on(seed: int, k: int, classes: int) -> None:
    x, y = drawn(seed, classes=classes)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    expected = icnn_score(x, y, k=k)
    assert 0 <= expected <= 1
    same = {
        "order": icnn_score(x[order], y[order], k=k),
        "names of classes": icnn_score(x, 7 - 3 * y, k=k),
        "rotation": icnn_score(x @ rotation, y, k=k),
        "translation": icnn_score(x + 1000, y, k=k),
        "a copy as references": icnn_score(x, y, target=x.clone(), target_labels=y, k=k, drop_nearest=True),
    }
    for name, score in same.items():
        torch.testing.assert_close(score, expected, rtol=1e-9, atol=1e-9, msg=name)
    torch.testing.assert_close(icnn_score(1000 * x, y, k=k), expected, rtol=1e-5, atol=1e-5)
    parts = icnn_components(x, y, k=k)
    assert all(0 <= part <= 1 for part in parts)
    torch.testing.assert_close(parts.lambda_, (parts.lambda_same + parts.lambda_diff) / 2)


def clusters(size: int, classes: int = 5) -> tuple[Tensor, Tensor]:
    y = torch.arange(size * classes) % classes
    noise = torch.randn(len(y), 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return 10 * torch.eye(8, dtype=torch.float64)[y] + 0.01 * noise, y


def test_separated_clusters() -> None:
    """More than k members each: nearly 1; with 4 members a fourth of the neighbors is of another class."""
    assert icnn_score(*clusters(6)) >= 0.95
    assert icnn_score(*clusters(4)) == pytest.approx(0.87, abs=0.01)
    x, y = clusters(6)
    assert icnn_score(x, y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))]) < 0.6


def test_the_gradient_of_separated_classes() -> None:
    """No window reaches another class: a is 0, and nothing pulls; a wider window sees the boundary."""
    x, y = clusters(7, classes=2)
    x.requires_grad_()
    parts = icnn_components(x, y)
    assert parts.lambda_same == 1
    assert parts.lambda_diff == 1
    (gradient,) = torch.autograd.grad(icnn_loss(x, y), x)
    assert torch.equal(gradient, torch.zeros_like(x))
    (wide,) = torch.autograd.grad(icnn_loss(x, y, window=7), x)
    assert wide.isfinite().all()
    assert wide.abs().max() > 1e-4
    assert torch.autograd.gradcheck(lambda x: icnn_loss(x, y, window=7), x)
    assert torch.autograd.gradcheck(lambda x: icnn_loss(x, y), x)


def test_one_shot_support() -> None:
    """No row has a neighbor of its class: lambda_same is 1; gamma 0, but 1 where k is cut (up to 6 ways)."""
    for ways, gamma in ((4, 1), (6, 1), (7, 0), (30, 0)):
        x = torch.randn(ways, 5, generator=torch.Generator().manual_seed(ways), requires_grad=True)
        parts = icnn_components(x, torch.arange(ways))
        assert parts.lambda_same == 1
        assert parts.gamma == gamma
        (gradient,) = torch.autograd.grad(icnn_loss(x, torch.arange(ways)), x)
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


def test_dropping_the_nearest_hides_how_near_it_is() -> None:
    """Queries that are classified well lose their own prototype; kept, it tells tight classes from loose ones."""
    prototypes, labels = clusters(1)
    for noise, kept in ((0.01, 0.998), (1.0, 0.81)):
        tight, y = clusters(15)
        x = prototypes[y] + noise / 0.01 * (tight - 10 * torch.eye(8, dtype=torch.float64)[y])
        ours = icnn_components(x, y, target=prototypes, target_labels=labels)
        theirs = icnn_components(x, y, target=prototypes, target_labels=labels, drop_nearest=True)
        assert theirs.lambda_same == 1
        assert ours.lambda_same.item() == pytest.approx(kept, abs=0.02)
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    assert icnn_score(tight, shuffled, target=prototypes, target_labels=labels) < 0.8


def test_a_score_near_zero_has_a_finite_loss() -> None:
    x, y = torch.tensor([[0.0], [1.0], [1.0001], [2.0]] * 3, dtype=torch.float64), torch.arange(12)
    loss = icnn_loss(x + torch.arange(12)[:, None] * 1e-9, y, k=1)
    assert 0 <= loss < math.inf
    assert loss_of(torch.zeros((), dtype=torch.float64)).item() == pytest.approx(-math.log(1e-12))


def test_float32_far_from_the_origin() -> None:
    """Tight clusters at 1e4, more pairs than are formed one by one: close neighbors are told apart all the same."""
    y = torch.arange(600) % 3
    noise = torch.randn(600, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (1e4 + 100 * torch.eye(16, dtype=torch.float64)[y] + noise).float()
    assert 600 * 600 * 16 > 2**22
    leaf, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    single, double = icnn_loss(leaf, y, k=8, window=250), icnn_loss(exact, y, k=8, window=250)
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-6)
    for loss in (single, double):
        loss.backward()
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("dtype", "n"), [(torch.float64, 30), (torch.float64, 1500), (torch.float32, 30)])
def test_tight_clusters_far_apart(dtype: torch.dtype, n: int) -> None:
    """Neighbors in a cluster at the origin are the same whether or not there is another one at 1e9."""
    y = torch.arange(2 * n) % 3
    near = torch.randn(n, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = torch.cat([near, 1e9 + 1e4 * near])
    for k in (2, 4):
        alone = icnn_components(near, y[:n], k=k)
        both = icnn_components(near, y[:n], target=x, target_labels=y, k=k + 1)  # with the row itself
        assert both.gamma.item() * (k + 1) - 1 == pytest.approx(alone.gamma.item() * k, abs=1e-5)


def test_the_number_of_rows_does_not_round_eps_away() -> None:
    """Integer counts and eps add up in double precision: three equal distances, each over 1 + 1e-7, twice."""
    x = torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=torch.float64)
    parts = icnn_components(x, torch.zeros(4, dtype=torch.int64), target=x + 10, target_labels=torch.arange(1, 5), k=1)
    d = torch.sqrt(torch.tensor([10.0, 9.0, 8.0, 7.0], dtype=torch.float64) ** 2 + 1e-6)
    expected = (d / (d[0] + 1e-7)).sum().item() / (1 + 1e-7) / (4 + 1e-7)
    assert parts.lambda_diff.item() == pytest.approx(expected, rel=1e-13)


def test_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = drawn(1, n=50)
    x.requires_grad_()
    whole = icnn_loss(x, y, window=20)
    (expected,) = torch.autograd.grad(whole, x)
    monkeypatch.setattr(neighbors_module, "BLOCK", 130)
    monkeypatch.setattr("offprints.susana.distances._blocks", lambda x, index, m: range(0, len(x), 7))
    again = icnn_loss(x, y, window=20)
    torch.testing.assert_close(again, whole, rtol=1e-12, atol=0)
    (found,) = torch.autograd.grad(again, x, create_graph=True)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_memory() -> None:
    """At most 8 n m floats beyond the input, where the expanded differences would take 400 n m; room for noise."""
    n, d = 2000, 400
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.arange(n) % 20
    icnn_loss(x[:100], y[:100]).backward()
    before = peak_memory_mib()
    reset_peak_memory()
    start = peak_memory_mib()
    icnn_loss(x, y).backward()
    used = max(peak_memory_mib() - start, 0.0)
    assert before > 0
    assert used < 8 * n * n * 4 / 2**20 + 64


def test_inputs_of_other_kinds() -> None:
    x, y = drawn(2)
    expected = icnn_score(x, y)
    array = x.numpy().copy()
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns, once, of what nobody writes to here
        frozen = torch.from_numpy(array)
    for features in (frozen, x.mT.contiguous().mT, x.repeat_interleave(2, 1)[:, ::2]):
        torch.testing.assert_close(icnn_score(features, y), expected)
    for labels in (y.int(), y.to(torch.uint8), y - 100):
        torch.testing.assert_close(icnn_score(x, labels), expected)
    torch.testing.assert_close(icnn_score(x, y, k=np.int64(4), window=np.int32(5)), expected)
    assert icnn_score(x.bfloat16(), y).dtype == torch.float32
    assert icnn_score(x.float(), y, target=x, target_labels=y).dtype == torch.float64


def test_compiled_without_a_break() -> None:
    x, y = drawn(3)
    x.requires_grad_()
    loss = ICNNLoss(k=3, window=9)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    found, expected = compiled(x, y), loss(x, y)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, x)[0] for value in (found, expected)))


def test_per_sample_gradients_of_several_sets() -> None:
    sets = torch.stack([drawn(seed)[0] for seed in range(3)])
    y = drawn(0)[1]
    found = torch.func.vmap(torch.func.grad(lambda x: icnn_loss(x, y)))(sets)
    for x, gradient in zip(sets, found, strict=True):
        leaf = x.clone().requires_grad_()
        icnn_loss(leaf, y).backward()
        torch.testing.assert_close(gradient, leaf.grad, rtol=1e-9, atol=1e-12)


def test_first_generation() -> None:
    x, y = clusters(8)
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))]
    assert original_icnn_score(x, y, k=4) > original_icnn_score(x, shuffled, k=4) + 0.1
    scaled = x * torch.tensor([1e-3, 1e3, 1, 1, 1, 1, 1, 1], dtype=torch.float64)
    found = original_icnn_score(scaled, y, scale_features=True)
    torch.testing.assert_close(found, original_icnn_score(x, y, scale_features=True), rtol=1e-4, atol=1e-4)
    constant = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    torch.testing.assert_close(
        original_icnn_score(constant, y, scale_features=True), original_icnn_score(x, y, scale_features=True)
    )
    small, labels = drawn(0, n=5)
    torch.testing.assert_close(original_icnn_score(small, labels, k=5), original_icnn_score(small, labels, k=3))
    leaf = torch.zeros(8, 2, dtype=torch.float64, requires_grad=True)
    original_icnn_score(leaf, torch.arange(8), include_omega=True).backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()

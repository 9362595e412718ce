"""The fast code equals the plain one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from offprints.susana import icnn_components, icnn_loss, proto_triplet_loss, reference
from offprints.susana import neighbors as neighbors_module


def drawn(seed: int, n: int, classes: int, d: int = 5, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=generator)
    centers = torch.randn(classes, d, generator=generator, dtype=torch.float64)
    return spread * centers[y] + torch.randn(n, d, generator=generator, dtype=torch.float64), y


@pytest.mark.parametrize("k", [1, 3, 4])
@pytest.mark.parametrize(("n", "classes", "spread", "window"), [(20, 3, 2.0, None), (14, 2, 9.0, 9), (5, 2, 1.0, None)])
def test_a_set_among_itself(k: int, n: int, classes: int, spread: float, window: int | None) -> None:
    x, y = drawn(n + k, n, classes, spread=spread)
    expected = reference.icnn(x, y, x, y, drop=True, k=k, window=window)
    found = icnn_components(x, y, k=k, window=window)
    for name, value in found._asdict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-14, msg=name)
    torch.testing.assert_close(icnn_loss(x, y, k=k, window=window), expected["loss"], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize(("m", "k"), [(5, 4), (12, 4), (30, 7)])
def test_a_set_among_references(drop: bool, m: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (x, y), (z, yz) = drawn(m, 11, 3), drawn(m + 1, m, 3)
    expected = reference.icnn(x, y, z, yz, drop=drop, k=k)
    for block in (2**22, 1, 3 * m):  # all rows at once, one by one, three by three
        monkeypatch.setattr(neighbors_module, "BLOCK", block)
        found = icnn_components(x, y, target=z, target_labels=yz, k=k, drop_nearest=drop)
        for name, value in found._asdict().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-14, msg=name)


def test_gradients() -> None:
    x, y = drawn(3, 18, 3)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    losses = (
        icnn_loss(leaves[0], y, k=3, window=8),
        reference.icnn(leaves[1], y, leaves[1], y, drop=True, k=3, window=8)["loss"],
    )
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-9, atol=1e-12)


def test_proto_triplet() -> None:
    q, y = drawn(4, 15, 4)
    p, labels = (
        torch.randn(4, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64),
        torch.tensor([2, 0, 3, 1]),
    )
    leaves = [q.clone().requires_grad_() for _ in range(2)]
    losses = proto_triplet_loss(leaves[0], y, p, labels), reference.proto_triplet(leaves[1], y, p, labels)
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-9, atol=1e-12)

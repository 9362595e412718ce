"""The fast code equals the plain one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from offprints.stablemax import (
    OrthoGrad,
    linear_stablemax_cross_entropy,
    nlm_alignment,
    orthogonalize_gradients_,
    reference,
    softmax_collapse_fraction,
    stablemax,
    stablemax_cross_entropy,
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_loss_and_its_gradient() -> None:
    x, target = 4 * drawn(50, 7), torch.arange(50) % 7
    torch.testing.assert_close(stablemax(x), reference.stablemax(x))
    expected = reference.cross_entropy(reference.stablemax(x), target)
    leaf = x.clone().requires_grad_()
    for loss in (
        stablemax_cross_entropy(leaf, target),
        linear_stablemax_cross_entropy(leaf, torch.eye(7, dtype=torch.float64), target, chunk_size=2),
    ):
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        (gradient,) = torch.autograd.grad(loss, leaf)
        torch.testing.assert_close(gradient, reference.cross_entropy_gradient(x, target), rtol=1e-11, atol=1e-15)


def test_the_reference_on_the_official_data(golden: Callable[[str], dict[str, Tensor]]) -> None:
    data = golden("official.npz")
    torch.testing.assert_close(reference.s(data["x"]), data["s"], rtol=1e-12, atol=0)
    loss = reference.cross_entropy(reference.stablemax(data["x"]), data["t"])
    torch.testing.assert_close(loss, data["smce_mean"], rtol=1e-12, atol=0)
    gradient = reference.cross_entropy_gradient(data["x"], data["t"])
    torch.testing.assert_close(gradient, data["smce_grad"], rtol=1e-6, atol=1e-15)
    for i in range(4):
        projected = reference.perp_gradient(data[f"sgd_p{i}_init"], data[f"sgd_g0_{i}"])
        torch.testing.assert_close(projected, data[f"sgd_proj_{i}"], rtol=1e-12, atol=1e-14)


def test_the_share_of_collapsed_samples() -> None:
    z = drawn(200, 5) * torch.logspace(0, 2, 200, dtype=torch.float64).unsqueeze(1)
    for dtype in (torch.float16, torch.float32, torch.float64):
        collapsed = reference.softmax_collapse(z.to(dtype)).double().mean()
        assert 0 < collapsed < 1
        assert softmax_collapse_fraction(z, dtype=dtype) == float(collapsed)


def params() -> list[Parameter]:
    made = [Parameter(drawn(6, 4, seed=1)), Parameter(drawn(5, seed=2)), Parameter(drawn(2, 3, 3, 3, seed=3))]
    for seed, param in enumerate(made):
        param.grad = drawn(*param.shape, seed=10 + seed)
    return made


@pytest.mark.parametrize("rescale", [True, False])
def test_the_projection_of_every_granularity(rescale: bool) -> None:
    before = [(p.detach().clone(), p.grad.clone()) for p in params() if p.grad is not None]
    w, g = (torch.cat([pair[k].reshape(-1) for pair in before]) for k in (0, 1))
    whole = reference.perp_gradient(w, g, rescale=rescale).split([pair[0].numel() for pair in before])

    def rows(w: Tensor, g: Tensor) -> Tensor:
        if w.ndim == 1:  # rows of one element are left alone
            return g
        pairs = zip(w, g, strict=True)
        return torch.stack([reference.perp_gradient(a, b, rescale=rescale) for a, b in pairs])

    expected = {
        "tensor": [reference.perp_gradient(w, g, rescale=rescale) for w, g in before],
        "row": [rows(w, g) for w, g in before],
        "global": [part.view(pair[0].shape) for part, pair in zip(whole, before, strict=True)],
    }
    for granularity, gradients in expected.items():
        made = params()
        orthogonalize_gradients_(made, granularity=granularity, rescale=rescale)  # type: ignore[arg-type]
        for param, gradient in zip(made, gradients, strict=True):
            torch.testing.assert_close(param.grad, gradient, rtol=1e-12, atol=1e-14)


def test_a_step_and_the_alignment() -> None:
    made = params()
    weights, gradients = [p.detach().clone() for p in made], [p.grad.clone() for p in made if p.grad is not None]
    assert nlm_alignment(made) == pytest.approx(float(reference.nlm_alignment(weights, gradients)), rel=1e-12)
    OrthoGrad(torch.optim.SGD(made, lr=0.3)).step()
    for param, expected in zip(made, reference.perp_grad_descent(weights, gradients, 0.3), strict=True):
        torch.testing.assert_close(param.detach(), expected, rtol=1e-12, atol=1e-14)

"""The linear head, the separate decay, and the simplex frame."""

import pytest
import torch
from torch import nn

from offprints.neural_collapse import DeepLinearUFM, LinearHead, gof_solution, separate_decay, simplex_etf
from offprints.shared.testing import check_arguments, check_module


def test_module() -> None:
    torch.manual_seed(0)
    for options in ({}, {"depth": 3, "width": 5, "bias": True}):
        check_module(
            LinearHead(6, 4, **options),
            lambda generator: (torch.randn(7, 6, generator=generator),),
            skip={"arguments": "forward is that of nn.Sequential and nn.Linear"},
        )


def test_layers() -> None:
    head = LinearHead(6, 4, depth=3, width=8, bias=True)
    assert [tuple(layer.weight.shape) for layer in head] == [(8, 6), (8, 8), (4, 8)]
    assert [layer.bias is not None for layer in head] == [False, False, True]
    assert not head[2].bias.any()
    for layer in head:
        W = layer.weight.detach()
        small = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
        torch.testing.assert_close(small, torch.eye(len(small)), rtol=0, atol=1e-5)
    assert [tuple(layer.weight.shape) for layer in LinearHead(6, 4, depth=2)] == [(6, 6), (4, 6)]
    x = torch.randn(5, 6)
    torch.testing.assert_close(head(x), x @ head.product().T)
    torch.testing.assert_close(head.product(1), head[2].weight @ head[1].weight)
    assert torch.equal(head.product(2), head[2].weight)
    assert isinstance(head[:2], nn.Sequential)
    torch.testing.assert_close(head[1:](head[:1](x)), head(x))
    head.product().sum().backward()
    assert head[0].weight.grad is not None


def test_separate_decay_is_that_of_the_model() -> None:
    """On all samples it is the decay of `DeepLinearUFM.objective`, gradients included."""
    model = DeepLinearUFM([4, 3], [5, 6], weight_decay=[2e-2, 2e-2], feature_decay=3e-2)
    head = LinearHead(5, 2, depth=2, width=6, bias=True).double()
    with torch.no_grad():
        for layer, W in zip(head, model.weights, strict=True):
            layer.weight.copy_(W)
        head[1].bias.fill_(100.0)
    features = model.features.detach().clone().requires_grad_()
    ours = separate_decay(head, features, weight_decay=2e-2, feature_decay=3e-2)
    fit = (model() - nn.functional.one_hot(model.labels, 2)).square().sum() / 14
    torch.testing.assert_close(ours, model.objective() - fit)
    ours.backward()
    torch.testing.assert_close(features.grad, 3e-2 * features)
    torch.testing.assert_close(head[0].weight.grad, 2e-2 * head[0].weight)
    assert head[1].bias.grad is None
    single = separate_decay(nn.Linear(5, 2), torch.ones(1, 5), weight_decay=1e-9, feature_decay=2.0)
    assert single.item() == pytest.approx(5.0)


def test_separate_decay_in_minibatches() -> None:
    """Summed over the batch: with B of N samples the closed form is that of feature_decay * B / N."""
    B, N, decay = 5, 20, 1e-2
    torch.manual_seed(0)
    head, features = LinearHead(6, 4).double(), torch.randn(N, 6, dtype=torch.float64)
    parts = [separate_decay(head, part, weight_decay=decay, feature_decay=decay) for part in features.split(B)]
    mean = torch.stack(parts).mean()
    whole = separate_decay(head, features, weight_decay=decay, feature_decay=decay * B / N)
    torch.testing.assert_close(mean, whole)


def test_separate_decay_through_every_path() -> None:
    head = LinearHead(6, 4, depth=2).double()
    features = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)

    def decay(x: torch.Tensor) -> torch.Tensor:
        return separate_decay(head, x, weight_decay=1e-2, feature_decay=1e-1)

    assert torch.autograd.gradcheck(decay, (features,))
    assert torch.autograd.gradgradcheck(decay, (features,))
    torch.testing.assert_close(torch.compile(decay, backend="aot_eager")(features), decay(features))
    torch.testing.assert_close(torch.func.grad(decay)(features.detach()), 1e-1 * features.detach())
    torch.testing.assert_close(decay(features.detach().T.contiguous().T), decay(features.detach()))
    small = separate_decay(
        LinearHead(6, 4).half(), torch.full((500, 6), 30.0).half(), weight_decay=1.0, feature_decay=1.0
    )
    assert small.dtype == torch.float32  # 1.35 million does not fit float16
    assert small.item() == pytest.approx(500 * 6 * 900 / 2 + 2, rel=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert decay(features.detach()).dtype == torch.float64


def test_head_trains_to_the_closed_form() -> None:
    """A linear head on free features, the decay in the loss: the norms are those of `gof_solution`."""
    torch.manual_seed(0)
    labels = torch.arange(3).repeat_interleave(torch.tensor([20, 10, 5]))
    head = LinearHead(6, 3, depth=2).double()
    features = nn.Parameter(0.5 * torch.randn(35, 6, dtype=torch.float64))
    optimizer = torch.optim.LBFGS(
        [features, *head.parameters()],
        max_iter=400,
        tolerance_grad=1e-10,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        residual = head(features) - nn.functional.one_hot(labels, 3)
        loss = residual.square().sum() / 70
        loss = loss + separate_decay(head, features, weight_decay=5e-3, feature_decay=5e-3)
        loss.backward()
        return loss

    optimizer.step(closure)
    P = head.product().detach()
    expected = gof_solution([20, 10, 5], weight_decay=[5e-3, 5e-3], feature_decay=5e-3)
    torch.testing.assert_close(P @ P.T, expected.ww.diag(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("K", "dim"), [(2, 1), (2, 7), (5, 4), (5, 5), (10, 64)])
def test_simplex(K: int, dim: int) -> None:
    E = simplex_etf(K, dim)
    assert E.shape == (K, dim)
    gram = torch.full((K, K), -1 / (K - 1), dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(E @ E.T, gram, rtol=0, atol=1e-14)
    torch.testing.assert_close(E.sum(0), torch.zeros(dim, dtype=torch.float64), rtol=0, atol=1e-14)
    assert torch.equal(simplex_etf(K, dim), E)
    assert K == 2 or not torch.allclose(simplex_etf(K, dim, seed=1), E)
    assert torch.equal(simplex_etf(K, dim, dtype=torch.float32), E.float())


def test_arguments() -> None:
    huge = {"* huge": "memory"}
    check_arguments(simplex_etf, lambda g: (3, 5), skip={f"dim:{key[1:]}": why for key, why in huge.items()})
    check_arguments(LinearHead, lambda g: {"in_dim": 5, "num_classes": 3, "depth": 2, "width": 4})
    head = LinearHead(5, 3).double()
    check_arguments(
        separate_decay,
        lambda g: (head, torch.randn(4, 5, generator=g, dtype=torch.float64)),
        kwargs={"weight_decay": 1e-2, "feature_decay": 1e-2},
    )

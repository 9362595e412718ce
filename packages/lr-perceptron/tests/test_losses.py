"""The losses: values, gradients, and Normalized LR+GD by torch's own SGD."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from offprints.lr_perceptron import (
    NormalizedLogisticLoss,
    logistic_gradient,
    logistic_loss,
    normalized_logistic_loss,
    reference,
    separate,
)


def data() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(15, 4, generator=generator, dtype=torch.float64)
    theta = torch.randn(4, generator=generator, dtype=torch.float64)
    return X, torch.where(X @ torch.randn(4, generator=generator, dtype=torch.float64) > 0, 1.0, -1.0).double(), theta


def test_values_and_gradients() -> None:
    X, y, theta = data()
    Z = (X * y[:, None]).numpy()
    assert float(logistic_loss(X, y, theta)) == pytest.approx(reference.loss(Z, theta.numpy()), rel=1e-12)
    plain = logistic_gradient(X, y, theta)
    torch.testing.assert_close(plain, torch.from_numpy(reference.gradient(Z, theta.numpy())))
    variable = theta.clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(logistic_loss(X, y, variable), variable)
    torch.testing.assert_close(by_autograd, plain)
    beta = 1 / torch.sigmoid(-y * (X @ theta)).mean()
    torch.testing.assert_close(logistic_gradient(X, y, theta, normalized=True), beta * plain)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e300])
def test_extreme_margins(size: float) -> None:
    """Neither exp(m) nor log(1 + exp(-m)) overflows, and the normalized gradient is no 0/0."""
    X, y = torch.tensor([[1.0], [-1.0]]).double(), torch.tensor([1.0, 1.0])
    theta = torch.tensor([size], dtype=torch.float64)
    assert float(logistic_loss(X, y, theta)) == pytest.approx(size / 2)
    assert float(logistic_gradient(X, y, theta)) == pytest.approx(0.5)
    apart = torch.tensor([1.0, -1.0])
    assert float(logistic_loss(X, apart, theta)) == 0
    assert float(logistic_gradient(X, apart, theta, normalized=True)) == pytest.approx(-1)


def by_autograd(scores: Tensor, target: Tensor) -> Tensor:
    variable = scores.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(normalized_logistic_loss(variable, target), variable)
    return gradient


def test_normalized_loss() -> None:
    X, y, theta = data()
    scores = X @ theta
    loss = normalized_logistic_loss(scores, y)
    torch.testing.assert_close(loss, logistic_loss(X, y, theta))
    expected = logistic_gradient(X, y, theta, normalized=True)
    torch.testing.assert_close(X.T @ by_autograd(scores, y), expected)
    torch.testing.assert_close(X.T @ by_autograd(scores, y.int()), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_after_separation(dtype: torch.dtype) -> None:
    """Weights of a softmax of -m, where every sigmoid has underflowed."""
    scores, target = torch.tensor([1000.0, -1001.0, 1100.0], dtype=dtype), torch.tensor([1, -1, 1])
    share = 1 / (1 + math.exp(-1))
    expected = torch.tensor([-share, 1 - share, 0.0], dtype=dtype)
    torch.testing.assert_close(by_autograd(scores, target), expected)
    assert float(normalized_logistic_loss(scores, target)) == 0


def test_second_derivatives_hold_the_normalization_fixed() -> None:
    X, y, theta = data()
    scores = X @ theta
    margins = y * scores
    beta = 1 / torch.sigmoid(-margins).mean()
    curvature = beta * torch.sigmoid(margins) * torch.sigmoid(-margins) / len(y)

    variable = scores.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(normalized_logistic_loss(variable, y), variable, create_graph=True)
    (second,) = torch.autograd.grad(gradient @ torch.ones_like(gradient), variable)
    torch.testing.assert_close(second, curvature)
    hessian = torch.func.jacrev(torch.func.grad(normalized_logistic_loss))(scores, y)
    torch.testing.assert_close(hessian, curvature.diag())


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # torch's own, on first use
def test_forward_derivatives_are_those_of_the_gradient() -> None:
    X, y, theta = data()
    scores, direction = X @ theta, torch.linspace(-1, 2, len(y), dtype=torch.float64)
    value, change = torch.func.jvp(lambda s: normalized_logistic_loss(s, y), (scores,), (direction,))
    torch.testing.assert_close(value, normalized_logistic_loss(scores, y))
    torch.testing.assert_close(change, by_autograd(scores, y) @ direction)
    torch.testing.assert_close(torch.func.jacfwd(normalized_logistic_loss)(scores, y), by_autograd(scores, y))
    backward = torch.func.jacrev(torch.func.grad(normalized_logistic_loss))(scores, y)
    torch.testing.assert_close(torch.func.hessian(normalized_logistic_loss)(scores, y), backward)


def test_many_losses_at_once() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = 50 * torch.randn(3, 6, generator=generator, dtype=torch.float64)
    y = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, -1.0]).double()
    together = torch.func.vmap(torch.func.grad(normalized_logistic_loss), in_dims=(0, None))(scores, y)
    torch.testing.assert_close(together, torch.stack([by_autograd(row, y) for row in scores]))


@pytest.mark.parametrize("step_size", [0.5, 100.0])
def test_sgd_with_this_loss_is_normalized_gradient_descent(step_size: float) -> None:
    X, y, _ = data()
    model = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    optimizer, loss = torch.optim.SGD(model.parameters(), lr=step_size), NormalizedLogisticLoss()
    expected = separate(X, y, step_size=step_size, max_iter=25, stop=False, keep_iterates=True).iterates
    assert expected is not None
    for theta in expected[1:]:
        optimizer.zero_grad()
        loss(model(X).squeeze(1), y).backward()
        optimizer.step()
        torch.testing.assert_close(model.weight[0].detach(), theta, rtol=1e-9, atol=1e-9 * step_size)


def test_scaled_backward() -> None:
    """A gradient that is scaled on its way back, as by a gradient scaler, scales ours."""
    scores, target = torch.tensor([0.3, -0.2], requires_grad=True), torch.tensor([1, 1])
    (8 * normalized_logistic_loss(scores, target)).backward()
    torch.testing.assert_close(scores.grad, 8 * by_autograd(scores.detach(), target))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype: torch.dtype) -> None:
    scores, target = torch.tensor([3.0, -0.5, 2.0], dtype=dtype), torch.tensor([1, 1, -1])
    gradient = by_autograd(scores, target)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, by_autograd(scores.float(), target).to(dtype))
    assert normalized_logistic_loss(scores, target).dtype == torch.float32

"""Special points of the losses along every path: eager, compiled, with a graph of the gradient, under torch.func."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from offprints.stablemax import exact_cross_entropy, stablemax_cross_entropy

# torch itself calls it on the first use of forward-mode differentiation
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")

LOSSES = [stablemax_cross_entropy, exact_cross_entropy]
INF, NAN = math.inf, math.nan
Loss = Callable[..., Tensor]


def gradients(loss: Callable[[Tensor], Tensor], x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The gradient of a scalar loss by every path."""
    leaf = x.clone().requires_grad_()
    yield "eager", torch.autograd.grad(loss(leaf), leaf)[0]
    yield "create_graph", torch.autograd.grad(loss(leaf), leaf, create_graph=True)[0].detach()
    yield "func.grad", torch.func.grad(loss)(x)
    yield "jacfwd", torch.func.jacfwd(loss)(x)
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    yield "compiled", torch.autograd.grad(compiled(leaf), leaf)[0]


def softmax_gradient(x: Tensor, target: Tensor, loss: Loss) -> Tensor:
    """(p - 1[y]) g'(x), the gradient of the sum, by the formula."""
    exact = loss is exact_cross_entropy
    terms = x.exp() if exact else torch.where(x < 0, 1 / (1 - x), x + 1)
    p = terms / terms.sum(1, keepdim=True)
    return (p - nn.functional.one_hot(target, x.shape[1])) / (1 if exact else 1 + x.abs())


# Where the label's term equals the sum of the others, d = 0 and a formula of clamp and abs has a seam.
SEAMS = {
    "two zeros": ([[0.0, 0.0]], [0]),
    "two equal": ([[1.5, 1.5], [-0.5, -0.5]], [0, 1]),
    "one against two": ([[1.0, 0.0, 0.0]], [0]),
    "three against two": ([[2.0, 0.0, 1.0]], [0]),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", SEAMS)
def test_seams(loss: Loss, name: str) -> None:
    logits, labels = SEAMS[name]
    x, target = torch.tensor(logits), torch.tensor(labels)
    if loss is exact_cross_entropy and x.shape[1] == 3:
        x = x + 0.0
        x[0, 0] = torch.logsumexp(x[0, 1:], 0)
    expected = softmax_gradient(x, target, loss)
    for path, gradient in gradients(lambda x: loss(x, target, reduction="sum"), x):
        torch.testing.assert_close(gradient, expected, msg=lambda text, path=path: f"{path}: {text}")
        assert (gradient != 0).all(), path


@pytest.mark.parametrize("loss", LOSSES)
def test_a_zero_initialized_binary_head_trains_along_every_path(loss: Loss) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, generator=generator)
    target = (x[:, 0] > 0).long()
    ends = []
    for create_graph in (False, True):
        weight = torch.zeros(2, 3, requires_grad=True)
        for _ in range(100):
            (gradient,) = torch.autograd.grad(loss(x @ weight.T, target), weight, create_graph=create_graph)
            weight = (weight - 2.0 * gradient).detach().requires_grad_()
        ends.append(loss(x @ weight.T, target))
    assert ends[0] < 0.3
    torch.testing.assert_close(ends[0], ends[1])


MASKS = {
    "all others masked": ([[0.5, -INF, -INF], [1.0, 2.0, 0.0]], [0, 1], 0.0),
    "some masked": ([[0.5, -INF, 1.0], [1.0, 2.0, 0.0]], [0, 1], 0.0),
    "an ignored row of NaN": ([[NAN, 1.0, NAN], [1.0, 2.0, 0.0]], [-100, 1], 0.0),
    "an ignored row of NaN, smoothed": ([[NAN, 1.0, NAN], [1.0, 2.0, 0.0]], [-100, 1], 0.1),
    "an ignored row of infinities": ([[INF, -INF, INF], [1.0, 2.0, 0.0]], [-100, 1], 0.1),
    "all ignored": ([[NAN, 1.0, NAN], [INF, 2.0, 0.0]], [-100, -100], 0.0),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MASKS)
def test_masks(loss: Loss, name: str) -> None:
    logits, labels, smoothing = MASKS[name]
    x, target = torch.tensor(logits), torch.tensor(labels)
    kept = [i for i, label in enumerate(labels) if label >= 0]
    expected = torch.zeros_like(x)
    if smoothing == 0:
        for i in kept:
            finite = x[i].isfinite()
            label = finite[: target[i]].sum().view(1)
            expected[i, finite] = softmax_gradient(x[i : i + 1, finite], label, loss)[0] / len(kept)
    else:
        leaf = x[kept].requires_grad_()
        value = loss(leaf, target[kept], label_smoothing=smoothing)
        (expected[kept],) = torch.autograd.grad(value, leaf)
    for path, gradient in gradients(lambda x: loss(x, target, label_smoothing=smoothing), x):
        torch.testing.assert_close(gradient, expected, msg=lambda text, path=path: f"{path}: {text}")


@pytest.mark.parametrize("loss", LOSSES)
def test_a_row_of_nan_whose_loss_has_no_weight(loss: Loss) -> None:
    x = torch.tensor([[NAN, 1.0, 2.0], [1.0, 2.0, 0.0]], requires_grad=True)
    each = loss(x, torch.tensor([0, 1]), reduction="none")
    assert each.isnan().tolist() == [True, False]
    for create_graph in (True, False):
        weights = torch.tensor([0.0, 1.0])
        (gradient,) = torch.autograd.grad(each, x, weights, create_graph=create_graph, retain_graph=True)
        assert (gradient[0] == 0).all()
        torch.testing.assert_close(gradient[1:], softmax_gradient(x.detach()[1:], torch.tensor([1]), loss))


@pytest.mark.parametrize("loss", LOSSES)
def test_an_infinite_logit_of_the_label_is_no_loss_of_zero(loss: Loss) -> None:
    x, target = torch.tensor([[0.0, INF, 1.0]]), torch.tensor([1])
    assert loss(x, target).isnan()
    for path, gradient in gradients(lambda x: loss(x, target), x):
        if path != "jacfwd":
            assert not gradient.isfinite().all(), path  # a gradient scaler sees it


@pytest.mark.parametrize("loss", LOSSES)
def test_transforms(loss: Loss) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    x[0] = 0
    target = torch.tensor([0, 1, 2, 4])

    def mean(x: Tensor) -> Tensor:
        return loss(x, target)

    hessian = torch.autograd.functional.hessian(mean, x)
    p = softmax_gradient(x, target, loss)[0] + torch.eye(5)[0]
    torch.testing.assert_close(hessian[0, :, 0], (p.diag() - p.outer(p)) / 4)  # at 0 g is x to second order
    for other in (
        torch.func.hessian(mean)(x),
        torch.func.jacrev(torch.func.jacrev(mean))(x),
        torch.autograd.functional.hessian(mean, x, vectorize=True),
    ):
        torch.testing.assert_close(other, hessian)
    each = torch.func.vmap(lambda a, b: loss(a, b))(x, target)
    torch.testing.assert_close(each, loss(x, target, reduction="none"))
    per_sample = torch.func.vmap(torch.func.grad(lambda a, b: loss(a.unsqueeze(0), b.unsqueeze(0))))(x, target)
    torch.testing.assert_close(per_sample, softmax_gradient(x, target, loss))
    leaf = x.clone().requires_grad_()
    rows = loss(leaf, target, reduction="none")
    (batched,) = torch.autograd.grad(rows, leaf, torch.eye(4).double(), is_grads_batched=True)
    torch.testing.assert_close(batched.sum(0), per_sample)


@pytest.mark.parametrize("loss", LOSSES)
def test_compiled_with_symbolic_arguments(loss: Loss) -> None:
    """With dynamic shapes the compiler takes a float argument as a symbol, too."""
    torch._dynamo.reset()

    def smoothed(x: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
        return loss(x, target, label_smoothing=label_smoothing)

    compiled = torch.compile(smoothed, backend="eager", fullgraph=True, dynamic=True)
    for rows, smoothing in ((3, 0.1), (5, 0.25)):
        x, target = torch.randn(rows, 4), torch.arange(rows) % 4
        torch.testing.assert_close(compiled(x, target, smoothing), smoothed(x, target, smoothing))

"""The logistic loss, its gradient, and the loss whose gradient is the normalized one."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.lr_perceptron._inputs import check_signs, check_vector
from offprints.lr_perceptron.rules import convex_weights
from offprints.shared.device import float32_region, working_dtype
from offprints.shared.validation import check_bool, check_tensor


def mean_softplus(margins: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """The mean of ``log(1 + exp(-m_i))``, which never overflows."""
    # Not F.softplus, which is linear beyond 20: its second derivative would be 0 there, its value off by exp(-20).
    return -F.logsigmoid(margins).mean()


def _margins(X: Tensor, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Signed samples' margins, differentiable in X and theta, and the signs."""
    check_tensor(X, "X", ndim=2)
    check_vector(theta, "theta", X)
    dtype = working_dtype(X, theta)
    signs = check_signs(y, "y", X).to(dtype)
    with float32_region(X.device):
        return signs * (X.to(dtype) @ theta.to(dtype)), signs


def logistic_loss(
    X: Float[Tensor, "n d"], y: Float[Tensor, " n"] | Int[Tensor, " n"], theta: Float[Tensor, " d"]
) -> Float[Tensor, ""]:
    """The mean logistic loss ``1/n sum_i log(1 + exp(-y_i x_i . theta))``, differentiable in X and theta.

    Half types are computed in float32, and the result is of that type.

    Args:
        X: Samples ``[n, d]``.
        y: Labels -1 and +1 ``[n]``.
        theta: Weights ``[d]``.

    Raises:
        TypeError: X or theta is not a floating tensor, y not a tensor of numbers.
        ValueError: wrong shapes, X or theta not finite, labels other than -1 and +1.

    Example:
        >>> X, y = torch.tensor([[1.0], [2.0]]), torch.tensor([1, -1])
        >>> logistic_loss(X, y, torch.zeros(1))
        tensor(0.6931)
    """
    return mean_softplus(_margins(X, y, theta)[0])


def logistic_gradient(
    X: Float[Tensor, "n d"],
    y: Float[Tensor, " n"] | Int[Tensor, " n"],
    theta: Float[Tensor, " d"],
    *,
    normalized: bool = False,
) -> Float[Tensor, " d"]:
    """The gradient of `logistic_loss` in theta, in closed form: ``-1/n sum_i sigmoid(-m_i) z_i``.

    Args:
        X: Samples ``[n, d]``.
        y: Labels -1 and +1 ``[n]``.
        theta: Weights ``[d]``.
        normalized: Whether it is divided by the mean of ``sigmoid(-m)``, the step of Normalized LR+GD. This is minus a
            convex combination of the signed samples, at any margins.

    Raises:
        TypeError: as `logistic_loss`; ``normalized`` is not a boolean.
        ValueError: as `logistic_loss`.

    Example:
        >>> X, y = torch.tensor([[1.0], [2.0]]), torch.tensor([1, -1])
        >>> logistic_gradient(X, y, torch.zeros(1)), logistic_gradient(X, y, torch.zeros(1), normalized=True)
        (tensor([0.2500]), tensor([0.5000]))
    """
    normalized = check_bool(normalized, "normalized")
    margins, signs = _margins(X, y, theta)
    weights = convex_weights(margins) if normalized else torch.sigmoid(-margins) / len(margins)
    with float32_region(X.device):
        return -((weights * signs) @ X.to(weights.dtype))


def _shares(margins: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
    """`convex_weights`, but for the denominator, which is a number: it has no derivatives."""
    logarithms = F.logsigmoid(-margins)
    shares = (logarithms - logarithms.detach().amax(-1, keepdim=True)).exp()
    return shares / shares.detach().sum(-1, keepdim=True)


class _NormalizedLoss(torch.autograd.Function):
    """The mean logistic loss of margins; its gradient is divided by the mean of ``sigmoid(-m)``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(margins: Tensor) -> Tensor:
        return mean_softplus(margins)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        (margins,) = ctx.saved_tensors
        return -(_shares(margins) * tangents[0]).sum(-1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (margins,) = ctx.saved_tensors
        return -grad_outputs[0].unsqueeze(-1) * _shares(margins)


def normalized_logistic_loss(
    scores: Float[Tensor, " batch"], target: Float[Tensor, " batch"] | Int[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """The mean logistic loss, with the gradient of Normalized LR+GD.

    The value is ``1/B sum_i log(1 + exp(-m_i))`` with ``m_i = target_i scores_i``. The gradient in the scores is that
    of the value divided by the mean of ``sigmoid(-m)``, which is not differentiated: gradient descent with step size
    ``lr`` on a linear model is Normalized LR+GD, and for a network its generalization. The gradient never vanishes and
    is never 0/0, whatever the margins; it is not that of the value, so line searches do not fit.

    The mean of ``sigmoid(-m)`` is that of the scores given. Gradients that are accumulated over micro-batches, or
    averaged over processes, have a mean each; for that of the whole batch, collect the scores first.

    Half types are computed in float32, and the result is of that type.

    Args:
        scores: Scores ``[B]`` of a model with one output.
        target: Labels -1 and +1 ``[B]``.

    Raises:
        TypeError: scores are not a floating tensor, target not a tensor of numbers.
        ValueError: not 1-D, empty, not finite, another length, labels other than -1 and +1.

    Example:
        >>> scores = torch.tensor([300.0, 302.0], requires_grad=True)
        >>> normalized_logistic_loss(scores, torch.tensor([1, 1])).backward()
        >>> scores.grad
        tensor([-0.8808, -0.1192])
    """
    check_tensor(scores, "scores", ndim=1)
    dtype = working_dtype(scores)
    signs = check_signs(target, "target", scores).to(dtype)
    loss: Tensor = _NormalizedLoss.apply(signs * scores.to(dtype))
    return loss


class NormalizedLogisticLoss(nn.Module):
    """The module of `normalized_logistic_loss`.

    Example:
        >>> loss = NormalizedLogisticLoss()
        >>> loss(torch.zeros(2), torch.tensor([1, -1]))
        tensor(0.6931)
    """

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of scores ``[B]`` and labels -1 and +1 ``[B]``."""
        return normalized_logistic_loss(scores, target)

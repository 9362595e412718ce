"""A deep linear head for any backbone, and the decay under which the closed forms hold."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.neural_collapse._inputs import check_decay
from offprints.neural_collapse.unconstrained import chain
from offprints.shared.device import working_dtype
from offprints.shared.validation import check_bool, check_number, check_tensor


class LinearHead(nn.Sequential):
    """M linear layers without anything between them, orthogonally initialized; only the last one may have a bias.

    Args:
        in_dim: Width of the features.
        num_classes: K, the number of logits.
        depth: M.
        width: Width between the layers; default: ``in_dim``.
        bias: Whether the last layer has a bias, initially 0.

    Raises:
        TypeError: numbers that are not integers, ``bias`` not a boolean.
        ValueError: a number < 1, fewer than 2 classes.

    Example:
        >>> head = LinearHead(64, 10, depth=3)
        >>> head(torch.randn(5, 64)).shape, head.product().shape
        (torch.Size([5, 10]), torch.Size([10, 64]))
    """

    def __init__(
        self, in_dim: int, num_classes: int, *, depth: int = 1, width: int | None = None, bias: bool = False
    ) -> None:
        in_dim = check_number(in_dim, "in_dim", low=1, integer=True)
        num_classes = check_number(num_classes, "num_classes", low=2, integer=True)
        depth = check_number(depth, "depth", low=1, integer=True)
        width = in_dim if width is None else check_number(width, "width", low=1, integer=True)
        bias = check_bool(bias, "bias")
        widths = [in_dim, *[width] * (depth - 1), num_classes]
        layers = [nn.Linear(widths[j], widths[j + 1], bias=bias and j == depth - 1) for j in range(depth)]
        super().__init__(*layers)
        for layer in layers:
            nn.init.orthogonal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def product(self, start: int = 0) -> Float[Tensor, "classes dim"]:
        """W_M ... W_{start+1}, the classifier that the input of layer ``start`` (counted from 0) sees.

        Raises:
            ValueError: ``start`` is not the number of a layer.
        """
        start = check_number(start, "start", low=0, high=len(self) - 1, integer=True)
        layers: list[Any] = list(self)
        return chain([layer.weight for layer in layers[start:]])

    def __getitem__(self, idx: Any) -> Any:
        """A layer, or several of them as an ``nn.Sequential``."""
        return nn.Sequential(*list(self)[idx]) if isinstance(idx, slice) else super().__getitem__(idx)


def separate_decay(
    head: nn.Module, features: Float[Tensor, "batch ..."], *, weight_decay: float, feature_decay: float
) -> Float[Tensor, ""]:
    """The decay of the linear layers and of the features, to be added to the loss (`sep_decay` of the official code).

    weight_decay/2 sum_j ||W_j||^2 + feature_decay/2 ||H||^2, over all ``nn.Linear`` of ``head``, without biases. The
    features are **summed** over the batch: with batches of B of N samples, the closed forms hold for ``feature_decay *
    B / N``. Give the optimizer no weight decay for these layers then.

    Args:
        head: The linear layers.
        features: What goes into the first of them, ``[B, ...]``.
        weight_decay: lambda_W.
        feature_decay: lambda_H.

    Returns:
        A scalar, in float32 for half types.

    Raises:
        TypeError: ``head`` not a module, ``features`` not a floating tensor, decays not numbers.
        ValueError: no ``nn.Linear`` in ``head``, features empty or not finite, a decay that is not positive and finite.

    Example:
        >>> head, features = LinearHead(8, 3), torch.ones(5, 8)
        >>> loss = separate_decay(head, features, weight_decay=1e-3, feature_decay=1e-2)
        >>> round(loss.item(), 4)  # the rows of an orthogonal W have length 1
        0.2015
    """
    if not isinstance(head, nn.Module):
        raise TypeError(f"head must be an nn.Module, got {type(head).__name__}")
    weights = [module.weight for module in head.modules() if isinstance(module, nn.Linear)]
    if not weights:
        raise ValueError(f"head must have an nn.Linear, got {type(head).__name__} without any")
    check_tensor(features, "features", min_ndim=1)
    weight_decay, feature_decay = check_decay(weight_decay, "weight_decay"), check_decay(feature_decay, "feature_decay")
    dtype = working_dtype(features, *weights)
    squares = torch.stack([W.to(dtype).square().sum() for W in weights]).sum()
    return weight_decay / 2 * squares + feature_decay / 2 * features.to(dtype).square().sum()

"""Views of a segmentation: several scales, each mirrored too, their predictions brought back and averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.shared.device import working_dtype
from offprints.shared.validation import check_bool, check_number, check_tensor


class MultiScaleFlip(nn.Module):
    """Average a dense prediction over resized and mirrored inputs, as the paper does for segmentation.

    Args:
        scales: Factors of the input's sides.
        flip: Whether each scale is also predicted mirrored left to right.

    Raises:
        TypeError: ``scales`` are not numbers, ``flip`` is not a boolean.
        ValueError: no scale, or one that is not positive.

    Example:
        >>> network = torch.nn.Conv2d(3, 19, 1)
        >>> views = MultiScaleFlip(scales=(0.5, 1.0, 2.0))
        >>> views.average_predictions(network, torch.rand(2, 3, 32, 64)).shape
        torch.Size([2, 19, 32, 64])
    """

    def __init__(
        self,
        scales: Sequence[float] | Tensor | np.ndarray[Any, Any] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0),
        flip: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(scales, (Tensor, np.ndarray)):
            scales = scales.flatten().tolist()
        if not isinstance(scales, Sequence):
            raise TypeError(f"scales must be a sequence of numbers, got {type(scales).__name__}")
        if len(scales) == 0:
            raise ValueError("scales must hold at least one factor")
        self.scales = tuple(check_number(scale, "scales", low=0, open_low=True) for scale in scales)
        self.flip = check_bool(flip, "flip")

    def average_predictions(
        self, predict: Callable[[Tensor], Tensor], x: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B K h w"]:
        """Mean of ``predict`` over the views, mirrored back and resized to its size at scale 1.

        Args:
            predict: Maps images ``[B, C, h, w]`` of any size to maps ``[B, K, ...]``.
            x: The images.

        Raises:
            TypeError: ``x`` is not a floating tensor.
            ValueError: ``x`` or a prediction does not have 4 dimensions, or a scale leaves no pixel.
        """
        check_tensor(x, "x", ndim=4, finite=False)
        if not callable(predict):
            raise TypeError(f"predict must be callable, got {type(predict).__name__}")
        sizes = [(round(x.shape[2] * scale), round(x.shape[3] * scale)) for scale in self.scales]
        if min(min(size) for size in sizes) < 1:
            raise ValueError(f"scales {self.scales} leave no pixel of images {tuple(x.shape[2:])}")
        own = tuple(x.shape[2:])
        first = check_tensor(predict(x.clone()), "prediction", ndim=4, finite=False).clone()
        total = torch.zeros_like(first, dtype=working_dtype(first))
        count = 0
        for size in sizes:
            scaled = x if size == own else F.interpolate(x, size=size, mode="bilinear", align_corners=False)
            for mirrored in (False, True) if self.flip else (False,):
                plain = size == own and not mirrored
                # Each call has a tensor of its own: a network may work in place.
                view = first if plain else predict(scaled.flip(-1) if mirrored else scaled.clone())
                view = view.flip(-1) if mirrored else view
                if view.shape != first.shape:
                    view = F.interpolate(view, size=first.shape[2:], mode="bilinear", align_corners=False)
                total += view
                count += 1
        return (total / count).to(first.dtype)

    def forward(self, x: Tensor, predict: Callable[[Tensor], Tensor]) -> Tensor:
        """The same as `average_predictions`."""
        return self.average_predictions(predict, x)

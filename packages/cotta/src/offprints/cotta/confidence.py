"""The threshold on the source model's confidence below which the teacher averages over views."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from offprints.cotta.configuration import call_model, check_model
from offprints.shared.device import map_batches, working_dtype
from offprints.shared.validation import check_number, check_tensor


def confidences(logits: Float[Tensor, "B K *S"]) -> Float[Tensor, "B *S"]:
    """Probability of the likeliest class."""
    return logits.to(working_dtype(logits)).softmax(1).amax(1)


class _Confidence(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return confidences(call_model(self.model, x))


def source_confidence_threshold(
    model: nn.Module, batches: Iterable[Tensor], *, quantile: float = 0.05, margin: float = 0.05
) -> float:
    """The confidence threshold for this model: a low quantile of its confidence on source images, less a margin.

    Args:
        model: The source model, as it was trained; it runs in evaluation mode and gets its mode back. Call this before
            :class:`CoTTA` takes the model.
        batches: Batches ``[B, C, H, W]`` of source images, without labels. Every sample, of a segmentation every pixel,
            counts.
        quantile: In [0, 1].
        margin: Taken off.

    Returns:
        The threshold, clipped to [0, 1].

    Raises:
        TypeError: ``model`` is not a module, a batch not a floating tensor.
        ValueError: ``quantile`` outside [0, 1], ``margin`` not finite, no batch, NaN in one.
    """
    check_model(model)
    check_number(quantile, "quantile", low=0, high=1)
    check_number(margin, "margin")
    values = []
    for batch in batches:
        check_tensor(batch, "batches")
        values.append(map_batches(_Confidence(model), batch, batch_size=len(batch)).flatten().cpu().float().numpy())
    if not values:
        raise ValueError("batches must hold at least one batch")
    return float(np.clip(np.quantile(np.concatenate(values), quantile) - margin, 0, 1))

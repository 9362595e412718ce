"""The threshold on the source model's confidence below which the teacher averages over views."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Literal

import numpy as np
from torch import Tensor, nn

from offprints.cotta._wrapping.asking import Asker, LogitsFn, Normalize, confidences
from offprints.cotta._wrapping.keeping import kept_buffers
from offprints.cotta.configuration import check_model, configure_model
from offprints.shared.device import evaluating
from offprints.shared.validation import check_choice, check_number, check_tensor


def source_confidence_threshold(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    quantile: float = 0.05,
    margin: float = 0.05,
    gate: Literal["batch", "sample"] = "batch",
    norm: Literal["source", "batch"] = "source",
    normalize: Normalize = None,
    logits_fn: LogitsFn = None,
) -> float:
    """The confidence threshold for this model: a low quantile of the gate's statistic on source images, less a margin.

    The gate of `CoTTA` compares a number with the threshold: the mean confidence of a batch, or with
    ``gate="sample"`` that of a sample. It is this number whose quantile is taken. A mean varies much less than single
    samples, whose low quantile no batch of a foreign domain would reach.

    Args:
        model: The source model, as it was trained; it runs in evaluation mode and gets its mode back. Call this before
            `CoTTA` takes the model.
        batches: Batches ``[B, C, H, W]`` of source images, without labels, of the size that will be adapted to.
        quantile: In [0, 1].
        margin: Taken off.
        gate: The gate that the threshold is for: ``"batch"`` takes one value per batch, ``"sample"`` one per sample. In
            a segmentation both are means over pixels.
        norm: ``"source"``: with the model's running statistics; ``"batch"``: with those of each batch, exactly what the
            gate will compute.
        normalize: As for `CoTTA`.
        logits_fn: As for `CoTTA`.

    Returns:
        The threshold, clipped to [0, 1].

    Raises:
        TypeError: ``model`` is not a module, a batch not a floating tensor.
        ValueError: ``quantile`` outside [0, 1], ``margin`` not finite, an unknown ``gate`` or ``norm``, no batch, NaN
            in one.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 5))
        >>> threshold = source_confidence_threshold(model, torch.rand(200, 3, 8, 8).split(50))
        >>> adapted = CoTTA(model, confidence_threshold=threshold)
        >>> 0.2 <= threshold < 0.5  # an untrained model is unsure
        True
    """
    check_model(model)
    check_number(quantile, "quantile", low=0, high=1)
    check_number(margin, "margin")
    check_choice(gate, "gate", ("batch", "sample"))
    check_choice(norm, "norm", ("source", "batch"))
    ask = Asker(normalize, logits_fn)
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        raise TypeError(f"batches must be an iterable of batches, got {type(batches).__name__}")
    if norm == "batch":
        model = configure_model(copy.deepcopy(model))
    values = []
    with evaluating(model), kept_buffers(model):
        for batch in batches:
            check_tensor(batch, "batches")
            confidence = confidences(ask(model, batch))
            value = confidence.mean() if gate == "batch" else confidence.reshape(len(confidence), -1).mean(1)
            values.append(value.reshape(-1).cpu().double().numpy())
    if not values:
        raise ValueError("batches must hold at least one batch")
    return float(np.clip(np.quantile(np.concatenate(values), quantile) - margin, 0, 1))

"""The errors as a `torchmetrics.Metric`, for `MetricCollection` and Lightning; needs the extra ``metrics``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from offprints.betti_matching.images import check_images
from offprints.betti_matching.metrics import ErrorOptions, image_scores
from offprints.betti_matching.options import Comparison, Construction, Filtration, check_dims
from offprints.shared.extras import require
from offprints.shared.validation import check_bool, check_number

if TYPE_CHECKING:
    from torchmetrics import Metric
else:
    Metric = require("torchmetrics", package="betti-matching", extra="metrics").Metric


class BettiErrors(Metric):  # type: ignore[misc, unused-ignore]
    """Means of the Betti matching error, the Betti number error and Dice over all images, as tensors.

    `compute` returns the dictionary of `BettiMatchingMetric.compute`; totals are sums over `dims`. State is that of
    torchmetrics: ``state_dict`` (with ``persistent(True)``), ``reset``, ``sync`` over processes, by sums.

    Args:
        num_classes: number of channels; with `per_class` the values are tensors ``[num_classes]``, one for each.
        per_class: keep the channels apart.
        threshold, filtration, construction, comparison, relative, dims, num_workers, spatial_dims: as in
            `betti_matching_error`.
        **kwargs: of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    def __init__(
        self,
        *,
        num_classes: int = 1,
        per_class: bool = False,
        threshold: float = 0.5,
        filtration: Filtration = "superlevel",
        construction: Construction = "V",
        comparison: Comparison = "union",
        relative: bool = False,
        dims: Sequence[int] | None = None,
        num_workers: int | None = None,
        spatial_dims: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.options = ErrorOptions(
            threshold, filtration, construction, comparison, relative, dims, num_workers, spatial_dims
        )
        self.per_class = check_bool(per_class, "per_class")
        self.num_classes = check_number(num_classes, "num_classes", low=1, integer=True)
        # matching errors of dimensions 0 to 2, number errors of dimensions 0 to 2, Dice, images with 1 to 3 axes
        self.sums: Tensor
        self.add_state("sums", torch.zeros(self.num_classes if per_class else 1, 10, dtype=torch.float64), "sum")

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Add a batch ``[batch, channels, *spatial]``."""
        check_images(pred, target, ("pred", "target"), floating=False, spatial_dims=self.options.spatial_dims)
        if self.per_class and pred.shape[1] != self.num_classes:
            raise ValueError(f"pred must have num_classes={self.num_classes} channels, got {pred.shape[1]}")
        ndim = pred.ndim - 2
        check_dims(self.options.dims, ndim)
        seen = self.sums[:, 7:].sum(0)
        if seen.any() and not seen[ndim - 1]:
            raise ValueError(
                f"pred must have {int(seen.argmax()) + 1} spatial axes like the batches before, got {ndim}"
            )
        errors, numbers, dice = (torch.from_numpy(x).double() for x in image_scores(pred, target, self.options))
        rows = torch.zeros(len(dice), 10, dtype=torch.float64)
        rows[:, :ndim], rows[:, 3 : 3 + ndim], rows[:, 6], rows[:, 6 + ndim] = errors, numbers, dice, 1.0
        rows = rows.view(*pred.shape[:2], 10).sum(0)
        self.sums += (rows if self.per_class else rows.sum(0, keepdim=True)).to(self.sums)

    def compute(self) -> dict[str, Tensor]:
        """Means over all images: ``betti_matching_error``, ``betti_number_error``, both also ``_k``, and ``dice``."""
        seen = self.sums[:, 7:].sum(0)
        if not seen.any():
            raise RuntimeError("BettiErrors.compute needs at least one update, got none")
        dims = check_dims(self.options.dims, int(seen.argmax()) + 1) or ()
        means = self.sums / self.sums[:, 7:].sum(1, keepdim=True)
        means = means if self.per_class else means[0]
        result: dict[str, Tensor] = {}
        for name, offset in (("betti_matching_error", 0), ("betti_number_error", 3)):
            parts = {f"{name}_{k}": means[..., offset + k] for k in dims}
            result |= {name: torch.stack(list(parts.values())).sum(0)} | parts
        return result | {"dice": means[..., 6]}

"""Figures of the experiment. REPLACE."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from offprints.shared.experiment import Run


def draw_centers(run: Run, centers: Mapping[str, Tensor]) -> None:
    """Draw the estimated pictures beside the true one."""
    with run.figure("centers", ncols=len(centers)) as (_, axes):
        for ax, (name, center) in zip(axes, centers.items(), strict=True):
            side = math.isqrt(center.numel())
            ax.imshow(center.reshape(side, side).numpy(), cmap="gray", vmin=0, vmax=1)
            ax.set_title(name)
            ax.set_axis_off()

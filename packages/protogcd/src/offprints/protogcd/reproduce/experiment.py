"""The experiment of the paper: its presets and its claims. REPLACE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from offprints.protogcd.losses import pseudo_huber_loss
from offprints.protogcd.reproduce.data import Source, load_images
from offprints.protogcd.reproduce.figures import draw_centers
from offprints.shared.device import make_generator
from offprints.shared.experiment import Experiment, Run


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the experiment, in the paper's names."""

    data: Source = "digits"
    images: int = 150
    outlier_fraction: float = 0.2
    outlier_size: float = 20.0
    scale: float = 0.1
    steps: int = 300
    download: bool = False


def reproduce(config: Config, run: Run) -> None:
    """Estimate the center of pictures of which some are far too bright, and record the claims."""
    images = load_images(config.data, config.images, download=config.download)
    is_outlier = torch.rand(len(images), generator=make_generator(run.seed)) < config.outlier_fraction
    contaminated = torch.where(is_outlier[:, None], config.outlier_size * images, images).to(run.device)
    truth = images.mean(0)

    # The method, and the same estimate with its mechanism switched off: residuals that count squared.
    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "Pseudo-Huber": lambda center: pseudo_huber_loss(
            center.expand_as(contaminated), contaminated, scale=config.scale
        ),
        "squared": lambda center: (center - contaminated).square().mean(),
    }
    centers = {name: minimize(loss, contaminated.shape[1:], config.steps).cpu() for name, loss in losses.items()}
    errors = {name: float((center - truth).norm() / truth.norm()) for name, center in centers.items()}

    run.claim(
        "robust",
        "relative distance of the estimated center from that of the clean pictures",
        errors["Pseudo-Huber"],
        "<=",
        0.6,
        control=errors["squared"],
        control_name="squared loss",
    )
    run.report_value("outliers", "share of the pictures that are too bright", float(is_outlier.float().mean()))
    run.table("errors", [{"loss": name, "relative error": error} for name, error in errors.items()])
    draw_centers(run, {"clean": truth, **centers})


def minimize(loss: Callable[[Tensor], Tensor], shape: torch.Size, steps: int) -> Tensor:
    """The minimum of a convex loss of one picture."""
    center = torch.zeros(shape, requires_grad=True)
    optimizer = torch.optim.LBFGS([center], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(center)
        value.backward()
        return value

    optimizer.step(closure)
    return center.detach()


experiment = Experiment(
    name="protogcd",
    title="ProtoGCD: Unified and Unbiased Prototype Learning for Generalized Category Discovery",
    arxiv="2504.03755",
    config=Config,
    presets={
        # In seconds, the whole pipeline: measured, nothing asserted.
        "smoke": Config(images=40, steps=20),
        # At most two minutes on two cores, real data, no download: every claim holds for seeds 0, 1 and 2.
        "quick": Config(),
        # A whole real data set at laptop size, at most 30 minutes on two cores; `--download` fetches it. Drop it where
        # the method is not about data.
        "medium": Config(data="fashion_mnist", images=2000),
        # The paper's own settings on its own data.
        "paper": Config(data="fashion_mnist", images=6000, steps=1000),
    },
    function=reproduce,
)

"""The paper's tables: FID of samples of a pretrained network, by method and number of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.pndm.plans import Method
from offprints.pndm.sampling import pndm_sample
from offprints.pndm.schedules import AlphaSchedule, inference_times
from offprints.shared.datasets import image_folder, vision_dataset
from offprints.shared.device import autocast, make_generator
from offprints.shared.distributed import rank, world_size
from offprints.shared.experiment import Run
from offprints.shared.extras import require


@dataclass(frozen=True, kw_only=True)
class PaperSettings:
    """The pretrained networks and what is drawn from them.

    Attributes:
        checkpoint: A UNet2DModel of diffusers trained with the linear schedule: a folder, or a name on the hub.
        cosine_checkpoint: Another one, trained with the cosine schedule; empty leaves it out.
        data: A folder of images, one subfolder a class, to compare with (CelebA, LSUN); None for CIFAR-10.
        download: Fetch what is missing.
        images: Drawn for each FID.
        batch_size: Images at a time.
        steps: Numbers of steps.
        methods: The methods.
        features: Of the FID: the usual Inception network, or averages of pixels, which need no weights.
    """

    checkpoint: str = "google/ddpm-cifar10-32"
    cosine_checkpoint: str = ""
    data: Path | None = None
    download: bool = False
    images: int = 50_000
    batch_size: int = 250
    steps: tuple[int, ...] = (10, 20, 50, 100, 250, 1000)
    methods: tuple[Method, ...] = ("ddim", "s-pndm", "f-pndm", "fon")
    features: Literal["inception", "pixels"] = "inception"


class PixelAverages(nn.Module):
    """Features without weights: images averaged to 4 x 4 pixels."""

    num_features = 48

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` of 0..255 to ``[B, 48]``."""
        return F.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1)


def load_network(checkpoint: str, download: bool, device: torch.device) -> Any:
    """The network, for evaluation."""
    model = require("diffusers", package="pndm", extra="diffusers").UNet2DModel
    return model.from_pretrained(checkpoint, local_files_only=not download).to(device).eval().requires_grad_(False)


def make_metric(features: str, device: torch.device) -> Any:
    """FID with the real images kept from one use to the next; it sums over the processes by itself."""
    fid = require("torchmetrics.image.fid", package="pndm", extra="fid").FrechetInceptionDistance
    return fid(2048 if features == "inception" else PixelAverages(), reset_real_features=False).to(device)


def real_images(settings: PaperSettings, side: int) -> Iterator[Tensor]:
    """This process's share of the images to compare with, in uint8 batches."""
    transforms = require("torchvision.transforms.v2", package="pndm", extra="fid")
    prepare = transforms.Compose(
        [
            transforms.PILToTensor(),
            transforms.Resize(side, antialias=True),
            transforms.CenterCrop(side),
        ]
    )
    if settings.data is None:
        images: Any = vision_dataset("cifar10", "train", download=settings.download, transform=prepare)
    else:
        images = image_folder(settings.data, transform=prepare)
    share = torch.utils.data.Subset(images, range(rank(), len(images), world_size()))
    loader = torch.utils.data.DataLoader(share, batch_size=settings.batch_size)
    return (batch for batch, _ in loader)


def schedule_for(name: str, num_steps: int) -> AlphaSchedule:
    """The official convention; where its entries t + 1 leave the table (1000 steps), entry t."""
    make: Callable[..., AlphaSchedule] = AlphaSchedule.linear if name == "linear" else AlphaSchedule.cosine
    fits = inference_times(num_steps)[0] + 1 < 1000
    return make(offset=1, interpolation="floor") if fits else make()


def score(
    net: Any, metric: Any, settings: PaperSettings, run: Run, name: str, method: Method, num_steps: int
) -> dict[str, Any]:
    """One FID and a few of the images. The noise of a batch depends on its number alone, not on the processes."""
    metric.reset()
    channels, side = net.config.in_channels, net.config.sample_size
    starts = range(0, settings.images, settings.batch_size)
    kept = torch.empty(0, dtype=torch.uint8)
    for number in run.progress(range(rank(), len(starts), world_size()), description=f"{name} {method} {num_steps}"):
        rows = min(settings.batch_size, settings.images - starts[number])
        noise = torch.randn(rows, channels, side, side, generator=make_generator(run.seed * 10**6 + number))
        with autocast(run.precision, run.device):
            samples = pndm_sample(
                lambda x, t: net(x, t).sample,
                noise.to(run.device),
                schedule=schedule_for(name, num_steps),
                num_steps=num_steps,
                method=method,
            )
        images = ((samples.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        metric.update(images, real=False)
        if number == 0:
            kept = images[:16].cpu()
    return {"fid": float(metric.compute()), "images": kept}


def reproduce_paper(settings: PaperSettings, run: Run) -> None:
    """FID by schedule, method and number of steps; the claims of the abstract where their runs are among them."""
    checkpoints = {"linear": settings.checkpoint, "cosine": settings.cosine_checkpoint}
    rows: list[dict[str, Any]] = []
    for name, checkpoint in checkpoints.items():
        if not checkpoint:
            continue
        net = load_network(checkpoint, settings.download, run.device)
        metric = make_metric(settings.features, run.device)
        for batch in real_images(settings, net.config.sample_size):
            metric.update(batch.to(run.device), real=True)
        found: dict[tuple[str, int], dict[str, Any]] = {}
        for method in settings.methods:
            for n in settings.steps:
                work = partial(score, net, metric, settings, run, name, method, n)
                found[method, n] = run.unit(f"{name} {method} {n}", work)
                rows.append({"schedule": name, "method": method, "steps": float(n), "FID": found[method, n]["fid"]})
        draw(run, name, settings, found)
        claims(run, name, {key: value["fid"] for key, value in found.items()})
    run.table("FID", rows)


def claims(run: Run, name: str, fid: dict[tuple[str, int], float]) -> None:
    """The abstract's two comparisons."""
    ours, theirs = fid.get(("f-pndm", 50)), fid.get(("ddim", 1000))
    if ours is not None and theirs is not None:
        statement = f"{name}: FID of F-PNDM with 50 steps minus DDIM with 1000"
        run.claim(f"{name}-50", statement, ours - theirs, "<", 0, paper_value="better")
    ours, theirs = fid.get(("f-pndm", 250)), fid.get(("ddim", 250))
    if ours is not None and theirs is not None:
        statement = f"{name}: FID of F-PNDM with 250 steps minus DDIM with 250"
        run.claim(f"{name}-250", statement, ours - theirs, "<", 0, paper_value="about -0.4")


def draw(run: Run, name: str, settings: PaperSettings, found: dict[tuple[str, int], dict[str, Any]]) -> None:
    """FID against steps, and some of the images."""
    from offprints.pndm.reproduce.figures import COLORS, NAMES

    with run.figure(f"fid_{name}") as (_, axes):
        for method in settings.methods:
            values = [found[method, n]["fid"] for n in settings.steps]
            axes.loglog(settings.steps, values, marker="o", color=COLORS[method], label=NAMES[method])
        axes.set(title=f"{name} schedule", xlabel="steps", ylabel="FID")
        axes.legend()
    few = settings.steps[0]
    with run.figure(f"samples_{name}", nrows=len(settings.methods), squeeze=False, figsize=(11, 5)) as (figure, rows):
        for (axes,), method in zip(rows, settings.methods, strict=True):
            strip = torch.cat(list(found[method, few]["images"]), 2).permute(1, 2, 0)
            axes.imshow(strip.numpy())
            axes.set(xticks=[], yticks=[], title=NAMES[method])
            axes.grid(visible=False)
        figure.suptitle(f"{few} steps")

"""Training on the latents of a folder of images, and its samples scored: one GPU or several, resumable."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from offprints.lct.conversion import replace_norms
from offprints.lct.latents import LatentNormalizer
from offprints.lct.model import LatentConsistencyModel
from offprints.lct.reproduce.metrics import frechet_distance, recall
from offprints.lct.reproduce.networks import UNet
from offprints.lct.reproduce.pictures import (
    PAPER,
    Autoencoder,
    Name,
    batches,
    encode_all,
    inception,
    load_all,
    of_all_ranks,
    open_images,
    to_bytes,
)
from offprints.lct.reproduce.recipes import Recipe, RecipeName
from offprints.lct.sampling import TWO_STEP_SIGMAS, consistency_sample
from offprints.shared.device import autocast
from offprints.shared.distributed import rank, world_size
from offprints.shared.experiment import Part, Run
from offprints.shared.usage import UsageError


@dataclass(frozen=True, kw_only=True)
class LatentSettings:
    """Training on latents of images; None and 0 stand for the data set's own setting.

    Attributes:
        dataset: of the paper; sets batch size, epochs and the paper's figures beside the results.
        folder: of the images, one subfolder a class; default: the data set's name under ``OFFPRINTS_DATA``.
        cache: folder for the latents; default: ``latents`` in the run directory.
        autoencoder: name or folder of a diffusers AutoencoderKL.
        download: fetch the autoencoder's weights.
        image_size: side of the images.
        batch_size: of all devices together.
        epochs: visits of every image.
        learning_rate, weight_decay, eps: of RAdam.
        ema: decay of the weights that sample.
        channels, multipliers, blocks, attention, dropout: of the U-Net.
        final_scales: s1.
        samples: generated, and real ones, for FID and recall; 0 leaves them out.
        sample_batch: images at once where there is no training.
        checkpoint_every, log_every: steps.
    """

    dataset: Name = "celeba-hq"
    folder: Path | None = None
    cache: Path | None = None
    autoencoder: str = "stabilityai/sd-vae-ft-ema"
    download: bool = False
    image_size: int = 256
    batch_size: int = 0
    epochs: int = 0
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    eps: float = 1e-8
    ema: float = 0.9999
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 4
    attention: tuple[int, ...] = (16, 8)
    dropout: float = 0.0
    final_scales: int = 640
    samples: int = 50_000
    sample_batch: int = 64
    checkpoint_every: int = 2000
    log_every: int = 100


def build(settings: LatentSettings, recipe: Recipe, shape: torch.Size) -> LatentConsistencyModel:
    """The model for latents of this shape ``[C, S, S]``."""
    network: nn.Module = UNet(
        shape[0],
        shape[-1],
        channels=settings.channels,
        multipliers=settings.multipliers,
        blocks=settings.blocks,
        attention=settings.attention,
        dropout=settings.dropout,
    )
    if recipe.norm == "non_scaling":
        network = replace_norms(network, torch.zeros(1, *shape), torch.zeros(1))
    return LatentConsistencyModel(network, noise_scale=250.0)


def order(count: int, *, seed: int, epoch: int) -> Tensor:
    """The images in the order of an epoch, the same on every rank."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))


def train(part: Part, settings: LatentSettings, recipe: Recipe, latents: Tensor) -> LatentConsistencyModel:
    """The averaged model after training; goes on from the newest checkpoint of this part of a run."""
    paper = PAPER[settings.dataset]
    ranks = world_size()
    share = (settings.batch_size or paper.batch_size) // ranks
    per_epoch = len(latents) // (share * ranks) if share else 0
    if per_epoch == 0:
        raise UsageError(f"batch_size must be in [{ranks}, {len(latents)}], got {settings.batch_size}")
    total = per_epoch * (settings.epochs or paper.epochs)

    torch.manual_seed(part.seed)
    model = build(settings, recipe, latents.shape[1:]).to(part.device)
    average = copy.deepcopy(model).requires_grad_(False)
    weights: list[Tensor] = list(model.parameters())
    averages: list[Tensor] = list(average.parameters())
    optimizer = torch.optim.RAdam(
        weights, lr=settings.learning_rate, weight_decay=settings.weight_decay, eps=settings.eps
    )
    loss_fn = recipe.loss(total_steps=total, final_scales=settings.final_scales, dim=latents[0].numel(), validate=False)
    scaler = torch.amp.GradScaler(part.device.type, enabled=part.precision == "float16")
    first = 0
    if (found := part.restore()) is None:
        torch.manual_seed(part.seed * ranks + rank())  # noise, indices and dropout: of its own on every rank
    else:
        first, state = found
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
    wrapped: nn.Module = model
    if ranks > 1:
        wrapped = DistributedDataParallel(model, device_ids=[part.device] if part.device.type == "cuda" else None)

    visits = order(len(latents), seed=part.seed, epoch=first // per_epoch)
    for step in part.progress(range(first, total)):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            visits = order(len(latents), seed=part.seed, epoch=epoch)
        start = (place * ranks + rank()) * share
        x = latents[visits[start : start + share]].to(part.device, non_blocking=True)
        with autocast(part.precision, part.device):
            out = loss_fn(wrapped, x, step=step)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(out.loss).backward()
        scaler.step(optimizer)
        scaler.update()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - settings.ema)
        done = step + 1
        if done % settings.log_every == 0 or done == total:
            values = {"loss": out.loss, "consistency": out.consistency, "diffusion": out.diffusion}
            scalars = {name: float(value.detach()) for name, value in values.items()}
            if not math.isfinite(scalars["loss"]):
                raise FloatingPointError(f"the loss is {scalars['loss']} at step {done}")
            part.log(done, **scalars, num_scales=out.num_scales)
        if done % settings.checkpoint_every == 0 or done == total:  # the last one keeps the log whole
            part.checkpoint(
                done,
                {
                    "model": model.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scaler": scaler.state_dict(),
                },
            )
    return average


@torch.no_grad()
def evaluate(
    settings: LatentSettings,
    model: nn.Module,
    normalizer: LatentNormalizer,
    decode: Callable[[Tensor], Tensor],
    features: Callable[[Tensor], Tensor] | None,
    real: Tensor | None,
    *,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """Sheets of one- and two-step samples; FID and recall where there are features. Ranks share the work."""
    model.eval()
    generator = torch.Generator().manual_seed(seed * world_size() + rank())
    result: dict[str, Any] = {}
    for name, sigmas in (("one", (80.0,)), ("two", TWO_STEP_SIGMAS)):
        mine: list[Tensor] = []
        sheet: list[Tensor] = []
        left = 16 if features is None else max(16, -(-settings.samples // world_size()))
        while left > 0:
            size = min(settings.sample_batch, left)
            noise = torch.randn(size, *normalizer.shape, generator=generator).to(device)
            latents = consistency_sample(model, noise, sigmas=sigmas, generator=generator)
            images = decode(normalizer.inverse(latents.cpu()))
            sheet += images.cpu().split(1)[: 16 - len(sheet)]
            if features is not None:
                mine.append(features(to_bytes(images)).cpu())
            left -= size
        result[f"sheet_{name}"] = torch.cat(sheet)
        if features is not None and real is not None:
            made = of_all_ranks(torch.cat(mine))[: settings.samples].to(device)
            result[f"fid_{name}"] = frechet_distance(made, real)
            result[f"recall_{name}"] = recall(real, made)
    return result


def on_latents(
    run: Run, settings: LatentSettings, recipes: Mapping[RecipeName, Recipe]
) -> dict[RecipeName, dict[str, Any]]:
    """Encode, train each recipe, and score its samples."""
    images = open_images(settings.dataset, settings.folder, settings.image_size)
    autoencoder = Autoencoder(settings.autoencoder, device=run.device, download=settings.download)
    cache = settings.cache or run.dir / "latents"
    encode_all(images, autoencoder, cache, batch_size=settings.sample_batch, seed=run.seed)
    if world_size() > 1:
        torch.distributed.barrier()
    latents, normalizer = load_all(cache, len(images))

    features = real = None
    if settings.samples:
        features = inception(run.device)
        share = range(rank(), min(len(images), settings.samples), world_size())
        parts = [
            features(to_bytes(batch).to(run.device)).cpu() for batch in batches(images, share, settings.sample_batch)
        ]
        real = of_all_ranks(torch.cat(parts)).to(run.device)

    def work(name: RecipeName, part: Part) -> dict[str, Any]:
        model = train(part, settings, recipes[name], latents)
        return evaluate(
            settings, model, normalizer, autoencoder.decode, features, real, seed=run.seed, device=run.device
        )

    return {name: run.part(name).once(partial(work, name)) for name in recipes}

"""The paper's data: a folder of images, its latents by a diffusers autoencoder, and features for FID and recall."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from offprints.lct.latents import LatentNormalizer
from offprints.shared.datasets import data_root, image_folder
from offprints.shared.distributed import rank, world_size
from offprints.shared.extras import require
from offprints.shared.usage import UsageError

Name = Literal["celeba-hq", "lsun-church", "ffhq"]
CHUNK = 512  # images in one file of latents


class Targets(NamedTuple):
    """The paper's settings and results of a data set (its table 1): FID and recall at one and two steps."""

    batch_size: int
    epochs: int
    one: tuple[float, float]
    two: tuple[float, float]


PAPER: dict[str, Targets] = {
    "celeba-hq": Targets(128, 1400, (7.27, 0.50), (6.93, 0.52)),
    "lsun-church": Targets(256, 1800, (8.87, 0.47), (7.71, 0.48)),
    "ffhq": Targets(128, 1400, (8.72, 0.42), (8.29, 0.43)),
}


def open_images(name: str, folder: Path | None, size: int) -> Any:
    """The images, cropped to a square of ``size`` pixels, float32 in [0, 1]; one subfolder a class.

    Raises:
        FileNotFoundError: there is no folder of this data set.
    """
    transforms = require("torchvision.transforms.v2", package="lct", extra="diffusers")
    steps = [
        transforms.ToImage(),
        transforms.Resize(size, antialias=True),
        transforms.CenterCrop(size),
        transforms.ToDtype(torch.float32, scale=True),
    ]
    return image_folder(folder or data_root(name), transform=transforms.Compose(steps))


def batches(images: Any, indices: range, batch_size: int) -> Iterator[Float[Tensor, "b 3 h w"]]:
    """Images of these indices in batches."""
    places = list(indices)
    for start in range(0, len(places), batch_size):
        yield torch.stack([images[i][0] for i in places[start : start + batch_size]])


class Autoencoder:
    """A diffusers ``AutoencoderKL``: images in [0, 1] to raw latents and back.

    Raises:
        ImportError: diffusers is not installed (extra ``diffusers``).
        UsageError: the weights are not on this machine and ``download`` is off.
    """

    def __init__(self, name: str, *, device: torch.device, download: bool) -> None:
        diffusers = require("diffusers", package="lct", extra="diffusers")
        try:
            vae = diffusers.AutoencoderKL.from_pretrained(name, local_files_only=not download)
        except OSError as error:
            raise UsageError(f"the autoencoder {name!r} is not here; fetch it with --latents.download") from error
        self.vae = vae.to(device).eval().requires_grad_(False)
        self.device = device

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 h w"], *, generator: torch.Generator) -> Float[Tensor, "b c s s"]:
        """A draw from the encoder's posterior, not multiplied by the usual 0.18215."""
        posterior = self.vae.encode(2 * images.to(self.device) - 1).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(self.device)
        latents: Tensor = posterior.mean + posterior.std * noise
        return latents.cpu()

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c s s"]) -> Float[Tensor, "b 3 h w"]:
        """Images in [0, 1]."""
        images: Tensor = self.vae.decode(latents.to(self.device)).sample
        return (images / 2 + 0.5).clamp(0, 1)


def encode_all(images: Any, encoder: Autoencoder, folder: Path, *, batch_size: int, seed: int) -> None:
    """Write the latents of all images in files of `CHUNK`; each rank its share; files that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(rank(), -(-len(images) // CHUNK), world_size()):
        path = chunk_path(folder, number)
        if path.exists():
            continue
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        indices = range(number * CHUNK, min((number + 1) * CHUNK, len(images)))
        parts = [encoder.encode(batch, generator=generator) for batch in batches(images, indices, batch_size)]
        draft = path.with_suffix(".draft")
        with open(draft, "wb") as file:
            np.save(file, torch.cat(parts).numpy(), allow_pickle=False)
        draft.replace(path)


def chunk_path(folder: Path, number: int) -> Path:
    """File of the ``number``-th chunk."""
    return folder / f"{number:06d}.npy"


def load_all(folder: Path, count: int) -> tuple[Tensor, LatentNormalizer]:
    """All latents, normalized, and their normalizer."""
    files = [chunk_path(folder, number) for number in range(-(-count // CHUNK))]
    latents = torch.cat([torch.from_numpy(np.load(file, allow_pickle=False)) for file in files])
    normalizer = LatentNormalizer(latents.shape[1:])
    for part in latents.split(CHUNK):
        normalizer.update(part)
    for part in latents.split(CHUNK):
        part.copy_(normalizer(part))
    return latents, normalizer


def inception(device: torch.device) -> Callable[[Tensor], Tensor]:
    """The features of FID, ``[B, 2048]`` of uint8 images: torchmetrics' Inception network, which fetches its weights.

    Raises:
        ImportError: torchmetrics is not installed (extra ``fid``).
    """
    fid = require("torchmetrics.image.fid", package="lct", extra="fid")
    network: Callable[[Tensor], Tensor] = fid.FrechetInceptionDistance(feature=2048).inception.to(device)
    return network


def to_bytes(images: Float[Tensor, "b 3 h w"]) -> Tensor:
    """Images in [0, 1] as uint8."""
    return (images * 255).round().to(torch.uint8)


def of_all_ranks(features: Tensor) -> Tensor:
    """The rows of every rank, on every rank."""
    if world_size() == 1:
        return features
    parts: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(parts, features.cpu())
    return torch.cat(parts)

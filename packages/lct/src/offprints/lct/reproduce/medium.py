"""Fashion-MNIST: latents of an autoencoder that is trained on the spot, their impulses, and the paper's ablation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.lct.coupling import ot_couple
from offprints.lct.latents import LatentNormalizer, impulse_statistics
from offprints.lct.reproduce import figures
from offprints.lct.reproduce.digits import DigitSettings, fit
from offprints.lct.reproduce.metrics import collapse
from offprints.lct.reproduce.recipes import RECIPES, RecipeName
from offprints.shared.datasets import vision_dataset
from offprints.shared.device import make_generator
from offprints.shared.experiment import Part, Run

SIDE, CHANNELS = 7, 4  # of the latents
PRIOR_WEIGHT = 1e-3  # of the divergence from N(0, I), as small as in autoencoders of latent diffusion
AGAIN: dict[str, RecipeName] = {"baseline, again": "baseline", "no-diffusion, again": "no-diffusion"}
SHOWN: tuple[RecipeName, ...] = ("full", "no-cauchy", "no-coupling", "baseline")
# Set before any run. A normal sample has 2e-6 of its values beyond the outer fences; the others are the quick preset's
# bars or, where the paper's gain is large (FID 7.27 against 37.15), a tenth.
OUTER_BAR, FULL_BAR, EARLY_BAR, TWO_BAR = 1e-3, 0.9, 0.93, 0.9


@dataclass(frozen=True, kw_only=True)
class MediumSettings:
    """Fashion-MNIST.

    Attributes:
        images: Of the training, at most.
        test_images: What samples are scored against, at most; as many samples are drawn.
        autoencoder_steps: Of the autoencoder's training.
        autoencoder_lr: Highest learning rate of Adam there.
        width: Channels of the autoencoder's first layer.
        training: Of each consistency model on the latents.
        download: Fetch the data if they are missing.
    """

    images: int = 20_000
    test_images: int = 2000
    autoencoder_steps: int = 400
    autoencoder_lr: float = 3e-3
    width: int = 16
    training: DigitSettings = field(default_factory=lambda: DigitSettings(steps=800, width=256, blocks=3))
    download: bool = False


def clothing(data: Path | None, split: str, at_most: int, download: bool) -> Tensor:
    """The first images ``[N, 1, 28, 28]`` of a split, in [-1, 1]."""
    found: Any = vision_dataset("fashion_mnist", split, download=download, root=data)
    return found.data[:at_most].unsqueeze(1).float() / 127.5 - 1


class SmallAutoencoder(nn.Module):
    """Images ``[N, 1, 28, 28]`` to the means and logarithmic variances of latents ``[N, 4, 7, 7]``, and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 2 * width
        self.encoder = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, 1), nn.SiLU(),
            nn.Conv2d(width, wide, 3, 2, 1), nn.GroupNorm(4, wide), nn.SiLU(),
            nn.Conv2d(wide, wide, 3, 1, 1), nn.GroupNorm(4, wide), nn.SiLU(),
            nn.Conv2d(wide, 2 * CHANNELS, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(CHANNELS, wide, 3, 1, 1), nn.GroupNorm(4, wide), nn.SiLU(), nn.Upsample(scale_factor=2),
            nn.Conv2d(wide, width, 3, 1, 1), nn.GroupNorm(4, width), nn.SiLU(), nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width, 3, 1, 1), nn.SiLU(), nn.Conv2d(width, 1, 3, 1, 1),
        )  # fmt: skip

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the latents."""
        mean, log_variance = self.encoder(images).chunk(2, 1)
        return mean, log_variance.clamp(-20, 10)


def train_autoencoder(settings: MediumSettings, data: Path | None, part: Part) -> dict[str, Any]:
    """Weights of an autoencoder of the training images, and its squared error on the test images."""
    images = clothing(data, "train", settings.images, settings.download)
    model = SmallAutoencoder(settings.width)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.autoencoder_lr)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.autoencoder_lr, total_steps=settings.autoencoder_steps
    )
    for step in part.progress(range(settings.autoencoder_steps)):
        x = images[torch.randint(len(images), (64,))]
        mean, log_variance = model.posterior(x)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        latents = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        error = F.mse_loss(model.decoder(latents), x)
        optimizer.zero_grad()
        (error + PRIOR_WEIGHT * divergence).backward()
        optimizer.step()
        rate.step()
        if (step + 1) % 100 == 0:
            part.log(step + 1, error=float(error.detach()), divergence=float(divergence.detach()))
    test = clothing(data, "test", settings.test_images, settings.download)
    with torch.no_grad():
        found = torch.cat([model.decoder(model.posterior(batch)[0]) for batch in test.split(500)])
    return {"weights": dict(model.state_dict()), "error": float((found - test).square().mean())}


def latents_of(
    settings: MediumSettings, data: Path | None, weights: Mapping[str, Tensor], seed: int
) -> tuple[Tensor, Tensor, LatentNormalizer]:
    """Normalized latents ``[N, 196]`` of the training and the test images, draws from the posterior."""
    model = SmallAutoencoder(settings.width)
    model.load_state_dict(weights)
    generator = make_generator(seed)
    found = []
    for split, at_most in (("train", settings.images), ("test", settings.test_images)):
        images = clothing(data, split, at_most, settings.download)
        with torch.no_grad():
            moments = [model.posterior(batch) for batch in images.split(500)]
        draws = [m + (0.5 * v).exp() * torch.randn(m.shape, generator=generator) for m, v in moments]
        found.append(torch.cat(draws).flatten(1))
    normalizer = LatentNormalizer(found[0].shape[1:])
    normalizer.update(found[0])
    return normalizer(found[0]), normalizer(found[1]), normalizer


def recipe_unit(
    name: RecipeName,
    settings: MediumSettings,
    data: Path | None,
    weights: Mapping[str, Tensor],
    seeds: tuple[int, int],
    device: str,
) -> dict[str, Any]:
    """Train with one recipe and score against the test images' latents; one seed is of the latents, one of the rest."""
    latents, test, _ = latents_of(settings, data, weights, seeds[0])
    return fit(RECIPES[name], latents.to(device), test.to(device), settings=settings.training, seed=seeds[1])


def reproduce_medium(settings: MediumSettings, data: Path | None, run: Run) -> None:
    """Impulses of the latents, the paper's parts off in turn, and what is sampled."""
    trained = run.part("autoencoder").once(partial(train_autoencoder, settings, data))
    first, second = run.seeds(2)
    work = partial(recipe_unit, settings=settings, data=data, weights=trained["weights"], device=str(run.device))
    jobs = {f"fashion/{name}": partial(work, name, seeds=(first, first)) for name in RECIPES}
    jobs |= {f"fashion/{key}": partial(work, name, seeds=(first, second)) for key, name in AGAIN.items()}
    results = {key.partition("/")[2]: value for key, value in run.units(jobs).items()}
    latents, test, normalizer = latents_of(settings, data, trained["weights"], first)
    pixels = clothing(data, "train", settings.images, settings.download).flatten(1)
    report_impulses(run, latents, normalizer.inverse(latents), pixels)
    report_ablation(run, results, latents, test)
    run.report_value("fashion-autoencoder", "squared error of the autoencoder, images in [-1, 1]", trained["error"])
    draw_samples(run, settings, trained["weights"], normalizer, test, results)


def report_impulses(run: Run, latents: Tensor, raw: Tensor, pixels: Tensor) -> None:
    """Box plots of latents and of pixels, each scaled by one factor and by position."""
    by_position = LatentNormalizer(pixels.shape[1:])
    by_position.update(pixels)
    data = {
        "Latents, by position": latents,
        "Latents, one factor": 0.5 * (raw - raw.mean()) / raw.std(),
        "Pixels, one factor": 0.5 * (pixels - pixels.mean()) / pixels.std(),
        "Pixels, by position": by_position(pixels),
    }
    statistics: dict[str, dict[str, Any]] = {name: impulse_statistics(values) for name, values in data.items()}
    ours, control = statistics["Latents, by position"], statistics["Pixels, one factor"]
    run.claim(
        "fashion-impulses",
        "Fashion-MNIST: share of the values of the latents, standardized as in the paper, beyond the outer fences",
        ours["outer_fraction"],
        ">=",
        OUTER_BAR,
        control=control["outer_fraction"],
        control_name="pixels, scaled by one factor",
    )
    run.report_value("fashion-kurtosis", "their excess kurtosis", ours["excess_kurtosis"])
    names = ("inner_fraction", "outer_fraction", "excess_kurtosis", "max_abs")
    rows = [{"data": name} | {key: found[key] for key in names} for name, found in statistics.items()]
    run.table("Fashion-MNIST: impulsive outliers", [row | {"reference": i > 0} for i, row in enumerate(rows)])
    figures.impulses(run, data, statistics)


def report_ablation(run: Run, results: Mapping[str, Mapping[str, Any]], latents: Tensor, test: Tensor) -> None:
    """The full recipe beside the baseline, and each part off in turn."""
    full, baseline, late = (results[name] for name in ("full", "baseline", "no-diffusion"))
    what = "Fashion-MNIST latents"
    run.claim(
        "fashion-full",
        f"{what}: Fréchet distance of one-step samples from the test images', full recipe over the baseline",
        full["frechet_one"] / baseline["frechet_one"],
        "<",
        FULL_BAR,
        paper_value="FID 7.27 over 37.15",
        control=results["baseline, again"]["frechet_one"] / baseline["frechet_one"],
        control_name="baseline of another seed",
    )
    run.claim(
        "fashion-early",
        f"{what}: denoising error at an early level, full recipe over that without the diffusion loss",
        full["denoising_15"] / late["denoising_15"],
        "<",
        EARLY_BAR,
        control=results["no-diffusion, again"]["denoising_15"] / late["denoising_15"],
        control_name="without it, of another seed",
    )
    run.claim(
        "fashion-two-steps",
        f"{what}: energy distance of two-step samples over that of one-step samples, full recipe",
        full["energy_two"] / full["energy_one"],
        "<",
        TWO_BAR,
        control=full["energy_again"] / full["energy_one"],
        control_name="second step from the highest level",
    )
    noise = torch.randn(128, latents.shape[1], generator=make_generator(run.seed))
    batch = latents[:128]
    costs = [float((batch - z).square().sum(1).mean()) for z in (ot_couple(batch, noise), noise)]
    run.check(
        "fashion-coupling",
        f"{what}: mean squared distance of coupled pairs over independent ones",
        costs[0] / costs[1],
        "<=",
        1,
    )
    for name in RECIPES:
        if name not in ("full", "baseline"):
            ratio = full["frechet_one"] / results[name]["frechet_one"]
            run.report_value(f"fashion-{name}", f"{what}: one-step Fréchet distance, full recipe over {name}", ratio)
    columns = ("energy_one", "frechet_one", "energy_two", "frechet_two", "denoising_15", "denoising_20")
    rows: list[dict[str, Any]] = [
        {"training": name, "reference": name in AGAIN} | {column: found[column] for column in columns}
        for name, found in results.items()
    ]
    energy, variance = collapse(test)
    level = {"energy_one": energy, "frechet_one": variance, "energy_two": energy, "frechet_two": variance}
    run.table(
        f"{what}: each part off in turn", [*rows, {"training": "collapse to the mean", "reference": True} | level]
    )
    figures.scores(run, "fashion-scores", "Each part off in turn, Fashion-MNIST latents", results, test)


def draw_samples(
    run: Run, settings: MediumSettings, weights: Mapping[str, Tensor], normalizer: LatentNormalizer, test: Tensor,
    results: Mapping[str, Mapping[str, Any]],
) -> None:  # fmt: skip
    """Decoded latents of test images, and decoded samples of one and of two steps."""
    model = SmallAutoencoder(settings.width)
    model.load_state_dict(weights)
    sheets: dict[str, list[tuple[str, Tensor]]] = {
        "one": [("Test images, decoded", test[:32])],
        "two": [("Test images, decoded", test[32:64])],
    }
    for steps, row in sheets.items():
        row += [(f"{name}, {steps} step{'s' * (steps == 'two')}", results[name][f"samples_{steps}"]) for name in SHOWN]
    with run.figure("fashion", nrows=2, ncols=len(sheets["one"]), figsize=(3.0 * len(sheets["one"]), 3.6)) as (_, axes):
        for line, row in zip(axes, sheets.values(), strict=True):
            for ax, (title, samples) in zip(line, row, strict=True):
                with torch.no_grad():
                    images = model.decoder(normalizer.inverse(samples).view(-1, CHANNELS, SIDE, SIDE))
                count = len(images) // 8 * 8
                sheet = images[:count].view(-1, 8, 28, 28).transpose(1, 2).reshape(count // 8 * 28, 8 * 28)
                ax.imshow(sheet.numpy(), cmap="gray_r", vmin=-1, vmax=1)
                ax.set_title(title)
                ax.set_axis_off()

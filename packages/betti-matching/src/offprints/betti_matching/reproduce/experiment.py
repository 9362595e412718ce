"""The paper's experiment: what Dice and Betti numbers cannot see, and what the loss changes in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from offprints.betti_matching.baselines import wasserstein_loss
from offprints.betti_matching.losses import betti_matching_loss
from offprints.betti_matching.metrics import betti_matching_error
from offprints.betti_matching.reproduce import figures
from offprints.betti_matching.reproduce.data import (
    PAPER_DATASETS,
    PaperDataset,
    Samples,
    digit_masks,
    membrane_stack,
    panels,
    paper_dataset,
    retina_vessels,
)
from offprints.betti_matching.reproduce.digits import Branch, DigitSettings, compare_losses
from offprints.betti_matching.reproduce.indistinguishable import indistinguishable_pair
from offprints.betti_matching.reproduce.training import Loss, LossName, Recipe, image_scores, train
from offprints.shared.experiment import Experiment, Run

DatasetName = Literal["digits", "membrane", "mnist", "cremi", "roads", "buildings", "elegans", "colon"]
MEMBRANE = PaperDataset("isbi_membrane.npz", 24, 6, 1, 4, 2, 120, (16, 32, 64, 128))
KINDS = ("right", "wrong")
PAPER_ALPHA = 0.5
Scores = dict[str, dict[str, np.ndarray]]  # by loss and score: one number of each network


@dataclass(frozen=True)
class Config:
    """What is run. None stands for the data set's own setting.

    Attributes:
        datasets: to train on; mnist to colon are the paper's.
        losses: the first is the baseline that the last one is compared with.
        alpha: weight of the loss beside Dice.
        relative: frame the images, so that structures that leave them are closed at the border.
        pictures: real pictures on which Dice, Betti numbers and Betti matching are compared; 0 leaves this part out.
        digits: settings of the digits alone; those that follow are for all other data sets.
        data: folder of the paper's data sets, or the file of the membranes; by default they are looked for under
            ``OFFPRINTS_DATA``.
        download: let torchvision fetch MNIST.
        train_images: the first ones of the data set.
        test_images: the last ones.
        channels: of the U-Net.
        patch: side of the crops, and of the windows in which whole images are predicted.
        patches_per_image: crops in each visit of an image.
        batch_size: images, on each device.
        epochs: visits of every image.
        control: train one more network with the first loss from other weights and crops: the negative control, what the
            claim measures without the method.
        warmup: share of the epochs, the first ones, with Dice alone.
        learning_rate: of Adam, constant.
        keep_best: report the network of the best Dice on the test images, as the paper does, else the last one.
        validate_every: epochs between two measurements of that Dice.
        fewer: share of the Betti matching error that the claim wants taken away.
    """

    datasets: tuple[DatasetName, ...] = ("digits",)
    losses: tuple[LossName, ...] = ("dice", "betti_matching")
    alpha: float = 0.06
    relative: bool = True
    pictures: int = 40
    digits: DigitSettings = field(default_factory=DigitSettings)
    data: Path | None = None
    download: bool = False
    train_images: int | None = None
    test_images: int | None = None
    channels: tuple[int, ...] | None = None
    patch: int = 48
    patches_per_image: int | None = None
    batch_size: int | None = None
    epochs: int | None = None
    control: bool = False
    warmup: float = 0.0
    learning_rate: float = 1e-3
    keep_best: bool = True
    validate_every: int = 1
    fewer: float = 0.0


def reproduce(config: Config, run: Run) -> None:
    """Carry out the parts that ``config`` asks for."""
    jobs: dict[str, Any] = {}
    if config.pictures:
        jobs["pictures"] = partial(judge_pictures, run.seed, config.pictures)
    if "digits" in config.datasets:
        branches: dict[str, Branch] = {loss: Branch(loss, config.alpha) for loss in config.losses}
        for i, seed in enumerate(run.seeds(config.digits.runs)):
            jobs[f"digits {i}"] = partial(
                compare_losses,
                seed,
                config.digits,
                branches=branches if i else branches | control_branches(config.alpha),
                relative=config.relative,
                device=str(run.device),
            )
    done = run.units(jobs)
    if config.pictures:
        report_pictures(done.pop("pictures"), run)
        report_ring(run)
    if done:
        report_digits(list(done.values()), config, run)
    for dataset in config.datasets:
        if dataset != "digits":
            train_on(dataset, config, run)


# ---- what Dice and Betti numbers cannot see --------------------------------------------------------------------------


def judge_pictures(seed: int, count: int) -> dict[str, Any]:
    """Scores of a right and a wrong prediction of each of ``count`` panels of real digits."""
    pairs = []
    for i, mask in enumerate(panels(digit_masks(), seed=seed)):
        pair = indistinguishable_pair(mask, seed=np.random.SeedSequence((seed, i)))
        if pair is not None:  # nearly always: four digits have something to cut and something to join
            pairs.append(pair)
        if len(pairs) == count:
            break
    return {kind: judge([getattr(pair, kind) for pair in pairs], [pair.mask for pair in pairs]) for kind in KINDS}


def judge(predictions: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """The scores ``[n]`` of boolean predictions ``[h, w]``, and the error of a matching by values alone."""
    p, t = (torch.from_numpy(np.stack(images)).unsqueeze(1).double() for images in (predictions, masks))
    by_value = wasserstein_loss(p, t, reduction="none").flatten()
    return image_scores(p, t, relative=False) | {"matched_by_value": by_value}


def report_pictures(judged: Mapping[str, Mapping[str, Tensor]], run: Run) -> None:
    """The paper's introductory figure, on every picture and on a retina."""
    right, wrong = judged["right"], judged["wrong"]
    count = len(right["dice"])
    alike = right["dice"] == wrong["dice"]
    alike &= (right["betti_number_error"] == 0) & (wrong["betti_number_error"] == 0)
    run.check(
        "indistinguishable",
        f"Two predictions made so that Dice and Betti numbers call them equal: share of {count} pictures of digits",
        float(alike.double().mean()),
        "==",
        1.0,
        paper_value="1 picture: Dice 0.92, Betti number error 0 for both",
    )
    run.check(
        "right_features",
        "The one with the right features differs by simple pixels, so its Betti matching error is zero: largest of all",
        float(right["betti_matching_error"].max()),
        "==",
        0.0,
        paper_value=0.0,
    )
    run.claim(
        "wrong_features",
        "The Betti matching error of the one with the wrong features is not: smallest of all pictures",
        float(wrong["betti_matching_error"].min()),
        ">=",
        2.0,
        paper_value=4.0,
        control=float(wrong["matched_by_value"].min()),
        control_name="bars matched by their values, not by their places",
    )
    run.table(
        f"Two predictions of {count} pictures of real digits (means)",
        [
            {"prediction": f"{kind} features"}
            | {label: judged[kind][name].mean() for name, label in figures.SCORES.items()}
            for kind in KINDS
        ],
    )
    picture, mask = retina_vessels()
    pair = indistinguishable_pair(mask, seed=run.seed)
    if pair is not None:
        figures.draw_pair(run, picture, pair, judge([pair.right, pair.wrong], [mask, mask]))


def broken_ring() -> tuple[Tensor, Tensor]:
    """A ring that is faint in two places and a whole one beside it, and the first ring alone, ``[1, 1, 32, 64]`` each.

    The loop that the target has and the one that the picture has lie at different places. Faint but brighter than the
    background: on a plateau there is no loop whose birth could be moved.
    """
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(64.0), indexing="ij")
    left, right = ((torch.hypot(y - 15.5, x - center) - 10).abs() <= 1.5 for center in (15.5, 47.5))
    gaps = left & ((y - 15.5).abs() <= 2)
    picture = torch.where(left | right, 0.9, 0.1).where(~gaps, 0.3)
    return picture[None, None], left[None, None]


def repair(
    picture: Tensor, target: Tensor, *, steps: int = 120, learning_rate: float = 0.05, loss: Loss = betti_matching_loss
) -> tuple[Tensor, list[float]]:
    """The picture after descent on its pixels, and its Betti matching error before every step and at the end."""
    pixels = picture.clone().requires_grad_()
    optimizer = torch.optim.Adam([pixels], lr=learning_rate)
    errors = [float(betti_matching_error(picture, target))]
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss(pixels, target).backward()
        optimizer.step()
        errors.append(float(betti_matching_error(pixels.detach(), target)))
    return pixels.detach(), errors


def report_ring(run: Run) -> None:
    """The gradient mends the ring that is broken and takes away the one that is in the wrong place."""
    picture, target = broken_ring()
    repaired, errors = repair(picture, target)
    _, by_value = repair(picture, target, loss=wasserstein_loss)
    run.claim(
        "ring",
        "Descent on the pixels mends a ring broken in two places, though a whole one lies beside it: Betti matching "
        f"error ({errors[0]:.0f} before)",
        errors[-1],
        "==",
        0.0,
        control=by_value[-1],
        control_name="bars matched by their values, not by their places",
    )
    figures.draw_ring(run, picture, repaired, errors)


# ---- training on digits ----------------------------------------------------------------------------------------------


def control_branches(alpha: float) -> dict[str, Branch]:
    """The negative controls, Dice alone on other batches and the paper's weight, and bars matched by their values."""
    return {
        "again": Branch("dice", 0.0, other_batches=True, watched=False),
        "heavy": Branch("betti_matching", PAPER_ALPHA, watched=False),
        "by_value": Branch("wasserstein", alpha, watched=False),
    }


def report_digits(results: Sequence[Mapping[str, Any]], config: Config, run: Run) -> None:
    """Claims, table and figures of the networks trained on digits."""
    losses = config.losses
    scores: Scores = {
        loss: {name: np.array([result["scores"][loss][name] for result in results]) for name in figures.SCORES}
        for loss in losses
    }
    controls = _digit_controls(results[0]["scores"], losses[0], run)
    _claim_training("digits", "held-out digits", scores, run, fewer=0.25, dice=0.01, **controls)
    predictions = sum(result["predictions"] for result in results)
    run.check(
        "upper_bound",
        f"The Betti number error is at most the Betti matching error: of {predictions} predictions it is more in",
        sum(result["exceeding"] for result in results),
        "==",
        0,
    )
    wrong = sum(result["wrong"] for result in results)
    run.report_value(
        "overlooked",
        f"Share of the {wrong} predictions with wrong features whose Betti number error is zero",
        sum(result["overlooked"] for result in results) / max(wrong, 1),
    )
    for i, result in enumerate(results):
        for loss in losses:
            for entry in result["history"][loss]:
                run.log(entry["step"], **{f"digits {i}/{loss}/{k}": v for k, v in entry.items() if k != "step"})
    figures.draw_curves(run, [result["history"] for result in results], losses)
    figures.draw_matching(run, results[0]["example"], (losses[0], losses[-1]))


def _digit_controls(scores: Mapping[str, Mapping[str, float]], baseline: str, run: Run) -> dict[str, tuple[float, str]]:
    """What the claims measure without the mechanism, on the first network: see `control_branches`."""
    errors = {name: values["betti_matching_error"] for name, values in scores.items()}
    shares = {name: 1 - errors[name] / max(errors[baseline], 1e-12) for name in ("again", "by_value")}
    run.report_value(
        "digits_by_value",
        "Bars matched by their values alone (Wasserstein) take this share of the error away, for the first network",
        shares["by_value"],
    )
    return {
        "errors_control": (shares["again"], "no topological term: Dice again, on other batches"),
        "dice_control": (scores["heavy"]["dice"] - scores[baseline]["dice"], f"the paper's weight, {PAPER_ALPHA}"),
    }


def _claim_training(
    name: str,
    what: str,
    scores: Scores,
    run: Run,
    *,
    fewer: float,
    dice: float,
    errors_control: tuple[float, str] | None = None,
    dice_control: tuple[float, str] | None = None,
) -> None:
    """What the last loss changes against the first, with a table and a figure of all; scores ``[networks]``."""
    labels = figures.LOSSES
    baseline, *_, ours = scores
    errors = {loss: values["betti_matching_error"] for loss, values in scores.items()}
    several = len(errors[ours]) > 1
    run.claim(
        f"{name}_errors",
        f"{labels[ours]} takes this share of the Betti matching error of {labels[baseline]} away, on {what}",
        1 - errors[ours].mean() / max(errors[baseline].mean(), 1e-12),
        ">=",
        fewer,
        spread=(errors[ours] / np.maximum(errors[baseline], 1e-12)).std() if several else None,
        control=errors_control and errors_control[0],
        control_name=errors_control and errors_control[1],
    )
    gains = scores[ours]["dice"] - scores[baseline]["dice"]
    run.claim(
        f"{name}_dice",
        "and leaves the Dice score as it is: the difference",
        gains.mean(),
        ">=",
        -dice,
        spread=gains.std() if several else None,
        control=dice_control and dice_control[0],
        control_name=dice_control and dice_control[1],
    )
    run.table(
        f"Scores on {what}" + (f", means of {len(errors[ours])} networks" if several else ""),
        [
            {"loss": labels[loss], "reference": loss != ours}
            | {label: values[name].mean() for name, label in figures.SCORES.items()}
            for loss, values in scores.items()
        ],
    )
    figures.draw_errors(run, name, what, scores)


# ---- training on membranes and on the paper's data sets --------------------------------------------------------------


def train_on(dataset: DatasetName, config: Config, run: Run) -> None:
    """One network per loss on crops of a data set, scored on its held-out images."""
    settings = MEMBRANE if dataset == "membrane" else PAPER_DATASETS[dataset]
    training, held_out = load(dataset, config, run)
    epochs = config.epochs or settings.epochs

    def result(loss: LossName, key: str, seed: int) -> dict[str, Any]:
        recipe = Recipe(
            loss=loss,
            seed=seed,
            alpha=config.alpha,
            relative=config.relative,
            in_channels=settings.in_channels,
            channels=config.channels or settings.channels,
            patch=config.patch,
            patches_per_image=config.patches_per_image or settings.patches_per_image,
            batch_size=config.batch_size or settings.batch_size,
            epochs=epochs,
            warmup_epochs=round(config.warmup * epochs),
            learning_rate=config.learning_rate,
            keep_best=config.keep_best,
            validate_every=config.validate_every,
        )
        return run.part(key).once(partial(train, recipe, training, held_out))

    results = {loss: result(loss, f"{dataset}/{loss}", run.seed) for loss in config.losses}
    scores: Scores = {
        loss: {name: np.array([value]) for name, value in result["scores"].items()} for loss, result in results.items()
    }
    control = None
    if config.control:
        other = result(config.losses[0], f"{dataset}/control", run.seeds(1)[0])["scores"]["betti_matching_error"]
        first = results[config.losses[0]]["scores"]["betti_matching_error"]
        control = 1 - other / max(first, 1e-12), f"{figures.LOSSES[config.losses[0]]} again, from other weights"
    what = f"{len(held_out.images)} held-out images of {dataset}"
    _claim_training(dataset, what, scores, run, fewer=config.fewer, dice=0.02, errors_control=control)
    figures.draw_segmentations(run, dataset, held_out, {loss: result["example"] for loss, result in results.items()})


def load(dataset: DatasetName, config: Config, run: Run) -> tuple[Samples, Samples]:
    """Images to train on and held-out ones."""
    if dataset == "membrane":
        return membrane_stack(
            config.data,
            train_images=config.train_images or MEMBRANE.train_images,
            test_images=config.test_images or MEMBRANE.test_images,
        )
    return paper_dataset(
        dataset,
        root=config.data,
        train_images=config.train_images,
        test_images=config.test_images,
        seed=run.seed,
        download=config.download,
    )


PRESETS = {
    "smoke": Config(
        losses=("dice", "cldice", "betti_matching"),
        pictures=2,
        digits=DigitSettings(
            runs=1, test_images=32, train_images=64, warmup_steps=4, steps=4, evaluations=2, channels=(4, 8)
        ),
    ),
    "quick": Config(digits=DigitSettings(runs=2)),
    "medium": Config(
        datasets=("membrane",),
        pictures=0,
        alpha=0.05,
        patch=96,
        epochs=60,
        control=True,
        fewer=0.05,
        warmup=0.5,
        keep_best=False,
        validate_every=20,
    ),
    "paper": Config(
        datasets=("mnist", "cremi", "roads", "buildings", "elegans", "colon"),
        losses=("dice", "cldice", "wasserstein", "betti_matching"),
        alpha=PAPER_ALPHA,
    ),
}

experiment = Experiment(
    name="betti-matching",
    title="Topologically faithful image segmentation via induced matching of persistence barcodes",
    arxiv="2211.15272",
    config=Config,
    presets=PRESETS,
    function=reproduce,
)

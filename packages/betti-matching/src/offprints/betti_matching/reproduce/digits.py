"""The training effect in small: networks that redraw the lines of slashed digits, with Dice and with Betti matching."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from offprints.betti_matching.losses import dice_loss
from offprints.betti_matching.matching import betti_numbers
from offprints.betti_matching.metrics import betti_matching_error
from offprints.betti_matching.reproduce.data import corrupt, digit_lines
from offprints.betti_matching.reproduce.networks import UNet
from offprints.betti_matching.reproduce.training import LossName, image_scores, training_loss
from offprints.shared.device import make_generator


@dataclass(frozen=True)
class DigitSettings:
    """The digits' task, network and training.

    Attributes:
        runs: networks per loss, each with its own split, slashes and initial weights.
        test_images: held out of the 1797.
        train_images: of the rest; all by default.
        cuts: slashes per image, at most.
        cut_length, cut_width: of a slash, in pixels (width: mean).
        blur: standard deviation in pixels.
        noise: standard deviation; a line has intensity 1.
        channels: of the U-Net.
        batch_size: images.
        warmup_steps: with Dice, shared by all losses.
        steps: with each loss, from there.
        learning_rate: of the warm-up.
        final_learning_rate: at the start of the second part, in which it falls linearly to zero.
        evaluations: of the held-out error during the second part.
    """

    runs: int = 4
    test_images: int = 500
    train_images: int | None = None
    cuts: int = 2
    cut_length: float = 16.0
    cut_width: float = 5.0
    blur: float = 1.0
    noise: float = 0.1
    channels: tuple[int, ...] = (8, 16, 32)
    batch_size: int = 16
    warmup_steps: int = 250
    steps: int = 200
    learning_rate: float = 5e-3
    final_learning_rate: float = 2e-3
    evaluations: int = 4


class Branch(NamedTuple):
    """How training goes on after the common beginning: a loss beside Dice, its weight, and whether on other batches.

    The error of a branch that is not `watched` is measured at the end alone.
    """

    loss: LossName
    alpha: float
    other_batches: bool = False
    watched: bool = True


def compare_losses(
    seed: int, settings: DigitSettings, *, branches: Mapping[str, Branch], relative: bool, device: str
) -> dict[str, Any]:
    """Train one network with Dice, go on from it with each loss on the same batches, and score them on held-out digits.

    The first branch is the baseline, with which that named ``"betti_matching"`` is compared.

    Returns scores and history by branch; how many predictions have wrong features, and of how many of these the Betti
    number error is zero; and one held-out digit, of those that the last loss improves most over the first.
    """
    torch.manual_seed(seed)
    chosen, held_out = train_test_split(range(1797), test_size=settings.test_images, random_state=seed)
    training, target = digit_lines(chosen[: settings.train_images]), digit_lines(held_out)
    look: dict[str, Any] = {
        "cuts": settings.cuts,
        "cut_length": settings.cut_length,
        "cut_width": settings.cut_width,
        "blur": settings.blur,
        "noise": settings.noise,
    }
    seen = corrupt(target, **look, generator=make_generator(2 * seed + 1))

    model = UNet(1, 1, channels=settings.channels, strides=(2,) * (len(settings.channels) - 1)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    generator = make_generator(2 * seed)

    def fit(branch: Branch, steps: int) -> None:
        loss = training_loss(branch.loss, alpha=branch.alpha, relative=relative)
        for _ in range(steps):
            masks = training[torch.randint(len(training), (settings.batch_size,), generator=generator)]
            images = corrupt(masks, **look, generator=generator)
            optimizer.zero_grad(set_to_none=True)
            loss(model(images.to(device)), masks.to(device)).backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()

    def predict() -> Tensor:
        with torch.no_grad():
            return torch.cat([model(batch.to(device)).sigmoid().cpu() for batch in seen.split(64)])

    def evaluate() -> dict[str, float]:
        p = predict()
        error = betti_matching_error(p, target, relative=relative)
        return {"betti_matching_error": float(error), "dice": 1 - float(dice_loss((p >= 0.5).float(), target))}

    schedule: torch.optim.lr_scheduler.LRScheduler | None = None
    fit(Branch("dice", 0.0), settings.warmup_steps)
    common = copy.deepcopy((model.state_dict(), optimizer.state_dict())), generator.get_state()
    before = evaluate()

    result: dict[str, Any] = {
        "scores": {},
        "history": {},
        "predictions": 0,
        "exceeding": 0,
        "wrong": 0,
        "overlooked": 0,
    }
    probabilities: dict[str, Tensor] = {}
    errors: dict[str, Tensor] = {}
    for name, branch in branches.items():
        (weights, moments), drawn = common
        model.load_state_dict(weights)
        optimizer.load_state_dict(copy.deepcopy(moments))
        generator.set_state(make_generator(2 * seed + 1_000_003).get_state() if branch.other_batches else drawn)
        for group in optimizer.param_groups:
            group["lr"] = settings.final_learning_rate
        schedule = torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=1.0, end_factor=0.0, total_iters=settings.steps
        )
        history = [{"step": settings.warmup_steps, **before}]
        parts = settings.evaluations if branch.watched else 1
        for start, end in pairwise(settings.steps * part // parts for part in range(parts + 1)):
            fit(branch, end - start)
            if end < settings.steps:
                history.append({"step": settings.warmup_steps + end, **evaluate()})
        probabilities[name] = predict()
        scores = image_scores(probabilities[name], target, relative=relative)
        means = {key: float(values.mean()) for key, values in scores.items()}
        result["scores"][name] = means
        history.append({"step": settings.warmup_steps + settings.steps, **{key: means[key] for key in before}})
        result["history"][name] = history
        errors[name], number = scores["betti_matching_error"], scores["betti_number_error"]
        result["predictions"] += len(number)
        result["exceeding"] += int((number > errors[name]).sum())
        result["wrong"] += int((errors[name] > 0).sum())
        result["overlooked"] += int(((errors[name] > 0) & (number == 0)).sum())

    looped = torch.tensor([bool(betti_numbers(mask[0])[1]) for mask in target])
    baseline, *_ = errors
    example = int((errors[baseline] - errors.get("betti_matching", errors[baseline]) + looped).argmax())
    result["example"] = {"image": seen[example, 0], "mask": target[example, 0]}
    result["example"] |= {name: p[example, 0] for name, p in probabilities.items()}
    return result

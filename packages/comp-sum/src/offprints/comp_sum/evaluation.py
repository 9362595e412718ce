"""How often a classifier stays right under attack: by projected gradient descent, and by AutoAttack."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from offprints.comp_sum._models import Model, check_inputs, check_model, scores, undisturbed
from offprints.comp_sum.attacks import Ascent, Norm, ascend, check_generator
from offprints.shared.device import local_seed
from offprints.shared.extras import require
from offprints.shared.validation import check_choice, check_labels, check_number

DEFAULTS: dict[str, Any] = {"objective": "ce", "norm": "linf", "random_start": "uniform", "clip": (0.0, 1.0)}


def robust_accuracy(
    model: Model,
    x: Float[Tensor, "batch *shape"],
    target: Int[Tensor, " batch"],
    *,
    eps: float,
    step_size: float,
    steps: int = 40,
    restarts: int = 1,
    batch_size: int = 1024,
    **kwargs: Any,
) -> tuple[float, float]:
    """Measure the share of inputs that a model gets right, and that it gets right under attack.

    An input counts as robust when the model is right on it and at every point of every restart of `pgd_attack`. What it
    got wrong once is not attacked further, so that weak models take a fraction of the time. Of an attack without a
    random start every restart would be the same, so that there is one.

    Args:
        model: A module or function that gives scores ``[B, C]``; modes and gradients stay as they are.
        x: Inputs ``[N, ...]``.
        target: Labels ``[N]`` of any integer type.
        eps: Radius of the ball, at least 0.
        step_size: Length of a step, positive.
        steps: Steps of each attack.
        restarts: Attacks of each input, at least 1.
        batch_size: Inputs at a time.
        kwargs: `objective`, `norm`, `random_start`, `clip` and `generator` of `pgd_attack`.

    Returns:
        Clean and robust accuracy, in [0, 1].

    Raises:
        TypeError: as `pgd_attack`; an unknown keyword.
        ValueError: as `pgd_attack`; `restarts` or `batch_size` below 1.

    Example:
        >>> x = torch.tensor([[0.4, 0.6], [0.2, 0.8]])
        >>> def model(x):
        ...     return 10 * x
        >>> robust_accuracy(model, x, torch.tensor([1, 1]), eps=0.15, step_size=0.05, steps=10)
        (1.0, 0.5)
    """
    check_model(model)
    restarts = check_number(restarts, "restarts", low=1, integer=True)
    batch_size = check_number(batch_size, "batch_size", low=1, integer=True)
    generator = kwargs.pop("generator", None)
    check_generator(generator)
    if unknown := sorted(kwargs.keys() - DEFAULTS.keys()):
        raise TypeError(
            f"{unknown[0]} is not an argument of robust_accuracy; also {', '.join(DEFAULTS)}, generator are"
        )
    settings = Ascent.checked(eps=eps, step_size=step_size, steps=steps, **(DEFAULTS | kwargs))
    labels = check_inputs(x, target, settings.clip)
    right = robust = 0
    for part, label in zip(x.split(batch_size), labels.split(batch_size), strict=True):
        kept = _right(model, part, label)
        right += int(kept.sum())
        for _ in range(restarts if settings.random_start is not None else 1):
            part, label = part[kept], label[kept]
            if len(part) == 0:
                break
            _, kept = ascend(model, part, label, settings, generator=generator, stop_when_fooled=True)
        robust += int(kept.sum())
    return right / len(x), robust / len(x)


def _right(model: Model, x: Tensor, labels: Tensor) -> Tensor:
    """Whether the model gives the labels."""
    with undisturbed(model) as network, torch.no_grad():
        z = scores(network, x.clone())
    check_labels(labels, "target", num_classes=z.shape[1])
    return z.argmax(1) == labels


def autoattack_accuracy(
    model: Model,
    x: Float[Tensor, "batch *shape"],
    target: Int[Tensor, " batch"],
    *,
    eps: float,
    norm: Norm = "linf",
    batch_size: int = 128,
    seed: int = 0,
) -> float:
    """Measure the robust accuracy under AutoAttack's standard version, the evaluation that papers compare by.

    It is the official code (Croce and Hein 2020), in the package pyautoattack: APGD on cross-entropy, targeted APGD and
    targeted FAB with 9 target classes, and the Square attack with 5000 queries. With fewer than 10 classes all others
    are targets; with 2 or 3, for which its targeted losses are not defined, APGD on cross-entropy, FAB and Square run.

    Args:
        model: A module or function that gives scores ``[B, C]``; modes and gradients stay as they are.
        x: Inputs ``[N, ...]`` in [0, 1]; the attacks compute in float32.
        target: Labels ``[N]`` of any integer type.
        eps: Radius of the ball, positive.
        norm: `"linf"` or `"l2"`.
        batch_size: Inputs at a time.
        seed: Of the attacks' draws; torch's global streams are as before afterwards.

    Returns:
        The share of inputs in [0, 1] that the model gets right on x and after every attack.

    Raises:
        MissingExtra: pyautoattack is not installed (extra `autoattack`).
        TypeError: as `pgd_attack`.
        ValueError: as `pgd_attack`; `eps` is 0, `batch_size` below 1.

    Example:
        >>> def model(x):
        ...     return 10 * x.flatten(1)
        >>> x = torch.tensor([[0.4, 0.6], [0.2, 0.8]]).reshape(2, 1, 1, 2)
        >>> autoattack_accuracy(model, x, torch.tensor([1, 1]), eps=0.15)
        0.5
    """
    check_model(model)
    eps = check_number(eps, "eps", low=0, open_low=True)
    check_choice(norm, "norm", ("linf", "l2"))
    batch_size = check_number(batch_size, "batch_size", low=1, integer=True)
    seed = check_number(seed, "seed", low=0, high=2**32 - 1, integer=True)
    labels = check_inputs(x, target, (0.0, 1.0))
    official = require("pyautoattack", package="comp-sum", extra="autoattack")
    images, size = _as_pictures(x.detach().float().clamp(0, 1)), x[0].numel()

    def inputs(given: Tensor) -> Tensor:
        return given.flatten(1)[:, :size].reshape(len(given), *x.shape[1:]).to(x.dtype, copy=True)

    tracer = sys.gettrace()  # which its look for defenses that change would leave off
    try:
        with undisturbed(model) as quiet, local_seed(seed):

            def network(given: Tensor) -> Tensor:
                return scores(quiet, inputs(given)).float()

            with torch.no_grad():
                classes = network(images[:1]).shape[1]
            check_labels(labels, "target", num_classes=classes)
            attacks = None if classes > 3 else ["apgd-ce", "fab", "square"]
            adversary = official.AutoAttack(
                network,
                norm={"linf": "Linf", "l2": "L2"}[norm],
                eps=eps,
                seed=seed,
                device=x.device,
                version="standard" if attacks is None else "custom",
                **({} if attacks is None else {"attacks": attacks}),
            )
            adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = min(9, classes - 1)
            adversary.apgd.n_restarts = adversary.fab.n_restarts = 1
            found, _ = adversary.run_standard_evaluation(images, labels, batch_size=batch_size)
    finally:
        sys.settrace(tracer)
    return float(_all_right(model, x, inputs(found), labels, batch_size))


def _as_pictures(x: Tensor) -> Tensor:
    """Inputs ``[N, C, H, W]`` of at least 5 x 5, since one attack draws squares; others are laid out and padded."""
    if x.ndim == 4 and min(x.shape[2:]) >= 5:
        return x
    flat = x.flatten(1)
    side = max(5, math.ceil(math.sqrt(flat.shape[1])))
    return F.pad(flat, (0, side * side - flat.shape[1])).reshape(len(x), 1, side, side)


def _all_right(model: Model, x: Tensor, found: Tensor, labels: Tensor, batch_size: int) -> float:
    """Share of inputs whose label the model gives at both points."""
    parts = zip(*(tensor.split(batch_size) for tensor in (x, found, labels)), strict=True)
    kept = [_right(model, part, label) & _right(model, at, label) for part, at, label in parts]
    return torch.cat(kept).double().mean().item()

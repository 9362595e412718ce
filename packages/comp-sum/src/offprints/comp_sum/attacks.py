"""Projected gradient descent on the inputs: the inner maximization of adversarial training, and its evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from offprints.comp_sum._models import Model, check_inputs, check_model, scores, undisturbed
from offprints.comp_sum._rows import row_norms
from offprints.shared.device import working_dtype
from offprints.shared.validation import check_choice, check_labels, check_number, check_same_shape, check_tensor

Objective = Literal["ce", "kl", "delta", "dlr"]
Norm = Literal["linf", "l2"]
RandomStart = Literal["uniform", "gaussian"]

GAUSSIAN_SCALE = 0.001


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """Settings of the ascent, checked once."""

    eps: float
    step_size: float
    steps: int
    objective: Objective = "ce"
    norm: Norm = "linf"
    random_start: RandomStart | None = "uniform"
    clip: tuple[float, float] | None = (0.0, 1.0)

    @classmethod
    def checked(cls, **given: Any) -> Ascent:
        """Settings from the arguments of a public function.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind or out of its range.
        """
        eps = check_number(given["eps"], "eps", low=0)
        steps = check_number(given["steps"], "steps", low=0, integer=True)
        step_size = check_number(given["step_size"], "step_size", low=0, open_low=steps > 0)
        check_choice(given["objective"], "objective", ("ce", "kl", "delta", "dlr"))
        check_choice(given["norm"], "norm", ("linf", "l2"))
        check_choice(given["random_start"], "random_start", ("uniform", "gaussian", None))
        numbers: dict[str, Any] = {
            "eps": eps,
            "steps": steps,
            "step_size": step_size,
            "clip": _checked_box(given["clip"]),
        }
        return cls(**{name: given[name] for name in ("objective", "norm", "random_start")}, **numbers)

    def region(self, x: Tensor) -> tuple[Tensor, ...]:
        """What `project` needs to know of x, row by row: the bounds of ball and box, or the ball's center."""
        if self.norm == "l2":
            return (x,)
        low, high = x - self.eps, x + self.eps
        return (low, high) if self.clip is None else (low.clamp_(min=self.clip[0]), high.clamp_(max=self.clip[1]))

    def project(self, x_adv: Tensor, region: tuple[Tensor, ...]) -> Tensor:
        """Into the ball, then into the box; in place. The ball's center lies in the box."""
        if self.norm == "linf":
            return torch.clamp(x_adv, *region, out=x_adv)
        (x,) = region
        moved = x_adv - x
        length = row_norms(moved.flatten(1))
        factor = torch.where(length > self.eps, self.eps / torch.where(length > 0, length, 1), 1)
        torch.add(x, moved.mul_(_per_sample(factor, x)), out=x_adv)
        return x_adv if self.clip is None else x_adv.clamp_(*self.clip)

    def climb(self, x_adv: Tensor, gradient: Tensor) -> None:
        """One step along the gradient, in place."""
        if self.norm == "linf":
            x_adv.add_(gradient.sign(), alpha=self.step_size)
        else:
            # Where a gradient is far below 1, its square would vanish.
            largest = gradient.flatten(1).abs().amax(1)
            unit = gradient / _per_sample(torch.where(largest > 0, largest, 1), gradient)
            length = row_norms(unit.flatten(1))
            x_adv.add_(unit / _per_sample(torch.where(length > 0, length, 1), unit), alpha=self.step_size)

    def start(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Where the ascent begins: x, a point of the ball drawn at random, or x and a little noise."""
        if self.random_start is None:
            return x.clone()
        device = x.device if generator is None else generator.device
        draw: dict[str, Any] = {"generator": generator, "dtype": x.dtype, "device": device}
        if self.random_start == "gaussian":
            return x + GAUSSIAN_SCALE * torch.randn(x.shape, **draw).to(x.device)
        if self.norm == "linf":
            return self.project(x + self.eps * (2 * torch.rand(x.shape, **draw) - 1).to(x.device), self.region(x))
        noise = torch.randn(x.shape, **draw).to(x.device)
        radius = self.eps * torch.rand(len(x), **draw).to(x.device) ** (1 / x[0].numel())
        return self.project(x + noise * _per_sample(radius / row_norms(noise.flatten(1)), x), self.region(x))


def _checked_box(clip: Any) -> tuple[float, float] | None:
    if clip is None:
        return None
    if not isinstance(clip, tuple | list) or len(clip) != 2:
        raise TypeError(f"clip must be None or two numbers, got {clip!r}")
    low, high = (check_number(bound, "clip") for bound in clip)
    if low >= high:
        raise ValueError(f"clip must be a smaller and a larger number, got {clip!r}")
    return float(low), float(high)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _dlr(z: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio: how far the label is behind, by the distance of the first from the third."""
    ordered, at = z.sort(1)
    own = z.gather(1, labels.unsqueeze(1)).squeeze(1)
    best = torch.where(at[:, -1] == labels, ordered[:, -2], ordered[:, -1])
    return (best - own) / (ordered[:, -1] - ordered[:, -3] + 1e-12)


def rise(objective: Objective, labels: Tensor, clean: Tensor | None) -> Callable[[Tensor], Tensor]:
    """What is to be maximized, summed over the batch, as a function of the scores at x'."""
    label = labels.unsqueeze(1)
    if objective == "ce":
        # The label's odds against the others, of which cross-entropy is log(1 + 1 / odds): the same direction for every
        # sample, and a gradient that no margin makes vanish.
        return lambda z: (z.scatter(1, label, -torch.inf).logsumexp(1) - z.gather(1, label).squeeze(1)).sum()
    if objective == "dlr":
        return lambda z: _dlr(z, labels).sum()
    if clean is None:
        raise AssertionError("the scores at x are part of this objective")
    if objective == "kl":
        shares = torch.softmax(clean, 1)
        return lambda z: F.kl_div(F.log_softmax(z, 1), shares, reduction="sum")

    def moved(z: Tensor) -> Tensor:
        shift = z - clean
        return row_norms(shift.gather(1, label) - shift).sum()

    return moved


def ascend(
    model: Model,
    x: Tensor,
    labels: Tensor,
    settings: Ascent,
    *,
    x_init: Tensor | None = None,
    generator: torch.Generator | None = None,
    stop_when_fooled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Adversarial inputs, and ``[B]`` whether the model still gives the labels.

    With `stop_when_fooled` an input that the model gets wrong on the way is left where it is, and not computed again;
    without, the second result is all True.
    """
    compute = working_dtype(x)
    with undisturbed(model) as network:
        # Copies made here can be part of a graph, also where what came in was made in inference mode.
        center, labels = x.detach().clone().to(compute), labels.clone()
        x_adv = settings.start(center, generator) if x_init is None else x_init.detach().clone().to(compute)
        region, clean = settings.region(center), None
        if settings.objective in ("kl", "delta") or settings.steps == 0:
            with torch.no_grad():
                clean = scores(network, center.to(x.dtype, copy=True))
            check_classes(clean, labels, settings)
        found, right = x_adv.clone(), torch.ones(len(x), dtype=torch.bool, device=x.device)
        where = torch.arange(len(x), device=x.device)  # of those still in the running
        for step in range(settings.steps):
            point = x_adv.to(x.dtype).detach().requires_grad_()
            z = scores(network, point.clone())  # which a model may change in place
            if step == 0 and clean is None:
                check_classes(z, labels, settings)
            gradient = slope(rise(settings.objective, labels, clean)(z), point)
            gradient = gradient.to(compute)
            if stop_when_fooled and not bool((left := z.detach().argmax(1) == labels).all()):
                found[where], right[where] = x_adv, left
                where, x_adv, labels, gradient = (t[left] for t in (where, x_adv, labels, gradient))
                region = tuple(t[left] for t in region)
                clean = None if clean is None else clean[left]
                if len(where) == 0:
                    break
            settings.climb(x_adv, gradient)
            settings.project(x_adv, region)
        if len(where):
            found[where] = x_adv if settings.steps else settings.project(x_adv, region)
            if stop_when_fooled:
                with torch.no_grad():
                    right[where] = scores(network, x_adv.to(x.dtype, copy=True)).argmax(1) == labels
    return found.to(x.dtype), right


def slope(value: Tensor, point: Tensor) -> Tensor:
    """The gradient of what is maximized, which the model must not have cut off."""
    found = torch.autograd.grad(value, point, allow_unused=True)[0] if value.requires_grad else None
    if found is None:
        raise ValueError("model must be differentiable in its inputs, got scores without a graph to them")
    return found


def check_classes(z: Tensor, labels: Tensor, settings: Ascent) -> None:
    """Refuse labels that are no class of the scores, and an objective that needs more classes."""
    check_labels(labels, "target", num_classes=z.shape[1])
    if settings.objective == "dlr" and z.shape[1] < 3:
        raise ValueError(f"objective 'dlr' needs scores of at least 3 classes, got {z.shape[1]}")


def check_init(x_init: Tensor | None, x: Tensor) -> None:
    """Refuse a start of another shape or with numbers that are not finite."""
    if x_init is not None:
        check_tensor(x_init, "x_init")
        check_same_shape(x_init, x, ("x_init", "x"))


def check_generator(generator: Any) -> None:
    """Refuse what is not a generator."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")


def pgd_attack(
    model: Model,
    x: Float[Tensor, "batch *shape"],
    target: Int[Tensor, " batch"],
    *,
    eps: float,
    step_size: float,
    steps: int,
    objective: Objective = "ce",
    norm: Norm = "linf",
    x_init: Float[Tensor, "batch *shape"] | None = None,
    random_start: RandomStart | None = "uniform",
    clip: tuple[float, float] | None = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch *shape"]:
    """Search inputs near `x` that a model gets wrong, by projected gradient ascent.

    Each of the `steps` climbs by `step_size` along the gradient's sign (`"linf"`) or direction (`"l2"`), then goes back
    into the ball of radius `eps` around `x` and into the box `clip`. The model runs in evaluation mode and has every
    mode and flag back afterwards, also after an error; the `.grad` of no parameter is touched. Buffers that change in
    evaluation mode are the model's own affair. Half-typed inputs are moved in float32 and rounded at the end.

    Args:
        model: A module or function that gives scores ``[B, C]`` for inputs; a single sample must not depend on others.
            Of a function's networks the modes are the caller's affair.
        x: Inputs ``[B, ...]`` in the box.
        target: Labels ``[B]`` of any integer type.
        eps: Radius of the ball, at least 0.
        step_size: Length of a step, positive.
        steps: Number of steps, at least 0.
        objective: What is maximized: `"ce"` cross-entropy (by way of the label's log-odds, which have its direction and
            a gradient at every margin), `"kl"` the divergence from the scores at x (TRADES),
            `"delta"` the norm by which the margins move (the supremum in the paper's smooth loss; its gradient at x is
            0, start at random), `"dlr"` the difference of logits ratio, for three classes or more.
        norm: The ball's norm, `"linf"` or `"l2"`.
        x_init: Where to start, as it is; `random_start` is not used then.
        random_start: `"uniform"` in the ball, `"gaussian"` x + 0.001 N(0, 1), or None for x itself.
        clip: The box; None for none.
        generator: Draws the start, on its own device; None for torch's global one.

    Returns:
        Inputs of the shape and type of `x`, in the ball and the box up to rounding, without a graph.

    Raises:
        TypeError: an argument is of the wrong kind, or the model returns no floating tensor.
        ValueError: a number or choice out of range, shapes that do not fit, an empty batch, `x` not finite or more
            than 1e-6 outside of `clip`, a label out of range, scores of the model of another shape or not finite.

    Example:
        >>> model = torch.nn.Linear(2, 3)
        >>> x, target = torch.rand(4, 2), torch.tensor([0, 1, 2, 0])
        >>> x_adv = pgd_attack(model, x, target, eps=0.1, step_size=0.05, steps=5)
        >>> bool(((x_adv - x).abs() <= 0.1 + 1e-6).all())
        True
    """
    check_model(model)
    settings = Ascent.checked(
        eps=eps, step_size=step_size, steps=steps, objective=objective, norm=norm, random_start=random_start, clip=clip
    )
    labels = check_inputs(x, target, settings.clip)
    check_init(x_init, x)
    check_generator(generator)
    return ascend(model, x, labels, settings, x_init=x_init, generator=generator)[0]

"""The two updates without gradient: the averaged teacher (eq. 2) and stochastic restoration (eqs. 7 and 8)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from offprints.shared.validation import check_number, check_same_length, check_same_shape

SPARSE = 0.1  # below this probability positions are drawn on a CPU, not a number per element


def _check_pairs(left: Sequence[Tensor], right: Sequence[Tensor], names: tuple[str, str]) -> None:
    check_same_length(left, right, names)
    for i, (a, b) in enumerate(zip(left, right, strict=True)):
        check_same_shape(a, b, (f"{names[0]}[{i}]", f"{names[1]}[{i}]"))


@torch.no_grad()
def ema_update_(teacher: Sequence[Tensor], student: Sequence[Tensor], decay: float) -> None:
    """Move the teacher's tensors towards the student's, in place: decay * teacher + (1 - decay) * student.

    A tensor that occurs twice (tied weights) is moved once. At ``decay`` 1 nothing changes, at 0 the student is copied.

    Args:
        teacher: Tensors that change.
        student: As many, of the same shapes.
        decay: The paper's alpha, in [0, 1].

    Raises:
        ValueError: different lengths or shapes, or ``decay`` outside [0, 1].
    """
    check_number(decay, "decay", low=0, high=1)
    _check_pairs(teacher, student, ("teacher", "student"))
    pairs = {id(t): (t, s) for t, s in zip(teacher, student, strict=True)}
    if decay == 1 or not pairs:
        return
    targets, sources = zip(*pairs.values(), strict=True)
    torch._foreach_lerp_(list(targets), list(sources), 1 - decay)


@torch.no_grad()
def stochastic_restore_(
    parameters: Sequence[Tensor],
    source: Sequence[Tensor],
    probability: float,
    *,
    generator: torch.Generator | None = None,
    masks: Sequence[Bool[Tensor, "..."]] | None = None,
) -> None:
    """Give each element its source value back with a probability, independently, in place.

    A tensor that occurs twice is restored once.

    Args:
        parameters: Tensors that change.
        source: Their source values.
        probability: The paper's p, in [0, 1].
        generator: On the device of the parameters, or on the CPU; default: torch's global one.
        masks: True where an element is restored, in place of the draw.

    Raises:
        TypeError: masks that are not boolean.
        ValueError: different lengths or shapes, or ``probability`` outside [0, 1].
    """
    check_number(probability, "probability", low=0, high=1)
    _check_pairs(parameters, source, ("parameters", "source"))
    if masks is not None:
        _check_pairs(parameters, masks, ("parameters", "masks"))
        for i, mask in enumerate(masks):
            if mask.dtype != torch.bool:
                raise TypeError(f"masks[{i}] must be boolean, got {mask.dtype}")
        for parameter, original, mask in zip(parameters, source, masks, strict=True):
            parameter.copy_(torch.where(mask, original, parameter))
        return
    pairs = {id(p): (p, s) for p, s in zip(parameters, source, strict=True)}
    if probability == 0 or not pairs:
        return
    current, originals = map(list, zip(*pairs.values(), strict=True))
    if probability == 1:
        torch._foreach_copy_(current, originals)
    elif probability < SPARSE and all(p.device.type == "cpu" for p in current):
        _restore_positions_(current, originals, probability, generator)
    else:
        _restore_dense_(current, originals, probability, generator)


def _restore_dense_(
    current: list[Tensor], originals: list[Tensor], probability: float, generator: torch.Generator | None
) -> None:
    """One number per element, drawn at once; nothing visits the host."""
    sizes = [parameter.numel() for parameter in current]
    device = current[0].device if generator is None else generator.device
    chosen = torch.rand(sum(sizes), generator=generator, device=device) < probability
    for parameter, original, mask in zip(current, originals, chosen.split(sizes), strict=True):
        parameter.copy_(torch.where(mask.view(parameter.shape).to(parameter.device), original, parameter))


def _restore_positions_(
    current: list[Tensor], originals: list[Tensor], probability: float, generator: torch.Generator | None
) -> None:
    """Positions alone: their number is a small share of the elements."""
    sizes = torch.tensor([parameter.numel() for parameter in current])
    ends = sizes.cumsum(0)
    positions = bernoulli_positions(int(ends[-1]), probability, generator)
    counts = torch.searchsorted(positions, torch.cat([torch.zeros_like(ends[:1]), ends])).diff()
    starts = (ends - sizes).tolist()
    for parameter, original, chosen, start in zip(
        current, originals, positions.split(counts.tolist()), starts, strict=True
    ):
        if len(chosen) == 0:
            continue
        chosen = chosen - start
        if parameter.is_contiguous() and original.is_contiguous():
            parameter.view(-1).index_copy_(0, chosen, original.view(-1)[chosen])
        else:
            mask = torch.zeros(parameter.shape, dtype=torch.bool)
            mask.view(-1)[chosen] = True
            parameter.copy_(torch.where(mask, original, parameter))


def bernoulli_positions(
    count: int, probability: float, generator: torch.Generator | None = None
) -> Int[Tensor, " chosen"]:
    """Sorted positions of the successes among independent trials, from their gaps, which are geometric."""
    found: list[Tensor] = []
    last, expected = -1, count * probability
    device = "cpu" if generator is None else generator.device
    while last < count - 1:
        draws = math.ceil(expected + 6 * math.sqrt(expected) + 8)  # nearly always enough at once
        uniform = torch.rand(draws, generator=generator, dtype=torch.float64, device=device).cpu()
        gaps = torch.log1p(-uniform).div_(math.log1p(-probability)).floor_().add_(1)
        positions = gaps.cumsum_(0).add_(last).clamp_(max=count).long()
        last = int(positions[-1])
        expected = max(count - 1 - last, 0) * probability
        found.append(positions)
    positions = torch.cat(found)
    return positions[positions < count]

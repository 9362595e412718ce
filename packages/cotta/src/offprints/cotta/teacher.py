"""The two updates without gradient: the averaged teacher (eq. 2) and stochastic restoration (eqs. 7 and 8)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from offprints.shared.validation import check_number, check_same_length, check_same_shape

SPARSE = 0.1  # below this probability positions are drawn on a CPU, not a number per element
HALVES = (torch.float16, torch.bfloat16)


def _tensors(values: Iterable[Tensor], name: str) -> list[Tensor]:
    """A list of floating tensors, from any iterable but a tensor, whose rows would be copies of nothing."""
    if isinstance(values, Tensor) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of tensors, got {type(values).__name__}")
    found = list(values)
    for i, value in enumerate(found):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}[{i}] must be a torch.Tensor, got {type(value).__name__}")
    return found


def _pairs(
    left: Iterable[Tensor], right: Iterable[Tensor], names: tuple[str, str]
) -> tuple[list[Tensor], list[Tensor]]:
    """Two lists of tensors that fit, those of numbers floating (or complex)."""
    ours, theirs = _tensors(left, names[0]), _tensors(right, names[1])
    check_same_length(ours, theirs, names)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for name, value in zip(names, (a, b), strict=True):
            if name != "masks" and not (value.is_floating_point() or value.is_complex()):
                raise TypeError(f"{name}[{i}] must have a floating type, got {value.dtype}")
        check_same_shape(a, b, (f"{names[0]}[{i}]", f"{names[1]}[{i}]"))
    return ours, theirs


@torch.no_grad()
def ema_update_(teacher: Sequence[Tensor], student: Sequence[Tensor], decay: float) -> None:
    """Move the teacher's tensors towards the student's, in place: decay * teacher + (1 - decay) * student (equation 2).

    A tensor that occurs twice (tied weights) is moved once. At ``decay`` 1 nothing changes, at 0 the student is copied.
    A student in half precision has a teacher in float32: in half precision an average with a decay near 1 would stand
    still, since its steps are below half a unit in the last place. `CoTTA` keeps such a copy itself.

    Args:
        teacher: Tensors that change, float32 or float64.
        student: As many, of the same shapes.
        decay: The paper's alpha, in [0, 1].

    Raises:
        TypeError: not sequences of floating tensors, or a teacher in half precision with ``decay`` inside (0, 1).
        ValueError: different lengths or shapes, or ``decay`` outside [0, 1].

    Example:
        >>> teacher, student = [torch.zeros(3)], [torch.ones(3)]
        >>> ema_update_(teacher, student, 0.9)
        >>> teacher[0]
        tensor([0.1000, 0.1000, 0.1000])
    """
    check_number(decay, "decay", low=0, high=1)
    targets, sources = _pairs(teacher, student, ("teacher", "student"))
    if decay == 1 or not targets:
        return
    halves = [i for i, target in enumerate(targets) if target.dtype in HALVES]
    if decay > 0 and halves:
        raise TypeError(
            f"teacher[{halves[0]}] must be float32 or float64, got {targets[halves[0]].dtype}, in which a running"
            " average stands still: average a float32 copy"
        )
    unique = {id(target): (target, source) for target, source in zip(targets, sources, strict=True)}
    moved, towards = map(list, zip(*unique.values(), strict=True))
    if decay == 0:
        torch._foreach_copy_(moved, towards)
        return
    towards = [source.to(target.dtype) for target, source in zip(moved, towards, strict=True)]
    torch._foreach_lerp_(moved, towards, 1 - decay)


class TeacherAverage:
    """The running average of a model's parameters; of those in half precision a float32 copy is averaged."""

    def __init__(self, teacher: nn.Module) -> None:
        self.teacher = teacher
        self.copies: dict[int, Tensor] = {}
        self.start()

    def start(self) -> None:
        """Take the teacher as it is now."""
        halves = [(i, p) for i, p in enumerate(self.teacher.parameters()) if p.dtype in HALVES]
        self.copies = {i: parameter.detach().float() for i, parameter in halves}

    @torch.no_grad()
    def update_(self, student: nn.Module, decay: float) -> None:
        """One step of the average."""
        parameters = list(self.teacher.parameters())
        for i, parameter in enumerate(parameters):  # a model may have been moved or cast
            if parameter.dtype in HALVES:
                copy = self.copies.get(i)
                self.copies[i] = parameter.float() if copy is None else copy.to(parameter.device)
            else:
                self.copies.pop(i, None)
        targets = [self.copies.get(i, parameter) for i, parameter in enumerate(parameters)]
        ema_update_(targets, list(student.parameters()), decay)
        for i, copy in self.copies.items():
            parameters[i].copy_(copy)


@torch.no_grad()
def stochastic_restore_(
    parameters: Sequence[Tensor],
    source: Sequence[Tensor],
    probability: float,
    *,
    generator: torch.Generator | None = None,
    masks: Sequence[Bool[Tensor, "..."]] | None = None,
) -> None:
    """Give each element its source value back with a probability, independently, in place (equations 7 and 8).

    A tensor that occurs twice is restored once.

    Args:
        parameters: Tensors that change.
        source: Their source values.
        probability: The paper's p, in [0, 1].
        generator: On the device of the parameters, or on the CPU; default: torch's global one.
        masks: True where an element is restored, in place of the draw.

    Raises:
        TypeError: not sequences of floating tensors, or masks that are not boolean.
        ValueError: different lengths or shapes, or ``probability`` outside [0, 1].

    Example:
        >>> weights, source = [torch.ones(4)], [torch.zeros(4)]
        >>> stochastic_restore_(weights, source, 0.5, masks=[torch.tensor([True, False, False, True])])
        >>> weights[0]
        tensor([0., 1., 1., 0.])
    """
    check_number(probability, "probability", low=0, high=1)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    ours, theirs = _pairs(parameters, source, ("parameters", "source"))
    if masks is not None:
        _, chosen = _pairs(ours, masks, ("parameters", "masks"))
        for i, mask in enumerate(chosen):
            if mask.dtype != torch.bool:
                raise TypeError(f"masks[{i}] must be boolean, got {mask.dtype}")
        for parameter, original, mask in zip(ours, theirs, chosen, strict=True):
            parameter.copy_(torch.where(mask, original.to(parameter.dtype), parameter))
        return
    pairs = {id(p): (p, s.to(p.dtype)) for p, s in zip(ours, theirs, strict=True)}
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

"""Dual-level adaptive pseudo-labels: soft or hard by the sample's confidence, more of them hard as training goes on."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.shared.device import working_dtype
from offprints.shared.validation import check_number, check_tensor

OFFSET = 1e-6  # of the second largest probability, in the confidence


def ratio_schedule(
    epoch: int,
    *,
    total_epochs: int,
    wait: int = 0,
    ramp: int | None = None,
    initial: float = 0.0,
    final: float = 1.0,
) -> float:
    """The share of a batch whose pseudo-labels are hard, the model's level of the adaptive labels.

    0 before epoch `wait`; then `ramp` values evenly spaced from `initial` to `final`, both ends included; then `final`,
    after the last epoch too.

    Args:
        epoch: The epoch, from 0.
        total_epochs: Epochs of the training, at least 1.
        wait: Epochs without hard labels.
        ramp: Epochs of the ramp; None: half of `total_epochs`, as in the paper (100 of 200).
        initial: First value of the ramp, in [0, 1].
        final: Its last value, in [0, 1].

    Raises:
        TypeError: A number of the wrong kind.
        ValueError: A number out of range; `wait` and `ramp` are longer than the training.

    Example:
        >>> [ratio_schedule(epoch, total_epochs=8, wait=1, ramp=3) for epoch in range(6)]
        [0.0, 0.0, 0.5, 1.0, 1.0, 1.0]
    """
    epoch = check_number(epoch, "epoch", low=0, integer=True)
    wait, ramp, initial, final = check_schedule(total_epochs, wait, ramp, initial, final)
    place = epoch - wait
    if place < 0:
        return 0.0
    if place < ramp - 1 or place == 0 < ramp:  # a ramp of one epoch is its first value
        return initial + place * ((final - initial) / max(ramp - 1, 1))
    return final


def check_schedule(
    total_epochs: int, wait: int, ramp: int | None, initial: float, final: float
) -> tuple[int, int, float, float]:
    """The numbers of a schedule, checked, with the default ramp in place of None."""
    total_epochs = check_number(total_epochs, "total_epochs", low=1, integer=True)
    wait = check_number(wait, "wait", low=0, integer=True)
    ramp = total_epochs // 2 if ramp is None else check_number(ramp, "ramp", low=0, integer=True)
    if wait + ramp > total_epochs:
        raise ValueError(f"wait + ramp must be at most total_epochs={total_epochs}, got {wait} + {ramp}")
    initial = float(check_number(initial, "initial", low=0, high=1))
    return wait, ramp, initial, float(check_number(final, "final", low=0, high=1))


def check_logits(logits: Tensor, name: str = "logits") -> Tensor:
    """Logits of at least two classes, `(N, K)`."""
    check_tensor(logits, name, ndim=2)
    if logits.shape[1] < 2:
        raise ValueError(f"{name} must have at least 2 classes, got shape {tuple(logits.shape)}")
    return logits


def check_temperature(value: float, name: str = "temperature") -> float:
    """A positive number."""
    return float(check_number(value, name, low=0, open_low=True))


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Logits less the largest of their row, divided by the temperature, in the type that is computed in.

    Probabilities do not change; what is far below the largest logit stays finite at any temperature.
    """
    wide = logits.to(working_dtype(logits))
    below = (wide - wide.detach().amax(-1, keepdim=True)) / temperature
    return below.clamp(min=torch.finfo(wide.dtype).min / 2**20)


def dapl_pseudo_labels(
    logits: Float[Tensor, "batch K"], *, ratio: float, temperature: float = 0.05
) -> Float[Tensor, "batch K"]:
    """The adaptive pseudo-labels of one view.

    `q = softmax(logits / temperature)`. The `int(B * ratio)` samples of the highest confidence, the largest
    probability by the second largest, get the one-hot label of their most likely class; the others keep `q`. Of equally
    confident samples the first ones come first.

    Args:
        logits: `(B, K)`; cosines, in the paper.
        ratio: Share of the samples that get hard labels, in [0, 1]; see `ratio_schedule`.
        temperature: Sharpens the soft labels.

    Returns:
        `(B, K)`, rows sum to 1, without a gradient; float32 for half types.

    Raises:
        TypeError: `logits` are not floating, or a number is none.
        ValueError: `logits` are not `(B, K)` with K >= 2, empty or not finite; a number out of range.

    Example:
        >>> logits = torch.tensor([[0.9, 0.1], [0.5, 0.4]])
        >>> dapl_pseudo_labels(logits, ratio=0.5)
        tensor([[1.0000, 0.0000],
                [0.8808, 0.1192]])
    """
    check_logits(logits)
    temperature = check_temperature(temperature)
    return adaptive(logits[None], float(check_number(ratio, "ratio", low=0, high=1)), temperature)[0]


def adaptive(
    logits: Float[Tensor, "views batch K"], ratio: float, temperature: float
) -> Float[Tensor, "views batch K"]:
    """`dapl_pseudo_labels` of several views at once."""
    q = tempered(logits.detach(), temperature).softmax(-1)
    (first, second), places = q.topk(2, -1)[0].unbind(-1), q.argmax(-1, keepdim=True)
    order = (first / (second + OFFSET)).argsort(stable=True, dim=-1, descending=True)
    # The place of each sample in that order; a comparison with the count keeps all shapes the same in every epoch.
    place = order.argsort(dim=-1)
    hard = place < int(q.shape[1] * ratio)
    one_hot = (torch.arange(q.shape[-1], device=q.device) == places).to(q.dtype)
    return torch.where(hard[..., None], one_hot, q)


def dapl_loss(
    logits: Float[Tensor, "rows K"],
    *,
    ratio: float,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.05,
    num_views: int = 2,
) -> Float[Tensor, ""]:
    """Cross-entropy of each view's prediction with the adaptive pseudo-labels of the other views.

    `1/2 (CE(q_1, softmax(logits_2 / tau_s)) + CE(q_2, softmax(logits_1 / tau_s)))` for two views, the mean over the
    ordered pairs of different views for more; means over the batch.

    Args:
        logits: `(num_views * B, K)`, the views one after the other.
        ratio: Share of each view that gets hard labels.
        student_temperature: Of the predictions.
        teacher_temperature: Of the pseudo-labels.
        num_views: Views of each sample, at least 2.

    Returns:
        A number; float32 for half types.

    Raises:
        TypeError: `logits` are not floating, or a number is none.
        ValueError: Rows that are not `num_views` times as many as samples; otherwise as in `dapl_pseudo_labels`.

    Example:
        >>> view = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        >>> dapl_loss(torch.cat([view, view]), ratio=1.0)
        tensor(0.0014)
    """
    check_logits(logits)
    ratio = float(check_number(ratio, "ratio", low=0, high=1))
    student = check_temperature(student_temperature, "student_temperature")
    teacher = check_temperature(teacher_temperature, "teacher_temperature")
    num_views = check_number(num_views, "num_views", low=2, integer=True)
    if len(logits) % num_views:
        raise ValueError(f"logits must have a multiple of num_views={num_views} rows, got {len(logits)}")
    return swapped(logits, tempered(logits, student).log_softmax(-1), ratio, teacher, num_views)


def swapped(logits: Tensor, log_p: Tensor, ratio: float, teacher: float, num_views: int = 2) -> Tensor:
    """`dapl_loss` of logits whose predictions `log_p` are there already."""
    q = adaptive(logits.unflatten(0, (num_views, -1)), ratio, teacher)
    log_p = log_p.unflatten(0, (num_views, -1))
    pairs = [(q * log_p.roll(shift, 0)).sum(-1).mean() for shift in range(1, num_views)]
    return -torch.stack(pairs).mean()

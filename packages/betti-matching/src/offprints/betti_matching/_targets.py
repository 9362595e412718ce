"""What becomes of targets before they are matched: their scale, voxels that do not count, class labels."""

import torch
from torch import Tensor

from offprints.shared.validation import check_labels, should_check

SLACK = 0.01  # that interpolated masks may leave [0, 1] by


def wrong_range(low: float, high: float) -> str:
    """What is said of masks outside [0, 1], and what helps."""
    return (
        f"target must lie in [0, 1] as the prediction does, got values from {low:g} to {high:g}: "
        "divide 0/255 masks by 255 or pass target > 0; class labels need one channel per class"
    )


def check_range(y: Tensor) -> None:
    """Refuse targets outside [0, 1]."""
    if should_check(y):
        low, high = y.detach().aminmax()
        if low < -SLACK or high > 1 + SLACK:
            raise ValueError(wrong_range(low.item(), high.item()))


def check_ignore(ignore: Tensor, like: Tensor) -> Tensor:
    """The mask of voxels that do not count, boolean, of the shape of `like` or with one channel."""
    if not isinstance(ignore, Tensor) or ignore.dtype != torch.bool:
        got = ignore.dtype if isinstance(ignore, Tensor) else type(ignore).__name__
        raise TypeError(f"ignore must be a boolean tensor, got {got}")
    shapes = [tuple(like.shape)]
    if like.shape[1] > 1:
        shapes.append((like.shape[0], 1, *like.shape[2:]))
    if tuple(ignore.shape) not in shapes:
        raise ValueError(f"ignore must have shape {' or '.join(map(str, shapes))}, got {tuple(ignore.shape)}")
    if ignore.device != like.device:
        raise ValueError(f"ignore must be on the device of the prediction, {like.device}, got {ignore.device}")
    return ignore


def ignored(p: Tensor, y: Tensor, ignore: Tensor) -> tuple[Tensor, Tensor]:
    """The prediction is the target where `ignore` is, and the target is 0 there if it is no mask (255, NaN)."""
    y = y.masked_fill(ignore & ~((y >= 0) & (y <= 1)), 0.0)
    return torch.where(ignore, y, p), y


def one_hot(target: Tensor, input: Tensor, ignore: Tensor | None) -> Tensor:
    """Class labels as one channel per channel of the input; where all channels are ignored, a label may be anything."""
    for x, name in ((input, "input"), (target, "target")):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if input.ndim < 3:
        raise ValueError(f"input must be [batch, channels, *spatial], got shape {tuple(input.shape)}")
    single = (input.shape[0], 1, *input.shape[2:])
    if tuple(target.shape) == single:
        target = target.squeeze(1)
    if target.shape != torch.Size((input.shape[0], *input.shape[2:])):
        wanted = (input.shape[0], *input.shape[2:])
        raise ValueError(f"target must hold class labels of shape {wanted} or {single}, got {tuple(target.shape)}")
    if ignore is not None:
        target = target.masked_fill(check_ignore(ignore, input).all(1), 0)
    labels = check_labels(target, "target", num_classes=input.shape[1])
    classes = torch.arange(input.shape[1], device=labels.device).view(-1, *[1] * (labels.ndim - 1))
    return labels.unsqueeze(1) == classes

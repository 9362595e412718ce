"""Images: what users hand over, as arrays of real numbers, and the one rule by which all of them are binarized."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from offprints.shared.validation import check_number, check_same_device, check_tensor

_EXACT = 2**53  # integers up to here are float64
_MAX_VOXELS = 2**29  # cells have 32-bit numbers
_MANY_CHANNELS = 8  # more than this are taken for the rows of an image


def as_image(image: ArrayLike | Tensor, name: str, *, superlevel: bool) -> np.ndarray:
    """The image as a NumPy array of real numbers with 1 to 3 axes, none of them empty. NaN is not looked for.

    What a masked array masks becomes the infinite value that never enters the filtration.
    """
    masked = None
    if isinstance(image, Tensor):
        array, masked = _of_tensor(image, name)
    else:
        if isinstance(image, np.ma.MaskedArray):
            masked = np.ma.getmaskarray(image)
            image = image.data
        try:
            array = np.asarray(image)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must be an array of real numbers, got what makes none: {error}") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold real numbers, got {array.dtype}")
    if not 1 <= array.ndim <= 3:
        raise ValueError(f"{name} must have 1 to 3 axes, got shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} must not have an empty axis, got shape {array.shape}")
    if array.size > _MAX_VOXELS:
        raise ValueError(f"{name} must have at most {_MAX_VOXELS} voxels, got shape {array.shape}")
    if masked is not None and masked.any():
        if not is_exact(array):
            array = array.astype(np.longdouble)
        elif array.dtype.kind != "f":
            array = array.astype(np.float64)
        array = np.where(masked, array.dtype.type(-np.inf if superlevel else np.inf), array)
    return array


def _of_tensor(image: Tensor, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    masked = None
    refuse_transformed(image, name)
    if _is_masked(image):
        kept: Tensor = image.get_mask()  # type: ignore[attr-defined]
        masked = ~kept.cpu().numpy()
        image = image.get_data()  # type: ignore[attr-defined]
    _check_dense(image, name)
    _check_device(image, name)
    image = image.detach().cpu().resolve_conj().resolve_neg()
    if image.is_floating_point() and image.dtype not in (torch.float16, torch.float32, torch.float64):
        image = image.float()
    return image.numpy(), masked


def refuse_transformed(x: object, name: str) -> None:
    """Refuse a tensor inside `torch.func` transforms, whose values cannot be read."""
    if isinstance(x, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(x):
        raise TypeError(
            f"{name} must be an ordinary tensor, got one inside torch.vmap or torch.func: only betti_matching_loss and "
            "its modules can be transformed; make the mapped axis part of the batch"
        )


def _check_dense(x: Tensor, name: str) -> None:
    """Refuse tensors whose values cannot be read one by one."""
    if x.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got a nested one")
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got the layout {x.layout}")
    if x.is_quantized:
        raise TypeError(f"{name} must be a floating or integer tensor, got the quantized type {x.dtype}: dequantize it")


def _check_device(x: Tensor, name: str) -> None:
    if x.device.type == "meta":
        raise TypeError(f"{name} must be a tensor with values, got one on the meta device")


def _is_masked(image: object) -> bool:
    return isinstance(image, Tensor) and type(image) is not Tensor and torch.masked.is_masked_tensor(image)


def is_exact(image: np.ndarray) -> bool:
    """Whether all values are float64 numbers."""
    if image.dtype.kind in "iu" and image.dtype.itemsize == 8:
        return int(image.min()) >= -_EXACT and int(image.max()) <= _EXACT
    return image.dtype.itemsize <= 8


# ---- binarization ----------------------------------------------------------------------------------------------------


def check_threshold(threshold: float) -> float:
    """The threshold as a plain finite number."""
    return check_number(threshold, "threshold")  # an integer stays one: float64 does not hold them all


def foreground(image: Any, threshold: float, *, superlevel: bool, dtype: torch.dtype | None = None) -> Any:
    """The foreground: values ``>= threshold`` in superlevel filtrations, ``<= threshold`` in sublevel ones.

    The threshold is rounded to the floating type of the image first (`dtype`, where an array comes from a tensor of
    that type), so that a pixel of 0.7 reaches the threshold 0.7 in every type. Integers are compared exactly.
    """
    kind = image.dtype if dtype is None else dtype
    floating = kind.is_floating_point if isinstance(kind, torch.dtype) else kind.kind == "f"
    if not floating:
        whole = math.ceil(threshold) if superlevel else math.floor(threshold)
        return _compare_integers(image, whole, superlevel=superlevel)
    limit = _rounded(threshold, kind, superlevel=superlevel)
    if isinstance(image, Tensor) and kind not in (torch.float32, torch.float64):
        image = image.float()
    return image >= limit if superlevel else image <= limit


def _rounded(threshold: float, kind: Any, *, superlevel: bool) -> Any:
    limit: Any
    if isinstance(kind, torch.dtype):
        limit, largest = torch.tensor(threshold, dtype=torch.float64).to(kind).item(), torch.finfo(kind).max
    else:
        with np.errstate(over="ignore"):
            limit, largest = kind.type(threshold), np.finfo(kind).max
    if math.isinf(limit) and (limit > 0) != superlevel:  # what never enters does not enter by rounding either
        return -largest if superlevel else largest
    return limit


def _compare_integers(image: Any, limit: int, *, superlevel: bool) -> Any:
    if isinstance(image, Tensor):
        if image.dtype == torch.uint64:  # torch compares no large unsigned types: shift them to the signed ones
            image, limit = image.view(torch.int64) ^ torch.iinfo(torch.int64).min, limit - 2**63
        elif image.dtype in (torch.bool, torch.uint16, torch.uint32):
            image = image.to(torch.int64)
        low, high = torch.iinfo(image.dtype).min, torch.iinfo(image.dtype).max
    else:
        if image.dtype.kind == "b":
            image = image.astype(np.uint8)
        low, high = int(np.iinfo(image.dtype).min), int(np.iinfo(image.dtype).max)
    if not low <= limit <= high:
        every = (limit < low) == superlevel
        return (image >= low) if every else (image < low)
    return image >= limit if superlevel else image <= limit


# ---- batches ---------------------------------------------------------------------------------------------------------


def check_images(
    pred: Tensor, target: Tensor, names: tuple[str, str], *, floating: bool, spatial_dims: int | None = None
) -> None:
    """Refuse anything but two real tensors ``[batch, channels, *spatial]`` of one shape on one device."""
    allowed = (3, 4, 5) if spatial_dims is None else spatial_dims + 2
    for x, name, must_float in ((pred, names[0], floating), (target, names[1], False)):
        if _is_masked(x):
            raise TypeError(f"{name} must be a plain tensor, got a masked one: pass the mask as ignore")
        if isinstance(x, Tensor):
            _check_dense(x, name)
        check_tensor(x, name, floating=must_float, ndim=allowed, finite=False)
        if x.is_complex():
            raise TypeError(f"{name} must be real, got {x.dtype}")
    if pred.shape != target.shape:
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same shape, got {tuple(pred.shape)} and {tuple(target.shape)}"
            + _hint(pred, target)
        )
    if spatial_dims is None and pred.ndim == 3 and _looks_like_rows(*pred.shape[1:]):
        raise ValueError(
            f"{names[0]} must be [batch, channels, *spatial]; {tuple(pred.shape)} has {pred.shape[1]} channels of "
            f"lines of {pred.shape[2]} voxels: use unsqueeze(1) for images without a channel axis, "
            "or say spatial_dims=1 if lines are meant"
        )
    check_same_device(pred, target, names=names)
    _check_device(pred, names[0])


def _looks_like_rows(channels: int, length: int) -> bool:
    return channels > _MANY_CHANNELS or (channels > _MANY_CHANNELS // 2 and length < 2 * channels)


def _hint(pred: Tensor, target: Tensor) -> str:
    """What to do about shapes that differ as those of logits and class labels do."""
    if target.shape == (*pred.shape[:1], *pred.shape[2:]) and pred.shape[1] == 1:
        return ": target.unsqueeze(1) has the channel axis"
    labels = target.shape[:1] == pred.shape[:1] and pred.ndim > 3 and pred.shape[1] > 1
    if labels and (target.shape[1:] == pred.shape[2:] or target.shape[1:] == (1, *pred.shape[2:])):
        return (
            ": class labels need one channel per class, target = "
            f"torch.nn.functional.one_hot(labels, {pred.shape[1]}).movedim(-1, 1) of labels [batch, *spatial], or "
            "to_onehot=True in the modules"
        )
    return ""

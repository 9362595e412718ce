"""Argument checks that losses and metrics share."""

from collections.abc import Sequence

from torch import Tensor

from offprints.shared.validation import check_number, check_same_device, check_same_shape, check_tensor


def check_dims(dims: Sequence[int] | None, ndim: int | None = None) -> tuple[int, ...] | None:
    """The homology dimensions as a tuple; ValueError if empty, repeated or (with ``ndim``) out of range."""
    if dims is None:
        return None if ndim is None else tuple(range(ndim))
    if not isinstance(dims, Sequence):
        raise TypeError(f"dims must be a sequence of integers or None, got {dims!r}")
    high = (3 if ndim is None else ndim) - 1
    for k in dims:
        check_number(k, "dims", low=0, high=high, integer=True)
    if not dims or len(set(dims)) < len(dims):
        raise ValueError(f"dims must name at least one homology dimension and none twice, got {tuple(dims)}")
    return tuple(int(k) for k in dims)


def check_images(pred: Tensor, target: Tensor, names: tuple[str, str], *, floating: bool) -> None:
    """Refuse anything but two real tensors ``[batch, channels, *spatial]`` of one shape on one device."""
    for x, name, must_float in ((pred, names[0], floating), (target, names[1], False)):
        check_tensor(x, name, floating=must_float, ndim=(3, 4, 5), finite=False)
        if x.is_complex():
            raise TypeError(f"{name} must be real, got {x.dtype}")
    check_same_shape(pred, target, names)
    check_same_device(pred, target, names=names)

"""Several views in one forward, each with the batch statistics that it has alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from offprints.cotta._wrapping.asking import Asker
from offprints.cotta.configuration import BatchNorm
from offprints.cotta.statistics import is_mixed


@contextmanager
def separate_statistics(model: nn.Module, num_views: int) -> Iterator[None]:
    """Batch norm of ``[V * B, ...]`` inside the block: the layer's own forward on each view's part."""
    norms = [
        module
        for module in model.modules()
        if isinstance(module, BatchNorm) and (module.training or module.running_mean is None or is_mixed(module))
    ]

    def apart(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if len(x) % num_views:
            raise RuntimeError(f"{len(x)} rows do not divide into {num_views} views")
        return torch.cat([forward(part) for part in x.chunk(num_views)])

    before = [vars(norm).get("forward") for norm in norms]
    for norm in norms:
        vars(norm)["forward"] = partial(apart, norm.forward)
    try:
        yield
    finally:
        for norm, forward in zip(norms, before, strict=True):
            if forward is None:
                del vars(norm)["forward"]
            else:
                vars(norm)["forward"] = forward


class Layout:
    """The memory layout of images.

    On a CPU convolutions of float32 are faster on channels-last images. A network that cannot take them (it asks for a
    view of features in the other layout) is found out at its first batch, at the cost of another forward: not for
    models that draw random numbers.
    """

    def __init__(self, ask: Asker, *, enabled: bool) -> None:
        self.ask = ask
        self._refused = not enabled

    def __call__(self, x: Tensor) -> Tensor:
        """The images in the layout to use."""
        if self._refused or x.ndim != 4 or x.device.type != "cpu" or x.dtype != torch.float32:
            return x
        return x.contiguous(memory_format=torch.channels_last)

    def first_call(self, model: nn.Module, x: Tensor) -> Tensor:
        """The logits of a batch, which may show that the layout has to be the usual one."""
        arranged = self(x)
        try:
            return self.ask(model, arranged)
        except RuntimeError:
            if arranged is x:
                raise
        logits = self.ask(model, x.contiguous())
        self._refused = True
        return logits


class ViewPredictor:
    """A model's logits of views, several in one forward where that changes nothing, not even the last bit.

    Kernels may round differently for another number of rows, and a model may couple the samples of a batch in a layer
    that is not known here. So the first time that views of some shape are joined, they are also predicted one by one;
    unless the results are equal bit for bit, views of this shape are predicted one by one from then on.
    """

    def __init__(self, ask: Asker, augmentation_batch: int | None, separate: bool) -> None:
        self.ask = ask
        self.augmentation_batch = augmentation_batch
        self.separate = separate  # the model draws random numbers: never join views
        self._exact: dict[tuple[object, ...], bool] = {}

    def views_per_forward(self, x: Tensor) -> int:
        """How many views of a batch share a forward."""
        if self.separate:
            return 1
        if self.augmentation_batch is not None:
            return self.augmentation_batch
        # A CPU gains nothing from a larger batch; an accelerator is busy from some millions of values on.
        return 1 if x.device.type == "cpu" else max(1, 2**22 // x.numel())

    def __call__(self, model: nn.Module, views: Sequence[Tensor]) -> list[Tensor]:
        """The logits of each view ``[B, C, H, W]``."""
        first = views[0]
        kind = first.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = (len(views), first.shape, first.dtype, first.device, autocast)
        joinable = len(views) > 1 and all(view.shape == first.shape for view in views)
        if not joinable or self._exact.get(key) is False:
            return [self.ask(model, view) for view in views]
        if self._exact.get(key):
            return self._joined(model, views)
        alone = [self.ask(model, view) for view in views]
        try:
            together = self._joined(model, views)
            self._exact[key] = all(map(torch.equal, together, alone))
        except (RuntimeError, ValueError):  # a layer that cannot take them together
            self._exact[key] = False
        return alone

    def _joined(self, model: nn.Module, views: Sequence[Tensor]) -> list[Tensor]:
        with separate_statistics(model, len(views)):
            return list(self.ask(model, torch.cat(list(views))).chunk(len(views)))

"""The exponential moving average of the network, which is what is evaluated (step 8)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from offprints.shrinkmatch.alignment import check_momentum

Tensors = list[Tensor] | tuple[Tensor, ...]


def move(averages: Tensors, parameters: Tensors, _: object, *, decay: float) -> None:
    """One step of the averages, in place; torch's own function of this kind cannot be pickled."""
    if averages[0].is_floating_point() or averages[0].is_complex():
        torch._foreach_lerp_(averages, parameters, 1 - decay)
    else:  # all are of one type
        torch._foreach_copy_(averages, parameters)


class StudentEMA(AveragedModel):
    """An average of a model's parameters, ``ema <- decay ema + (1 - decay) parameters``, with copies of its buffers.

    It begins as a copy of the model, so that the first update averages (``torch.optim.swa_utils.AveragedModel``, on
    which it stands, takes the first update for the beginning). Call `update` after the optimizer's step.

    Args:
        model: The model that is trained; it is copied.
        decay: In [0, 1).

    Attributes:
        module: The averaged model, in evaluation mode: what to evaluate.

    Raises:
        TypeError: ``model`` is not a module; its parameters have a half type, in which such an average does not move:
            keep them in float32 and use autocast.
        ValueError: ``decay`` out of range.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> ema, start = StudentEMA(model, decay=0.9), model.weight.item()
        >>> with torch.no_grad():
        ...     _ = model.weight.add_(1.0)
        >>> ema.update(model)
        >>> round(ema.module.weight.item() - start, 4)
        0.1
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        decay = check_momentum(decay, "decay")
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.element_size() < 4:
                raise TypeError(
                    f"model must have parameters of float32 or float64, got {parameter.dtype}: an average does not move"
                    " in a half type; keep the parameters in float32 and use autocast"
                )
        with torch.device("cpu"):  # the counter, at which every update looks
            super().__init__(model, multi_avg_fn=partial(move, decay=decay))
        self.decay = decay
        self.n_averaged.fill_(1)  # averages from the first update on
        self.module.eval()  # it is not trained: its batch normalization must not follow what is evaluated

    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's parameters, and copy its buffers.

        Args:
            model: The model, also inside of ``DistributedDataParallel`` or ``torch.compile``.

        Raises:
            TypeError: not a module.
            ValueError: other parameters or buffers than at the beginning.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        for kind in ("parameters", "buffers"):
            mine, theirs = list(getattr(self.module, kind)()), list(getattr(model, kind)())
            if len(mine) != len(theirs) or any(a.shape != b.shape for a, b in zip(mine, theirs, strict=True)):
                shapes = [[tuple(x.shape) for x in of] for of in (mine, theirs)]
                raise ValueError(
                    f"model must have the {kind} of the averaged one, of shapes {shapes[0]}, got {shapes[1]}"
                )
        self.update_parameters(model)

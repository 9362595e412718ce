"""A probe that measures neural collapse in any classifier, at a layer that is given by its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.neural_collapse.closed_form import GOFSolution
from offprints.neural_collapse.metrics import NCMetrics, nc_metrics_from_statistics
from offprints.neural_collapse.statistics import FeatureStatistics
from offprints.neural_collapse.unconstrained import chain
from offprints.shared.device import resolve_device
from offprints.shared.validation import check_number, check_tensor


class NCProbe:
    """Measure neural collapse at a linear layer of a model: its input are the features, in one pass over the data.

    ::

        with NCProbe(model.eval(), num_classes=10) as probe:
            for x, y in loader:
                model(x)
                probe.update(y)
        print(probe.compute(geometry="etf"))

    or ``NCProbe(model, num_classes=10).run(loader).compute()``. The classifier is the product of the layer and of the
    linear layers after it up to the logits; that nothing but linear layers lies between is checked on the first row of
    every batch, and what is added to the logits beside them is not seen. The mode of the model is left as it is: put it
    in eval mode yourself, since BatchNorm and dropout change what is measured. Outside of the ``with`` block there is
    no hook on the model.

    Args:
        model: Any module.
        layer: Name of an ``nn.Linear`` in ``model.named_modules()``; default: the last one.
        num_classes: K.

    Attributes:
        model: The model.
        layer: The name of the layer.
        statistics: The `FeatureStatistics`, to merge or to reduce over processes.

    Raises:
        TypeError: ``model`` not a module, ``layer`` not a string.
        ValueError: no such layer, no linear layer at all, a part of an adapter (LoRA), or widths that do not chain to
            ``num_classes``.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
        >>> batches = [(torch.randn(30, 5), torch.arange(3).repeat(10)) for _ in range(4)]
        >>> probe = NCProbe(model, num_classes=3).run(batches)
        >>> probe.compute().nc1 > 1
        True
    """

    def __init__(self, model: nn.Module, layer: str | None = None, *, num_classes: int) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
        if layer is not None and not isinstance(layer, str):
            raise TypeError(f"layer must be the name of an nn.Linear, got {layer!r} ({type(layer).__name__})")
        num_classes = check_number(num_classes, "num_classes", low=2, integer=True)
        linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        if not linears:
            raise ValueError(f"layer must be an nn.Linear, and {type(model).__name__} has none")
        name = list(linears)[-1] if layer is None else layer
        if name not in linears:
            raise ValueError(f"layer must be the name of an nn.Linear ({', '.join(linears)}), got {name!r}")
        if any(part == "base_layer" or part.startswith("lora_") for part in name.split(".")):
            raise ValueError(
                f"layer must not be part of an adapter, got {name!r}: merge the adapter into its layer first"
            )
        names = list(linears)
        following = [linears[key] for key in names[names.index(name) :]]
        self.model, self.layer, self.num_classes = model, name, num_classes
        self._linears = _chained(following, name, num_classes)
        self.statistics = FeatureStatistics(num_classes, following[0].in_features)
        self._hooks: list[Any] = []
        self._features: Tensor | None = None
        self._ends: dict[int, Tensor] = {}  # the first row of what each linear layer gave, by its number

    def __enter__(self) -> NCProbe:
        if self._hooks:
            raise RuntimeError("the probe is entered already")
        self._forget()
        self._hooks.append(self._linears[0].register_forward_pre_hook(self._see_features, with_kwargs=True))
        for number, linear in enumerate(self._linears):
            self._hooks.append(linear.register_forward_hook(self._see_output(number)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._forget()

    def _forget(self) -> None:
        self._features = None
        self._ends.clear()

    def _see_features(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        features = args[0] if args else kwargs.get("input")
        self._ends.clear()
        # A copy: the model may go on to change it in place.
        self._features = features.detach().clone() if isinstance(features, Tensor) else None

    def _see_output(self, number: int) -> Any:
        def see(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim > 0:
                self._ends[number] = output.detach().reshape(-1, output.shape[-1])[:1].clone()

        return see

    @torch.no_grad()
    def update(self, labels: Tensor) -> None:
        """Add the features of the latest forward call with its labels ``[batch]``.

        Where the layer sees more axes, as in ``[batch, tokens, d]``, the labels have all but the last of them.

        Raises:
            RuntimeError: the model was not called since the last update, or the probe is not entered.
            TypeError: labels not integers, features not floating.
            ValueError: wrong shapes, NaN or infinite features, a label out of range; something other than linear layers
                between ``layer`` and the logits.
        """
        if self._features is None:
            raise RuntimeError("update needs a forward call of the model inside the probe's with block before it")
        features = check_tensor(self._features, "features", min_ndim=2)
        if features.ndim > 2 and isinstance(labels, Tensor):
            if labels.shape != features.shape[:-1]:
                raise ValueError(f"labels must have shape {tuple(features.shape[:-1])}, got {tuple(labels.shape)}")
            labels = labels.reshape(-1)
        self._check_linear(features.reshape(-1, features.shape[-1])[:1])
        self.statistics.update(features.reshape(-1, features.shape[-1]), labels)
        self._forget()

    def _called(self) -> list[nn.Linear]:
        """The layers that the latest forward call used, up to the last one that gives logits."""
        used = [number for number in self._ends if self._linears[number].out_features == self.num_classes]
        return self._linears[: max(used) + 1] if used else self._linears

    def _check_linear(self, row: Tensor) -> None:
        """Refuse what is not the product of the linear layers: a ReLU between them, a layer of another kind inside."""
        linears = self._called()
        expected = row
        for linear in linears:
            bias = None if linear.bias is None else linear.bias.to(row)
            expected = F.linear(expected, linear.weight.to(row), bias)
        got = self._ends.get(len(linears) - 1)
        if got is None:
            raise ValueError(f"layer {self.layer!r} must lead to the logits, got no output of the last linear layer")
        half = torch.finfo(row.dtype).eps > 1e-5 or torch.finfo(got.dtype).eps > 1e-5
        error, size = (expected.double() - got.double()).norm(), torch.maximum(expected.norm(), got.norm())
        if bool(error > (0.1 if half else 1e-2) * size):
            raise ValueError(
                f"layer {self.layer!r} must be followed by linear layers alone up to the logits (and itself be plain), "
                "got another output than their product's; choose a later layer"
            )
        self._linears = linears

    def compute(self, *, geometry: str = "etf", target: GOFSolution | None = None) -> NCMetrics:
        """The metrics of all that was added, with the weights that the model has now; see `nc_metrics`.

        Raises:
            ValueError: a class without samples, an unknown geometry, ``"gof"`` without ``target``.
        """
        weight = chain([linear.weight.detach().double() for linear in self._linears])
        return nc_metrics_from_statistics(self.statistics, weight, geometry=geometry, target=target)

    @torch.no_grad()
    def run(self, loader: Iterable[Any], *, device: str | torch.device | None = None) -> NCProbe:
        """Call the model on every ``(inputs, labels)`` of the loader and add it; returns the probe.

        Hooks are set and removed unless the probe is entered. Inputs are a tensor, or a mapping that the model takes as
        keywords; they and the labels go to ``device``, by default that of the model's parameters.

        Raises:
            TypeError, ValueError: as `update`; a batch that is not a pair.
        """
        place = self._linears[0].weight.device if device is None else resolve_device(device)
        if not self._hooks:
            with self:
                return self.run(loader, device=place)
        for batch in loader:
            if not isinstance(batch, list | tuple) or len(batch) != 2:
                raise ValueError(f"loader must give pairs of inputs and labels, got {type(batch).__name__}")
            inputs, labels = batch
            if isinstance(inputs, Mapping):
                self.model(**{key: _moved(value, place) for key, value in inputs.items()})
            else:
                self.model(_moved(inputs, place))
            self.update(_moved(labels, place))
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """What was added so far, to save."""
        return self.statistics.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` returned.

        Raises:
            ValueError: a missing accumulator, or one of the wrong shape.
        """
        self.statistics.load_state_dict(state)


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _chained(linears: list[nn.Linear], name: str, num_classes: int) -> list[nn.Linear]:
    """The linear layers from the measured one on whose widths fit each other, up to the last that has K outputs."""
    length = 1
    while length < len(linears) and linears[length].in_features == linears[length - 1].out_features:
        length += 1
    ends = [number for number in range(length) if linears[number].out_features == num_classes]
    if not ends or linears[0].in_features < 1:
        widths = " -> ".join(str(linear.out_features) for linear in linears[:length])
        raise ValueError(
            f"layer {name!r} must lead to num_classes = {num_classes} outputs by linear layers alone, "
            f"got widths {linears[0].in_features} -> {widths}"
        )
    return linears[: ends[-1] + 1]

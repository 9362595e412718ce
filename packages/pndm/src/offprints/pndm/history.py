"""What a run carries from one call of the model to the next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from offprints.pndm.plans import Call
from offprints.pndm.transfers import add, scaled


class History:
    """What is carried from call to call: the base and the gradients kept, newest first.

    `before` takes all that is wanted of the sample, so that the model may do with it what it likes; only a step of
    several calls holds a copy. Outputs are kept by reference and refused if they have been changed since.
    """

    def __init__(self) -> None:
        self.base: Tensor | None = None
        self.gradients: list[Tensor] = []
        self._versions: list[int] = []
        self._total: Tensor | None = None
        self._gradient: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy's tensors count their changes anew.
        return {**self.__dict__, "_versions": [-1] * len(self._versions), "_counted": [v >= 0 for v in self._versions]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        counted = state.pop("_counted")
        self.__dict__.update(state)
        self._versions = [
            kept._version if counts and not kept.is_inference() else -1
            for kept, counts in zip(self.gradients, counted, strict=True)
        ]

    def before(self, call: Call, sample: Tensor) -> None:
        """Take what the sample contributes, before the model sees it."""
        base = sample if call.begins or self.base is None else self.base
        if call.begins or self.base is None:
            self.base = sample.clone() if call.holds else None
        self._total = scaled(base, call.scale)
        self._gradient = None
        if (call.of_output, call.of_sample, call.of_base) != (1.0, 0.0, 0.0):
            self._gradient = scaled(sample, call.of_sample)
            if call.of_base != 0:
                add(self._gradient, (base,), (call.of_base,))

    def after(self, call: Call, output: Tensor, dtype: torch.dtype) -> Tensor:
        """The sample for the next call, of this type.

        Raises:
            ValueError: an output that is kept has been changed in place.
        """
        self.check()
        if self._gradient is None:
            gradient, version = _kept(output if output.dtype == dtype else output.to(dtype))
        else:
            gradient, version = add(self._gradient, (output,), (call.of_output,)).to(dtype), -1
        assert self._total is not None
        gradients, versions = [gradient, *self.gradients], [version, *self._versions]
        moved = add(self._total, gradients, call.weights)
        if moved.dtype != dtype:
            moved = moved.to(dtype)
        kept_ones = slice(call.drop, call.drop + call.keep)
        self.gradients, self._versions = gradients[kept_ones], versions[kept_ones]
        if call.keeps_base and self.base is not None:
            self.gradients, self._versions = [self.base, *self.gradients], [-1, *self._versions]
        self._total = self._gradient = None
        return moved

    def check(self) -> None:
        """Refuse to go on where an output that is kept has been changed in place."""
        for kept, version in zip(self.gradients, self._versions, strict=True):
            if version >= 0 and kept._version != version:
                raise ValueError(
                    "the output of the model of an earlier call was changed in place, while it is still needed; return"
                    " (or pass on) a copy of it"
                )


def _kept(output: Tensor) -> tuple[Tensor, int]:
    """The output to keep and the count of its changes; a copy, which nobody changes, where that count says nothing."""
    if torch.compiler.is_compiling():
        return output, -1
    # A view shares its count with its siblings, a tensor of inference mode has none.
    if output.is_inference() or output._is_view():
        return output.clone(), -1
    return output, output._version

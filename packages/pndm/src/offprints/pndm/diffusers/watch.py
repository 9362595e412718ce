"""Whether a model has changed the sample that it was given."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


class SampleWatch:
    """Remembers the last sample that was handed out, to tell a model that works in place from an edit by the user.

    The scheduler does not call the model. What changes a sample after `shown`, which pipelines call right before the
    model, is the model; before that it is an edit, which counts.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Watch nothing."""
        self._sample: Tensor | None = None
        self._changes = 0
        self._shown = False

    def returned(self, sample: Tensor) -> None:
        """The scheduler returns this sample, for which the model is to be asked."""
        self._remember(sample, shown=False)

    def shown(self, sample: Tensor) -> None:
        """The model gets this sample now."""
        self._remember(sample, shown=True)

    def check(self, output: Tensor, sample: Tensor, *, stacklevel: int) -> None:
        """Refuse a sample that the model has changed; warn where it may also have been an edit.

        Raises:
            ValueError: the sample was changed after it was shown, or is the output.
        """
        if self._sample is not sample or sample._version == self._changes:
            return
        if self._shown or output is sample or output._base is sample:
            raise ValueError("sample was changed in place by the model; give the model a copy, sample.clone()")
        warnings.warn(
            "sample was changed in place since the last step, which is taken for an edit; if the model works in place,"
            " give it a copy, sample.clone(). After an edit, scale_model_input tells one from the other",
            UserWarning,
            stacklevel=stacklevel + 1,
        )

    def _remember(self, sample: Tensor, *, shown: bool) -> None:
        self.forget()
        if not torch.compiler.is_compiling() and not sample.is_inference():
            self._sample, self._changes, self._shown = sample, sample._version, shown

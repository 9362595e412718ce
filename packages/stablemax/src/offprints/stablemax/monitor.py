"""A monitor of Softmax Collapse and naive loss minimization for any training loop."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offprints.shared.validation import check_number
from offprints.stablemax.diagnostics import (
    alignment_terms,
    check_dtype,
    cosine,
    samples,
    softmax_collapse_fraction,
    zero_gradient_fraction,
    zero_loss_fraction,
)
from offprints.stablemax.orthograd import OrthoGrad


def stepping(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer that steps inside of wrappers that only decide when (accelerate's), an OrthoGrad as it is."""
    inner = getattr(optimizer, "optimizer", None)
    while not isinstance(optimizer, OrthoGrad) and isinstance(inner, torch.optim.Optimizer):
        optimizer, inner = inner, getattr(inner, "optimizer", None)
    return optimizer


class CollapseMonitor:
    """Watch any training loop for Softmax Collapse and naive loss minimization; a context manager.

    Call `observe` next to the loss. With an `optimizer` a hook before its step takes the alignment of the gradient
    (before an `OrthoGrad` projects it). Every `every`-th call is recorded; the others cost nothing. Where gradients of
    several batches are accumulated, all records since the last step get the alignment of the sum.

    `records` holds one dict per recorded batch: `step` (calls of `observe` before it), `collapse`, `zero_loss`,
    `zero_gradient` (the shares of `softmax_collapse_fraction` and its siblings in the precision in use: `dtype`, by
    default the logits' own), `weights_l2` and, with an optimizer, `nlm_alignment`. Shares are those of the samples of
    this process; weights and gradients are whole also where they are sharded (DTensor).

    Args:
        model: The network whose weights are watched.
        optimizer: The optimizer that steps it, `OrthoGrad` or accelerate's wrapper included.
        every: Calls of `observe` from one record to the next.
        dtype: Type of the softmax in use.
        ignore_index: Label of samples that do not count.

    Raises:
        TypeError: `model` is not a module, `optimizer` not a torch optimizer.
        ValueError: `every` < 1, `dtype` not a floating type.

    Example:
        >>> model = torch.nn.Linear(2, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> logits, target = torch.tensor([[20.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), torch.tensor([0, 0])
        >>> with CollapseMonitor(model, optimizer) as monitor:
        ...     monitor.observe(logits, target)  # beside the loss of every batch
        >>> monitor.latest()["collapse"]
        0.5
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        every: int = 1,
        dtype: torch.dtype | None = None,
        ignore_index: int = -100,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        check_dtype(dtype)
        self.records: list[dict[str, float]] = []
        self._model = model
        self._every = check_number(every, "every", low=1, integer=True)
        self._dtype = dtype
        self._ignore_index = check_number(ignore_index, "ignore_index", integer=True)
        self._calls = 0
        self._waiting = 0  # last records whose gradient has not been stepped with
        self._hook = None if optimizer is None else stepping(optimizer).register_step_pre_hook(self._before_step)

    def __enter__(self) -> CollapseMonitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @torch.no_grad()
    def observe(self, logits: Float[Tensor, "batch classes *spatial"], target: Int[Tensor, "batch *spatial"]) -> None:
        """Record the batch whose loss is about to be taken, if its turn has come.

        Args:
            logits: Logits ``[N, K]`` or ``[N, K, d1, ...]``.
            target: Labels ``[N]`` or ``[N, d1, ...]``.

        Raises:
            TypeError: `logits` not floating or `target` not of an integer type.
            ValueError: shapes that do not fit, labels out of range.
        """
        if self._calls % self._every == 0:
            rows, labels = samples(logits, target, self._ignore_index)
            record = {"step": float(self._calls)}
            if len(rows) == 0:
                record |= dict.fromkeys(("collapse", "zero_loss", "zero_gradient"), float("nan"))
            else:
                record["collapse"] = softmax_collapse_fraction(rows, dtype=self._dtype)
                record["zero_loss"] = zero_loss_fraction(rows, labels, dtype=self._dtype)
                record["zero_gradient"] = zero_gradient_fraction(rows, labels, dtype=self._dtype)
            record["weights_l2"] = float(alignment_terms(self._model.parameters())[1].sum().sqrt())
            self.records.append(record)
            self._waiting += 1
        self._calls += 1

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        waiting, self._waiting = self._waiting, 0
        if waiting == 0:
            return
        terms = alignment_terms(self._model.parameters())
        terms = terms[:, terms[3] > 0]
        if terms.shape[1] > 0:
            alignment = float(cosine(terms.sum(1)))
            for record in self.records[-waiting:]:
                record["nlm_alignment"] = alignment

    def latest(self) -> dict[str, float]:
        """The last record.

        Raises:
            RuntimeError: nothing has been observed.
        """
        if not self.records:
            raise RuntimeError("CollapseMonitor has no record yet: call observe(logits, target) next to the loss")
        return self.records[-1]

    def remove(self) -> None:
        """Take the hook off the optimizer; the records stay."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

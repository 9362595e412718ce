"""How much of a batch still gives gradient, and how much of the gradient only scales the weights up (sections 3, 4)."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from offprints.shared.validation import check_choice, check_labels, check_number, check_tensor
from offprints.stablemax.activations import log_stablemax


def _checked_logits(logits: Tensor, dtype: torch.dtype | None) -> Tensor:
    check_tensor(logits, "logits", ndim=2, finite=False)
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating type, got {dtype}")
    return logits.detach().to(dtype or logits.dtype)


def _collapsed(z: Tensor) -> Tensor:
    return (z - z.amax(1, keepdim=True)).exp().sum(1) == 1


def softmax_collapse_fraction(logits: Float[Tensor, "batch classes"], *, dtype: torch.dtype | None = None) -> float:
    """Share of samples whose softmax denominator, sum_j exp(z_j - max z), rounds to exactly 1 in ``dtype`` (default:
    the logits').

    Raises:
        TypeError: ``logits`` is not a floating tensor.
        ValueError: ``logits`` is not ``[batch, classes]`` or empty, ``dtype`` is not a floating type.
    """
    return float(_collapsed(_checked_logits(logits, dtype)).double().mean())


def zero_loss_fraction(
    logits: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"],
    *,
    dtype: torch.dtype | None = None,
    loss: Literal["softmax", "stablemax"] = "softmax",
) -> float:
    """Share of samples whose cross-entropy, by the log-probabilities in ``dtype`` (default: the logits'), is exactly 0.

    Raises:
        TypeError: ``logits`` not floating or ``target`` not of an integer type.
        ValueError: shapes that do not fit, labels out of range, an unknown loss, ``dtype`` not a floating type.
    """
    check_choice(loss, "loss", ("softmax", "stablemax"))
    z = _checked_logits(logits, dtype)
    target = check_labels(target, "target", length=len(z), num_classes=z.shape[1])
    log_probability = torch.log_softmax(z, 1) if loss == "softmax" else log_stablemax(z, 1)
    return float((log_probability.gather(1, target.unsqueeze(1)) == 0).double().mean())


def zero_gradient_fraction(
    logits: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"],
    *,
    dtype: torch.dtype | None = None,
    which: Literal["target", "all"] = "target",
) -> float:
    """Share of samples whose logit gradient is exactly 0, for the softmax cross-entropy averaged over the batch as in
    training.

    The log-probabilities are taken in ``dtype`` (default: the logits'), so that the factor 1 / batch takes part in
    what underflows.

    Args:
        logits: Logits.
        target: Labels.
        dtype: Type of the log-softmax.
        which: ``"target"``: the gradient of the right class's logit; ``"all"``: of all of the sample's logits.

    Raises:
        TypeError: ``logits`` not floating or ``target`` not of an integer type.
        ValueError: shapes that do not fit, labels out of range, an unknown ``which``, ``dtype`` not a floating type.
    """
    check_choice(which, "which", ("target", "all"))
    _checked_logits(logits, dtype)
    target = check_labels(target, "target", length=len(logits), num_classes=logits.shape[1])
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        loss = F.nll_loss(torch.log_softmax(leaf.to(dtype or leaf.dtype), 1), target)
        (gradient,) = torch.autograd.grad(loss, leaf)
    zero = gradient.gather(1, target.unsqueeze(1)).squeeze(1) == 0 if which == "target" else (gradient == 0).all(1)
    return float(zero.double().mean())


def _alignment_terms(params: Iterable[Parameter]) -> Tensor:
    """<w, -g>, <w, w>, <g, g> of each parameter that has a gradient, ``[3, tensors]`` in double precision."""
    terms = []
    for param in params:
        if param.grad is not None:
            wide = torch.float32 if param.device.type == "mps" else torch.float64
            w, g = param.detach().reshape(-1).to(wide), param.grad.detach().reshape(-1).to(wide)
            terms.append(torch.stack([-(w @ g), w @ w, g @ g]))
    if not terms:
        raise ValueError("params must hold at least one parameter with a gradient")
    return torch.stack([term.to(terms[0].device) for term in terms], 1)


def _cosine(terms: Tensor) -> Tensor:
    cosine = terms[0] / (terms[1].sqrt() * terms[2].sqrt())
    return torch.where((terms[1] == 0) | (terms[2] == 0), 0, cosine)


def nlm_alignment(params: Iterable[Parameter], *, per_tensor: bool = False) -> float | list[float]:
    """Cosine between the negative gradient and the weights: +1 is pure naive loss minimization, scaling all weights up.

    Over all parameters as one vector, or per tensor; 0 where weights or gradient are zero. Parameters without a
    gradient are skipped.

    Raises:
        ValueError: no parameter has a gradient.
    """
    terms = _alignment_terms(params)
    if per_tensor:
        return [float(value) for value in _cosine(terms)]
    return float(_cosine(terms.sum(1)))


class CollapseMonitor:
    """Watch any training loop for Softmax Collapse and naive loss minimization; a context manager.

    Call :meth:`observe` next to the loss. With an ``optimizer`` a hook before its step takes the alignment of the
    gradient (before an ``OrthoGrad`` projects it). Every ``every``-th call is recorded; the others cost nothing.

    ``records`` holds one dict per recorded batch: ``step`` (calls of ``observe`` before it), ``collapse``,
    ``zero_loss``, ``zero_gradient`` (the shares of the functions of this module in the precision in use: ``dtype``, by
    default the logits' own), ``weights_l2`` and, with an optimizer, ``nlm_alignment``.

    Raises:
        TypeError: ``model`` is not a module, ``optimizer`` not a torch optimizer.
        ValueError: ``every`` < 1, ``dtype`` not a floating type.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        every: int = 1,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        check_number(every, "every", low=1, integer=True)
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating type, got {dtype}")
        self.records: list[dict[str, float]] = []
        self._model = model
        self._every = every
        self._dtype = dtype
        self._calls = 0
        self._pending = False
        self._hook = None if optimizer is None else optimizer.register_step_pre_hook(self._before_step)

    def __enter__(self) -> CollapseMonitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @torch.no_grad()
    def observe(self, logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]) -> None:
        """Record the batch whose loss is about to be taken, if its turn has come."""
        self._pending = self._calls % self._every == 0
        if self._pending:
            squares = [p.detach().float().square().sum() for p in self._model.parameters()]
            self.records.append(
                {
                    "step": float(self._calls),
                    "collapse": softmax_collapse_fraction(logits, dtype=self._dtype),
                    "zero_loss": zero_loss_fraction(logits, target, dtype=self._dtype),
                    "zero_gradient": zero_gradient_fraction(logits, target, dtype=self._dtype),
                    "weights_l2": float(torch.stack(squares).sum().sqrt()) if squares else 0.0,
                }
            )
        self._calls += 1

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._pending:
            self._pending = False
            if any(param.grad is not None for param in self._model.parameters()):
                self.records[-1]["nlm_alignment"] = float(_cosine(_alignment_terms(self._model.parameters()).sum(1)))

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

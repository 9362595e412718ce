"""What CoTTA is compared with, behind the same interface: no adaptation, batch statistics, entropy minimization."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.cotta._adapting import AdaptingModule, adapting, check_batch, check_finite
from offprints.cotta.configuration import (
    BatchNorm,
    OptimizerLike,
    call_model,
    check_model,
    collect_params,
    configure_model,
    make_optimizer,
)
from offprints.shared.device import working_dtype
from offprints.shared.validation import check_number


class Source(nn.Module):
    """The model as it is, in evaluation mode.

    Args:
        model: As for :class:`CoTTA`.

    Raises:
        TypeError: ``model`` is not a module.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        check_model(model)
        self.model = model.eval()

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K ..."]:
        """The logits of a batch; TypeError and ValueError as of :class:`CoTTA`."""
        check_batch(x, None)
        return call_model(self.model, x)

    def predict(self, x: Tensor) -> Tensor:
        """The same as :meth:`forward`."""
        return self(x)

    def reset(self) -> None:
        """Nothing changes, so nothing has to be put back."""

    def train(self, mode: bool = True) -> Source:
        """Keep the model in evaluation mode."""
        self.training = mode
        return self


class BNAdapt(Source):
    """Batch-norm layers normalize with the statistics of the current batch; nothing is learned.

    Args:
        model: As for :class:`CoTTA`; its batch-norm layers are changed.
        source_weight: Weight of the source statistics in a mix with the batch's (its variance the biased one), of use
            for small batches.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``source_weight`` outside [0, 1], or statistics to be mixed that a layer does not have.
    """

    def __init__(self, model: nn.Module, *, source_weight: float = 0.0) -> None:
        check_model(model)
        check_number(source_weight, "source_weight", low=0, high=1)
        super().__init__(mix_statistics(model, source_weight) if source_weight > 0 else configure_model(model))


class Tent(AdaptingModule):
    """Test entropy minimization (Wang et al., ICLR 2021): scale and shift of the batch-norm layers learn to lower the
    mean entropy of the predictions.

    The wrapper takes ``model`` over. A refused batch or a loss that is not finite changes nothing.

    Args:
        model: As for :class:`CoTTA`.
        optimizer: As for :class:`CoTTA`.
        steps: Adaptation steps per batch; the answer is the last step's.
        episodic: Reset before every batch.
        configure: Call :func:`configure_model` and let the batch-norm layers' parameters alone learn.
        validate: Look for NaN and infinity in every batch on an accelerator too.

    Attributes:
        model: The adapted model.
        optimizer: Its optimizer.
        last_loss: Mean entropy of the last batch.

    Raises:
        TypeError: ``model`` is not a module, ``optimizer`` is and makes no optimizer.
        ValueError: ``steps`` < 1, no batch-norm parameter to adapt, an optimizer with foreign parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerLike = None,
        *,
        steps: int = 1,
        episodic: bool = False,
        configure: bool = True,
        validate: bool = True,
    ) -> None:
        super().__init__()
        check_model(model)
        check_number(steps, "steps", low=1, integer=True)
        if configure:
            configure_model(model)
        chosen, _ = collect_params(model, which="norm")
        if not chosen:
            raise ValueError("model must have batch-norm parameters to adapt, got none that require gradients")
        if configure:
            model.requires_grad_(False)
            for parameter in chosen:
                parameter.requires_grad_(True)
        self.optimizer, self._adapted = make_optimizer(optimizer, chosen, model)
        self._initial_optimizer = copy.deepcopy(self.optimizer.state_dict())
        self._initial = [parameter.detach().clone() for parameter in self._adapted]
        self.model = model
        self.steps, self.episodic, self.validate = steps, episodic, validate
        self.last_loss: Tensor

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K ..."]:
        """Answer a batch and adapt to it: the logits from before the update, without gradient.

        Raises:
            TypeError: ``x`` is not a floating tensor, or the model returns no logits.
            ValueError: ``x`` is empty, NaN or infinite, or too small for batch statistics.
            FloatingPointError: the loss or its gradient is not finite; no weight is changed by that step.
        """
        check_batch(x, self.validate)
        with adapting(x) as batch:
            if self.episodic:
                self.reset()
            for _ in range(self.steps):
                self.optimizer.zero_grad(set_to_none=True)
                logits = call_model(self.model, batch)
                loss = entropies(logits).mean()
                loss.backward()
                check_finite(loss, self._adapted)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
        self.last_loss = loss.detach()
        return logits.detach()

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """The logits, without adapting to the batch."""
        check_batch(x, self.validate)
        return call_model(self.model, x)

    @torch.no_grad()
    def reset(self) -> None:
        """Parameters and optimizer as they were at construction."""
        torch._foreach_copy_(list[Tensor](self._adapted), self._initial)
        self.optimizer.load_state_dict(self._initial_optimizer)

    def train(self, mode: bool = True) -> Tent:
        """Keep the modes that :func:`configure_model` gave the model."""
        self.training = mode
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """The optimizer's state and what :meth:`reset` goes back to."""
        return super().get_extra_state() | {"initial": self._initial}

    @torch.no_grad()
    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`get_extra_state` returned."""
        super().set_extra_state(state)
        for initial, value in zip(self._initial, state["initial"], strict=True):
            initial.copy_(value)


def entropies(logits: Float[Tensor, "B K *S"]) -> Float[Tensor, "B *S"]:
    """Entropy of the prediction of each sample or pixel."""
    log_p = logits.to(working_dtype(logits)).log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


class MixedNorm(nn.Module):
    """A batch-norm layer whose statistics are a mix of the source's and the batch's."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: BatchNorm, source_weight: float) -> None:
        super().__init__()
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError("model must have running statistics in its batch-norm layers for source_weight > 0")
        self.weight, self.bias, self.eps, self.source_weight = norm.weight, norm.bias, norm.eps, source_weight
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``[B, C, ...]``."""
        var, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
        mean = torch.lerp(mean, self.running_mean, self.source_weight)
        var = torch.lerp(var, self.running_var, self.source_weight)
        return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)


def mix_statistics(model: nn.Module, source_weight: float) -> nn.Module:
    """Put a :class:`MixedNorm` in place of every batch-norm layer; a shared layer stays shared."""
    made: dict[nn.Module, MixedNorm] = {}

    def replaced(module: nn.Module) -> nn.Module:
        if isinstance(module, BatchNorm):
            if module not in made:
                made[module] = MixedNorm(module, source_weight)
            return made[module]
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = replaced(child)
        return module

    return replaced(model)

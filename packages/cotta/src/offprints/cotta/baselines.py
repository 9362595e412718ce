"""What CoTTA is compared with, behind the same interface: no adaptation, batch statistics, entropy minimization."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.cotta._wrapping.adapting import AdaptingModule, check_batch, check_finite, is_replica, outside_inference
from offprints.cotta._wrapping.asking import Asker, LogitsFn, Normalize
from offprints.cotta._wrapping.keeping import buffer_values, drop_caches, kept_buffers, put_buffers
from offprints.cotta.configuration import (
    OptimizerLike,
    check_model,
    collect_params,
    configure_model,
    configured_by_hand,
    make_optimizer,
)
from offprints.shared.device import working_dtype
from offprints.shared.validation import check_bool, check_number


class Source(nn.Module):
    """The model as it is, in evaluation mode.

    Args:
        model: As for `CoTTA`.
        normalize: As for `CoTTA`.
        logits_fn: As for `CoTTA`.

    Raises:
        TypeError: ``model`` is not a module, ``normalize`` or ``logits_fn`` not callable.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 5))
        >>> Source(model)(torch.rand(4, 3, 8, 8)).shape
        torch.Size([4, 5])
    """

    def __init__(self, model: nn.Module, *, normalize: Normalize = None, logits_fn: LogitsFn = None) -> None:
        super().__init__()
        check_model(model)
        self._ask = Asker(normalize, logits_fn)
        self.model = model.eval()

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K ..."]:
        """The logits of a batch; TypeError and ValueError as of `CoTTA`."""
        check_batch(x, None)
        with kept_buffers(self.model):
            return self._ask(self.model, x)

    def predict(self, x: Tensor) -> Tensor:
        """The same as ``forward``."""
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
        model: As for `CoTTA`; its batch-norm layers are changed.
        source_weight: Weight of the source statistics in a mix with the batch's (its variance the biased one), of use
            for small batches: at 1 this is `Source`.
        normalize: As for `CoTTA`.
        logits_fn: As for `CoTTA`.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``source_weight`` outside [0, 1], or statistics to be mixed that a layer does not have.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 8), torch.nn.BatchNorm2d(5), torch.nn.Flatten())
        >>> BNAdapt(model, source_weight=0.5)(torch.rand(4, 3, 8, 8)).shape
        torch.Size([4, 5])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        source_weight: float = 0.0,
        normalize: Normalize = None,
        logits_fn: LogitsFn = None,
    ) -> None:
        configure_model(model, source_weight=source_weight)
        super().__init__(model, normalize=normalize, logits_fn=logits_fn)


class Tent(AdaptingModule):
    """Test entropy minimization (Wang et al., ICLR 2021): scale and shift of the normalization layers learn to lower
    the mean entropy of the predictions.

    The wrapper takes ``model`` over. Those of batch norm are meant by the paper; layer, group, instance and RMS norm
    (transformers, ConvNeXt) learn alike. A refused batch or a loss that is not finite changes nothing.

    Args:
        model: As for `CoTTA`.
        optimizer: As for `CoTTA`.
        steps: Adaptation steps per batch; the answer is the last step's.
        episodic: Reset before every batch.
        configure: Call `configure_model` and let the normalization layers' parameters alone learn.
        validate: Look for NaN and infinity in every batch on an accelerator too.
        source_weight: As for `BNAdapt`: mixed statistics in the batch-norm layers.
        reset_every: Reset after so many batches.
        normalize: As for `CoTTA`.
        logits_fn: As for `CoTTA`.

    Attributes:
        model: The adapted model.
        optimizer: Its optimizer.
        last_loss: Mean entropy of the last batch.

    Raises:
        TypeError: ``model`` is not a module, ``optimizer`` is and makes no optimizer.
        ValueError: ``steps`` < 1, no normalization parameter to adapt, an optimizer with foreign parameters.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 8), torch.nn.BatchNorm2d(5), torch.nn.Flatten())
        >>> adapted = Tent(model, lambda parameters: torch.optim.Adam(parameters, lr=1e-3))
        >>> adapted(torch.rand(4, 3, 8, 8)).shape
        torch.Size([4, 5])
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
        source_weight: float = 0.0,
        reset_every: int | None = None,
        normalize: Normalize = None,
        logits_fn: LogitsFn = None,
    ) -> None:
        super().__init__()
        check_model(model)
        self.steps = check_number(steps, "steps", low=1, integer=True)
        self.episodic = check_bool(episodic, "episodic")
        self.validate = check_bool(validate, "validate")
        if not check_bool(configure, "configure"):
            configured_by_hand(source_weight)
        self.reset_every = reset_every
        if reset_every is not None:
            self.reset_every = check_number(reset_every, "reset_every", low=1, integer=True)
        self._ask = Asker(normalize, logits_fn)
        chosen, _ = collect_params(model, which="norm")
        if not chosen:
            raise ValueError(
                "model must have parameters of normalization layers (batch-norm, layer-norm, ...) to adapt, got none"
                " that require gradients"
            )
        if configure:
            configure_model(model, source_weight=source_weight)
        self.optimizer, self._adapted = make_optimizer(optimizer, chosen, model)
        if configure:
            learning = {id(parameter) for parameter in self._adapted}
            for parameter in model.parameters():
                parameter.requires_grad_(parameter.requires_grad and id(parameter) in learning)
        drop_caches([model])
        self.model = model
        self._replica = is_replica(model)
        self._initial_optimizer = copy.deepcopy(self.optimizer.state_dict())
        self._initial = [parameter.detach().clone() for parameter in self._adapted]
        self._initial_buffers = buffer_values(model)
        self.last_loss: Tensor

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K ..."]:
        """Answer a batch and adapt to it: the logits from before the update, without gradient.

        Raises:
            TypeError: ``x`` is not a floating tensor, or the model returns no logits.
            ValueError: ``x`` is empty, NaN or infinite, or too small for batch statistics.
            FloatingPointError: the loss or its gradient is not finite.
        """
        check_batch(x, self.validate)
        with self._all_or_nothing():
            batch = outside_inference(x)
            if self._resets_now:
                self.reset()
            for _ in range(self.steps):
                drop_caches([self.model])
                self.optimizer.zero_grad(set_to_none=True)
                logits = self._ask(self.model, batch)
                loss = entropies(logits).mean()
                loss.backward()
                check_finite(loss, self._adapted, shared=self._replica)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
            drop_caches([self.model])
            self._batches += 1
            self.last_loss = loss.detach()
        return logits.detach()

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """The logits, without adapting to the batch."""
        check_batch(x, self.validate)
        drop_caches([self.model])
        with kept_buffers(self.model):
            return self._ask(self.model, x)

    @torch.no_grad()
    def reset(self) -> None:
        """Parameters, buffers and optimizer as they were at construction."""
        torch._foreach_copy_(list[Tensor](self._adapted), self._initial)
        put_buffers(self.model, self._initial_buffers)
        self.optimizer.load_state_dict(copy.deepcopy(self._initial_optimizer))
        self._batches = 0
        drop_caches([self.model])

    def train(self, mode: bool = True) -> Tent:
        """Keep the modes that `configure_model` gave the model."""
        self.training = mode
        return self

    def _moving(self) -> Iterable[Tensor]:
        return self._adapted

    def get_extra_state(self) -> dict[str, Any]:
        """The optimizer's state and what ``reset`` goes back to."""
        return super().get_extra_state() | {"initial": self._initial, "initial_buffers": self._initial_buffers}

    @torch.no_grad()
    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Put back what ``get_extra_state`` returned."""
        super().set_extra_state(state)
        for initial, value in zip(self._initial, state["initial"], strict=True):
            initial.copy_(value)
        for name, value in state.get("initial_buffers", {}).items():
            self._initial_buffers[name] = None if value is None else value.clone()


def entropies(logits: Float[Tensor, "B K *S"]) -> Float[Tensor, "B *S"]:
    """Entropy of the prediction of each sample or pixel; a class without probability counts nothing."""
    log_p = logits.to(working_dtype(logits)).log_softmax(1)
    p = log_p.exp()
    return -(p * log_p.masked_fill(p == 0, 0)).sum(1)

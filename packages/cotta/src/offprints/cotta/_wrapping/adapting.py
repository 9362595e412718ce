"""What wrappers that learn share: checked input, all or nothing for a batch, a state that resumes bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from offprints.cotta._wrapping.keeping import BufferState, Snapshot, drop_caches
from offprints.shared import distributed
from offprints.shared.validation import check_tensor

Replicated = nn.parallel.DistributedDataParallel


def check_batch(x: Tensor, validate: bool | None) -> None:
    """A floating batch that is not empty, and finite where values are to be looked at."""
    check_tensor(x, "x", validate=validate)
    if x.ndim < 2:
        raise ValueError(f"x must have at least 2 dimensions, got shape {tuple(x.shape)}")


def outside_inference(x: Tensor) -> Tensor:
    """The batch as a tensor that may enter a graph."""
    return x.clone() if x.is_inference() else x.detach()


def is_replica(model: nn.Module) -> bool:
    """Whether other processes adapt replicas of this model, whose gradients are averaged."""
    return distributed.world_size() > 1 and any(isinstance(module, Replicated) for module in model.modules())


def check_finite(loss: Tensor, params: list[nn.Parameter], *, shared: bool = False) -> None:
    """Refuse to step on a loss or a gradient that is NaN or infinite; with ``shared``, in any replica."""
    grads = [parameter.grad for parameter in params if parameter.grad is not None]
    largest = torch._foreach_norm(grads, float("inf")) if grads else []
    finite = torch.stack([value.detach().isfinite().to(loss.device) for value in (loss, *largest)]).all()
    if shared:
        failed = finite.logical_not().to(torch.int32)
        distributed.all_reduce_(failed, op="max")
        finite = failed == 0
    if not bool(finite):
        raise FloatingPointError(
            f"the loss is {loss.item()} or has a gradient that is not finite; no weight was changed"
        )


def _forget(wrapper: AdaptingModule, _: Any) -> None:
    drop_caches(wrapper._models())


class AdaptingModule(nn.Module):
    """A wrapper with an optimizer whose moments and whose random states are part of ``state_dict``."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    steps: int
    episodic: bool
    reset_every: int | None
    DIAGNOSTICS: tuple[str, ...] = ("last_loss",)

    def __init__(self) -> None:
        super().__init__()
        self._generators: dict[str, torch.Generator] = {}
        self._batches = 0  # since the last reset
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]

    def _models(self) -> list[nn.Module]:
        """The models whose forwards the wrapper makes."""
        return [self.model]

    def _moving(self) -> Iterable[Tensor]:
        """All tensors that a step changes, beside buffers and the optimizer's."""
        return self.model.parameters()

    def reset(self) -> None:
        """Back to the state at construction."""
        raise NotImplementedError

    @property
    def _resets_now(self) -> bool:
        due = self.reset_every is not None and self._batches >= self.reset_every
        return self.episodic or due

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Gradients on, whatever the caller has switched off; a block that fails leaves everything as it was."""
        with torch.inference_mode(False), torch.enable_grad():
            buffers = BufferState(*self._models())
            # One step without a reset changes nothing before it is sure to succeed.
            whole = Snapshot(self._moving(), self.optimizer) if self.steps > 1 or self._resets_now else None
            random = {name: generator.get_state() for name, generator in self._generators.items()}
            held = {name: vars(self)[name] for name in (*self.DIAGNOSTICS, "_batches") if name in vars(self)}
            try:
                yield
            except BaseException:
                self.optimizer.zero_grad(set_to_none=True)
                buffers.restore()
                if whole is not None:
                    whole.restore()
                drop_caches(self._models())
                for name, generator in self._generators.items():
                    generator.set_state(random[name])
                for name in self.DIAGNOSTICS:
                    vars(self).pop(name, None)
                vars(self).update(held)
                raise

    def get_extra_state(self) -> dict[str, Any]:
        """The optimizer's state, the random states and the number of batches: tensors and plain values."""
        random = {name: generator.get_state() for name, generator in self._generators.items()}
        return {"optimizer": self.optimizer.state_dict(), "batches": self._batches, **random}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Put back what `get_extra_state` returned."""
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # moments of its own
        self._batches = state.get("batches", 0)
        for name, generator in self._generators.items():
            if name in state:
                generator.set_state(state[name].cpu())

"""What all wrappers share: checked input outside of inference mode, and a state that resumes bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from offprints.shared.validation import check_tensor


def check_batch(x: Tensor, validate: bool | None) -> None:
    """A floating batch that is not empty, and finite where values are to be looked at."""
    check_tensor(x, "x", validate=validate)
    if x.ndim < 2:
        raise ValueError(f"x must have at least 2 dimensions, got shape {tuple(x.shape)}")


@contextmanager
def adapting(x: Tensor) -> Iterator[Tensor]:
    """Gradients on whatever the caller has switched off; the batch as a tensor that may enter a graph."""
    with torch.inference_mode(False), torch.enable_grad():
        yield x.clone() if x.is_inference() else x.detach()


def check_finite(loss: Tensor, params: list[nn.Parameter]) -> None:
    """Refuse to step on a loss or a gradient that is NaN or infinite."""
    grads = [parameter.grad for parameter in params if parameter.grad is not None]
    largest = torch._foreach_norm(grads, float("inf")) if grads else []
    finite = torch.stack([value.detach().isfinite().to(loss.device) for value in (loss, *largest)])
    if not bool(finite.all()):
        raise FloatingPointError(
            f"the loss is {loss.item()} or has a gradient that is not finite; no weight was changed"
        )


class AdaptingModule(nn.Module):
    """A wrapper with an optimizer whose moments and whose random state are part of ``state_dict``."""

    optimizer: torch.optim.Optimizer
    generator: torch.Generator | None = None

    def get_extra_state(self) -> dict[str, Any]:
        """The optimizer's state and the random state: tensors and plain values."""
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict()}
        if self.generator is not None:
            state["random"] = self.generator.get_state()
        return state

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`get_extra_state` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.generator is not None:
            self.generator.set_state(state["random"].cpu())

"""Pseudo-negatives: samples of a Gaussian whose mean moves with the features of the only class there is."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.shared.device import working_dtype
from offprints.shared.validation import check_choice, check_number, check_tensor

Running = Literal["previous_batch", "ema"]
RUNNING: tuple[str, ...] = get_args(Running)


class PseudoNegativeSampler(nn.Module):
    """Draw pseudo-negatives from `N(mu, variance I)` in the space of the features.

    For a batch of features F, `mu = alpha m + (1 - alpha) mean(F)`. With `"previous_batch"`, the paper's code, m is the
    mean of the batch before, and with `"ema"` the mu before; both are 0 at first and after `reset`. It is the step from
    0 that moves mu away from the features: call `reset` at the start of every epoch, as the paper's code does. Without
    it the pseudo-negatives are soon drawn around the features themselves (after one batch, or with `"ema"` after some).

    In evaluation mode nothing is remembered. The samples have no gradient and the type of the features; the means are
    kept in the type of the buffers.

    Args:
        dim: Width of the features.
        alpha: Weight of the past, in [0, 1]; with 0 mu is the batch's mean.
        variance: Variance of every coordinate, positive (the official code's `std_dev`).
        running: What m is.

    Attributes:
        mean: mu of the last call, `(dim,)`.

    Raises:
        TypeError: not numbers.
        ValueError: out of range; an unknown `running`.

    Example:
        >>> sampler = PseudoNegativeSampler(3, alpha=0.8, variance=0.01)
        >>> negatives = sampler(torch.full((4, 3), 5.0), n=2)
        >>> negatives.shape, sampler.mean
        (torch.Size([2, 3]), tensor([1., 1., 1.]))
    """

    mean: Tensor
    previous: Tensor

    def __init__(
        self, dim: int, *, alpha: float = 0.8, variance: float = 1.0, running: Running = "previous_batch"
    ) -> None:
        super().__init__()
        self.dim = check_number(dim, "dim", low=1, integer=True)
        self.alpha = check_number(alpha, "alpha", low=0, high=1)
        self.variance = check_number(variance, "variance", low=0, open_low=True)
        check_choice(running, "running", RUNNING)
        self.running: Running = running
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("previous", torch.zeros(self.dim))  # m of the next call

    @torch.no_grad()
    def reset(self) -> None:
        """Forget the batches before: m is 0 at the next call."""
        self.mean.zero_()
        self.previous.zero_()

    @torch.no_grad()
    def forward(
        self, features: Float[Tensor, "batch dim"], n: int | None = None, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "n dim"]:
        """Draw `n` pseudo-negatives, by default as many as there are features.

        Args:
            features: Features of the class, `(b, dim)`.
            n: Number of samples.
            generator: Makes the draws, on its own device; default: the global stream of the features' device.

        Raises:
            TypeError: not a floating tensor, not an integer.
            ValueError: not two axes, empty, of another width, NaN or infinite; n < 1.
        """
        check_tensor(features, "features", ndim=2)
        if features.shape[1] != self.dim:
            raise ValueError(f"features must have the width {self.dim}, got shape {tuple(features.shape)}")
        count = len(features) if n is None else check_number(n, "n", low=1, integer=True)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
        # Half types hold neither the sum of a batch nor small steps of the mean.
        dtype = working_dtype(features, self.previous)
        batch_mean = features.to(dtype).mean(0)
        mean = self.alpha * self.previous.to(features.device, dtype) + (1 - self.alpha) * batch_mean
        device = features.device if generator is None else generator.device
        noise = torch.randn(count, self.dim, generator=generator, device=device, dtype=dtype).to(features.device)
        if self.training:
            self.mean.copy_(mean)
            self.previous.copy_(batch_mean if self.running == "previous_batch" else mean)
        return (mean + self.variance**0.5 * noise).to(features.dtype)

    def extra_repr(self) -> str:
        """Show the hyperparameters in the module's representation."""
        return f"dim={self.dim}, alpha={self.alpha:g}, variance={self.variance:g}, running={self.running!r}"

"""The training loss of latent consistency models, step by step of a user's own loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from offprints.lct.coupling import ot_couple
from offprints.lct.losses import NORMS, ROBUST, Norm, RobustName, check_c, robust_values, squared_norm
from offprints.lct.model import check_call, check_output
from offprints.lct.schedules import (
    adaptive_c,
    check_levels,
    discretization_curriculum,
    initial_c,
    karras_sigmas,
    lognormal_index_probabilities,
)
from offprints.shared.device import eagerly, working_dtype
from offprints.shared.validation import (
    check_bool,
    check_choice,
    check_labels,
    check_number,
    check_same_device,
    check_same_shape,
    check_tensor,
)


@dataclass
class LatentConsistencyOutput:
    """What one call of :class:`LatentConsistencyLoss` computed.

    Attributes:
        loss: consistency + diffusion_weight * diffusion, a scalar to call ``backward`` on.
        consistency: The robust consistency loss, a scalar with its graph.
        diffusion: Mean weighted squared error of the early samples, a scalar with its graph; 0 where there are none.
        prediction: f(x + sigma_{i+1} z, sigma_{i+1}), ``[B, ...]`` with its graph.
        target: f(x + sigma_i z, sigma_i), the same shape, without a graph.
        indices: i of each sample, int64 ``[B]``, in the increasing grid.
        sigma: sigma_i, ``[B]``.
        sigma_next: sigma_{i+1}, ``[B]``.
        diffusion_mask: Which samples are early, bool ``[B]``.
        noise: z after coupling, ``[B, ...]``.
        c: The robustness constant used, a number or one for each sample, ``[B]``.
        num_scales: Number of levels N of the grid.

    Example:
        >>> out = LatentConsistencyLoss(total_steps=70, c=0.03)(lambda x, sigma: x, torch.randn(4, 8), step=70)
        >>> out.num_scales, out.prediction.shape
        (641, torch.Size([4, 8]))
    """

    loss: Float[Tensor, ""]
    consistency: Float[Tensor, ""]
    diffusion: Float[Tensor, ""]
    prediction: Float[Tensor, "batch *shape"]
    target: Float[Tensor, "batch *shape"]
    indices: Int[Tensor, " batch"]
    sigma: Float[Tensor, " batch"]
    sigma_next: Float[Tensor, " batch"]
    diffusion_mask: Bool[Tensor, " batch"]
    noise: Float[Tensor, "batch *shape"]
    c: float | Float[Tensor, " batch"]
    num_scales: int


class _Drawn(NamedTuple):
    noise: Tensor
    indices: Tensor
    sigma: Tensor
    sigma_next: Tensor
    low: Tensor
    high: Tensor
    c: float | Tensor
    num_scales: int


class LatentConsistencyLoss(nn.Module):
    """Cauchy consistency loss, diffusion loss at early timesteps, OT coupling and adaptive c, each of which may be off.

    For each sample draw an interval i of the grid of this step and take

    L = mean_b rho(f(x + sigma_{i+1} z, sigma_{i+1}), sg f(x + sigma_i z, sigma_i)) / (sigma_{i+1} - sigma_i)
      + diffusion_weight * mean_{early b} (1 / sigma_{i+1}^2 + 1 / sigma_data^2) mean (f(..., sigma_{i+1}) - x)^2

    with the same z and the same dropout masks in both calls, and the model itself as the teacher.

    Args:
        total_steps: K, steps of the whole training.
        initial_scales, final_scales: s0 and s1 of the doubling curriculum.
        sigma_min, sigma_max, rho: The grid.
        p_mean, p_std: The index law.
        sigma_data: In the weight of the diffusion loss.
        robust: The robust function; "pseudo_huber" is the baseline. A function ``(prediction, target, c) -> [B]`` is
            a distance of your own (LPIPS, say); it then does without ``norm``.
        norm: What it is a function of, see :func:`cauchy_loss`.
        c: A number, a function of N, or None for :func:`adaptive_c` at the data's dimension. The function gives a
            number, or one for each interval of the grid, ``[N - 1]``.
        diffusion_fraction: Share of the grid that counts as early: with j = N - 2 - i, those with
            j >= int((1 - fraction) N), as the official code rounds it. 0 for none.
        diffusion_weight: Of the diffusion loss; 0 leaves it out.
        coupling: "ot" pairs noise and data of the batch by :func:`ot_couple`, within classes where ``forward`` is given
            ``labels``; "none" leaves them as drawn.
        validate: Check values of tensors at once on an accelerator too; False leaves these checks out, except those of
            the coupling.

    Where it is compiled as a whole by ``torch.compile``, the two calls of the model are compiled and the rest is not:
    the random streams are put back between the calls, which one graph cannot do (torch refuses ``fullgraph=True``).

    Raises:
        TypeError, ValueError: see the arguments.

    Example:
        >>> class Network(torch.nn.Module):
        ...     def forward(self, x, t):
        ...         return torch.tanh(x + t[:, None])
        >>> loss_fn = LatentConsistencyLoss(total_steps=70, c=0.03)
        >>> out = loss_fn(LatentConsistencyModel(Network()), torch.randn(16, 8), step=0)
        >>> out.loss.shape, out.num_scales
        (torch.Size([]), 11)
    """

    def __init__(
        self,
        *,
        total_steps: int,
        initial_scales: int = 10,
        final_scales: int = 640,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        p_mean: float = -1.1,
        p_std: float = 2.0,
        sigma_data: float = 0.5,
        robust: RobustName | Callable[[Tensor, Tensor, Any], Tensor] = "cauchy",
        norm: Norm = "mean",
        c: float | Callable[[int], float | Tensor] | None = None,
        diffusion_fraction: float = 0.25,
        diffusion_weight: float = 5.0,
        coupling: Literal["ot", "none"] = "ot",
        validate: bool = True,
    ) -> None:
        super().__init__()
        total_steps = check_number(total_steps, "total_steps", low=1, integer=True)
        initial_scales = check_number(initial_scales, "initial_scales", low=1, integer=True)
        final_scales = check_number(final_scales, "final_scales", low=initial_scales, integer=True)
        discretization_curriculum(0, total_steps, initial=initial_scales, final=final_scales)
        self.total_steps = total_steps
        self.initial_scales, self.final_scales = initial_scales, final_scales
        self.sigma_min, self.sigma_max, self.rho = check_levels(sigma_min, sigma_max, rho)
        self.p_mean = float(check_number(p_mean, "p_mean"))
        self.p_std = float(check_number(p_std, "p_std", low=0, open_low=True))
        lognormal_index_probabilities(self._levels(initial_scales + 1), p_mean=self.p_mean, p_std=self.p_std)
        self.sigma_data = float(check_number(sigma_data, "sigma_data", low=0, open_low=True))
        if not callable(robust):
            check_choice(robust, "robust", tuple(ROBUST))
        check_choice(norm, "norm", NORMS)
        self.robust, self.norm = robust, norm
        self.c = c if c is None or callable(c) else check_c(c)
        self.diffusion_fraction = float(check_number(diffusion_fraction, "diffusion_fraction", low=0, high=1))
        self.diffusion_weight = float(check_number(diffusion_weight, "diffusion_weight", low=0))
        check_choice(coupling, "coupling", ("ot", "none"))
        self.coupling = coupling
        self.validate = check_bool(validate, "validate")
        self._tables: dict[tuple[Any, ...], Tensor] = {}
        self._warned = False

    @eagerly(recursive=False)
    def forward(
        self,
        model: Callable[..., Any],
        x: Float[Tensor, "batch *shape"],
        *,
        step: int,
        noise: Float[Tensor, "batch *shape"] | None = None,
        indices: Int[Tensor, " batch"] | None = None,
        generator: torch.Generator | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        labels: Int[Tensor, " batch *attributes"] | None = None,
    ) -> LatentConsistencyOutput:
        """The loss of a batch.

        Args:
            model: ``model(x, sigma, **model_kwargs)`` with ``sigma`` ``[B]``, such as a LatentConsistencyModel (or one
                wrapped by DistributedDataParallel). It is called twice, the first time without a graph.
            x: Clean normalized latents ``[B, ...]``, floating.
            step: k, 0 to ``total_steps``.
            noise: z instead of a draw; still coupled where ``coupling="ot"``.
            indices: i of each sample instead of a draw, increasing order, 0..N-2.
            generator: Of the draws, made on its device; seed it differently on each rank.
            model_kwargs: Passed to the model; rows stay with those of ``x``.
            labels: What the model is conditioned on, integers ``[B]`` or ``[B, k]``: noise is then coupled within
                groups of equal labels, so that it stays standard normal given the condition. Not passed to the
                model. With conditions that are not labels (text) use ``coupling="none"``.

        Warns:
            UserWarning: ``coupling="ot"`` without ``labels``, and ``model_kwargs`` with a tensor of as many rows as
                ``x``. Where that is no condition, ``labels=torch.zeros(len(x), dtype=torch.int64)`` says so.

        Raises:
            TypeError: ``x`` or ``noise`` not floating, ``indices`` or ``labels`` not integers.
            ValueError: ``step`` or ``indices`` out of range, shapes that do not fit, an empty batch, NaN or infinity; a
                model or distance whose result has another shape.
        """
        kwargs = check_call(model, model_kwargs)
        drawn = self._draw(x, step, noise, indices, generator, kwargs, labels)
        device = x.device
        module = None if device.type == "cpu" else torch.get_device_module(device)
        # Both calls see the same dropout masks: the random streams are put back between them.
        cpu, accelerator = torch.get_rng_state(), None if module is None else module.get_rng_state(device)
        try:
            with torch.no_grad():
                # A model may work in place, and give the memory of its first result again with the second.
                target = check_output(model(drawn.low, drawn.sigma.clone(), **kwargs), x, "model").clone()
        finally:
            torch.set_rng_state(cpu)
            if module is not None:
                module.set_rng_state(accelerator, device)
        prediction = model(drawn.high, drawn.sigma_next.clone(), **kwargs)
        return self._combine(x, drawn, target, prediction)

    @eagerly()
    def _draw(
        self,
        x: Tensor,
        step: int,
        noise: Tensor | None,
        indices: Tensor | None,
        generator: torch.Generator | None,
        model_kwargs: Mapping[str, Any],
        labels: Tensor | None,
    ) -> _Drawn:
        """Check the arguments; draw and couple the noise, draw the intervals."""
        num_scales = discretization_curriculum(
            step, self.total_steps, initial=self.initial_scales, final=self.final_scales
        )
        check_tensor(x, "x", min_ndim=2, validate=self.validate)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
        source = x.device if generator is None else generator.device
        if noise is None:
            noise = torch.randn(x.shape, generator=generator, device=source, dtype=x.dtype).to(x.device)
        else:
            check_tensor(noise, "noise", validate=self.validate)
            check_same_shape(x, noise, ("x", "noise"))
            check_same_device(x, noise, names=("x", "noise"))
        if indices is None:
            probabilities = self._table("probabilities", num_scales, source, torch.float32)
            indices = torch.multinomial(probabilities, len(x), replacement=True, generator=generator).to(x.device)
        else:
            if isinstance(indices, Tensor) and indices.ndim != 1:
                raise ValueError(f"indices must have shape ({len(x)},), got {tuple(indices.shape)}")
            checked = check_labels(
                indices, "indices", length=len(x), num_classes=num_scales - 1, validate=self.validate
            )
            indices = checked.to(x.device)
        if self.coupling == "ot":
            if labels is None:
                _warn_of_conditions(model_kwargs, len(x))
            noise = ot_couple(x, noise, labels=labels)
        c = self._constant(num_scales, x[0].numel())
        if isinstance(c, Tensor):
            c = c.to(x.device)[indices]

        sigmas = self._table("sigmas", num_scales, x.device, working_dtype(x))
        sigma, sigma_next = sigmas[indices], sigmas[indices + 1]
        column = (-1, *[1] * (x.ndim - 1))
        low, high = ((x + s.view(column) * noise).to(x.dtype) for s in (sigma, sigma_next))
        return _Drawn(noise, indices, sigma, sigma_next, low, high, c, num_scales)

    @eagerly()
    def _combine(self, x: Tensor, drawn: _Drawn, target: Tensor, prediction: Any) -> LatentConsistencyOutput:
        """Both losses of what the model gave."""
        target = target.detach()
        prediction = check_output(prediction, x, "model")
        noise, indices, sigma, sigma_next, _, _, c, num_scales = drawn
        if callable(self.robust):
            each = self.robust(prediction, target, c)
            if not isinstance(each, Tensor) or each.shape != (len(x),):
                got = tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__
                raise ValueError(f"robust must return one number for each sample, ({len(x)},), got {got}")
        else:
            each = robust_values(self.robust, prediction, target, c, self.norm)
        consistency = (each / (sigma_next - sigma)).mean()
        early = num_scales - 2 - indices >= int((1 - self.diffusion_fraction) * num_scales)
        if self.diffusion_weight > 0 and self.diffusion_fraction > 0:
            weight = (sigma_next.square().reciprocal() + 1 / self.sigma_data**2) / x[0].numel()
            squares = squared_norm(prediction, x).to(weight.dtype)
            errors = torch.where(early, weight * squares, 0.0)
            diffusion = errors.sum() / early.sum().clamp(min=1)
            loss = consistency + self.diffusion_weight * diffusion
        else:
            diffusion = torch.zeros_like(consistency)
            loss = consistency
        return LatentConsistencyOutput(
            loss=loss,
            consistency=consistency,
            diffusion=diffusion,
            prediction=prediction,
            target=target,
            indices=indices,
            sigma=sigma,
            sigma_next=sigma_next,
            diffusion_mask=early,
            noise=noise,
            c=c,
            num_scales=num_scales,
        )

    def _levels(self, num_scales: int) -> Tensor:
        return karras_sigmas(
            num_scales, sigma_min=self.sigma_min, sigma_max=self.sigma_max, rho=self.rho, dtype=torch.float64
        )

    def _table(self, name: str, num_scales: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The levels or their law on a device, made once per stage."""
        grid, law = (self.sigma_min, self.sigma_max, self.rho), (self.p_mean, self.p_std)
        key = (name, num_scales, device, dtype, grid, law)
        if key not in self._tables:
            table = self._levels(num_scales)
            if name == "probabilities":
                table = lognormal_index_probabilities(table, p_mean=self.p_mean, p_std=self.p_std)
            self._tables[key] = table.to(dtype).to(device)
        return self._tables[key]

    def _constant(self, num_scales: int, dim: int) -> float | Tensor:
        if self.c is None:
            if not self._warned and self.final_scales > self.initial_scales:
                second = adaptive_c(2 * self.initial_scales + 1, dim=dim, initial_scales=self.initial_scales)
                if initial_c(dim) < second:
                    self._warned = True
                    warnings.warn(
                        f"the adaptive c is made for latents of dimension 4096: at dimension {dim} it would rise from "
                        f"{initial_c(dim):.3g} to {second:.3g} after the first stage; pass a fixed c, or "
                        f"c=lambda n: adaptive_c(n, dim=4096)",
                        UserWarning,
                        stacklevel=6,
                    )
            return adaptive_c(num_scales, dim=dim, initial_scales=self.initial_scales)
        return check_c(self.c(num_scales) if callable(self.c) else self.c, length=num_scales - 1)

    def extra_repr(self) -> str:
        """The settings that define the recipe."""
        robust = getattr(self.robust, "__name__", self.robust)
        return (
            f"robust={robust!r}, norm={self.norm!r}, coupling={self.coupling!r}, "
            f"diffusion_weight={self.diffusion_weight}, scales={self.initial_scales}..{self.final_scales}"
        )


def _has_rows(value: Any, length: int) -> bool:
    """Whether there is a tensor or an array with a row for each sample in it, however deep."""
    if isinstance(value, Mapping | list | tuple):
        return any(_has_rows(item, length) for item in (value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, Tensor | np.ndarray) and value.ndim > 0 and len(value) == length


def _warn_of_conditions(kwargs: Mapping[str, Any], length: int) -> None:
    rows = [name for name, value in kwargs.items() if _has_rows(value, length)]
    if rows:
        warnings.warn(
            f"coupling='ot' pairs noise across the conditions in model_kwargs ({', '.join(rows)}): the noise that goes "
            "with a condition is then not standard normal, as that of sampling is; pass labels= to couple "
            "within classes, or use coupling='none'",
            UserWarning,
            stacklevel=6,
        )

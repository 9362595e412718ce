"""A diffusion model that needs no training: the exact noise prediction of a Gaussian mixture."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from offprints.pndm.schedules import AlphaSchedule, Values, as_float64
from offprints.shared.device import working_dtype
from offprints.shared.validation import check_probabilities, check_tensor


class GaussianMixtureEps:
    """The noise prediction that a perfect model of an isotropic Gaussian mixture makes.

    At level a the mixture has the means ``sqrt(a) m_k`` and the variances ``v_k = a s_k^2 + 1 - a``, and

        eps(x, t) = sqrt(1 - a) sum_k r_k(x) (x - sqrt(a) m_k) / v_k

    with the posterior weights r of the components. Differentiable in `x`; levels and posterior weights are computed in
    float64, the rest in float32 for half types.

    Args:
        means: ``[K, D]``.
        stds: ``[K]``, positive.
        weights: ``[K]``, non-negative, summing to 1 within 1e-6.
        schedule: Levels by time.

    Raises:
        TypeError: arguments of the wrong kind.
        ValueError: shapes that do not agree, a standard deviation that is not positive, weights that are no
            probabilities.

    Example:
        >>> import torch
        >>> schedule = AlphaSchedule.continuous_linear()
        >>> model = GaussianMixtureEps([[1.0, 0.0], [-1.0, 0.0]], [0.2, 0.2], [0.5, 0.5], schedule)
        >>> model(torch.zeros(1, 2), torch.tensor([0.5]))
        tensor([[0., 0.]])
    """

    def __init__(self, means: Values, stds: Values, weights: Values, schedule: AlphaSchedule) -> None:
        if not isinstance(schedule, AlphaSchedule):
            raise TypeError(f"schedule must be an AlphaSchedule, got {type(schedule).__name__}")
        self.means = as_float64(means, "means", ndim=2)
        self.stds = as_float64(stds, "stds")
        self.weights = check_probabilities(as_float64(weights, "weights"), "weights", atol=1e-6)
        self.schedule = schedule
        for name, values in (("stds", self.stds), ("weights", self.weights)):
            if len(values) != len(self.means):
                raise ValueError(f"{name} must have one entry for each of {len(self.means)} means, got {len(values)}")
        if not bool((self.stds > 0).all()):
            raise ValueError(f"stds must be positive, got {self.stds.min().item()}")

    def __call__(self, x: Float[Tensor, "batch dim"], t: Float[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        """The noise prediction for `x` at times `t`.

        Raises:
            TypeError: `x` is not a floating tensor.
            ValueError: `x` is not ``[B, D]``, `t` not ``[B]``, a time beyond the schedule.
        """
        check_tensor(x, "x", shape=(None, self.means.shape[1]), finite=False, allow_empty=True)
        check_tensor(t, "t", shape=(len(x),), floating=False, finite=False, allow_empty=True)
        level = self.schedule.alpha_bar(t).unsqueeze(1)
        means, stds, weights = (part.to(level.device) for part in (self.means, self.stds, self.weights))
        variances = level * stds**2 + 1 - level
        bias = weights.log() - x.shape[1] / 2 * variances.log()
        dtype, x = x.dtype, x.to(working_dtype(x))
        # Squares of all that float32 holds are finite in float64, which Apple's GPUs do not have.
        wide = x if x.device.type == "mps" else x.double()
        distances = (wide.unsqueeze(1) - (level.sqrt().unsqueeze(1) * means).to(wide)).square().sum(2)
        posterior = (bias.to(wide) - distances / (2 * variances.to(wide))).softmax(1).to(x.dtype)
        means, signal, noise, variances = (part.to(x) for part in (means, level.sqrt(), (1 - level).sqrt(), variances))
        pull = posterior / variances
        return (noise * (x * pull.sum(1, keepdim=True) - signal * (pull @ means))).to(dtype)

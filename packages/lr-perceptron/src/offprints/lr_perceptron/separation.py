"""One descent: from a first iterate to a vector that separates the samples."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offprints.lr_perceptron._descent import Problems, descend
from offprints.lr_perceptron._inputs import (
    as_steps,
    check_samples,
    check_signs,
    check_vector,
    finite_or_refused,
    like_samples,
)
from offprints.lr_perceptron.losses import mean_softplus
from offprints.lr_perceptron.rules import GRADIENT_METHODS, METHODS, misclassified, sample_weights
from offprints.shared.device import float32_region
from offprints.shared.validation import check_bool, check_choice, check_number


@dataclass(frozen=True)
class SeparationResult:
    """What `separate` returns.

    Attributes:
        theta: The last iterate ``[d]``, in the type and on the device of X (float32 where a half type overflows).
        separated: Whether this ``theta`` has every sample on its right side, margins of exactly 0 not counted.
        n_iter: Updates performed.
        history: Empty unless recorded; else tensors of equal length: "iteration" (int64), "loss", "accuracy",
            "grad_norm" (of the plain logistic loss) and "n_misclassified" (int64).
        iterates: All iterates ``[n_iter + 1, d]``, if kept.

    Example:
        >>> X, y = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([1, -1])
        >>> result = separate(X, y, method="perceptron", keep_iterates=True)
        >>> result.separated, result.n_iter, result.iterates.tolist()
        (True, 2, [[0.0, 0.0], [2.0, 0.0], [2.0, -1.0]])
    """

    theta: Float[Tensor, " d"]
    separated: bool
    n_iter: int
    history: dict[str, Tensor] = field(default_factory=dict)
    iterates: Float[Tensor, "iterates d"] | None = None


class _Record:
    """Takes down iterates, and what describes them, of the one problem it watches."""

    def __init__(self, problems: Problems, every: int, keep: bool) -> None:
        self.problems, self.every, self.keep = problems, every, keep
        self.iterations: list[int] = []
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []
        self.iterates: list[Tensor] = []

    def __call__(self, t: int) -> None:
        if self.keep:
            self.iterates.append(self.problems.theta[0].clone())
        if self.every and t % self.every == 0:
            margins = self.problems.margins[0]
            weights = sample_weights("lr_gd", margins, t) * self.problems.signs[0]
            norm = torch.linalg.vector_norm(self.problems.X.T.mv(weights))
            self.iterations.append(t)
            self.rows.append((mean_softplus(margins), norm, misclassified(margins).sum()))

    def history(self, n_iter: int) -> dict[str, Tensor]:
        """The entries up to the last iterate."""
        if not self.every:
            return {}
        losses, norms, counts = zip(*self.rows[: n_iter // self.every + 1], strict=True)
        wrong = torch.stack(counts)
        return {
            "iteration": torch.tensor(self.iterations[: len(wrong)], device=wrong.device),
            "loss": torch.stack(losses),
            "accuracy": 1 - wrong.to(losses[0].dtype) / self.problems.signs.shape[1],
            "grad_norm": torch.stack(norms),
            "n_misclassified": wrong,
        }


def separate(
    X: Float[Tensor, "n d"],
    y: Float[Tensor, " n"] | Int[Tensor, " n"],
    *,
    method: str = "normalized_lr_gd",
    step_size: float = 1.0,
    max_iter: int = 10_000,
    theta0: Float[Tensor, " d"] | None = None,
    record_every: int = 0,
    keep_iterates: bool = False,
    stop: bool = True,
) -> SeparationResult:
    """Look for ``theta`` with ``y_i (x_i . theta) > 0`` for all samples, by one of the paper's algorithms.

    Computed in the type of X, half types in float32. There is no intercept: append a column of ones for one.

    Args:
        X: Samples ``[n, d]``.
        y: Labels -1 and +1 ``[n]``, integers or floating.
        method: ``"lr_gd"`` (gradient descent on the mean logistic loss), ``"normalized_lr_gd"`` (the same, the gradient
            divided by the mean of ``sigmoid(-margin)``), ``"batch_perceptron"``, ``"normalized_batch_perceptron"``,
            ``"perceptron"`` (the first misclassified sample).
        step_size: Step size of the two gradient methods; the perceptrons have none.
        max_iter: Most updates.
        theta0: First iterate ``[d]``; default: 0.
        record_every: Record every so many iterates, the first one included, in ``history``; 0 records nothing.
        keep_iterates: Whether all iterates are returned.
        stop: Whether the gradient methods stop at separation. The perceptrons always do: they have nothing left to do.

    Raises:
        TypeError: X or ``theta0`` is not a floating tensor, y not a tensor of numbers, an option of the wrong kind.
        ValueError: X not 2-D, empty or not finite; y of another length or with other values; an unknown method;
            ``step_size`` not in (0, inf), or so large that an iterate overflows; ``max_iter`` or ``record_every`` < 0;
            ``theta0`` of another shape.

    Example:
        >>> X = torch.tensor([[2.0, 1.0], [1.0, -1.0], [-1.0, 0.5]])
        >>> result = separate(X, torch.tensor([1, 1, -1]), step_size=100.0)
        >>> result.separated, result.n_iter
        (True, 1)
    """
    samples = check_samples(X)
    signs = check_signs(y, "y", samples).unsqueeze(0)
    check_choice(method, "method", METHODS)
    step_size = check_number(step_size, "step_size", low=0, open_low=True)
    max_iter = check_number(max_iter, "max_iter", low=0, integer=True)
    record_every = check_number(record_every, "record_every", low=0, integer=True)
    keep_iterates, stop = check_bool(keep_iterates, "keep_iterates"), check_bool(stop, "stop")
    if theta0 is None:
        theta = samples.new_zeros(1, samples.shape[1])
    else:
        theta = check_vector(theta0, "theta0", X).detach().to(samples.dtype, copy=True).unsqueeze(0)
    steps = as_steps([step_size], "step_size", samples)
    with torch.no_grad(), float32_region(samples.device):
        problems = Problems(samples, signs, method, steps, theta)
        record = _Record(problems, record_every, keep_iterates)
        watch = record if record_every or keep_iterates else None
        found = descend(problems, max_iter, stop=stop or method not in GRADIENT_METHODS, watch=watch)
        last = like_samples(finite_or_refused(found.theta[0], "X", "step_size"), X)
        # What is returned is what is judged: rounding to a half type can undo a separation.
        wrong = misclassified(signs[0] * samples.mv(last.to(samples.dtype)))
    n_iter = int(found.n_iter)
    return SeparationResult(
        theta=last,
        separated=not bool(wrong.any()),
        n_iter=n_iter,
        history=record.history(n_iter),
        iterates=like_samples(torch.stack(record.iterates[: n_iter + 1]), X) if keep_iterates else None,
    )

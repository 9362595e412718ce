"""Several problems on the same samples: their iterates, their margins, and one update of all of them."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from offprints.lr_perceptron._descent.products import Products, weighted_rows
from offprints.lr_perceptron.rules import GRADIENT_METHODS, misclassified, sample_weights

LARGE = 2**18  # numbers


class Problems:
    """B problems that share the samples and differ in labels or step size (one-vs-rest, a sweep).

    On the CPU problems in which few samples have weight are updated by these rows alone (`Products`); all others, and
    everything on an accelerator, by two matrix products for all problems together.

    Args:
        X: Samples ``[n, d]``, in the type to compute in.
        signs: Labels -1 and +1 ``[B, n]``.
        method: One of `METHODS`.
        steps: Step sizes ``[B]``.
        theta: First iterates ``[B, d]``; not copied, and changed in place.
        sparse: Whether few samples with weight are treated apart; default: on the CPU, where the samples are so many
            numbers that two products with them take longer than to look for the active rows.
    """

    def __init__(
        self,
        X: Float[Tensor, "n d"],
        signs: Float[Tensor, "B n"],
        method: str,
        steps: Float[Tensor, " B"],
        theta: Float[Tensor, "B d"],
        *,
        sparse: bool | None = None,
    ) -> None:
        self.X, self.signs, self.method, self.theta = X, signs, method, theta
        self.scale = steps.unsqueeze(1) if method in GRADIENT_METHODS else None
        if sparse is None:
            sparse = X.device.type == "cpu" and X.numel() >= LARGE
        self.products = Products(X) if sparse else None
        # What rounds to nothing beside the heaviest sample, for all samples together.
        self.negligible = torch.finfo(X.dtype).eps / len(X) if method in GRADIENT_METHODS else 0.0
        self.margins = signs * self._scores(theta)
        self.fresh = torch.ones(len(theta), dtype=torch.bool)  # margins are products with theta, not sums of updates

    def keep(self, problems: Int[Tensor, " kept"]) -> None:
        """Go on with these problems alone."""
        self.signs, self.theta = self.signs[problems], self.theta[problems]
        self.margins, self.fresh = self.margins[problems], self.fresh[problems.cpu()]
        if self.scale is not None:
            self.scale = self.scale[problems]

    def n_misclassified(self) -> Int[Tensor, " B"]:
        """How many samples are misclassified in each problem; 0 is never the work of summed rounding errors."""
        counts = misclassified(self.margins).sum(1)
        if self.products is not None and not bool(self.fresh.all()):
            doubtful = (~self.fresh & (counts == 0)).nonzero().squeeze(1)
            if len(doubtful):
                self.margins[doubtful] = self.signs[doubtful] * self._scores(self.theta[doubtful])
                self.fresh[doubtful] = True
                counts[doubtful] = misclassified(self.margins[doubtful]).sum(1)
        return counts

    def update(self, t: int) -> None:
        """Replace every iterate theta_t by theta_{t+1}, and the margins with them."""
        weights = sample_weights(self.method, self.margins, t)
        if self.products is None:
            self._update_densely(weights)
            return
        active = weights > self.negligible * weights.amax(1, keepdim=True)
        few = active.sum(1) <= len(self.X) // 4
        if not bool(few.any()):
            self._update_densely(weights)
        elif bool(few.all()):
            self._update_rows(weights, active, None)
        else:
            self._update_densely(weights, (~few).nonzero().squeeze(1))
            self._update_rows(weights, active, few.nonzero().squeeze(1))

    def _scores(self, theta: Tensor) -> Tensor:
        # A product with one vector is about half again as fast as with a matrix of one row.
        return self.X.mv(theta[0]).unsqueeze(0) if len(theta) == 1 else theta @ self.X.T

    def _sums(self, weights: Tensor) -> Tensor:
        return self.X.T.mv(weights[0]).unsqueeze(0) if len(weights) == 1 else weights @ self.X

    def _update_densely(self, weights: Tensor, problems: Tensor | None = None) -> None:
        if problems is None:
            weights = weights.mul_(self.signs)
            if self.scale is not None:
                weights.mul_(self.scale)
            self.theta += self._sums(weights)
            self.margins = self._scores(self.theta).mul_(self.signs)
            if self.products is not None:
                self.fresh.fill_(True)
            return
        signs = self.signs[problems]
        weights = weights[problems].mul_(signs)
        if self.scale is not None:
            weights.mul_(self.scale[problems])
        theta = self.theta[problems] + self._sums(weights)
        self.theta[problems] = theta
        self.margins[problems] = self._scores(theta).mul_(signs)
        self.fresh[problems] = True

    def _update_rows(self, weights: Tensor, active: Bool[Tensor, "B n"], problems: Tensor | None) -> None:
        """Problems with few active samples, all of them or these."""
        assert self.products is not None
        if problems is not None:
            weights, active = weights[problems], active[problems]
        problem, sample = active.nonzero(as_tuple=True)
        values = weights[problem, sample]
        which = problem if problems is None else problems[problem]
        values = values * self.signs[which, sample]
        if self.scale is not None:
            values = values * self.scale[which, 0]
        counts = active.sum(1)
        offsets = counts.cumsum(0) - counts
        change = weighted_rows(self.X, sample, offsets, values)
        # Beyond d rows a problem, sums of Gram rows are longer than products with all samples.
        places = self.products.places(sample) if len(sample) <= len(counts) * self.X.shape[1] else None
        if problems is None:
            self.theta += change
        else:
            self.theta[problems] += change
        theta = self.theta if problems is None else self.theta[problems]
        signs = self.signs if problems is None else self.signs[problems]
        if places is None:
            margins = self._scores(theta).mul_(signs)
        else:
            margins = weighted_rows(self.products.rows, places, offsets, values).mul_(signs)
            margins += self.margins if problems is None else self.margins[problems]
        if problems is None:
            self.margins = margins
            self.fresh.fill_(places is None)
        else:
            self.margins[problems] = margins
            self.fresh[problems] = places is None

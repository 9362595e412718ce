"""Step 3: ridge regression over a stream that equals the one on all data jointly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offprints.aef_ocl._gram import add_gram_, as_targets, mirror_, spread
from offprints.aef_ocl._recursion import factor, inverse, recursion_
from offprints.aef_ocl._regions import check_dtype, check_magnitude, in_full, plain_region, plainly, twin
from offprints.shared import estimators
from offprints.shared.device import eagerly, float32_region
from offprints.shared.distributed import all_reduce_, gather, world_size
from offprints.shared.validation import check_choice, check_number, check_tensor


class RecursiveRidge(nn.Module):
    """W = argmin ||Phi W - Y||^2 + gamma ||W||^2 over all rows seen so far, in any batches and any order.

    ``solver="cholesky"`` keeps Phi'Phi and Phi'Y, and solves (Phi'Phi + gamma I) W = Phi'Y when the weights are asked
    for: exact up to rounding, additive over machines, the faster one for each batch. ``"recursive"`` is the paper's
    recursion, with R = (Phi'Phi + gamma I)^-1 at hand and weights that are always there: with U = R Phi' and
    I + Phi U = L L', T = L^-1 U', it is R <- R - T'T and W <- W + T' L^-1 (Y - Phi W), which keeps R symmetric. A batch
    with as many rows as features goes through the Gram form at once, a large one in blocks.

    Args:
        in_features: D, the size of a row.
        gamma: Weight of the penalty.
        solver: "cholesky" or "recursive".
        device: Where the sums lie.
        dtype: float64 or float32. In float32 a Gram matrix of thousands of features is singular to working precision
            for the usual gamma, and `weight` says so.

    Attributes:
        gamma: As given.
        solver: As given.
        weight: W, ``[D, K]``.
        covariance: R = (Phi'Phi + gamma I)^-1, ``[D, D]``.
        n_samples_seen_: Rows seen.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: ``in_features`` < 1, ``gamma`` not positive, an unknown solver.
        NotFittedError: `weight` or `forward` before the first batch.
        numpy.linalg.LinAlgError: `weight` where gamma is too small for the precision.

    Example:
        >>> ridge = RecursiveRidge(2, gamma=1.0)
        >>> X, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1, 0])
        >>> ridge.partial_fit(X[:1], y[:1]).partial_fit(X[1:], y[1:]).weight
        tensor([[0.6667, 0.0000],
                [0.0000, 0.5000]], dtype=torch.float64)
    """

    _matrix: Tensor  # lower triangle of Phi'Phi; R of the recursion
    _columns: Tensor  # Phi'Y; W of the recursion
    _seen: Tensor

    def __init__(
        self,
        in_features: int,
        *,
        gamma: float = 1e-3,
        solver: Literal["cholesky", "recursive"] = "cholesky",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.in_features = check_number(in_features, "in_features", low=1, integer=True)
        self.gamma = check_number(gamma, "gamma", low=0, open_low=True)
        check_choice(solver, "solver", ("cholesky", "recursive"))
        self.solver = solver
        D = self.in_features
        with torch.inference_mode(False):  # the sums change in place later
            matrix = torch.zeros(D, D, device=device, dtype=check_dtype(dtype))
            if solver == "recursive":
                matrix.fill_diagonal_(1 / self.gamma)
            self.register_buffer("_matrix", matrix)
            self.register_buffer("_columns", matrix.new_zeros(D, 0))
            self.register_buffer("_seen", matrix.new_zeros((), dtype=torch.int64))
        # The factor and the weights, of these very sums: until the next change, or until others are put in their place.
        self._solution: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "weight":  # a property that raised: NotFittedError is an AttributeError too
            raise estimators.NotFittedError("RecursiveRidge has seen no data yet; call partial_fit first")
        return super().__getattr__(name)

    def _device(self) -> torch.device:
        return self._matrix.device

    @property
    def n_samples_seen_(self) -> int:
        """Rows seen."""
        return int(self._seen)

    # Learning

    @eagerly()
    @plainly
    def partial_fit(self, X: Float[Tensor, "B D"], Y: Int[Tensor, " B"] | Float[Tensor, "B K"]) -> Self:
        """Add rows. Any split into batches, in any order, gives the same weights.

        Args:
            X: Rows of any floating type, converted to that of the sums.
            Y: Numbers of the classes from 0 on, or targets. More columns than before begin as zeros, which is what
                they would have been; fewer are filled up with zeros.

        Raises:
            TypeError: X not a floating tensor, labels that are floating or boolean.
            ValueError: empty, NaN or infinite, too large to be squared, of another width or length, negative labels.
                A refused batch changes nothing.
        """
        check_tensor(X, "X", shape=(None, self.in_features))
        check_magnitude(X, "X", self._matrix.dtype)
        targets = as_targets(Y, len(X), self._matrix)
        X = X.to(self._matrix)
        width = max(self._columns.shape[1], targets.shape[1])
        columns = spread(self._columns, torch.arange(self._columns.shape[1], device="cpu"), width)
        targets = nn.functional.pad(targets, (0, width - targets.shape[1]))
        if self.solver == "cholesky":
            columns.addmm_(X.T, targets)
            add_gram_(self._matrix, X)
        else:
            self._matrix, columns = recursion_(self._matrix, columns, X, targets, self.gamma)
        self._columns = columns
        self._seen = self._seen + len(X)
        self._solution = None
        return self

    # What was learned

    @property
    @eagerly()
    def weight(self) -> Float[Tensor, "D K"]:
        """The weights of all rows seen; computed when first asked for, then kept until the next batch."""
        if not int(self._seen):
            raise estimators.NotFittedError("RecursiveRidge has seen no data yet; call partial_fit first")
        return self._columns if self.solver == "recursive" else self._solved()[1]

    @property
    def covariance(self) -> Float[Tensor, "D D"]:
        """R = (Phi'Phi + gamma I)^-1; I / gamma before the first batch."""
        if self.solver == "recursive":
            return self._matrix.clone()  # which changes in place
        with plain_region(self._device()):
            return torch.cholesky_inverse(self._solved()[0])

    def forward(self, X: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """The scores X W, in the type of the weights; the gradient goes to X.

        Raises:
            TypeError: X not a floating tensor.
            ValueError: another number of features.
            NotFittedError: before the first batch.
        """
        check_tensor(X, "X", shape=(None, self.in_features), finite=False, allow_empty=True)
        with float32_region(X.device):
            return X.to(self._matrix.dtype) @ self.weight

    @plainly
    def _solved(self) -> tuple[Tensor, Tensor]:
        kept = self._solution
        if kept is None or kept[0] is not self._matrix or kept[1] is not self._columns:
            diagonal = mirror_(self._matrix).diagonal()
            before = diagonal.clone()
            diagonal.add_(self.gamma)  # in place and put back: another copy may not fit into memory
            try:
                L = factor(self._matrix, self.gamma, self.gamma / 2)
            finally:
                diagonal.copy_(before)
            self._solution = kept = self._matrix, self._columns, L, torch.cholesky_solve(self._columns, L)
        return kept[2], kept[3]

    # Several machines

    def _kind(self) -> dict[str, Any]:
        """What sums must have in common to be added."""
        return {"in_features": self.in_features, "gamma": self.gamma, "dtype": self._matrix.dtype}

    def _twin(self) -> RecursiveRidge:
        """One that goes on from here by batches, while this one stays as it is."""
        other = twin(self)
        other._matrix, other._solution = self._matrix.clone(), None  # none of the others is changed in place
        return other

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """The lower triangle of Phi'Phi (all of it from a recursion), and Phi'Y."""
        if self.solver == "cholesky":
            return self._matrix, self._columns
        precision = inverse(self._matrix, self.gamma)
        cross = precision @ self._columns
        precision.diagonal().sub_(self.gamma)
        return precision, cross

    def _replace(self, gram: Tensor, cross: Tensor, seen: Tensor) -> None:
        """Be what has seen these sums."""
        if self.solver == "cholesky":
            self._matrix, self._columns = gram, cross
        else:
            mirror_(gram).diagonal().add_(self.gamma)
            R = inverse(gram, self.gamma)
            self._matrix, self._columns = R, R @ cross
        self._seen = seen
        self._solution = None

    def _absorb(self, other: RecursiveRidge, mine: Tensor, its: Tensor, width: int) -> None:
        """Add another's sums, where columns go to these places among ``width``."""
        (gram, cross), (its_gram, its_cross) = self._statistics(), other._statistics()
        cross = spread(cross, mine, width) + spread(its_cross.to(cross), its, width)
        self._replace(gram + its_gram.to(gram), cross, self._seen + other._seen.to(self._seen.device))

    @plainly
    def merge_(self, other: RecursiveRidge) -> Self:
        """Add what another one has seen, as if its rows had come here; the prior gamma I is counted once.

        Either may have seen nothing; the other is left alone, and may have the other solver.

        Raises:
            TypeError: ``other`` is not a RecursiveRidge.
            ValueError: another number of features, another gamma or another type.
        """
        if not isinstance(other, RecursiveRidge):
            raise TypeError(f"other must be a RecursiveRidge, got {type(other).__name__}")
        ours, theirs = self._kind(), other._kind()
        for name, value in ours.items():
            if theirs[name] != value:
                raise ValueError(f"other must have {name}={value}, got {theirs[name]}")
        if other.n_samples_seen_:
            mine, its = (torch.arange(one._columns.shape[1], device="cpu") for one in (self, other))
            self._absorb(other, mine, its, max(len(mine), len(its)))
        return self

    @plainly
    def all_reduce_(self, group: Any = None) -> Self:
        """Merge those of all processes, which may have seen nothing; all then hold the whole. Call it once.

        Raises:
            ValueError: on every process, where numbers of features, gammas or types differ.
        """
        if world_size(group) <= 1:
            return self
        told = gather((self._kind(), self._columns.shape[1]), group)
        if any(kind != told[0][0] for kind, _ in told):
            kinds = [kind for kind, _ in told]
            raise ValueError(f"in_features, gamma and dtype must be the same on all processes: {kinds}")
        gram, cross = (part.clone() for part in self._statistics())
        cross = spread(cross, torch.arange(cross.shape[1], device="cpu"), max(columns for _, columns in told))
        seen = self._seen.clone()
        all_reduce_(gram, cross, seen, group=group)
        self._replace(gram, cross, seen)
        return self

    # State

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._solution = None
        return super()._apply(in_full(fn), recurse)  # type: ignore[no-untyped-call]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}_matrix"] = self._matrix.clone()  # the next batch changes it in place

    def get_extra_state(self) -> dict[str, Any]:
        """What the sums mean: the penalty, and the solver."""
        return {"gamma": self.gamma, "solver": self.solver}

    def set_extra_state(self, state: Any) -> None:
        """Take over the penalty; the solver was compared before anything was loaded."""
        self.gamma = float(state["gamma"])

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(f"{prefix}_extra_state", {}).get("solver", self.solver)
        if saved != self.solver:
            raise ValueError(f"state must be one of solver={self.solver!r}, got one of {saved!r}")
        columns = state_dict.get(f"{prefix}_columns")
        if isinstance(columns, Tensor) and columns.ndim == 2:  # as many classes as were saved
            self._columns = self._columns.new_zeros(self.in_features, columns.shape[1])
        self._solution = None
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"in_features={self.in_features}, gamma={self.gamma:g}, solver={self.solver!r}"

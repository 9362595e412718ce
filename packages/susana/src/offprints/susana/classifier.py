"""The nearest-prototype classifier on scikit-learn's conventions, for features of any model."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import Tensor

from offprints.shared.device import working_dtype
from offprints.shared.estimators import check_fitted, like_input
from offprints.shared.tables import as_table, row_blocks
from offprints.shared.validation import check_choice
from offprints.susana.prototypes import METRICS, Metric, check_temperature, logits_between

Labels = np.ndarray[Any, Any]


class PrototypicalClassifier(ClassifierMixin, BaseEstimator):
    """Classify by the nearest class mean; means are running means, and classes may appear at any time.

    The means of any sequence of `partial_fit` are those of one `fit` on all samples: they are kept in double precision
    (single on MPS, which has no other). What tensors fit are tensors, on the device of the first batch; else arrays.

    Attributes:
        classes_: Labels seen so far ``[K]``, sorted.
        prototypes_: Their means ``[K, d]``, in the type of the first X (half types: float32).
        counts_: Samples of each ``[K]``, int64.
        n_features_in_: d.

    Args:
        metric: As in `prototypical_logits`.
        temperature: What the logits are divided by, more than 0.

    Raises:
        TypeError, ValueError: A setting out of range, refused when it is used.

    Example:
        >>> X, y = np.array([[0.0], [1.0], [9.0]]), np.array(["low", "low", "high"])
        >>> model = PrototypicalClassifier().fit(X, y)
        >>> model.partial_fit(np.array([[50.0]]), ["top"]).predict(np.array([[2.0], [40.0]])).tolist()
        ['low', 'top']
    """

    classes_: Any
    prototypes_: Any
    counts_: Any
    n_features_in_: int
    _known: Any
    _means: Any
    _counts: Any
    _of_tensors: bool
    _dtype: torch.dtype

    def __init__(self, *, metric: Metric = "sqeuclidean", temperature: float = 1.0) -> None:
        self.metric = metric
        self.temperature = temperature

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def fit(self, X: Float[Any, "n d"], y: Any) -> Self:
        """Forget what was seen and learn the means.

        Args:
            X: Features, a tensor or what scikit-learn takes, sparse matrices too.
            y: Labels ``[n]``: integers, strings or booleans.

        Returns:
            The classifier itself.

        Raises:
            TypeError: X not numbers, y not labels.
            ValueError: X not 2-D, empty, NaN or infinite; y of another length; a setting out of range.
        """
        return self._learn(X, y, first=True)

    def partial_fit(self, X: Float[Any, "n d"], y: Any, classes: Any = None) -> Self:
        """Add samples, of classes seen before or not.

        Args:
            X: Features.
            y: Labels ``[n]``.
            classes: Taken for the sake of scikit-learn's conventions and not needed; labels outside of it are refused.

        Returns:
            The classifier itself.

        Raises:
            TypeError, ValueError: As `fit`; another number of features. A refused batch changes nothing.
        """
        return self._learn(X, y, first=not hasattr(self, "classes_"), classes=classes)

    def _learn(self, X: Any, y: Any, *, first: bool, classes: Any = None) -> Self:
        before = dict(self.__dict__)
        try:
            self._settings()
            table = self._table(X, reset=first)
            labels = _labels(y, "y", table.shape[0])
            if classes is not None:
                allowed = _labels(classes, "classes", None)
                if not np.isin(labels, allowed).all():
                    raise ValueError(f"classes must hold every label of y, got {np.unique(allowed).tolist()}")
            if first:
                self._known = self._means = self._counts = None
            start = 0
            for features in row_blocks(table):
                if self._known is None:
                    self._of_tensors, self._dtype = isinstance(X, Tensor), working_dtype(features)
                self._add(features, labels[start : start + len(features)])
                start += len(features)
        except Exception:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        return self

    def _add(self, features: Tensor, labels: Labels) -> None:
        """Merge the means of a batch into those so far, for the classes of both."""
        new, index = np.unique(labels, return_inverse=True)
        if self._known is not None and _kind(self._known) != _kind(new):
            raise TypeError(f"y must hold labels of the same kind as before, {self._known.dtype}, got {new.dtype}")
        known = new if self._known is None else _union(self._known, new)
        wide = torch.float32 if features.device.type == "mps" else torch.float64
        x, groups = features.to(wide), torch.from_numpy(index.reshape(-1)).to(features.device)
        counts = torch.bincount(groups, minlength=len(new))
        # Means of deviations from a sample of each class: they keep their digits far from the origin.
        anchor = x[torch.from_numpy(np.unique(index, return_index=True)[1]).to(features.device)]
        means = torch.zeros_like(anchor).index_add(0, groups, x - anchor[groups]) / counts[:, None] + anchor
        at_new = torch.from_numpy(np.searchsorted(known, new)).to(features.device)
        total = torch.zeros(len(known), dtype=torch.int64, device=features.device)
        merged = x.new_zeros(len(known), x.shape[1])
        if self._known is not None:
            at_old = torch.from_numpy(np.searchsorted(known, self._known)).to(features.device)
            total[at_old], merged[at_old] = self._counts, self._means
        total[at_new] += counts
        share = (counts.to(wide) / total[at_new])[:, None]  # of integers alone it would be in single precision
        merged[at_new] += share * (means - merged[at_new])
        if not bool(merged.isfinite().all()):
            raise ValueError("X must have finite means, got an overflow")
        self._known, self._means, self._counts = known, merged, total
        self.classes_ = torch.from_numpy(known) if self._of_tensors and _kind(known) == "number" else known
        if isinstance(self.classes_, Tensor):
            self.classes_ = self.classes_.to(features.device)
        self.prototypes_, self.counts_ = (
            value.clone() if self._of_tensors else value.cpu().numpy() for value in (merged.to(self._dtype), total)
        )

    def _settings(self) -> float:
        check_choice(self.metric, "metric", METRICS)
        return check_temperature(self.temperature)

    def _table(self, X: Any, *, reset: bool) -> Any:
        """X as a floating tensor without a graph, on the device of what was learned, or as a floating CSR matrix."""
        device = None if reset else self._means.device
        return as_table(X, estimator=self, reset=reset, device=device, sparse=True)

    def _logits(self, X: Any) -> Tensor:
        check_fitted(self, "classes_")
        temperature = self._settings()
        parts = []
        for block in row_blocks(self._table(X, reset=False)):
            features = block.to(self._means.device)
            prototypes = self._means.to(working_dtype(features))
            parts.append(logits_between(features, prototypes, self.metric, temperature))
        logits = parts[0] if len(parts) == 1 else torch.cat(parts)
        if not bool(logits.isfinite().all()):
            raise ValueError("X must lie so near the means that the logits are finite at this temperature, got inf")
        return logits

    def decision_function(self, X: Float[Any, "n d"]) -> Any:
        """Compute the logits of samples.

        Args:
            X: Features.

        Returns:
            Logits ``[n, K]``; of two classes, as scikit-learn has it, the second's less the first's ``[n]``.

        Raises:
            NotFittedError: Before `fit`.
            TypeError, ValueError: As `fit`; another number of features.
        """
        logits = self._logits(X)
        return like_input(logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits, X)

    def predict(self, X: Float[Any, "n d"]) -> Any:
        """Predict the labels of samples ``[n]``, as they were given.

        Args:
            X: Features.

        Raises:
            NotFittedError, TypeError, ValueError: As `decision_function`.
        """
        labels = self._predicted(X)
        if isinstance(X, Tensor) and _kind(labels) == "number":
            return torch.from_numpy(labels).to(X.device)
        return labels

    def _predicted(self, X: Any) -> Labels:
        numbers = self._logits(X).argmax(1).cpu().numpy()
        return np.asarray(self._known[numbers])

    def predict_proba(self, X: Float[Any, "n d"]) -> Any:
        """Compute the softmax of the logits ``[n, K]``.

        Args:
            X: Features.

        Raises:
            NotFittedError, TypeError, ValueError: As `decision_function`.
        """
        return like_input(self._logits(X).softmax(1), X)

    def score(self, X: Float[Any, "n d"], y: Any) -> float:
        """Compute the accuracy of the predictions.

        Args:
            X: Features.
            y: Labels ``[n]``.

        Raises:
            NotFittedError, TypeError, ValueError: As `decision_function`; y of another length.
        """
        predicted = self._predicted(X)
        return float(np.mean(predicted == _labels(y, "y", len(predicted))))


def _union(a: Labels, b: Labels) -> Labels:
    """All labels of both, sorted; signed and unsigned ones, which have no common integer type, go through Python's."""
    return np.union1d(a, b) if a.dtype == b.dtype else np.array(sorted({*a.tolist(), *b.tolist()}))


def _kind(labels: Labels) -> str:
    return "number" if labels.dtype.kind in "iub" else "bytes" if labels.dtype.kind == "S" else "text"


def _labels(y: Any, name: str, length: int | None) -> Labels:
    """Labels as a one-dimensional array of integers, booleans or strings."""
    if y is None:
        raise ValueError(f"{name} must be given: the estimator requires y to be passed, but the target y is None")
    if np.ma.is_masked(y) or hasattr(y, "toarray"):
        raise ValueError(f"{name} must be a plain array of labels, got {type(y).__name__}")
    array = y.detach().cpu().numpy() if isinstance(y, Tensor) and y.dtype != torch.bfloat16 else np.asarray(y)
    if array.dtype.kind == "O" and array.size and {type(v) for v in array.ravel().tolist()} <= {int, bool, np.int64}:
        array = np.array(array.tolist())
    texts = array.dtype.kind == "O" and all(isinstance(v, str) for v in array.ravel().tolist())
    if array.dtype.kind not in "iubUS" and not texts:
        if array.dtype.kind == "f" and array.size and not (array == np.rint(array)).all():
            raise ValueError(f"Unknown label type: {name} must hold classes, got continuous values or NaN")
        raise TypeError(f"{name} must hold integers, strings or booleans, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{name} must have 1 dimension, got shape {array.shape}")
    if length is not None and len(array) != length:
        raise ValueError(f"{name} must have length {length}, got {len(array)}")
    return array.astype(array.dtype.newbyteorder("=")) if array.dtype.kind in "iub" else array

"""Gaussian naive Bayes with a shared diagonal variance (section 2.2), streaming and mergeable."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import Tensor, nn

from offprints.dis_vs_gen._rule import Rule, empty_layer, make_rule, pooled_variance, predict_linear
from offprints.shared.distributed import GroupMoments
from offprints.shared.estimators import LearnedAttributes, all_or_nothing, as_features, check_fitted, like_input
from offprints.shared.labels import Classes, as_labels, training_classes
from offprints.shared.tables import as_table, as_weights, is_sparse, row_blocks
from offprints.shared.validation import check_bool, check_number, check_probabilities

LARGEST = 1e150  # whose square is finite


@dataclass(frozen=True)
class Parameters:
    """The parameters that were in force when the samples were counted: later ``set_params`` wait for the next fit."""

    shared: bool
    smoothing: float
    priors: Tensor | None


class GaussianNaiveBayes(LearnedAttributes, ClassifierMixin, BaseEstimator):
    """Gaussian naive Bayes; with ``shared_variance`` a linear classifier in closed form.

    Class k has prior n_k / m, mean mu_k and, per feature, the biased variance of its samples plus ``var_smoothing``;
    the shared variance is their mean weighted by the counts. The score of class k is log prior_k + log p(x | k).

    Arrays, data frames, sparse matrices (dense in blocks of rows) or tensors of any device; integers become floating.
    Labels are integers, strings or booleans and keep their type. The statistics are float64 on the device of the first
    data. Scores, likelihoods and probabilities are computed in float64. ``predict`` multiplies in float32 where X is
    not float64, and repeats in float64 the rows whose two best scores are closer than float32 can tell apart.

    Args:
        shared_variance: One variance per feature for all classes, the paper's model, instead of one per class.
        var_smoothing: Added to every variance as it is, not relative to the data as in scikit-learn. A feature without
            variance in any class whose class means differ is then scaled by it alone and decides every prediction, and
            where it outweighs the variance of every feature, the features are too small for it: ``fit`` warns.
        priors: Class priors ``[K]`` instead of the shares of the training samples.

    Attributes:
        classes_: Sorted labels ``[K]``, in their own type.
        class_count_, class_prior_: ``[K]``; counts are sums of weights where there are weights.
        theta_: Class means ``[K, d]``; 0 for a class without samples.
        class_var_: Variances of the classes with the smoothing ``[K, d]``.
        var_: The variance in use, ``[d]`` if shared, else ``[K, d]``.
        coef_, intercept_: The linear rule ``[K, d]`` and ``[K]``; only with ``shared_variance``. Scores less a term
            that all classes share.
        n_features_in_: d.
        feature_names_in_: Names of the columns ``[d]``, where X was a data frame.

    All are of the kind (array or tensor) of the first data.

    Parameters are checked in ``fit`` and ``partial_fit``, as in scikit-learn; those of the last of these calls count.

    Raises:
        TypeError: a parameter of the wrong kind.
        ValueError: ``var_smoothing`` < 0; ``priors`` negative or not summing to 1 within 1e-6.

    Example:
        >>> X, y = torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 1])
        >>> nb = GaussianNaiveBayes().fit(X, y)
        >>> nb.predict(torch.tensor([[0.4], [4.4]]))
        tensor([0, 1])
        >>> nb.to_linear()  # the same rule as a layer
        Linear(in_features=1, out_features=2, bias=True)
    """

    _learned = ("classes_", "n_features_in_")
    _cached: Rule | None  # what predicts, until the next batch

    def __init__(
        self, *, shared_variance: bool = True, var_smoothing: float = 1e-9, priors: Tensor | None = None
    ) -> None:
        self.shared_variance = shared_variance
        self.var_smoothing = var_smoothing
        self.priors = priors

    def _check_parameters(self, n_classes: int | None = None) -> Parameters:
        shared = check_bool(self.shared_variance, "shared_variance")
        smoothing = check_number(self.var_smoothing, "var_smoothing", low=0)
        if self.priors is None:
            return Parameters(shared, smoothing, None)
        priors = as_features(self.priors, "priors", dtype=torch.float64, ndim=1).detach().clone()
        check_probabilities(priors, "priors", atol=1e-6)
        if n_classes is not None and len(priors) != n_classes:
            raise ValueError(f"priors must have one entry per class, {n_classes}, got {len(priors)}")
        return Parameters(shared, smoothing, priors)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    # Training

    @all_or_nothing
    def fit(self, X: Float[Any, "n d"], y: Any, sample_weight: Any = None) -> Self:
        """Forget what was seen and fit. One pass over X.

        Args:
            X: Features.
            y: Labels ``[n]``.
            sample_weight: ``[n]``; a sample with the weight 2 counts as two.

        Raises:
            TypeError: X not numbers, y not labels.
            ValueError: X not 2-D, empty, NaN or infinite; y of another length; fewer than two classes; priors of
                another length; no variance and ``var_smoothing`` 0; a negative weight.
        """
        features = as_table(X, estimator=self, reset=True, sparse=True)
        classes, index = training_classes(y, features.shape[0])
        parameters = self._check_parameters(len(classes))
        moments = _count(features, index, len(classes), sample_weight)
        rule = _rule_of(moments, parameters)
        names = features.shape[1]
        if rule.unscaled:
            warnings.warn(
                f"{rule.unscaled} of {names} features have no variance within their class but differ "
                f"between classes: var_smoothing={self.var_smoothing:g} alone scales them and they decide predictions",
                stacklevel=3,
            )
        elif bool((rule.variance < 2 * parameters.smoothing).all()) and bool((moments.m2 > 0).any()):
            warnings.warn(
                f"var_smoothing={self.var_smoothing:g} outweighs the variance of every feature: "
                "scale the features (MinMaxScaler), or set it lower",
                stacklevel=3,
            )
        self._keep(moments, classes, parameters, isinstance(X, Tensor))
        self._cached = rule
        return self

    @all_or_nothing
    def partial_fit(
        self, X: Float[Any, "n d"], y: Any, classes: Sequence[Any] | Any = None, sample_weight: Any = None
    ) -> Self:
        """Add a batch, which may lack classes; any batching gives the same as one ``fit``.

        Args:
            X: Features.
            y: Labels ``[n]``.
            classes: All labels there will be; needed at the first call.
            sample_weight: As in :meth:`fit`.

        Raises:
            TypeError, ValueError: as :meth:`fit`; no ``classes`` at the first call, others than then, or a label that
                is not among them; another number of features. A refused batch changes nothing.
        """
        first = not hasattr(self, "classes_")
        features = as_table(X, estimator=self, reset=first, sparse=True)
        labels = as_labels(y, "y", features.shape[0])
        if first and classes is None:
            raise ValueError("classes must be given at the first partial_fit")
        known = None if first else self._labels
        if classes is not None:
            given = _as_classes(classes)
            if known is not None and given.values.tolist() != known.values.tolist():
                told = known.values.tolist()
                raise ValueError(f"classes must be those of the first partial_fit, {told}, got {given.values.tolist()}")
            known = given if known is None else known
        assert known is not None
        if len(known) < 2:
            raise ValueError(f"classes must hold at least 2 classes, got {known.values.tolist()}")
        parameters = self._check_parameters(len(known))
        moments = _count(features, known.numbers(labels, "y"), len(known), sample_weight)
        if not first:
            moments = copy.deepcopy(self._moments).merge_(moments)
        _finite(moments)
        self._keep(moments, known, parameters, isinstance(X, Tensor) if first else self._of_tensors)
        return self

    def merge(self, other: GaussianNaiveBayes) -> Self:
        """Add the samples that another one has seen, whose classes may differ; that one is left alone.

        The result is that of one fit on all samples. One that has seen nothing adds nothing. The parameters stay.

        Raises:
            TypeError: ``other`` is not a GaussianNaiveBayes, or has labels of another kind.
            ValueError: another number or other names of features; priors that do not fit the classes of both.
        """
        if not isinstance(other, GaussianNaiveBayes):
            raise TypeError(f"other must be a GaussianNaiveBayes, got {type(other).__name__}")
        if not hasattr(other, "classes_"):
            return self
        names = getattr(other, "feature_names_in_", None)
        if not hasattr(self, "classes_"):
            parameters = self._check_parameters(len(other._labels))
            self.n_features_in_ = other.n_features_in_
            if names is not None:
                self.feature_names_in_ = names.copy()
            self._keep(copy.deepcopy(other._moments), other._labels, parameters, other._of_tensors)
            return self
        if other.n_features_in_ != self.n_features_in_:
            raise ValueError(f"other must have {self.n_features_in_} features, got {other.n_features_in_}")
        mine = getattr(self, "feature_names_in_", None)
        if mine is not None and names is not None and mine.tolist() != names.tolist():
            raise ValueError(f"other must have the features {mine.tolist()} in this order, got {names.tolist()}")
        labels = self._labels.union(other._labels)
        parameters = self._check_parameters(len(labels))
        moments = _spread(self._moments, self._labels, labels)
        moments.merge_(_spread(other._moments, other._labels, labels))
        self._keep(_finite(moments), labels, parameters, self._of_tensors)
        return self

    def _keep(self, moments: GroupMoments, labels: Classes, parameters: Parameters, of_tensors: bool) -> None:
        self._moments, self._labels, self._of_tensors = moments, labels, of_tensors
        self._parameters = parameters
        numbers = torch.arange(len(labels), device=moments.mean.device)
        self.classes_ = labels.shown(numbers, moments.mean if of_tensors else None)
        self._cached = None

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if "_moments" in state:  # arrays and plain values alone
            moments, parameters = self._moments, self._parameters
            priors = None if parameters.priors is None else parameters.priors.cpu().numpy()
            state |= {
                "_moments": {name: value.cpu().numpy() for name, value in moments.state_dict().items()},
                "_device": str(moments.mean.device),
                "_labels": self._labels.values,
                "_parameters": {"shared": parameters.shared, "smoothing": parameters.smoothing, "priors": priors},
                "_cached": None,
            }
        return state

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        state = dict(state)
        if "_moments" in state:
            stored, device = state["_moments"], torch.device(state.pop("_device"))
            if device.type == "cuda" and not torch.cuda.is_available():
                device = torch.device("cpu")
            moments = GroupMoments(len(stored["count"]), stored["mean"].shape[1:], device=device)
            moments.load_state_dict({name: torch.tensor(value) for name, value in stored.items()})
            kept = state["_parameters"]
            priors = None if kept["priors"] is None else torch.tensor(kept["priors"])
            state |= {
                "_moments": moments,
                "_labels": Classes(state["_labels"]),
                "_parameters": Parameters(kept["shared"], kept["smoothing"], priors),
            }
        super().__setstate__(state)

    # What was learned

    def _shown(self, values: Tensor) -> Any:
        return values.clone() if self._of_tensors else values.cpu().numpy().copy()

    def _seen(self) -> GroupMoments:
        check_fitted(self, "classes_")
        return self._moments

    def _rule(self) -> Rule:
        moments = self._seen()
        if self._cached is None:
            self._cached = _rule_of(moments, self._parameters)
        return self._cached

    @property
    def class_count_(self) -> Any:
        """Samples per class ``[K]``, float64."""
        return self._shown(self._seen().count)

    @property
    def class_prior_(self) -> Any:
        """Priors ``[K]``."""
        moments = self._seen()
        priors = self._parameters.priors
        return self._shown(moments.count / moments.count.sum() if priors is None else priors)

    @property
    def theta_(self) -> Any:
        """Class means ``[K, d]``."""
        return self._shown(self._seen().mean)

    def _class_var(self) -> Tensor:
        moments = self._seen()
        weight = torch.where(moments.count > 0, moments.count, 1).unsqueeze(1)
        return moments.m2 / weight + self._parameters.smoothing

    @property
    def class_var_(self) -> Any:
        """Variances of the classes ``[K, d]``."""
        return self._shown(self._class_var())

    @property
    def var_(self) -> Any:
        """The variance in use, ``[d]`` or ``[K, d]``."""
        variances = self._class_var()
        return self._shown(pooled_variance(self._moments.count, variances) if self._parameters.shared else variances)

    def _shared_rule(self, name: str) -> Rule:
        rule = self._rule()
        if not self._parameters.shared:
            raise AttributeError(f"{name} needs shared_variance=True: with one variance per class no rule is linear")
        return rule

    @property
    def coef_(self) -> Any:
        """Weights of the linear rule, mu_k / sigma^2, ``[K, d]``."""
        rule = self._shared_rule("coef_")
        return self._shown(rule.theta / rule.variance)

    @property
    def intercept_(self) -> Any:
        """Intercepts, log prior_k - sum mu_k^2 / (2 sigma^2), ``[K]``."""
        rule = self._shared_rule("intercept_")
        return self._shown(rule.log_prior - (rule.theta.square() / rule.variance).sum(1) / 2)

    # Use

    def _query(self, X: Any) -> Any:
        """A tensor on the device of the statistics, or a CSR matrix."""
        moments = self._seen()
        return as_table(X, estimator=self, device=moments.mean.device, sparse=True)

    def _likelihoods(self, features: Any) -> Tensor:
        rule = self._rule()
        blocks = (block.to(rule.center.device, torch.float64) for block in row_blocks(features))
        return torch.cat([rule.log_likelihood(block) for block in blocks])

    def _joint(self, X: Any) -> Tensor:
        return self._likelihoods(self._query(X)) + self._rule().log_prior

    def _best(self, features: Any) -> Tensor:
        """The number of the class of the highest score, for each row."""
        rule = self._rule()
        if not self._parameters.shared or str(features.dtype).endswith("float64"):
            return (self._likelihoods(features) + rule.log_prior).argmax(1)
        return torch.cat([predict_linear(rule, block.to(rule.center.device)) for block in row_blocks(features)])

    def log_likelihood(self, X: Float[Any, "n d"]) -> Float[Any, "n K"]:
        """log p(x | k) without the prior, float64; -inf for a class without samples."""
        return like_input(self._likelihoods(self._query(X)), X)

    def decision_function(self, X: Float[Any, "n d"]) -> Float[Any, "n K"]:
        """log prior_k + log p(x | k) ``[n, K]``; for two classes, as in scikit-learn, second less first ``[n]``."""
        joint = self._joint(X)
        return like_input(joint[:, 1] - joint[:, 0] if joint.shape[1] == 2 else joint, X)

    def predict(self, X: Float[Any, "n d"]) -> Any:
        """The label of the highest score, in the labels' own type ``[n]``."""
        index = self._best(self._query(X))
        return self._labels.shown(index, X)

    def predict_log_proba(self, X: Float[Any, "n d"]) -> Float[Any, "n K"]:
        """log p(k | x), float64."""
        return like_input(self._joint(X).log_softmax(1), X)

    def predict_proba(self, X: Float[Any, "n d"]) -> Float[Any, "n K"]:
        """p(k | x), float64."""
        return like_input(self._joint(X).softmax(1), X)

    def score(self, X: Float[Any, "n d"], y: Any, sample_weight: Any = None) -> float:
        """Share of right predictions, by weight; a label that fit has not seen is always wrong."""
        features = self._query(X)
        labels = as_labels(y, "y", features.shape[0])
        return accuracy(self._labels, self._best(features), labels, sample_weight)

    def to_linear(self, dtype: torch.dtype = torch.float32) -> nn.Linear:
        """The rule as a layer with K outputs: ``classes_[layer(X).argmax(1)]`` is ``predict(X)``.

        Its logits are ``X coef_^T + intercept_`` with the means taken from their center, which subtracts the same from
        every class and keeps float32 precise; the softmax is ``predict_proba``. A class without samples has bias -inf.

        Raises:
            AttributeError: one variance per class.
            TypeError: ``dtype`` is not a floating type.
        """
        rule = self._shared_rule("to_linear")
        bias = rule.log_prior + rule.bias - rule.weight @ rule.center
        layer = empty_layer(self.n_features_in_, len(self._labels), rule.weight.device, dtype)
        with torch.no_grad():
            layer.weight.copy_(rule.weight)
            layer.bias.copy_(torch.where(rule.seen, bias, -math.inf))
        return layer


def accuracy(classes: Classes, index: Tensor, labels: Any, sample_weight: Any) -> float:
    """Share of the labels that the numbers ``index`` of the predicted classes meet."""
    numbers, known = classes.find(labels)
    right = torch.from_numpy((numbers == index.cpu().numpy()) & known).double()
    weights = as_weights(sample_weight, len(right), right.device)
    return float(right.mean() if weights is None else (right * weights).sum() / weights.sum())


def _as_classes(classes: Any) -> Classes:
    """The labels that there will be, as a sequence, a set, an array or a tensor holds them."""
    if isinstance(classes, (set, frozenset, range)):
        classes = list(classes)
    if isinstance(classes, (str, bytes)) or not hasattr(classes, "__len__"):
        raise TypeError(f"classes must be a sequence of labels, got {type(classes).__name__}")
    if len(classes) == 0:
        raise ValueError("classes must hold at least 2 classes, got none")
    found, _ = Classes.of(as_labels(classes, "classes", len(classes)))
    return found


def _count(features: Any, index: Tensor, n_classes: int, sample_weight: Any) -> GroupMoments:
    """The statistics of a table, a block of a sparse one at a time."""
    device = features.device if isinstance(features, Tensor) else torch.device("cpu")
    moments = GroupMoments(n_classes, features.shape[1:])
    weights = as_weights(sample_weight, features.shape[0], device)
    blocks = row_blocks(features) if is_sparse(features) else [features]
    start = 0
    for block in blocks:
        part = slice(start, start + len(block))
        moments.update(block, index[part].to(device), weights=None if weights is None else weights[part])
        start = part.stop
    return _finite(moments)


def _finite(moments: GroupMoments) -> GroupMoments:
    """Refuse what float64 cannot square."""
    if not bool(moments.m2.isfinite().all()):
        raise ValueError(f"X must have magnitudes whose squares float64 can hold, below about {LARGEST:g}: scale it")
    return moments


def _rule_of(moments: GroupMoments, parameters: Parameters) -> Rule:
    return make_rule(
        moments.count,
        moments.mean,
        moments.m2,
        priors=parameters.priors,
        var_smoothing=parameters.smoothing,
        shared=parameters.shared,
    )


def _spread(moments: GroupMoments, classes: Classes, union: Classes) -> GroupMoments:
    """The moments with a row for every class of ``union``."""
    wide = GroupMoments(len(union), moments.shape, device=moments.mean.device)
    rows = union.numbers(classes.values.astype(union.values.dtype), "other").to(moments.mean.device)
    wide.count[rows], wide.mean[rows], wide.m2[rows] = moments.count, moments.mean, moments.m2
    return wide

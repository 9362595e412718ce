"""Gaussian naive Bayes with a shared diagonal variance (section 2.2), streaming and mergeable."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import Tensor, nn

from offprints.dis_vs_gen._inputs import LearnedAttributes, as_labels, as_table, check_width, row_blocks, training_data
from offprints.dis_vs_gen._rule import Rule, make_rule, pooled_variance, predict_linear
from offprints.shared.distributed import GroupMoments
from offprints.shared.estimators import as_features, check_fitted, like_input
from offprints.shared.validation import check_number, check_probabilities


class GaussianNaiveBayes(LearnedAttributes, ClassifierMixin, BaseEstimator):
    """Gaussian naive Bayes; with ``shared_variance`` a linear classifier in closed form.

    Class k has prior n_k / m, mean mu_k and, per feature, the biased variance of its samples plus ``var_smoothing``;
    the shared variance is their mean weighted by the counts. The score of class k is log prior_k + log p(x | k).

    NumPy arrays or tensors of any floating type and device; the statistics are float64 on the device of the first
    data. Scores, likelihoods and probabilities are computed in float64. ``predict`` multiplies in float32 where X is
    not float64, and repeats in float64 the rows whose two best scores are closer than float32 can tell apart.

    Args:
        shared_variance: One variance per feature for all classes, the paper's model, instead of one per class.
        var_smoothing: Added to every variance as it is, not relative to the data as in scikit-learn. A feature without
            variance in any class whose class means differ is then scaled by it alone and decides every prediction:
            ``fit`` warns.
        priors: Class priors ``[K]`` instead of the shares of the training samples.

    Attributes:
        classes_: Sorted labels ``[K]``.
        class_count_, class_prior_: ``[K]``.
        theta_: Class means ``[K, d]``; 0 for a class without samples.
        class_var_: Variances of the classes with the smoothing ``[K, d]``.
        var_: The variance in use, ``[d]`` if shared, else ``[K, d]``.
        coef_, intercept_: The linear rule ``[K, d]`` and ``[K]``; only with ``shared_variance``. Scores less a term
            that all classes share.
        n_features_in_: d.

    All are of the kind (array or tensor) of the first data.

    Parameters are checked in ``fit`` and ``partial_fit``, as in scikit-learn.

    Raises:
        TypeError: a parameter of the wrong kind.
        ValueError: ``var_smoothing`` < 0; ``priors`` negative or not summing to 1 within 1e-6.
    """

    _learned = ("classes_", "n_features_in_")
    _cached: Rule | None  # what predicts, until the next batch

    def __init__(
        self, *, shared_variance: bool = True, var_smoothing: float = 1e-9, priors: Tensor | None = None
    ) -> None:
        self.shared_variance = shared_variance
        self.var_smoothing = var_smoothing
        self.priors = priors

    def _check_parameters(self, n_classes: int | None = None) -> Tensor | None:
        if not isinstance(self.shared_variance, bool):
            raise TypeError(f"shared_variance must be a bool, got {self.shared_variance!r}")
        check_number(self.var_smoothing, "var_smoothing", low=0)
        if self.priors is None:
            return None
        priors = as_features(self.priors, "priors", dtype=torch.float64, ndim=1)
        check_probabilities(priors, "priors", atol=1e-6)
        if n_classes is not None and len(priors) != n_classes:
            raise ValueError(f"priors must have one entry per class, {n_classes}, got {len(priors)}")
        return priors

    # Training

    def fit(self, X: Float[Any, "n d"], y: Int[Any, " n"]) -> Self:
        """Forget what was seen and fit. One pass over X.

        Raises:
            TypeError: X not floating, y not of an integer type.
            ValueError: X not 2-D, empty, NaN or infinite; y of another length; fewer than two classes; priors of
                another length; no variance and ``var_smoothing`` 0.
        """
        features, classes, index = training_data(X, y)
        self._check_parameters(len(classes))
        moments = GroupMoments(len(classes), features.shape[1:])
        moments.update(features, index)
        rule = self._rule_of(moments)
        if rule.unscaled:
            warnings.warn(
                f"{rule.unscaled} of {features.shape[1]} features have no variance within their class but differ "
                f"between classes: var_smoothing={self.var_smoothing:g} alone scales them and they decide predictions",
                stacklevel=2,
            )
        self._keep(moments, classes, isinstance(X, Tensor))
        self._cached = rule
        return self

    def partial_fit(self, X: Float[Any, "n d"], y: Int[Any, " n"], classes: Sequence[int] | Any = None) -> Self:
        """Add a batch, which may lack classes; any batching gives the same as one ``fit``.

        Args:
            X: Features.
            y: Labels.
            classes: All labels there will be; needed at the first call.

        Raises:
            TypeError, ValueError: as :meth:`fit`; no ``classes`` at the first call, others than then, or a label that
                is not among them; another number of features. A refused batch changes nothing.
        """
        features = as_table(X)
        labels = as_labels(y, "y", len(features), features.device)
        first = not hasattr(self, "classes_")
        if first and classes is None:
            raise ValueError("classes must be given at the first partial_fit")
        known = None if first else self._classes
        if classes is not None:
            given = torch.unique(as_labels(classes, "classes", len(classes), features.device))
            if known is not None and given.tolist() != known.tolist():
                raise ValueError(
                    f"classes must be those of the first partial_fit, {known.tolist()}, got {given.tolist()}"
                )
            known = given if known is None else known
        assert known is not None
        if len(known) < 2:
            raise ValueError(f"classes must hold at least 2 classes, got {known.tolist()}")
        self._check_parameters(len(known))
        if not first:
            check_width(features, self)
        known = known.to(labels.device)
        index = torch.searchsorted(known, labels).clamp_(max=len(known) - 1)
        unseen = known[index] != labels
        if bool(unseen.any()):
            raise ValueError(f"y must hold labels among the classes {known.tolist()}, got {int(labels[unseen][0])}")
        if first:
            moments = GroupMoments(len(known), features.shape[1:])
            moments.update(features, index)
            self._keep(moments, known, isinstance(X, Tensor))
        else:
            self._moments.update(features, index)
            self._cached = None
        return self

    def merge(self, other: GaussianNaiveBayes) -> Self:
        """Add the samples that another one has seen, whose classes may differ; that one is left alone.

        The result is that of one fit on all samples. One that has seen nothing adds nothing. The parameters stay.

        Raises:
            TypeError: ``other`` is not a GaussianNaiveBayes.
            ValueError: another number of features; priors that do not fit the classes of both.
        """
        if not isinstance(other, GaussianNaiveBayes):
            raise TypeError(f"other must be a GaussianNaiveBayes, got {type(other).__name__}")
        if not hasattr(other, "classes_"):
            return self
        if not hasattr(self, "classes_"):
            self._check_parameters(len(other._classes))
            self._keep(copy.deepcopy(other._moments), other._classes.clone(), other._of_tensors)
            return self
        if other.n_features_in_ != self.n_features_in_:
            raise ValueError(f"other must have {self.n_features_in_} features, got {other.n_features_in_}")
        theirs = other._classes.to(self._classes.device)
        classes = torch.unique(torch.cat([self._classes, theirs]))
        self._check_parameters(len(classes))
        moments = _spread(self._moments, self._classes, classes)
        moments.merge_(_spread(other._moments, theirs, classes))
        self._keep(moments, classes, self._of_tensors)
        return self

    def _keep(self, moments: GroupMoments, classes: Tensor, of_tensors: bool) -> None:
        self._moments, self._of_tensors = moments, of_tensors
        self._classes = classes.to(moments.mean.device)
        self.classes_ = self._shown(self._classes)
        self.n_features_in_ = moments.shape[0]
        self._cached = None

    # What was learned

    def _shown(self, values: Tensor) -> Any:
        return values.clone() if self._of_tensors else values.cpu().numpy().copy()

    def _seen(self) -> GroupMoments:
        check_fitted(self, "classes_")
        return self._moments

    def _rule_of(self, moments: GroupMoments) -> Rule:
        return make_rule(
            moments.count,
            moments.mean,
            moments.m2,
            priors=self._check_parameters(len(moments.count)),
            var_smoothing=self.var_smoothing,
            shared=self.shared_variance,
        )

    def _rule(self) -> Rule:
        moments = self._seen()
        if self._cached is None:
            self._cached = self._rule_of(moments)
        return self._cached

    @property
    def class_count_(self) -> Any:
        """Samples per class ``[K]``, float64."""
        return self._shown(self._seen().count)

    @property
    def class_prior_(self) -> Any:
        """Priors ``[K]``."""
        moments = self._seen()
        priors = self._check_parameters(len(moments.count))
        return self._shown(moments.count / moments.count.sum() if priors is None else priors)

    @property
    def theta_(self) -> Any:
        """Class means ``[K, d]``."""
        return self._shown(self._seen().mean)

    def _class_var(self) -> Tensor:
        moments = self._seen()
        return moments.m2 / moments.count.clamp(min=1).unsqueeze(1) + self.var_smoothing

    @property
    def class_var_(self) -> Any:
        """Variances of the classes ``[K, d]``."""
        return self._shown(self._class_var())

    @property
    def var_(self) -> Any:
        """The variance in use, ``[d]`` or ``[K, d]``."""
        variances = self._class_var()
        return self._shown(pooled_variance(self._moments.count, variances) if self.shared_variance else variances)

    def _shared_rule(self, name: str) -> Rule:
        rule = self._rule()
        if not self.shared_variance:
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

    def _query(self, X: Any) -> Tensor:
        moments = self._seen()
        features = as_table(X, device=moments.mean.device)
        check_width(features, self)
        return features

    def _joint(self, X: Any) -> Tensor:
        features, rule = self._query(X), self._rule()
        return torch.cat([rule.log_likelihood(block.double()) for block in row_blocks(features)]) + rule.log_prior

    def log_likelihood(self, X: Float[Any, "n d"]) -> Float[Any, "n K"]:
        """log p(x | k) without the prior, float64; -inf for a class without samples."""
        features, rule = self._query(X), self._rule()
        return like_input(torch.cat([rule.log_likelihood(block.double()) for block in row_blocks(features)]), X)

    def decision_function(self, X: Float[Any, "n d"]) -> Float[Any, "n K"]:
        """log prior_k + log p(x | k) ``[n, K]``; for two classes, as in scikit-learn, second less first ``[n]``."""
        joint = self._joint(X)
        return like_input(joint[:, 1] - joint[:, 0] if joint.shape[1] == 2 else joint, X)

    def predict(self, X: Float[Any, "n d"]) -> Int[Any, " n"]:
        """The label of the highest score."""
        features, rule = self._query(X), self._rule()
        if self.shared_variance and features.dtype != torch.float64:
            index = torch.cat([predict_linear(rule, block) for block in row_blocks(features)])
        else:
            index = self._joint(features).argmax(1)
        return like_input(self._classes[index], X)

    def predict_log_proba(self, X: Float[Any, "n d"]) -> Float[Any, "n K"]:
        """log p(k | x), float64."""
        return like_input(self._joint(X).log_softmax(1), X)

    def predict_proba(self, X: Float[Any, "n d"]) -> Float[Any, "n K"]:
        """p(k | x), float64."""
        return like_input(self._joint(X).softmax(1), X)

    def score(self, X: Float[Any, "n d"], y: Int[Any, " n"]) -> float:
        """Share of right predictions."""
        features = self._query(X)
        labels = as_labels(y, "y", len(features), features.device)
        return float((self.predict(features) == labels).double().mean())

    def to_linear(self, dtype: torch.dtype = torch.float32) -> nn.Linear:
        """The rule as a layer with K outputs: ``classes_[layer(X).argmax(1)]`` is ``predict(X)``.

        Its logits are ``X coef_^T + intercept_`` with the means taken from their center, which subtracts the same from
        every class and keeps float32 precise; the softmax is ``predict_proba``. A class without samples has bias -inf.

        Raises:
            AttributeError: one variance per class.
        """
        rule = self._shared_rule("to_linear")
        bias = rule.log_prior + rule.bias - rule.weight @ rule.center
        layer = nn.Linear(self.n_features_in_, len(self._classes), device=rule.weight.device, dtype=dtype)
        with torch.no_grad():
            layer.weight.copy_(rule.weight)
            layer.bias.copy_(torch.where(rule.seen, bias, -math.inf))
        return layer


def _spread(moments: GroupMoments, classes: Tensor, union: Tensor) -> GroupMoments:
    """The moments with a row for every class of ``union``."""
    wide = GroupMoments(len(union), moments.shape, device=moments.mean.device)
    rows = torch.searchsorted(union, classes).to(moments.mean.device)
    wide.count[rows], wide.mean[rows], wide.m2[rows] = moments.count, moments.mean, moments.m2
    return wide

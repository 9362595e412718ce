"""Generalized category discovery on features, on scikit-learn's conventions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin
from torch import Tensor, nn

from offprints.protogcd._inputs import as_ids, as_samples, numbered
from offprints.protogcd._rows import unit_rows
from offprints.protogcd.accuracy import gcd_accuracy
from offprints.protogcd.class_count import estimate_num_classes, pinned_kmeans
from offprints.protogcd.head import PrototypeHead
from offprints.protogcd.objective import ProtoGCDLoss
from offprints.protogcd.outliers import Kind, ood_score
from offprints.protogcd.scale import Scale
from offprints.protogcd.training import diverged, drawn_seed, features_of, layers, logits_of, train, undisturbed
from offprints.shared.device import resolve_device
from offprints.shared.estimators import all_or_nothing, check_fitted, like_input
from offprints.shared.tables import as_table, shared_memory
from offprints.shared.validation import check_choice, check_number, check_tensor

WIDTHS = (256, 128, 64)  # of the adapter
PROJECTOR, PROJECTION = 256, 64  # small for features: wider ones are slower and less accurate on digits
TEMPERATURE = 0.1  # of probabilities
KMEANS_RUNS = 3
RANGE = 4.0  # spreads that features lie within, nearly all: the unit of the noise


class ProtoGCDClusterer(ClusterMixin, BaseEstimator):
    """Classify the old classes and cluster the new ones, from features and the labels of a part of the old classes.

    An adapter, a `PrototypeHead` on it and `ProtoGCDLoss` are trained with Adam on two noisy views of each sample.
    Each sample is seen once an epoch, but for the rest of a batch. With the adapters `"mlp"` and `"none"` features are
    centered and divided by their spread first, so that neither a shift nor a factor of all of them changes anything; a
    module of your own gets them as they are. Everything is trained in float32, whatever modes and defaults are set.

    Args:
        n_classes: Old and new classes together; `"estimate"`: `estimate_num_classes` of the features, centered and
            scaled, between the number K of old classes and max(2 K, K + 10).
        epochs: Passes over the samples; in the first half of them pseudo-labels turn hard.
        lr: Learning rate of Adam.
        batch_size: Samples of a step, each seen twice.
        noise: Standard deviation of the Gaussian noise of the views, relative to the range of the features, for which
            four times the root of their mean squared deviation from their means is taken.
        adapter: `"mlp"`: three layers of 256, 128 and 64; `"none"`: prototypes of the features themselves; a module,
            copied, that maps samples to `(N, D)`.
        supervised_weight: Weight of the labeled terms, in [0, 1].
        entropy_weight: Of the entropy term.
        separation_weight: Of the separation.
        init: `"random"` prototypes, or those of `"kmeans"` in which labeled samples stay in their class.
        views: Makes a random view of a batch of samples as they were given, in place of the noise; called twice.
        device: Where it trains; None: where the tensor X is, for an array the best device there is.
        random_state: Seed; None draws one from torch's global stream.

    Attributes:
        labels_: `(N,)` classes of all samples of `fit`.
        n_classes_: K.
        classes_: 0 to K - 1, old classes first.
        prototypes_: `(K, D)` of unit length, in the space of the adapter's features.
        adapter_, head_: The trained modules.
        class_count_: The `ClassCountEstimate`, or None where K was given.
        history_: One dict a step: `step`, from 1, `epoch`, from 0, and the fields of `ProtoGCDOutput`.
        n_features_in_: D of X.
        feature_names_in_: Names of the columns, where X was a data frame.

    Raises:
        TypeError, ValueError: A parameter of the wrong kind or out of range, here and in `fit`.

    Example:
        >>> X = np.repeat(4 * np.eye(4), 30, axis=0) + np.random.default_rng(0).normal(size=(120, 4))
        >>> y = np.where(np.arange(120) % 2, np.repeat([0, 1, -1, -1], 30), -1)  # two old classes, half of them labeled
        >>> model = ProtoGCDClusterer(4, epochs=20, batch_size=16, random_state=0).fit(X, y)
        >>> model.score(X, np.repeat(range(4), 30)) > 0.9
        True
    """

    def __init__(
        self,
        n_classes: int | Literal["estimate"],
        *,
        epochs: int = 30,
        lr: float = 2e-3,
        batch_size: int = 128,
        noise: float = 0.15,
        adapter: nn.Module | Literal["mlp", "none"] = "mlp",
        supervised_weight: float = 0.35,
        entropy_weight: float = 2.0,
        separation_weight: float = 0.1,
        init: Literal["random", "kmeans"] = "random",
        views: Callable[[Tensor], Tensor] | None = None,
        device: str | torch.device | None = None,
        random_state: int | None = None,
    ) -> None:
        self.n_classes = n_classes
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.noise = noise
        self.adapter = adapter
        self.supervised_weight = supervised_weight
        self.entropy_weight = entropy_weight
        self.separation_weight = separation_weight
        self.init = init
        self.views = views
        self.device = device
        self.random_state = random_state
        self._check_parameters()

    @all_or_nothing
    def fit(self, X: Any, y: Any) -> Self:
        """Learn the classes.

        Args:
            X: `(N, D)` features: tensor, array, data frame or list; with a module as adapter `(N, ...)`, what it takes.
            y: `(N,)` integers: 0 to K_old - 1 for labeled samples, -1 for the others.

        Raises:
            TypeError: X does not hold numbers, y no integers; a parameter of the wrong kind.
            ValueError: X of another shape, empty, not finite; y of another length, without a labeled or an unlabeled
                sample, or with gaps in its numbers; `n_classes` below the number of old classes; a parameter out of
                range; a training that diverges. A call that fails changes nothing.
        """
        self._check_parameters()
        device = resolve_device(self.device, like=X)
        samples = self._samples(X, reset=True).to(device)
        labels = as_ids(y, "y", length=len(samples), unlabeled=True)
        old = numbered(labels, "y")
        if old == 0 or (labels >= 0).all():
            raise ValueError(
                f"y must hold labeled and unlabeled (-1) samples, got no {'' if old == 0 else 'un'}labeled"
            )
        if isinstance(self.n_classes, int | np.integer) and self.n_classes < old:
            raise ValueError(f"n_classes must be at least the number of old classes in y, {old}, got {self.n_classes}")
        with undisturbed(self.random_state, device):
            self._train(samples, shared_memory(labels).to(device), old)
        self._old = old
        self.prototypes_ = like_input(self.head_.prototypes.detach(), X)
        self.classes_ = np.arange(self.n_classes_)
        self.labels_ = like_input(self._logits(samples, diverged(self.lr)).argmax(1), X)
        return self

    def fit_predict(self, X: Any, y: Any, **kwargs: Any) -> Any:
        """`fit`, and the classes of all samples, `(N,)`."""
        return self.fit(X, y, **kwargs).labels_

    def predict(self, X: Any) -> Any:
        """Classes of samples, `(N,)` int64; K_old and above are new ones.

        Raises:
            NotFittedError: Before `fit`.
            TypeError, ValueError: X as in `fit`, or of another width or other columns.
        """
        return like_input(self._logits_of(X).argmax(1), X)

    def predict_proba(self, X: Any) -> Any:
        """Probabilities of the classes, `(N, K)`: `softmax(cosines / 0.1)`; raises as `predict`."""
        return like_input((self._logits_of(X) / TEMPERATURE).softmax(1), X)

    def ood_score(self, X: Any, *, kind: Kind = "msp") -> Any:
        """`ood_score` of samples, `(N,)`: higher for outliers, which belong to no class; raises as `predict`."""
        return like_input(ood_score(self._logits_of(X), kind=kind, temperature=TEMPERATURE), X)

    def score(self, X: Any, y: Any) -> float:
        """Accuracy of all samples after matching, `gcd_accuracy(y, predict(X), y < K_old).all`.

        Args:
            X: Samples.
            y: `(N,)` true classes of all of them, integers from 0.
        """
        logits = self._logits_of(X)
        true = as_ids(y, "y", length=len(logits))
        return gcd_accuracy(true, logits.argmax(1), true < self._old).all

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags

    def _check_parameters(self) -> None:
        if isinstance(self.n_classes, str):
            check_choice(self.n_classes, "n_classes", ("estimate",))
        else:
            check_number(self.n_classes, "n_classes", low=2, integer=True)
        check_number(self.epochs, "epochs", low=1, integer=True)
        check_number(self.lr, "lr", low=0, open_low=True)
        check_number(self.batch_size, "batch_size", low=1, integer=True)
        check_number(self.noise, "noise", low=0)
        if not isinstance(self.adapter, nn.Module):
            check_choice(self.adapter, "adapter", ("mlp", "none"))
        check_number(self.supervised_weight, "supervised_weight", low=0, high=1)
        check_number(self.entropy_weight, "entropy_weight", low=0)
        check_number(self.separation_weight, "separation_weight", low=0)
        check_choice(self.init, "init", ("random", "kmeans"))
        if self.views is not None and not callable(self.views):
            raise TypeError(f"views must be a function or None, got {type(self.views).__name__}")
        if self.random_state is not None:
            check_number(self.random_state, "random_state", low=0, high=2**32, open_high=True, integer=True)

    def _train(self, samples: Tensor, labels: Tensor, old: int) -> None:
        """Adapter, head and what else is learned."""
        scale = Scale.of(samples)
        own = isinstance(self.adapter, nn.Module)
        self._scale = None if own else scale
        x = self._scaled(samples)
        self.class_count_ = None
        if self.n_classes == "estimate":
            most = min(max(2 * old, old + 10), old + int((labels < 0).sum()))
            rows = scale.apply(samples).flatten(1)
            self.class_count_ = estimate_num_classes(rows, labels, max_classes=most, seed=drawn_seed())
        self.n_classes_ = int(self.n_classes) if self.class_count_ is None else self.class_count_.n_classes

        self.adapter_ = self._new_adapter(x).to(x.device, torch.float32)
        features = features_of(self.adapter_, x)
        width = features.shape[1]
        self.head_ = PrototypeHead(width, self.n_classes_, hidden=PROJECTOR, projection_dim=PROJECTION).to(x.device)
        if self.init == "kmeans":
            runs = {"n_init": KMEANS_RUNS, "seed": drawn_seed()}
            with torch.no_grad():
                ((centers, _),) = pinned_kmeans(unit_rows(features), labels, [self.n_classes_], **runs)
            self.head_.set_prototypes(centers)
        criterion = ProtoGCDLoss(
            total_epochs=self.epochs,
            supervised_weight=self.supervised_weight,
            entropy_weight=self.entropy_weight,
            separation_weight=self.separation_weight,
        )
        deviation = float(self.noise) * RANGE * (scale.spread if own else 1.0)

        def view(rows: Tensor) -> Tensor:
            if self.views is None:
                return x[rows] + deviation * torch.randn(rows.shape + x.shape[1:], device=x.device)
            made = check_tensor(self.views(samples[rows].float()), "what views returns", min_ndim=2).detach()
            if len(made) != len(rows) or (made.shape[1:] != samples.shape[1:] and not own):
                raise ValueError(
                    f"views must return a view of each sample, here {(len(rows), *samples.shape[1:])}, "
                    f"got shape {tuple(made.shape)}"
                )
            return self._scaled(made)

        self.history_ = train(
            self.adapter_, self.head_, criterion, labels, view, lr=float(self.lr), batch_size=int(self.batch_size)
        )

    def _new_adapter(self, x: Tensor) -> nn.Module:
        if isinstance(self.adapter, nn.Module):
            return copy.deepcopy(self.adapter)
        return nn.Identity() if self.adapter == "none" else layers(x.shape[1], *WIDTHS)

    def _samples(self, X: Any, *, reset: bool) -> Tensor:
        """X as a tensor: a table, or what a module of the user's own takes."""
        own = isinstance(self.adapter, nn.Module) if reset else self._scale is None
        samples: Tensor = (as_samples if own else as_table)(X, estimator=self, reset=reset)
        return samples

    def _scaled(self, samples: Tensor) -> Tensor:
        """What the adapter gets, in float32."""
        return samples.float() if self._scale is None else self._scale.apply(samples)

    def _logits_of(self, X: Any) -> Tensor:
        check_fitted(self, "head_")
        samples = self._samples(X, reset=False).to(self.head_.weight.device)
        return self._logits(samples, "X must be nearer to the data of fit: its features are not finite in float32")

    def _logits(self, samples: Tensor, problem: str) -> Tensor:
        logits = logits_of(self.adapter_, self.head_, self._scaled(samples))
        if not bool(logits.isfinite().all()):
            raise ValueError(problem)
        return logits

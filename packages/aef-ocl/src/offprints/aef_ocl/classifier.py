"""The whole method as a streaming classifier: backbone, buffer, ridge regression, balance by pseudo-features."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import Tensor, nn

from offprints.aef_ocl._balance import balanced_weights
from offprints.aef_ocl._gram import spread
from offprints.aef_ocl._inputs import as_inputs, expanded, features_of
from offprints.aef_ocl._labels import Classes, as_labels, found_labels
from offprints.aef_ocl._machines import Mergeable
from offprints.aef_ocl._parameters import check_kept, check_parameters, place
from offprints.aef_ocl._regions import plain_region, twin, without_graph
from offprints.aef_ocl._state import Resumable
from offprints.aef_ocl.buffer import RandomBuffer
from offprints.aef_ocl.pseudo_features import PseudoFeatureGenerator
from offprints.aef_ocl.ridge import RecursiveRidge
from offprints.shared.estimators import LearnedAttributes, all_or_nothing, check_fitted, like_input
from offprints.shared.tables import as_table
from offprints.shared.validation import check_bool

ENTRIES = 2**24  # of a block of expanded rows


class AEFOCLClassifier(Mergeable, Resumable, LearnedAttributes, ClassifierMixin, BaseEstimator):
    """AEF-OCL: a classifier of a stream that stores no samples and equals the one trained on all of them at once.

    Features, of a frozen ``backbone`` or as they come, are expanded by a fixed random buffer and classified by ridge
    regression, whose sums do not depend on batches, order or machine. With ``balance`` every class is filled up to the
    largest with pseudo-features, drawn from the moments of the classes, before it predicts; they never enter the
    running sums. Without it this is the joint ridge classifier exactly.

    Arrays, data frames or tensors; integers become floats. Labels are integers or strings, in any number, appear at any
    time, and keep their type. Sums are float64 on one device.

    Args:
        backbone: A frozen module that gives ``[B, d]`` (more axes are flattened); None: X are the features. It is used
            as it is and where it is, in evaluation mode and without a graph, and is not part of the state. Floating
            input comes in the type of its parameters.
        buffer: Any feature expansion in place of `RandomBuffer`; a copy of it is taken at the first batch.
        buffer_size: D, the size of the random expansion.
        gamma: Weight of the penalty.
        noise: Factor of the deviations of pseudo-features.
        balance: Whether predictions are of the balanced solution.
        solver: "cholesky", "recursive", or "auto" for "cholesky".
        random_state: Seed of the buffer and of the pseudo-features. It is 0 by default since machines that merge must
            draw the same buffer; None draws a number once, at the first batch, from torch's global generator.
        device: Where the sums lie; "auto": the device of the first X, or an accelerator (the CPU where it has no
            float64).
        dtype: Type of the sums, float64 or float32.

    Attributes:
        classes_: Sorted labels ``[K]``.
        coef_: The weights in use ``[D, K]``, columns as ``classes_``: balanced where ``balance`` is on, or where
            `rebalance` was the last call that changed anything.
        ridge_: The running `RecursiveRidge`, real features only.
        generator_: The running `PseudoFeatureGenerator`, of features before the buffer.
        buffer_: The expansion.
        n_features_in_: Features of a row given, flattened pixels where a backbone makes the features.
        feature_names_in_: Names of the columns, where X was a data frame.

    The parameters of the first batch hold until the next `fit`, but for ``balance``, which may be changed any time; a
    batch after another change is refused. A class that is declared and not yet seen has the score -inf.

    Raises:
        TypeError, ValueError: a parameter, when the first batch comes; it is named.
        NotFittedError: a method or a learned attribute before the first batch.

    Example:
        >>> X, y = torch.tensor([[0.0, 1.0], [0.2, 1.0], [1.0, 0.0]]), torch.tensor([3, 3, 8])
        >>> model = AEFOCLClassifier(buffer_size=16).partial_fit(X[:2], y[:2]).partial_fit(X[2:], y[2:])
        >>> model.predict(X)
        tensor([3, 3, 8])
        >>> model.generator_.count_
        tensor([2, 1])
    """

    _learned: ClassVar[tuple[str, ...]] = (
        *("classes_", "coef_", "n_features_in_", "feature_names_in_", "ridge_", "generator_", "buffer_"),
        *("_labels", "_of_tensors", "_own_buffer", "_seed", "_balanced", "_forced"),
    )
    classes_: Any
    ridge_: RecursiveRidge
    generator_: PseudoFeatureGenerator
    buffer_: nn.Module
    _labels: Classes
    _of_tensors: bool
    _own_buffer: bool
    _seed: int
    _balanced: dict[str, Tensor]  # the weights in use; kept in a dict, for predicting must not set an attribute
    _forced: bool

    def __init__(
        self,
        *,
        backbone: nn.Module | None = None,
        buffer: nn.Module | None = None,
        buffer_size: int = 8192,
        gamma: float = 1e-3,
        noise: float = 1.0,
        balance: bool = True,
        solver: Literal["auto", "cholesky", "recursive"] = "auto",
        random_state: int | None = 0,
        device: torch.device | str | None = "auto",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.backbone = backbone
        self.buffer = buffer
        self.buffer_size = buffer_size
        self.gamma = gamma
        self.noise = noise
        self.balance = balance
        self.solver = solver
        self.random_state = random_state
        self.device = device
        self.dtype = dtype

    def _device(self) -> torch.device:
        return self.ridge_._device()

    # Training

    @all_or_nothing
    @without_graph
    def fit(self, X: Any, y: Any) -> Self:
        """Forget, and see all rows once.

        Args:
            X: Features ``[N, d]``, or the backbone's input.
            y: Labels ``[N]``, integers or strings.

        Raises:
            TypeError: not arrays or tensors of numbers; floating or boolean labels.
            ValueError: empty, of different lengths, NaN or infinite. A refused call changes nothing.
        """
        self._forget()
        return self._see(X, y, None)

    @all_or_nothing
    @without_graph
    def partial_fit(self, X: Any, y: Any, classes: Sequence[Any] | Any = None) -> Self:
        """See a batch. Any split of the data into batches, in any order, gives the same classifier.

        Args:
            X: Features ``[B, d]``, or the backbone's input.
            y: Labels ``[B]``; new ones may come at any time.
            classes: Labels that there will be, at any call; not needed.

        Raises:
            TypeError, ValueError: as `fit`; another number of features than before, a label that is not among
                ``classes`` where these are given, another parameter than at the first batch. A refused batch changes
                nothing.
        """
        return self._see(X, y, classes)

    def _forget(self) -> None:
        for name in self._learned:
            self.__dict__.pop(name, None)

    def _see(self, X: Any, y: Any, classes: Any) -> Self:
        first = "ridge_" not in vars(self)
        check_parameters(self)
        if not first:
            check_kept(self)
        inputs = self._inputs(X, reset=first)
        labels = as_labels(y, "y", len(inputs))
        found = found_labels(labels, classes)
        features = self._features(inputs)
        if first:
            self._begin(features, X)
        old = vars(self).get("_labels", Classes(found[:0]))
        known = old.joined(found, "y")
        places, numbers = known.places(old.values), known.places(labels)
        features, generator = features.to(self._device()), twin(self.generator_)
        generator._spread(places, len(known))
        generator.partial_fit(features, numbers)
        self.ridge_, self.generator_ = self._extended(features, numbers, places, len(known)), generator
        return self._keep(known)

    def _extended(self, features: Tensor, numbers: Tensor, places: Tensor, width: int) -> RecursiveRidge:
        """The ridge regression with these rows; where one of several blocks could be refused, another one."""
        rows = self._rows()
        ridge = self.ridge_ if len(features) <= rows else self.ridge_._twin()
        columns = ridge._columns
        try:
            if len(places) < width:
                ridge._columns = spread(columns, places, width)
            for block, number in zip(features.split(rows), numbers.split(rows), strict=True):
                ridge.partial_fit(self._expand(block), number)
        except BaseException:
            ridge._columns = columns
            raise
        return ridge

    def _keep(self, known: Classes) -> Self:
        self._labels = known
        like = self.ridge_._matrix if self._of_tensors else None
        self.classes_ = known.shown(torch.arange(len(known), device="cpu"), like)
        self._balanced, self._forced = {}, False
        return self

    def _begin(self, features: Tensor, X: Any, seed: int | None = None) -> None:
        """The buffer, and sums of nothing, for features of this width."""
        options: dict[str, Any] = {"device": place(self, X), "dtype": self.dtype}
        if self.random_state is not None:
            seed = int(self.random_state)
        self._seed = int(torch.randint(2**31, (), device="cpu")) if seed is None else seed
        d, self._own_buffer, self._of_tensors = features.shape[1], self.buffer is None, isinstance(X, Tensor)
        if self.buffer is None:
            self.buffer_ = RandomBuffer(d, self.buffer_size, seed=self._seed, **options)
            D = self.buffer_.out_features
        else:
            self.buffer_ = copy.deepcopy(self.buffer).to(options["device"]).eval()
            D = expanded(self.buffer_, features[:1].to(options["device"]), self.dtype).shape[1]
        solver: Any = "cholesky" if self.solver == "auto" else self.solver
        self.ridge_ = RecursiveRidge(D, gamma=self.gamma, solver=solver, **options)
        self.generator_ = PseudoFeatureGenerator(d, noise=self.noise, **options)

    # From X to scores

    def _inputs(self, X: Any, *, reset: bool = False) -> Tensor:
        taken = as_table if self.backbone is None else as_inputs
        inputs: Tensor = taken(X, estimator=self, reset=reset)
        return inputs

    def _features(self, inputs: Tensor) -> Tensor:
        """Features ``[n, d]``, floating and finite."""
        return inputs if self.backbone is None else features_of(self.backbone, inputs, place(self, inputs))

    def _rows(self) -> int:
        return max(1, ENTRIES // self.ridge_.in_features)

    def _expand(self, features: Tensor) -> Tensor:
        return expanded(self.buffer_, features, self.dtype)

    def _scores(self, X: Any) -> Tensor:
        check_fitted(self, "classes_")
        features = self._features(self._inputs(X)).to(self._device())
        if features.shape[1] != self.generator_.in_features:
            raise ValueError(f"X must give {self.generator_.in_features} features, got {features.shape[1]}")
        weights = self.coef_
        with plain_region(self._device()):
            scores = torch.cat([self._expand(rows).to(weights) @ weights for rows in features.split(self._rows())])
            return scores.masked_fill(self.generator_.count_ == 0, -torch.inf)

    @property
    def coef_(self) -> Float[Tensor, "D K"]:
        """The weights in use."""
        check_fitted(self, "classes_")
        if not self._forced and not check_bool(self.balance, "balance"):
            return self.ridge_.weight
        if "weights" not in self._balanced:
            self._balanced["weights"] = balanced_weights(self)
        return self._balanced["weights"]

    def rebalance(
        self, *, normals: Float[Tensor, "n d"] | None = None, generator: torch.Generator | None = None
    ) -> Self:
        """Solve with every class filled up to the largest, now; in use until the next batch, merge or rebalance.

        Predictions do this by themselves where ``balance`` is on. The running sums stay as they are.

        Args:
            normals: The standard normal numbers of the pseudo-features, classes ascending; an array or a tensor.
            generator: Draws them; default: one seeded by ``random_state`` and the number of samples seen, so that
                predictions repeat.

        Raises:
            TypeError, ValueError: an argument of the wrong kind or shape.
            NotFittedError: before the first batch.
        """
        check_fitted(self, "classes_")
        numbers = torch.from_numpy(normals.copy()) if isinstance(normals, np.ndarray) else normals
        self._balanced, self._forced = {"weights": balanced_weights(self, numbers, generator)}, True
        return self

    def decision_function(self, X: Any) -> Any:
        """Scores ``[B, K]``, also of two classes; -inf for a class that is declared and not yet seen."""
        return like_input(self._scores(X), X)

    def predict(self, X: Any) -> Any:
        """The label of the highest score ``[B]``, in the labels' own type."""
        return self._labels.shown(self._scores(X).argmax(1), X)

    def predict_proba(self, X: Any) -> Any:
        """The softmax of the scores ``[B, K]``. Scores are regressed on 0 and 1: it is not calibrated."""
        return like_input(self._scores(X).softmax(1), X)

    def score(self, X: Any, y: Any) -> float:
        """The share of right predictions; a label never seen is always wrong."""
        numbers = self._scores(X).argmax(1).cpu()
        return float((self._labels.places(as_labels(y, "y", len(numbers))) == numbers).double().mean())

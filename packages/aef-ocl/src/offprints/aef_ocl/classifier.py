"""The whole method as a streaming classifier: backbone, buffer, ridge regression, balance by pseudo-features."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import Tensor, nn

from offprints.aef_ocl._gram import spread
from offprints.aef_ocl._inputs import all_or_nothing, as_inputs, as_table
from offprints.aef_ocl._labels import Classes, as_labels
from offprints.aef_ocl._regions import check_dtype, plain_region
from offprints.aef_ocl._state import pack, unpack
from offprints.aef_ocl.buffer import RandomBuffer, fingerprint
from offprints.aef_ocl.pseudo_features import PseudoFeatureGenerator
from offprints.aef_ocl.ridge import RecursiveRidge
from offprints.shared import estimators
from offprints.shared.device import evaluating, make_generator, map_batches, resolve_device
from offprints.shared.distributed import gather, world_size
from offprints.shared.estimators import check_fitted, like_input
from offprints.shared.validation import check_bool, check_choice, check_number, check_tensor

ENTRIES = 2**24  # of a block of expanded rows
IMAGES = 256  # a backbone's batch
LEARNED = (
    *("classes_", "n_features_in_", "feature_names_in_", "ridge_", "generator_", "buffer_"),
    *("_labels", "_of_tensors", "_own_buffer", "_seed", "_balanced", "_forced"),
)


class AEFOCLClassifier(ClassifierMixin, BaseEstimator):
    """AEF-OCL: a classifier of a stream that stores no samples and equals the one trained on all of them at once.

    Features, of a frozen ``backbone`` or as they come, are expanded by a fixed random buffer and classified by ridge
    regression, whose sums do not depend on batches, order or machine. With ``balance`` every class is filled up to the
    largest with pseudo-features, drawn from the moments of the classes, before it predicts; they never enter the
    running sums. Without it this is the joint ridge classifier exactly.

    Arrays, data frames or tensors; integers become floats. Labels are integers or strings, in any number, appear at any
    time, and keep their type. Sums are float64 on one device.

    Args:
        backbone: A frozen module that gives ``[B, d]`` (more axes are flattened); None: X are the features. It is used
            as it is and where it is, in evaluation mode and without a graph, and is not part of the state.
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

    The parameters of the first batch hold until the next `fit`, but for ``balance``, which may be changed any time. A
    class that is declared and not yet seen has the score -inf.

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

    classes_: Any
    n_features_in_: int
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

    def __getattr__(self, name: str) -> Any:
        if name == "coef_" or name in LEARNED:
            raise estimators.NotFittedError(f"{type(self).__name__} is not fitted yet; {name} comes with fit")
        return object.__getattribute__(self, name)

    def _device(self) -> torch.device:
        return self.ridge_._device()

    # Training

    @all_or_nothing
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
    def partial_fit(self, X: Any, y: Any, classes: Sequence[Any] | Any = None) -> Self:
        """See a batch. Any split of the data into batches, in any order, gives the same classifier.

        Args:
            X: Features ``[B, d]``, or the backbone's input.
            y: Labels ``[B]``; new ones may come at any time.
            classes: Labels that there will be, at any call; not needed.

        Raises:
            TypeError, ValueError: as `fit`; another number of features than before, a label that is not among
                ``classes`` where these are given. A refused batch changes nothing.
        """
        return self._see(X, y, classes)

    def _forget(self) -> None:
        for name in LEARNED:
            self.__dict__.pop(name, None)

    def _see(self, X: Any, y: Any, classes: Any) -> Self:
        first = "ridge_" not in vars(self)
        check_bool(self.balance, "balance")
        if first:
            self._check_parameters()
        inputs = self._inputs(X, reset=first)
        labels = as_labels(y, "y", len(inputs))
        found = Classes.of(labels)
        if classes is not None:
            given = list(classes) if isinstance(classes, (set, frozenset, range)) else classes
            declared = Classes.of(as_labels(given, "classes"))
            if (absent := declared.find(found.values) < 0).any():
                raise ValueError(f"classes must hold all labels of y, they lack {found.values[absent].tolist()}")
            found = declared
        features = self._features(inputs)
        if first:
            self._begin(features, X)
            self._labels = found
        known = self._labels.union(found, "y")
        places = (
            torch.from_numpy(known.find(self._labels.values))
            if "classes_" in vars(self)
            else torch.arange(0, device="cpu")
        )
        features, numbers = features.to(self._device()), torch.from_numpy(known.find(labels))
        generator = copy.deepcopy(self.generator_)
        generator._spread(places, len(known))
        generator.partial_fit(features, numbers)
        self.ridge_, self.generator_ = self._extended(features, numbers, places, len(known)), generator
        return self._keep(known)

    def _extended(self, features: Tensor, numbers: Tensor, places: Tensor, width: int) -> RecursiveRidge:
        """The ridge regression with these rows; where one of several blocks could be refused, another one."""
        rows = self._rows()
        ridge = self.ridge_ if len(features) <= rows else copy.deepcopy(self.ridge_)
        columns = ridge._columns
        try:
            ridge._columns = spread(columns, places, width)
            for block, number in zip(features.split(rows), numbers.split(rows), strict=True):
                ridge.partial_fit(self._expand(block), number)
        except Exception:
            ridge._columns = columns
            raise
        return ridge

    def _keep(self, known: Classes) -> Self:
        self._labels = known
        self.classes_ = known.shown(
            torch.arange(len(known), device="cpu"), self.ridge_._matrix if self._of_tensors else None
        )
        self._balanced, self._forced = {}, False
        return self

    def _check_parameters(self) -> None:
        for name in ("backbone", "buffer"):
            module = getattr(self, name)
            if module is not None and not isinstance(module, nn.Module):
                raise TypeError(f"{name} must be a torch.nn.Module or None, got {type(module).__name__}")
        check_number(self.buffer_size, "buffer_size", low=1, integer=True)
        check_number(self.gamma, "gamma", low=0, open_low=True)
        check_number(self.noise, "noise", low=0)
        check_choice(self.solver, "solver", ("auto", "cholesky", "recursive"))
        if self.random_state is not None:
            check_number(self.random_state, "random_state", low=0, high=2**63, open_high=True, integer=True)
        check_dtype(self.dtype)
        self._place(None)

    def _place(self, X: Any) -> torch.device:
        like = X if isinstance(X, Tensor) else None
        device = resolve_device(self.device, like=like)
        automatic = self.device is None or self.device == "auto"
        if device.type == "mps" and automatic and self.dtype == torch.float64:
            return torch.device("cpu")
        return device

    def _begin(self, features: Tensor, X: Any, seed: int | None = None) -> None:
        """The buffer, and sums of nothing, for features of this width."""
        device = self._place(X)
        if self.random_state is not None:
            seed = int(self.random_state)
        self._seed = int(torch.randint(2**31, (), device="cpu")) if seed is None else seed
        options: dict[str, Any] = {"device": device, "dtype": self.dtype}
        d = features.shape[1]
        self._own_buffer = self.buffer is None
        if self.buffer is None:
            self.buffer_ = RandomBuffer(d, self.buffer_size, seed=self._seed, **options)
            D = self.buffer_.out_features
        else:
            self.buffer_ = copy.deepcopy(self.buffer).to(device).eval()
            D = self._expand(features[:1].to(device)).shape[1]
        solver: Any = "cholesky" if self.solver == "auto" else self.solver
        self.ridge_ = RecursiveRidge(D, gamma=self.gamma, solver=solver, **options)
        self.generator_ = PseudoFeatureGenerator(d, noise=self.noise, **options)
        self._of_tensors = isinstance(X, Tensor)

    # From X to scores

    def _inputs(self, X: Any, *, reset: bool = False) -> Tensor:
        return as_table(X, self, reset=reset) if self.backbone is None else as_inputs(X, self, reset=reset)

    def _features(self, inputs: Tensor) -> Tensor:
        """Features ``[n, d]``, floating and finite."""
        if self.backbone is None:
            return inputs
        owned = next((part.device for part in (*self.backbone.parameters(), *self.backbone.buffers())), None)
        device = self._place(inputs) if owned is None else owned
        with plain_region(device):
            made = map_batches(self.backbone, inputs, batch_size=IMAGES, device=device)
        features = made.flatten(1) if made.ndim > 1 else made
        return check_tensor(features, "X (as the backbone turns it into features)", ndim=2)

    def _rows(self) -> int:
        return max(1, ENTRIES // self.ridge_.in_features)

    def _expand(self, features: Tensor) -> Tensor:
        """The buffer's rows ``[n, D]`` of features on its device."""
        parts = (*self.buffer_.parameters(), *self.buffer_.buffers())
        dtype = next((part.dtype for part in parts if part.is_floating_point()), self.dtype)
        with plain_region(features.device), evaluating(self.buffer_):
            expanded = self.buffer_(features.to(dtype))
        if not isinstance(expanded, Tensor) or expanded.ndim != 2 or len(expanded) != len(features):
            got = tuple(expanded.shape) if isinstance(expanded, Tensor) else type(expanded).__name__
            raise ValueError(f"buffer must turn [B, d] into [B, D], got {got} from {tuple(features.shape)}")
        return expanded

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
            self._balanced["weights"] = self._balanced_weights(None, None)
        return self._balanced["weights"]

    def rebalance(
        self, *, normals: Float[Tensor, "n d"] | None = None, generator: torch.Generator | None = None
    ) -> Self:
        """Solve with every class filled up to the largest, now; in use until the next batch, merge or rebalance.

        Predictions do this by themselves where ``balance`` is on. The running sums stay as they are.

        Args:
            normals: The standard normal numbers of the pseudo-features, classes ascending.
            generator: Draws them; default: one seeded by ``random_state`` and the number of samples seen, so that
                predictions repeat.

        Raises:
            TypeError, ValueError: an argument of the wrong kind or shape.
            NotFittedError: before the first batch.
        """
        check_fitted(self, "classes_")
        self._balanced = {"weights": self._balanced_weights(normals, generator)}
        self._forced = True
        return self

    def _balanced_weights(self, normals: Tensor | None, generator: torch.Generator | None) -> Tensor:
        if generator is None:
            entropy = np.random.SeedSequence([self._seed, self.ridge_.n_samples_seen_])
            generator = make_generator(int(entropy.generate_state(1, np.uint64)[0] >> 1))
        with plain_region(self._device()):
            chunks = self.generator_._chunks(None, generator, normals)
            ridge = None
            for features, labels in chunks:
                if len(labels):
                    ridge = copy.deepcopy(self.ridge_) if ridge is None else ridge
                    for part, number in zip(features.split(self._rows()), labels.split(self._rows()), strict=True):
                        ridge.partial_fit(self._expand(part), number)
            if ridge is None:
                return self.ridge_.weight
            try:
                return ridge.weight
            except np.linalg.LinAlgError as error:
                raise np.linalg.LinAlgError(
                    f"with pseudo-features, noise={self.generator_.noise:g}: {error}"
                ) from error

    def decision_function(self, X: Any) -> Any:
        """Scores ``[B, K]``, also of two classes; -inf for a class that is declared and not yet seen."""
        return like_input(self._scores(X), X)

    def predict(self, X: Any) -> Any:
        """The label of the highest score ``[B]``, in the labels' own type."""
        best = self._scores(X).argmax(1)
        return self._labels.shown(best, X)

    def predict_proba(self, X: Any) -> Any:
        """The softmax of the scores ``[B, K]``. Scores are regressed on 0 and 1: it is not calibrated."""
        return like_input(self._scores(X).softmax(1), X)

    def score(self, X: Any, y: Any) -> float:
        """The share of right predictions; a label never seen is always wrong."""
        numbers = self._scores(X).argmax(1).cpu().numpy()
        return float((self._labels.find(as_labels(y, "y", len(numbers))) == numbers).mean())

    # Several machines

    def _signature(self) -> dict[str, Any]:
        """What has to be the same for sums to be added."""
        return {
            "number of features": self.generator_.in_features,
            "size of X": self.n_features_in_,
            "names of features": getattr(self, "feature_names_in_", np.array([])).tolist(),
            "size of the buffer": self.ridge_.in_features,
            "gamma": self.ridge_.gamma,
            "dtype": str(self.ridge_._matrix.dtype),
            "buffer (its matrix; see random_state)": fingerprint(self.buffer_),
        }

    def _outline(self) -> dict[str, Any] | None:
        """What one that has seen nothing needs in order to join."""
        if "classes_" not in vars(self):
            return None
        names = vars(self).get("feature_names_in_")
        return {
            "d": self.generator_.in_features,
            "n_features_in_": self.n_features_in_,
            "names": names,
            "seed": self._seed,
            "of_tensors": self._of_tensors,
            "labels": self._labels.values,
        }

    def _join(self, outline: Mapping[str, Any]) -> None:
        """Begin, with nothing seen, beside one that has begun."""
        self._check_parameters()
        like = torch.zeros(1, outline["d"], dtype=self.dtype, device=self._place(None))
        self._begin(like, None, seed=outline["seed"])
        self.n_features_in_, self._of_tensors = outline["n_features_in_"], outline["of_tensors"]
        if outline["names"] is not None:
            self.feature_names_in_ = outline["names"].copy()
        self._keep(Classes(outline["labels"][:0]))

    @all_or_nothing
    def merge_(self, other: AEFOCLClassifier) -> Self:
        """Add what another one has seen, as if its rows had come here. Either may have seen nothing.

        The other is left alone; classes may differ. Backbones are not compared.

        Raises:
            TypeError: ``other`` is not an AEFOCLClassifier, or its labels are of another kind.
            ValueError: other sizes, another gamma or type, another buffer.
        """
        if not isinstance(other, AEFOCLClassifier):
            raise TypeError(f"other must be an AEFOCLClassifier, got {type(other).__name__}")
        outline = other._outline()
        if outline is None:
            return self
        if "classes_" not in vars(self):
            self._join(outline)
        refuse_differences("other", self._signature(), [other._signature()])
        known = self._labels.union(other._labels, "other") if len(self._labels) else other._labels
        mine, its = (torch.from_numpy(known.find(one._labels.values)) for one in (self, other))
        generator, added = copy.deepcopy(self.generator_), copy.deepcopy(other.generator_)
        generator._spread(mine, len(known))
        added._spread(its, len(known))
        generator.merge_(added)
        self.ridge_._absorb(other.ridge_, mine, its, len(known))
        self.generator_ = generator
        return self._keep(known)

    @all_or_nothing
    def all_reduce_(self, group: Any = None) -> Self:
        """Merge those of all processes of torch's process group; all then hold the whole. Call it once.

        Some may have seen nothing, or other classes.

        Raises:
            TypeError, ValueError: on every process, where they do not fit, as in `merge_`.
        """
        if world_size(group) <= 1:
            return self
        told = [outline for outline in gather(self._outline(), group) if outline is not None]
        if not told:
            return self
        answer: tuple[dict[str, Any] | None, str]
        try:
            if "classes_" not in vars(self):
                self._join(told[0])
            answer = self._signature(), ""
        except Exception as error:  # told to all: none waits for one that has stopped
            answer = None, f"{type(error).__name__}: {error}"
        answers = gather(answer, group)
        if failed := [text for _, text in answers if text]:
            raise ValueError(f"a process cannot take part: {failed[0]}")
        refuse_differences(
            "every process", self._signature(), [signature for signature, _ in answers if signature is not None]
        )
        known = Classes(told[0]["labels"])
        for outline in told[1:]:
            known = known.union(Classes(outline["labels"]), "every process")
        places = torch.from_numpy(known.find(self._labels.values))
        self.ridge_._columns = spread(self.ridge_._columns, places, len(known))
        self.generator_._spread(places, len(known))
        self.ridge_.all_reduce_(group)
        self.generator_.all_reduce_(group)
        return self._keep(known)

    # State

    def state_dict(self) -> dict[str, Any]:
        """All that was learned and the parameters in force, as tensors and plain values; a copy.

        ``torch.load(weights_only=True)`` reads it. A user's backbone and buffer are not in it.

        Raises:
            NotFittedError: before the first batch.
        """
        check_fitted(self, "classes_")
        return pack(self)

    @all_or_nothing
    def load_state_dict(self, state: Mapping[str, Any]) -> Self:
        """Go on, bit for bit, where `state_dict` was taken; the saved parameters replace those of this object.

        Raises:
            TypeError: ``state`` is not a mapping.
            ValueError: it lacks something; it needs a backbone or a buffer that this object does not have, or has
                none for the one that this object has.
        """
        unpack(self, state)
        return self


def refuse_differences(name: str, mine: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to add sums that do not belong together."""
    for its in others:
        for what, value in mine.items():
            if its[what] != value:
                raise ValueError(f"{name} must have the same {what}, {value}, got {its[what]}")

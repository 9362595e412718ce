"""A classifier for few labels and an unlabeled pool with unknown classes, on scikit-learn's conventions."""

from __future__ import annotations

import copy
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import validate_data
from torch import Tensor, nn

from offprints.shared.device import float32_default, local_seed, resolve_device, training_region, working_dtype
from offprints.shared.estimators import all_or_nothing, check_fitted, like_input
from offprints.shared.labels import Classes, as_labels
from offprints.shared.tables import as_weights
from offprints.shared.validation import check_choice, check_number
from offprints.wad._checks import as_samples, unit_rows
from offprints.wad._labels import training_labels
from offprints.wad._training import check_seed, place_of
from offprints.wad.features import module_features, outputs_of, paired_features, unit_pair
from offprints.wad.knowledge import knowledge_of
from offprints.wad.networks import InputTransform, Standardize, mlp, small_encoder, wide_resnet
from offprints.wad.teacher import SimCLRTeacher
from offprints.wad.trainer import WADTrainer

TEACHERS = ("simclr", "features")
LR = 5e-4
TEACHER_EPOCHS = 100


class WADClassifier(ClassifierMixin, BaseEstimator):
    """Learn K classes from few labels and from unlabeled samples, many of which may be of none of the classes.

    A teacher that needs no labels labels and weighs the unlabeled samples (`teacher_knowledge`), a student is trained
    on both by `WADTrainer`. The result is only as good as the teacher's features: `weights_` and `outlier_score` show
    what they tell.

    Unlabeled samples are an argument of their own; labels of -1 are refused.

    Args:
        teacher: `"features"`: X itself (images as flat rows) is compared by cosines, or `Z_labeled` and `Z_unlabeled`
            of `fit` where they are given. `"simclr"`: a `SimCLRTeacher` is trained on all images of `fit`. A module: a
            fitted `SimCLRTeacher`, or any frozen encoder of X.
        student: Maps X to logits `(N, K)`; a copy of it is trained. None: for rows D-128-128-K with ReLU, for images
            WRN-28-2 with flips, crops and noise, both with standardized inputs.
        rounds: As in `WADTrainer`, like the next three.
        steps_per_round: Batches in each round.
        alpha: Share of the pool that is moved to the labeled samples, before it decays.
        lr: Learning rate of Adam; None: 5e-4.
        batch_size: Labeled samples a step, and as many unlabeled ones.
        device: None: that of a tensor X, else the best there is.
        random_state: Seed; None draws from the global streams.

    Attributes:
        classes_: `(K,)` sorted labels.
        student_: The trained student.
        teacher_: The `SimCLRTeacher` or the module, or None.
        weights_: `(U,)` first weights of the unlabeled samples, array or tensor as X.
        pseudo_labels_: `(U,)` their first pseudo-labels, of `classes_`.
        selected_: Round, from 1, to the positions in `X_unlabeled` that were moved after it.
        knowledge_: As in `WADTrainer`, with positions in `classes_` as pseudo-labels.
        history_: As in `WADTrainer`.
        n_features_in_: Size of the second axis of X.
        feature_names_in_: Names of the columns of a data frame.

    Example:
        >>> X, y = torch.randn(100, 2) / 4 + torch.eye(2)[torch.arange(100) % 2], torch.arange(100) % 2
        >>> model = WADClassifier(teacher="features", rounds=2, steps_per_round=100, random_state=0)
        >>> model.fit(X[:10], y[:10], X[10:]).score(X[10:], y[10:]) > 0.9
        True
    """

    def __init__(
        self,
        *,
        teacher: Literal["simclr", "features"] | nn.Module = "simclr",
        student: nn.Module | None = None,
        rounds: int = 6,
        steps_per_round: int = 300,
        alpha: float = 0.1,
        lr: float | None = None,
        batch_size: int = 32,
        device: str | torch.device | None = None,
        random_state: int | None = None,
    ) -> None:
        self.teacher = teacher
        self.student = student
        self.rounds = rounds
        self.steps_per_round = steps_per_round
        self.alpha = alpha
        self.lr = lr
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state
        self._check_parameters()

    def _check_parameters(self) -> None:
        if not isinstance(self.teacher, nn.Module):
            check_choice(self.teacher, "teacher", TEACHERS)
        if self.student is not None:
            place_of(self.student, "student")
        check_number(self.rounds, "rounds", low=1, integer=True)
        check_number(self.steps_per_round, "steps_per_round", low=1, integer=True)
        check_number(self.alpha, "alpha", low=0, high=1)
        if self.lr is not None:
            check_number(self.lr, "lr", low=0, open_low=True)
        check_number(self.batch_size, "batch_size", low=1, integer=True)
        if self.device is not None:
            resolve_device(self.device)
        check_seed(self.random_state, "random_state")

    @all_or_nothing
    def fit(self, X_labeled: Any, y: Any, X_unlabeled: Any, *, Z_labeled: Any = None, Z_unlabeled: Any = None) -> Self:
        """Train on labeled and unlabeled samples.

        Args:
            X_labeled: `(L, D)` rows or `(L, C, H, W)` images, floating: array, data frame or tensor.
            y: `(L,)` labels of at least two classes: integers that are not negative, booleans or strings.
            X_unlabeled: `(U, ...)` samples of the same shape.
            Z_labeled: `(L, E)` features of the labeled samples by another encoder, for `teacher="features"`.
            Z_unlabeled: `(U, E)` those of the unlabeled ones.

        Raises:
            NotFittedError: the teacher is a `SimCLRTeacher` that was not fitted.
            TypeError: samples that are not floating, labels of the wrong kind, a parameter of the wrong kind.
            ValueError: NaN, infinities, empty, other lengths or shapes, negative labels, one class, rows of zeros as
                features, flat rows with `teacher="simclr"`, a parameter out of range, a training that diverges.
        """
        self._check_parameters()
        given_labeled, given_unlabeled = as_samples(X_labeled, "X_labeled"), as_samples(X_unlabeled, "X_unlabeled")
        if given_labeled.shape[1:] != given_unlabeled.shape[1:]:
            raise ValueError(
                "X_labeled and X_unlabeled must have samples of the same shape,"
                f" got {tuple(given_labeled.shape[1:])} and {tuple(given_unlabeled.shape[1:])}"
            )
        if self.student is None and given_labeled.ndim not in (2, 4):
            raise ValueError(
                "X_labeled must be rows (N, D) or images (N, C, H, W) where student is None,"
                f" got shape {tuple(given_labeled.shape)}"
            )
        for X, name, reset in ((X_labeled, "X_labeled", True), (X_unlabeled, "X_unlabeled", False)):
            self._check_columns(X, name, reset=reset)
        classes, labels = training_labels(y, len(given_labeled))
        device = resolve_device(self.device, like=X_labeled)
        dtype = torch.float32 if self.student is None else place_of(self.student, "student").dtype
        kind: dict[str, Any] = {"dtype": dtype, "device": device}
        x, pool = as_samples(given_labeled, "X_labeled", **kind), as_samples(given_unlabeled, "X_unlabeled", **kind)
        seed = check_seed(self.random_state, "random_state")
        with training_region(device), local_seed(seed):
            teacher, z_labeled, z_unlabeled = self._taught(
                given_labeled, given_unlabeled, Z_labeled, Z_unlabeled, device
            )
            student = self._new_student(x, pool, len(classes)).to(device)
            trainer = WADTrainer(
                student,
                (z_labeled, z_unlabeled),
                rounds=self.rounds,
                steps_per_round=self.steps_per_round,
                alpha=self.alpha,
                lr=LR if self.lr is None else self.lr,
                batch_size=self.batch_size,
                device=device,
            ).fit(x, labels, pool)
        first = trainer.knowledge_[0]
        self.student_, self.teacher_ = student.eval(), teacher
        self.classes_ = classes.values
        self._own_space = Z_labeled is not None
        self._anchors, self._anchor_labels = z_labeled.cpu(), labels
        self._shape, self._width = tuple(x.shape[1:]), z_labeled.shape[1]
        self.weights_ = like_input(first["weights"].clone(), X_labeled)
        self.pseudo_labels_ = classes.shown(first["pseudo_labels"], X_labeled)
        self.selected_ = {r: like_input(positions, X_labeled) for r, positions in trainer.selected_.items()}
        self.knowledge_, self.history_ = trainer.knowledge_, trainer.history_
        return self

    def _check_columns(self, X: Any, name: str, *, reset: bool = False) -> None:
        """The number of features and a data frame's names of columns, as scikit-learn keeps and compares them."""
        try:
            validate_data(self, X, reset=reset, skip_check_array=True)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error

    def _taught(
        self, labeled: Tensor, unlabeled: Tensor, Z_labeled: Any, Z_unlabeled: Any, device: torch.device
    ) -> tuple[nn.Module | None, Tensor, Tensor]:
        """The teacher and its unit features."""
        if (Z_labeled is None) != (Z_unlabeled is None):
            raise ValueError("Z_labeled and Z_unlabeled must be given together, got one alone")
        if isinstance(self.teacher, str) and self.teacher == "features":
            space = "X" if Z_labeled is None else "Z"
            pair = (labeled, unlabeled) if Z_labeled is None else (Z_labeled, Z_unlabeled)
            names = (f"{space}_labeled", f"{space}_unlabeled")
            return None, *paired_features(pair, names, (len(labeled), len(unlabeled)), device)
        if Z_labeled is not None:
            raise ValueError("Z_labeled and Z_unlabeled need teacher='features', got another teacher")
        if isinstance(self.teacher, nn.Module):
            teacher: nn.Module = copy.deepcopy(self.teacher)
        else:
            teacher = self._new_teacher(labeled, unlabeled, device)
        features = [module_features(teacher, X) for X in (labeled, unlabeled)]
        return teacher, *unit_pair(features, ["teacher's features"] * 2, device)

    def _new_teacher(self, labeled: Tensor, unlabeled: Tensor, device: torch.device) -> SimCLRTeacher:
        if labeled.ndim != 4:
            raise ValueError(
                f"teacher='simclr' needs images (N, C, H, W), got X_labeled of shape {tuple(labeled.shape)}: for rows"
                " take teacher='features', with X itself or with Z_labeled and Z_unlabeled, or an encoder of your own"
                " (a torch.nn.Module)"
            )
        with float32_default(), torch.device("cpu"):
            teacher = SimCLRTeacher(*small_encoder(labeled.shape[1]))
        return teacher.to(device).fit(torch.cat([labeled, unlabeled]), epochs=TEACHER_EPOCHS)

    def _new_student(self, x: Tensor, pool: Tensor, num_classes: int) -> nn.Module:
        if self.student is not None:
            return copy.deepcopy(self.student)
        with float32_default(), torch.device("cpu"):
            moments = Standardize(x, pool)
            if x.ndim == 2:
                return nn.Sequential(moments, mlp(x.shape[1], num_classes))
            transform = nn.Sequential(moments, InputTransform())
            return wide_resnet(x.shape[1], num_classes, transform=transform)

    def _samples(self, X: Any) -> Tensor:
        """Samples of the shape of the training's, and columns of its names."""
        check_fitted(self, "student_")
        samples = as_samples(X, "X")
        self._check_columns(X, "X")
        if tuple(samples.shape[1:]) != self._shape:
            raise ValueError(f"X must have samples of the shape {self._shape}, got shape {tuple(samples.shape)}")
        return samples

    def _probabilities(self, X: Any) -> Float[Tensor, "samples classes"]:
        samples = self._samples(X)
        place = place_of(self.student_, "student")
        rows = as_samples(samples, "X", dtype=place.dtype)
        logits = outputs_of(self.student_, rows, "student", device=place.device)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)

    def predict(self, X: Any) -> Any:
        """The student's classes, `(N,)`.

        Raises:
            NotFittedError: before `fit`.
            TypeError, ValueError: X of another kind or shape than in `fit`, NaN or infinite.
        """
        found = self._probabilities(X).argmax(1)
        return self._classes().shown(found, X)

    def predict_proba(self, X: Any) -> Float[Any, "samples classes"]:
        """The student's probabilities `(N, K)`, in the order of `classes_`.

        Raises:
            NotFittedError, TypeError, ValueError: as in `predict`.
        """
        return like_input(self._probabilities(X), X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The share of samples whose class is predicted.

        Raises:
            NotFittedError, TypeError, ValueError: as in `predict`; y of another length.
        """
        found = self._probabilities(X).argmax(1).cpu().numpy()
        numbers, known = self._classes().find(as_labels(y, "y", len(found)))
        weights = as_weights(sample_weight, len(found), torch.device("cpu"))
        return float(np.average(known & (numbers == found), weights=weights))

    def outlier_score(self, X: Any) -> Float[Any, " samples"]:
        """`1 - weight` by the labeled samples of `fit`, `(N,)`: high for samples of unknown classes.

        High for samples between two known classes, too, which are many where there are many labels: to find unknown
        classes alone, the largest of the `scores` of `teacher_knowledge` is better.

        Args:
            X: Samples as in `fit`; where `Z_labeled` was given, their features `(N, E)` in that space.

        Raises:
            NotFittedError: before `fit`.
            TypeError, ValueError: X of another kind or shape, NaN or infinite, rows of zeros.
        """
        check_fitted(self, "student_")
        if self._own_space:
            z = as_samples(X, "X")
            if z.ndim != 2 or z.shape[1] != self._width:
                raise ValueError(f"X must have {self._width} features, those of Z_labeled, got {tuple(z.shape)}")
        elif self.teacher_ is None:
            z = self._samples(X).flatten(1)
        else:
            z = module_features(self.teacher_, self._samples(X))
        dtype = working_dtype(z, self._anchors)
        unit = unit_rows(z.to(device="cpu", dtype=dtype), "X")
        known = knowledge_of(unit, self._anchors.to(dtype), self._anchor_labels, num_classes=len(self.classes_))
        return like_input(1 - known.weights, X)

    def _classes(self) -> Classes:
        return Classes(self.classes_)

"""A classifier on scikit-learn's conventions for few labels: y is -1 where the label is not known."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal, Self, cast

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import Tensor, nn

from offprints.shared.device import (
    evaluating,
    float32_default,
    float32_region,
    local_seed,
    map_batches,
    resolve_device,
    training_region,
)
from offprints.shared.estimators import LearnedAttributes, all_or_nothing, check_fitted, like_input
from offprints.shared.labels import Classes
from offprints.shared.tables import as_weights
from offprints.shared.validation import check_choice, check_number
from offprints.shrinkmatch._inputs import as_classes, as_samples, known_labels
from offprints.shrinkmatch._networks import convolutions, moments, perceptron
from offprints.shrinkmatch.alignment import check_momentum
from offprints.shrinkmatch.averaging import StudentEMA
from offprints.shrinkmatch.class_space import check_threshold
from offprints.shrinkmatch.model import ShrinkMatchModel, decay_groups
from offprints.shrinkmatch.objective import ShrinkMatchLoss, ShrinkMatchOutput
from offprints.shrinkmatch.schedule import cosine_factor
from offprints.shrinkmatch.views import FeatureViews, ImageViews, Views, checked

RATIO_MOMENTUM = 0.95  # the paper's 0.999 leaves the shrunk loss nearly off for the first thousand steps
WEIGHT_DECAY = 5e-4
ROWS = 1024  # at a time, when predicting


class ShrinkMatchClassifier(LearnedAttributes, ClassifierMixin, BaseEstimator):
    """Learn from a few labeled samples and many unlabeled ones: ShrinkMatch on feature tables or images.

    scikit-learn's convention for semi-supervised learning: y is -1 where the label is not known. Batches are drawn with
    replacement; all samples, the labeled ones too, serve as unlabeled ones. What is evaluated is the moving average of
    the network. Training is in float32. Parameters are checked in ``fit``, as in scikit-learn.

    Args:
        backbone: Module from a batch of samples, as they are in X, to features ``(N, d)``; a copy is trained, in
            float32. None: X standardized, then for features an MLP of two layers of 128, for images three convolutions.
        threshold: In (0, 1].
        max_steps: Steps of training. Useful from 100 on.
        batch_size: Labeled samples a step.
        mu: Unlabeled samples a step, in units of ``batch_size``.
        lr: Learning rate of SGD with Nesterov momentum 0.9, weight decay 5e-4 and 7/16 of a cosine. None: 0.1 with the
            default backbone, 0.03 with one's own.
        weak: From a batch of samples, float32 ``(N, ...)`` on the device, to their weak views of the same shape. None:
            for features noise of a tenth of each one's scatter; for images shifts of up to an eighth of the side.
        strong: As ``weak``, strong views. None: for features noise of a quarter of the scatter, and a fifth of the
            entries replaced by the mean; for images shifts, turns of up to 30 degrees, shear, scale, contrast,
            brightness, noise and a missing square. There are no flips.
        align: Distribution alignment, ``"queue"``, ``"ema"`` or None. Alignment pulls the pseudo-labels towards equal
            classes: None where the classes are known to be of very different sizes.
        ema_decay: Of the averaged network, in [0, 1).
        device: Where it trains; None: where the tensor X is, for an array the best device there is.
        random_state: Seed of weights, batches and views; None draws one from torch's global stream.

    Attributes:
        classes_: The classes, sorted, as they are in y.
        model_: The averaged `ShrinkMatchModel`, in evaluation mode: a classifier of raw samples.
        history_: One dict a step: ``step``, and the fields of `ShrinkMatchOutput` as numbers.
        n_features_in_: Entries of a sample.
        feature_names_in_: Names of the columns, where X was a data frame.

    Example:
        >>> X = torch.cat([torch.randn(60, 2), torch.randn(60, 2) + 6])
        >>> y = torch.full((120,), -1)
        >>> y[[0, 1, 60, 61]] = torch.tensor([3, 3, 8, 8])
        >>> ShrinkMatchClassifier(max_steps=60, random_state=0).fit(X, y).predict(X[[5, 90]])
        tensor([3, 8])
    """

    _learned: ClassVar[tuple[str, ...]] = ("classes_", "model_", "history_", "n_features_in_")

    def __init__(
        self,
        *,
        backbone: nn.Module | None = None,
        threshold: float = 0.95,
        max_steps: int = 500,
        batch_size: int = 32,
        mu: int = 5,
        lr: float | None = None,
        weak: Views | None = None,
        strong: Views | None = None,
        align: Literal["queue", "ema"] | None = "queue",
        ema_decay: float = 0.99,
        device: str | torch.device | None = None,
        random_state: int | None = None,
    ) -> None:
        self.backbone = backbone
        self.threshold = threshold
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.mu = mu
        self.lr = lr
        self.weak = weak
        self.strong = strong
        self.align = align
        self.ema_decay = ema_decay
        self.device = device
        self.random_state = random_state

    def _check_parameters(self) -> None:
        if self.backbone is not None and not isinstance(self.backbone, nn.Module):
            raise TypeError(f"backbone must be a torch.nn.Module or None, got {type(self.backbone).__name__}")
        check_threshold(self.threshold)
        check_number(self.max_steps, "max_steps", low=1, integer=True)
        check_number(self.batch_size, "batch_size", low=1, high=2**20, integer=True)
        check_number(self.mu, "mu", low=1, high=2**10, integer=True)
        if self.mu * self.batch_size < 2:
            raise ValueError("batch_size times mu must be at least 2, for batch normalization, got 1")
        if self.lr is not None:
            check_number(self.lr, "lr", low=0, open_low=True)
        for name in ("weak", "strong"):
            views = getattr(self, name)
            if views is not None and not callable(views):
                raise TypeError(f"{name} must be callable or None, got {type(views).__name__}")
        check_choice(self.align, "align", ("queue", "ema", None))
        check_momentum(self.ema_decay, "ema_decay")
        if self.random_state is not None:
            check_number(self.random_state, "random_state", low=0, high=2**32, open_high=True, integer=True)

    @all_or_nothing
    def fit(self, X: Any, y: Any) -> Self:
        """Train from new weights. What fails leaves the classifier as it was.

        Args:
            X: ``(N, D)`` features or ``(N, C, H, W)`` images: an array, a list, a data frame or a tensor of numbers.
            y: ``(N,)`` labels, -1 for unlabeled samples: integers, or objects that are text or -1.

        Raises:
            TypeError: X does not hold numbers, or is sparse; labels of another kind; a parameter of the wrong kind.
            ValueError: X has another number of axes, is empty, masked, NaN or infinite; y of another length; no labeled
                sample, or one class alone; a parameter out of range; a training that diverges.
        """
        self._check_parameters()
        device = resolve_device(self.device, like=X)
        seed = int(torch.randint(2**31, (), device="cpu")) if self.random_state is None else int(self.random_state)
        with training_region(device), float32_default(), local_seed(seed):
            samples = as_samples(self, X, device=device, reset=True)
            classes, codes = as_classes(y, len(samples))
            self.model_, self.history_ = self._train(samples, codes.to(device), len(classes))
        self._own_backbone = self.backbone is not None
        self.classes_ = classes.values
        return self

    def _train(
        self, samples: Tensor, codes: Tensor, num_classes: int
    ) -> tuple[ShrinkMatchModel, list[dict[str, float]]]:
        mean, std = moments(samples)
        defaults = FeatureViews(mean, std) if samples.ndim == 2 else ImageViews(std)
        weak = checked(self.weak, "weak", defaults.weak)
        strong = checked(self.strong, "strong", defaults.strong)
        model = self._model(samples, num_classes, mean, std)
        with torch.device("cpu"):
            criterion = ShrinkMatchLoss(
                num_classes=num_classes,
                threshold=self.threshold,
                align=self.align,
                ratio_momentum=RATIO_MOMENTUM,
                across_processes=False,  # each process may fit its own
            ).to(samples.device)
        lr = (0.1 if self.backbone is None else 0.03) if self.lr is None else float(self.lr)
        optimizer = torch.optim.SGD(decay_groups(model, WEIGHT_DECAY), lr=lr, momentum=0.9, nesterov=True)
        ema = StudentEMA(model.train(), self.ema_decay)
        labeled = (codes >= 0).nonzero().squeeze(1)
        steps, batch, unlabeled = int(self.max_steps), int(self.batch_size), int(self.mu * self.batch_size)
        outputs = []
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * cosine_factor(step, steps)
            rows = labeled[_rows(len(labeled), batch, samples)]
            x, u = weak(samples[rows]), samples[_rows(len(samples), unlabeled, samples)]
            logits_x, *others = model(x, weak(u), strong(u))
            # Without checks: on an accelerator they would end the process where the training diverges.
            out = criterion.compute(logits_x, codes[rows], *others)
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
            ema.update(model)
            outputs.append(torch.stack(out).detach())
        table = torch.stack(outputs).cpu()
        if not bool(table.isfinite().all()):
            raise ValueError(
                f"lr={lr:g} makes the training diverge (or weak or strong gives values that are not finite): lower lr,"
                " or scale X for a backbone of your own"
            )
        fields = ShrinkMatchOutput._fields
        history = [{"step": n + 1, **dict(zip(fields, row, strict=True))} for n, row in enumerate(table.tolist())]
        averaged = cast(ShrinkMatchModel, ema.module)
        averaged.zero_grad()
        return averaged, history

    def _model(self, samples: Tensor, num_classes: int, mean: Tensor, std: Tensor) -> ShrinkMatchModel:
        """The network with new weights (of one's own backbone: a copy), drawn on the CPU and moved."""
        with torch.device("cpu"):
            if self.backbone is not None:
                backbone = copy.deepcopy(self.backbone).to(samples.device, torch.float32)
            else:
                make = perceptron if samples.ndim == 2 else convolutions
                backbone = make(mean.cpu(), std.cpu()).to(samples.device)
            try:
                with evaluating(backbone):
                    features = backbone(samples[:2].clone())  # it may work in place
            except RuntimeError as error:
                raise ValueError(f"backbone must take samples of shape {tuple(samples.shape[1:])}: {error}") from error
            if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(samples[:2]):
                told = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
                raise ValueError(f"backbone must return features (N, d), got {told} for {len(samples[:2])} samples")
            return ShrinkMatchModel(backbone, features.shape[1], num_classes).to(samples.device)

    def _logits(self, X: Any) -> Tensor:
        check_fitted(self, "model_")
        model = self.model_
        device = model.head.weight.device
        samples = as_samples(self, X, device=device)
        # In float32 a product of matrices rounds by its number of rows: a prediction would depend on the others'.
        if not self._own_backbone and device.type != "mps":
            model = copy.deepcopy(model).double()

        def logits(rows: Tensor) -> Tensor:
            found: Tensor = model(rows.to(model.head.weight.dtype))
            return found if device.type == "mps" else found.double()

        with float32_region(device), evaluating(model):
            return map_batches(logits, samples, batch_size=ROWS)

    def predict_proba(self, X: Any) -> Any:
        """Probabilities ``(N, C)`` of the classes in the order of ``classes_``, float64, in the kind of X.

        Raises:
            NotFittedError: before `fit`.
            TypeError, ValueError: X as in `fit`, or with samples of another shape.
        """
        return like_input(self._logits(X).softmax(1), X)

    def predict(self, X: Any) -> Any:
        """The likeliest class of each sample, ``(N,)``, as labels in y; a tensor for a tensor, if they are numbers.

        Raises:
            NotFittedError, TypeError, ValueError: as in `predict_proba`.
        """
        likeliest = self._logits(X).softmax(1).argmax(1)
        return Classes(self.classes_).shown(likeliest, X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy over the samples whose label is known: those with -1 in y do not count.

        Raises:
            NotFittedError, TypeError, ValueError: as in `predict_proba`; y as in `fit`; no label that counts.
        """
        likeliest = self._logits(X).softmax(1).argmax(1).cpu().numpy()
        labels, known = known_labels(y, len(likeliest))
        weights = as_weights(sample_weight, len(likeliest), torch.device("cpu"))
        counted = known.astype(float) if weights is None else known * weights.numpy()
        if not counted.any():
            raise ValueError("y must hold a label beside -1, which marks unlabeled samples, of positive weight")
        numbers, found = Classes(self.classes_).find(labels)
        right = found & (numbers == likeliest[known])
        return float(np.average(right, weights=counted[known]))


def _rows(length: int, count: int, like: Tensor) -> Tensor:
    """Rows drawn with replacement, on the CPU, so that every device draws the same."""
    return torch.randint(length, (count,), device="cpu").to(like.device)

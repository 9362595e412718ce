"""A one-class detector on scikit-learn's conventions for outliers, for any features."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from offprints.hyp_oc._inputs import feature_rows, training_rows
from offprints.hyp_oc.ball import check_curvature
from offprints.hyp_oc.head import HypOCHead, HypOCLoss, check_hidden
from offprints.hyp_oc.losses import FORMS, Form, check_weight
from offprints.hyp_oc.pseudo_negatives import RUNNING, PseudoNegativeSampler, Running
from offprints.shared.device import (
    evaluating,
    float32_default,
    local_seed,
    map_batches,
    resolve_device,
    training_region,
)
from offprints.shared.estimators import check_fitted, like_input
from offprints.shared.validation import check_choice, check_number

ROWS = 4096  # at a time, when scoring
TRAINED = ("head_", "sampler_", "_optimizer", "history_")  # what an epoch changes in place


class HypOCDetector(OutlierMixin, BaseEstimator):
    """Learn what live samples look like from live samples alone, by `HypOCHead` on their features.

    Pseudo-negatives are drawn in the space of X around a mean that begins every epoch near 0: what tells them from the
    samples is where X lies as seen from 0. Do not center X; scale it so that `variance` is of the size of the scatter
    of a coordinate. Layers are trained in float32.

    A ReLU follows the last layer too: where it is narrow, all its units may be off for all samples, which then have one
    score (`ConvergenceWarning`). Parameters are checked in ``fit``, as in scikit-learn.

    Args:
        hidden: Widths of the layers; the last is the ball's.
        c: Curvature of the ball.
        clip_radius: Largest length before the ball; None does not clip.
        alpha: Weight of the past in the mean of the pseudo-negatives, in [0, 1].
        variance: Variance of the pseudo-negatives, in squared units of X.
        running: Which past, as in `PseudoNegativeSampler`; `"previous_batch"` begins anew every epoch, `"ema"` with
            every `fit`.
        pc_weight: Weight of Hyp-PC beside Hyp-CE.
        form: Distance of Hyp-PC.
        lr: Learning rate of Adam.
        weight_decay: Of Adam.
        epochs: Passes over X.
        batch_size: Live samples a step, at least 2; an odd one is lowered by one, as is an odd rest.
        max_grad_norm: Largest norm of the head's gradient; ``math.inf`` does not clip.
        contamination: Share of the training samples that `predict` calls spoof, in [0, 0.5).
        random_state: Seed of weights, order and pseudo-negatives; None draws one from torch's global stream.
        device: Where it trains; None: where the tensor X is, for an array the best device there is.

    Attributes:
        head_: The trained `HypOCHead`.
        sampler_: The `PseudoNegativeSampler`.
        offset_: The training score below which a share of `contamination` lies.
        history_: One dict an epoch: `step`, and the means of `loss`, `hyp_ce`, `hyp_pc` over its batches.
        n_features_in_: d.
        feature_names_in_: Names of the columns, where X was a data frame.

    Example:
        >>> X = torch.randn(200, 8) + 3
        >>> detector = HypOCDetector(epochs=20, lr=3e-3, random_state=0).fit(X)
        >>> detector.predict(torch.stack([torch.full((8,), 3.0), torch.zeros(8)]))
        tensor([ 1, -1])
    """

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (64, 32),
        c: float = 0.1,
        clip_radius: float | None = 2.0,
        alpha: float = 0.8,
        variance: float = 1.0,
        running: Running = "previous_batch",
        pc_weight: float = 1.0,
        form: Form = "geodesic",
        lr: float = 1e-3,
        weight_decay: float = 1e-6,
        epochs: int = 50,
        batch_size: int = 32,
        max_grad_norm: float = 3.0,
        contamination: float = 0.05,
        random_state: int | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self.hidden = hidden
        self.c = c
        self.clip_radius = clip_radius
        self.alpha = alpha
        self.variance = variance
        self.running = running
        self.pc_weight = pc_weight
        self.form = form
        self.lr = lr
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.max_grad_norm = max_grad_norm
        self.contamination = contamination
        self.random_state = random_state
        self.device = device

    def _check_parameters(self) -> None:
        check_hidden(self.hidden)
        check_curvature(self.c)
        if self.clip_radius is not None:
            check_number(self.clip_radius, "clip_radius", low=0, open_low=True)
        check_number(self.alpha, "alpha", low=0, high=1)
        check_number(self.variance, "variance", low=0, open_low=True)
        check_choice(self.running, "running", RUNNING)
        check_weight(self.pc_weight, "pc_weight")
        check_choice(self.form, "form", FORMS)
        check_number(self.lr, "lr", low=0, open_low=True)
        check_number(self.weight_decay, "weight_decay", low=0)
        check_number(self.epochs, "epochs", low=1, integer=True)
        check_number(self.batch_size, "batch_size", low=2, integer=True)
        check_number(self.max_grad_norm, "max_grad_norm", low=0, high=math.inf, open_low=True)
        check_number(self.contamination, "contamination", low=0, high=0.5, open_high=True)
        if self.random_state is not None:
            check_number(self.random_state, "random_state", low=0, high=2**32, open_high=True, integer=True)

    def fit(self, X: Float[Any, "n d"], y: Any = None) -> Self:
        """Train from new weights on live samples.

        Args:
            X: Features of live samples, at least two.
            y: Not used; there for pipelines.

        Raises:
            TypeError: X does not hold numbers, or is sparse; a parameter of the wrong kind.
            ValueError: X is not 2-D, empty, NaN or infinite, or has one row; a parameter out of range.
        """
        self._check_parameters()
        device = resolve_device(self.device, like=X)
        with training_region(device), self._unchanged_on_error():
            rows = training_rows(self, X, device=device, reset=True)
            self._begin(rows)
            for _ in range(int(self.epochs)):
                self._epoch(rows)
            self._set_offset(rows)
        return self

    def partial_fit(self, X: Float[Any, "n d"], y: Any = None) -> Self:
        """Train one more epoch, on these live samples; the optimizer goes on, and `offset_` is that of X.

        On a detector that is not fitted it begins with new weights: as many calls as `epochs`, on the same X, are one
        `fit`. What `set_params` changes of `lr`, `weight_decay`, `max_grad_norm`, `batch_size`, `pc_weight`, `form` and
        `contamination` counts from the next call on; the head and the sampler stay those of the first.
        What fails changes nothing.

        Raises:
            TypeError, ValueError: as in `fit`; X of another width.
        """
        self._check_parameters()
        new = not hasattr(self, "head_")
        device = resolve_device(self.device, like=X) if new else self._place()
        with training_region(device), self._unchanged_on_error():
            rows = training_rows(self, X, device=device, reset=new)
            if new:
                self._begin(rows)
            for group in self._optimizer.param_groups:
                group.update(lr=float(self.lr), weight_decay=float(self.weight_decay))
            self._epoch(rows)
            self._set_offset(rows)
        return self

    @contextmanager
    def _unchanged_on_error(self) -> Iterator[None]:
        """What is refused, diverges or is interrupted leaves the detector as it was."""
        before = dict(vars(self))
        before |= copy.deepcopy({name: before[name] for name in TRAINED if name in before})
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _begin(self, rows: Tensor) -> None:
        """New weights, and the streams of what is drawn."""
        seed = int(torch.randint(2**31, (), device="cpu")) if self.random_state is None else int(self.random_state)
        with torch.device("cpu"), local_seed(seed), float32_default():
            head = HypOCHead(rows.shape[1], tuple(self.hidden), c=self.c, clip_radius=self.clip_radius)
            sampler = PseudoNegativeSampler(
                rows.shape[1], alpha=self.alpha, variance=self.variance, running=self.running
            )
        self.head_ = head.to(rows.device)
        self.sampler_ = sampler.to(rows.device)
        self.history_: list[dict[str, float]] = []
        self._optimizer = torch.optim.Adam(
            self.head_.parameters(),
            lr=float(self.lr),
            weight_decay=float(self.weight_decay),
            fused=rows.device.type in ("cpu", "cuda"),
        )
        self._stream = torch.Generator().manual_seed(seed).get_state()

    def _epoch(self, rows: Tensor) -> None:
        criterion = HypOCLoss(self.head_, self.sampler_, pc_weight=self.pc_weight, form=self.form)
        generator = torch.Generator()
        generator.set_state(self._stream)
        if self.sampler_.running == "previous_batch":
            self.sampler_.reset()
        size = int(self.batch_size) // 2 * 2
        order = torch.randperm(len(rows), generator=generator, device="cpu").to(rows.device)
        totals: list[Tensor] = []
        for batch in order.split(size):
            if len(batch) < 2:
                continue
            try:
                loss, parts = criterion(rows[batch[: len(batch) // 2 * 2]], generator=generator)
            except ValueError as error:
                raise self._diverged() from error
            self._optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.head_.parameters(), float(self.max_grad_norm))
            self._optimizer.step()
            totals.append(torch.stack([loss.detach(), parts["hyp_ce"].detach(), parts["hyp_pc"].detach()]))
        self._optimizer.zero_grad()
        self._stream = generator.get_state()
        means = torch.stack(totals).mean(0).tolist()
        names = ("loss", "hyp_ce", "hyp_pc")
        self.history_.append({"step": len(self.history_) + 1, **dict(zip(names, means, strict=True))})

    def _diverged(self) -> ValueError:
        return ValueError(
            f"lr={self.lr:g} with weight_decay={self.weight_decay:g} and max_grad_norm={self.max_grad_norm:g} makes the"
            " training diverge: lower lr, or scale X"
        )

    def _set_offset(self, rows: Tensor) -> None:
        scores = self._margins(rows).cpu().double().numpy()
        if not np.isfinite(scores).all():
            raise self._diverged()
        if scores.min() == scores.max() and bool((rows != rows[0]).any()):
            warnings.warn(
                "all training samples have the same score: the last layer's ReLUs are off for all of them. Widen the"
                " last layer of hidden, lower lr, or take another random_state",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.offset_ = float(np.quantile(scores, float(self.contamination)))

    def _margins(self, rows: Tensor) -> Tensor:
        """The logit of live less that of pseudo-negative."""
        head = copy.deepcopy(self.head_)
        # In float32 a product of matrices rounds by its number of rows: a sample's score would depend on the others.
        if rows.device.type != "mps":
            head = head.double()  # the rows follow it, a part at a time

        def margins(part: Tensor) -> Tensor:
            logits = head(part).logits
            return logits[:, 0] - logits[:, 1]

        with evaluating(head):
            return map_batches(margins, rows, batch_size=ROWS)

    def _scores(self, X: Any) -> Tensor:
        check_fitted(self, "head_")
        return self._margins(feature_rows(self, X, device=self._place()))

    def _place(self) -> torch.device:
        return self.head_.classifier.normals.device

    def score_samples(self, X: Float[Any, "n d"]) -> Float[Any, " n"]:
        """How live: `logit_0 - logit_1`, `(n,)`, float64 where the device has it.

        Raises:
            NotFittedError: before `fit`.
            TypeError, ValueError: X as in `fit`, or of another width.
        """
        return like_input(self._scores(X), X)

    def decision_function(self, X: Float[Any, "n d"]) -> Float[Any, " n"]:
        """`score_samples(X) - offset_`: negative for spoof.

        Raises:
            NotFittedError, TypeError, ValueError: as in `score_samples`.
        """
        return like_input(self._scores(X) - self.offset_, X)

    def predict(self, X: Float[Any, "n d"]) -> Any:
        """1 for live, -1 for spoof, `(n,)` int64.

        Raises:
            NotFittedError, TypeError, ValueError: as in `score_samples`.
        """
        live = self._scores(X) - self.offset_ >= 0
        return like_input(torch.where(live, 1, -1), X)

    def spoof_score(self, X: Float[Any, "n d"]) -> Float[Any, " n"]:
        """Probability of the pseudo-negatives' class, `softmax(logits)[:, 1]`, `(n,)`: high for spoof.

        Raises:
            NotFittedError, TypeError, ValueError: as in `score_samples`.
        """
        return like_input(torch.sigmoid(-self._scores(X)), X)

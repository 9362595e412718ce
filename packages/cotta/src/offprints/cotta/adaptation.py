"""CoTTA: a model that adapts itself to a stream whose domain keeps changing (section 3 of the paper)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.cotta._wrapping.adapting import (
    AdaptingModule,
    Replicated,
    check_batch,
    check_finite,
    is_replica,
    outside_inference,
)
from offprints.cotta._wrapping.asking import Asker, LogitsFn, Normalize
from offprints.cotta._wrapping.keeping import copy_values, drop_caches, kept_buffers
from offprints.cotta._wrapping.prediction import TeacherPrediction
from offprints.cotta.augmentation import ImageAugmentation
from offprints.cotta.augmentation.views import check_unit_range
from offprints.cotta.configuration import (
    OptimizerLike,
    check_model,
    collect_params,
    configure_model,
    configured_by_hand,
    make_optimizer,
)
from offprints.cotta.losses import cross_entropies, rounding, training_signal
from offprints.cotta.teacher import TeacherAverage, stochastic_restore_
from offprints.shared import distributed
from offprints.shared.device import evaluating, local_seed, working_dtype
from offprints.shared.validation import check_bool, check_choice, check_number, check_same_shape


class CoTTA(AdaptingModule):
    """Continual test-time adaptation around a classifier or a segmentation network.

    Every call answers a batch with the teacher's logits and then adapts: the student learns the teacher's prediction,
    averaged over views where the source model is not confident; the teacher follows the student slowly; a few of the
    student's weights get their source values back.

    The wrapper takes ``model`` over: it becomes the student and is adapted in place; teacher and source are copies.
    ``state_dict`` holds all three, the optimizer's moments and the random state: loaded into a fresh wrapper of the
    original model it continues bit for bit. A batch that is refused changes nothing, neither does a loss that is not
    finite. Frozen parameters stay frozen.

    As long as every batch keeps the gate closed, teacher and student are one model: there is nothing to learn, and
    nothing moves. Adaptation begins with the first batch whose views are averaged.

    Args:
        model: Returns logits ``[B, K, ...]`` (class axis 1), or torchvision's ``{"out": ...}``, or ``{"logits": ...}``.
            Inputs are images in [0, 1]: it holds its own normalization, or ``normalize`` does. A model inside
            DistributedDataParallel has teacher and source in every process; all processes restore the same weights.
        optimizer: An optimizer over the model's parameters, or a function that makes one of a list of parameters.
            Default: Adam(lr=1e-3, betas=(0.9, 0.999)).
        steps: Adaptation steps per batch; the answer is the last step's.
        episodic: Reset before every batch.
        ema_decay: The paper's alpha.
        restore_probability: The paper's p.
        confidence_threshold: The paper's p_th: views are averaged where the source model's confidence is below it. It
            depends on the model: see `source_confidence_threshold`.
        num_augmentations: The paper's N.
        augmentation: Makes the views; default `ImageAugmentation`, for classifiers. With a method
            ``average_predictions`` (`MultiScaleFlip`, for segmentation) that takes the place of the mean over views.
            Any other callable is called ``num_augmentations`` times on the batch and returns one view a call.
        symmetric: The loss of the official ImageNet code.
        average: Mean of the views' logits (the code) or of their probabilities (the paper); of these the answer is the
            logarithm.
        gate: The threshold decides for the batch, by its mean confidence (the code), or for each sample (the paper).
        params: All parameters learn, or only those called weight or bias (the code).
        configure: Call `configure_model`; otherwise the model comes configured.
        train_mode: Leave dropout and stochastic depth on (the code).
        augmentation_batch: Views that share a forward of the teacher; default: by device and size. Every value gives
            the same result, bit for bit.
        seed: Of the views and, in a stream of its own, of the restoration; None draws one.
        validate: Look for NaN, infinity and values outside [0, 1] in every batch on an accelerator too.
        skip_without_signal: Leave out the student's step where the gradient of the loss in its logits is zero to
            rounding (teacher and student agree): an optimizer like Adam would make whole steps of rounding errors.
            False takes the step, as the official code does.
        source_weight: Weight of the source statistics in a mix with the batch's, in the batch-norm layers of all three
            models.
        reset_every: Reset after so many batches.
        normalize: Applied to images and views before they reach the models: a pair (mean, std) by channel, or a
            function. Views need images in [0, 1], and a model may have been trained on normalized ones.
        logits_fn: Takes the logits from what the model returns.
        precision: Of the forwards of teacher and source: ``"bfloat16"`` runs them under autocast.

    Attributes:
        model: The student.
        teacher: The averaged model, whose answers are returned.
        source: The model as it was.
        optimizer: The student's.
        last_loss: Loss of the last batch.
        last_confidence: The source model's mean confidence on it; with ``gate="sample"`` of each sample.
        last_augmented: Whether views were averaged; with ``gate="sample"`` for each sample.
        last_skipped: Whether the student's step was left out for want of a signal.

    Raises:
        TypeError: ``model`` is not a module, ``optimizer`` is and makes no optimizer, ``augmentation`` is not callable.
        ValueError: a number or an option out of range, no parameter to adapt, an optimizer with foreign parameters.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 8), torch.nn.BatchNorm2d(5), torch.nn.Flatten())
        >>> adapted = CoTTA(model, confidence_threshold=0.9, num_augmentations=4, seed=0)
        >>> predictions = [adapted(batch).argmax(1) for batch in torch.rand(12, 3, 8, 8).split(4)]
        >>> adapted.last_augmented, adapted.last_skipped
        (True, False)
    """

    DIAGNOSTICS = ("last_loss", "last_confidence", "last_augmented", "last_skipped")

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerLike = None,
        *,
        steps: int = 1,
        episodic: bool = False,
        ema_decay: float = 0.999,
        restore_probability: float = 0.01,
        confidence_threshold: float = 0.92,
        num_augmentations: int = 32,
        augmentation: nn.Module | Callable[[Tensor], Tensor] | None = None,
        symmetric: bool = False,
        average: Literal["logits", "probabilities"] = "logits",
        gate: Literal["batch", "sample"] = "batch",
        params: Literal["all", "weight_bias"] = "all",
        configure: bool = True,
        train_mode: bool = False,
        augmentation_batch: int | None = None,
        seed: int | None = None,
        validate: bool = True,
        skip_without_signal: bool = True,
        source_weight: float = 0.0,
        reset_every: int | None = None,
        normalize: Normalize = None,
        logits_fn: LogitsFn = None,
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        check_model(model)
        self.steps = check_number(steps, "steps", low=1, integer=True)
        self.ema_decay = check_number(ema_decay, "ema_decay", low=0, high=1)
        self.restore_probability = check_number(restore_probability, "restore_probability", low=0, high=1)
        self.confidence_threshold = check_number(confidence_threshold, "confidence_threshold", low=0, high=1)
        self.num_augmentations = check_number(num_augmentations, "num_augmentations", low=1, integer=True)
        check_choice(average, "average", ("logits", "probabilities"))
        check_choice(gate, "gate", ("batch", "sample"))
        check_choice(params, "params", ("all", "weight_bias"))
        check_choice(precision, "precision", ("float32", "bfloat16"))
        if augmentation is not None and not (callable(augmentation) or hasattr(augmentation, "average_predictions")):
            raise TypeError(f"augmentation must be callable, got {type(augmentation).__name__}")
        for name, value in (("augmentation_batch", augmentation_batch), ("reset_every", reset_every)):
            if value is not None:
                check_number(value, name, low=1, integer=True)
        if seed is not None:
            check_number(seed, "seed", low=0, high=2**63, open_high=True, integer=True)
        self.episodic, self.validate = check_bool(episodic, "episodic"), check_bool(validate, "validate")
        self.symmetric, self.train_mode = check_bool(symmetric, "symmetric"), check_bool(train_mode, "train_mode")
        self.skip_without_signal = check_bool(skip_without_signal, "skip_without_signal")
        if not check_bool(configure, "configure"):
            configured_by_hand(source_weight)
        self.average, self.gate, self.precision = average, gate, precision
        self.reset_every = reset_every
        self._ask = Asker(normalize, logits_fn)
        chosen, _ = collect_params(model, which=params)
        if not chosen:
            raise ValueError(
                f"model must have parameters to adapt, got none that require gradients (params={params!r});"
                " model.requires_grad_(True) lets all of them learn"
            )
        if configure:
            configure_model(model, train_mode=train_mode, source_weight=source_weight)
        self.optimizer, self._adapted = make_optimizer(optimizer, chosen, model)
        self._initial_optimizer = copy.deepcopy(self.optimizer.state_dict())
        drop_caches([model])
        self._replica = is_replica(model)
        bare = model.module if isinstance(model, Replicated) else model
        self.model = model
        with torch.inference_mode(False):  # tensors that may change, wherever the wrapper is made
            self.teacher = copy.deepcopy(bare).requires_grad_(False)
            self.source = copy.deepcopy(bare).requires_grad_(False)
        self.augmentation = ImageAugmentation() if augmentation is None else augmentation
        names = {id(parameter): name for name, parameter in bare.named_parameters()}
        self._adapted_names = [names[id(parameter)] for parameter in self._adapted]
        self._average = TeacherAverage(self.teacher)
        self._predict_target = TeacherPrediction(
            self._ask, augmentation_batch=augmentation_batch, random=self.train_mode
        )
        self._start_streams(seed, chosen[0].device)
        self.last_loss: Tensor
        self.last_confidence: Tensor
        self.last_augmented: bool | Tensor
        self.last_skipped: bool

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K ..."]:
        """Answer a batch and adapt to it; works under ``no_grad`` and ``inference_mode`` too.

        Args:
            x: The batch.

        Returns:
            The teacher's logits from before this batch's update, without gradient.

        Raises:
            TypeError: ``x`` is not a floating tensor, or the model returns no logits.
            ValueError: ``x`` is empty, NaN or infinite, too small for batch statistics, nothing that the views can be
                made of (not images in [0, 1], a prediction of every pixel), or student and teacher return logits of
                different shapes.
            FloatingPointError: the loss or its gradient is not finite.
        """
        check_batch(x, self.validate)
        if isinstance(self.augmentation, ImageAugmentation):
            check_unit_range(x, self.validate)
        with self._all_or_nothing():
            batch = outside_inference(x)
            if self._resets_now:
                self.reset()
            for _ in range(self.steps):
                answer = self._adapt(batch)
            self._batches += 1
        return answer

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """The teacher's logits, without adapting to the batch."""
        check_batch(x, self.validate)
        drop_caches([self.teacher])
        with evaluating(self.teacher), kept_buffers(self.teacher):
            return self._predict_target.layout.first_call(self.teacher, x).contiguous()

    @torch.no_grad()
    def reset(self) -> None:
        """Student, teacher and optimizer as they were at construction; the random streams run on."""
        copy_values(self._student, self.source)
        copy_values(self.teacher, self.source)
        self._average.start()
        self.optimizer.load_state_dict(copy.deepcopy(self._initial_optimizer))
        self._batches = 0
        drop_caches([self.model, self.teacher])

    def train(self, mode: bool = True) -> CoTTA:
        """Keep the modes that `configure_model` gave the models: they are part of the method."""
        self.training = mode
        return self

    @property
    def generator(self) -> torch.Generator:
        """The random stream of the views."""
        return self._generators["random"]

    @property
    def _student(self) -> nn.Module:
        return self.model.module if isinstance(self.model, Replicated) else self.model

    def _models(self) -> list[nn.Module]:
        return [self.model, self.teacher, self.source]

    def _moving(self) -> Iterable[Tensor]:
        return [*self.model.parameters(), *self.teacher.parameters(), *self._average.copies.values()]

    def _start_streams(self, seed: int | None, device: torch.device) -> None:
        """One random stream for the views, which each process draws as its gate decides, and one for the restoration,
        of which every batch takes the same share and which replicas have in common."""
        views, restoration = torch.Generator(device=device), torch.Generator(device=device)
        seed = views.seed() % 2**63 if seed is None else int(seed)
        views.manual_seed(seed)
        common = distributed.share(seed) if self._replica else seed
        restoration.manual_seed((common ^ 0x5DEECE66D) % 2**63)
        self._generators = {"random": views, "restoration": restoration}

    def _adapt(self, x: Tensor) -> Tensor:
        """One step: answer, learn, average, restore."""
        drop_caches([self.model, self.teacher])
        with self._random_streams():
            target = self._predict_target(self, x)
            self.optimizer.zero_grad(set_to_none=True)
            logits = self._ask(self.model, self._predict_target.layout(x))
            check_same_shape(logits, target.logits, ("the student's logits", "the teacher's logits"))
            loss = cross_entropies(logits, target.logits, self.symmetric).mean()
            learns = self._has_signal(logits, target.logits)
            if learns or self._replica:  # replicas exchange their gradients in every step
                loss.backward()
        if learns:
            check_finite(loss, self._adapted, shared=self._replica)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._average.update_(self._student, self.ema_decay)
        originals = [self.source.get_parameter(name) for name in self._adapted_names]
        stochastic_restore_(
            self._adapted, originals, self.restore_probability, generator=self._generators["restoration"]
        )
        drop_caches([self.model])
        self.last_loss, self.last_skipped = loss.detach(), not learns
        self.last_confidence, self.last_augmented = target.confidence, target.augmented
        answer = target.logits if self.precision == "float32" else target.logits.to(working_dtype(target.logits))
        return answer.contiguous()

    def _has_signal(self, logits: Tensor, target: Tensor) -> bool:
        """Whether the student's step is taken; replicas take it together."""
        if not self.skip_without_signal:
            return True
        signal = training_signal(logits, target, self.symmetric)
        if self._replica:
            distributed.all_reduce_(signal, op="max")
        # A network may return float32 logits of forwards in half precision.
        forwards = [torch.bfloat16] if self.precision == "bfloat16" else []
        if torch.is_autocast_enabled(logits.device.type):
            forwards.append(torch.get_autocast_dtype(logits.device.type))
        return not bool(signal <= rounding(logits.dtype, target.dtype, *forwards))  # NaN is for check_finite

    def _random_streams(self) -> AbstractContextManager[None]:
        """Global streams of the step's own, where a model or a foreign augmentation may draw from them."""
        if not self.train_mode and isinstance(self.augmentation, ImageAugmentation):
            return nullcontext()
        seed = torch.randint(2**32, (), generator=self.generator, device=self.generator.device)
        return local_seed(int(seed))

    def get_extra_state(self) -> dict[str, Any]:
        """The optimizer's state, the random states, and the averages of parameters in half precision."""
        return super().get_extra_state() | {"averages": dict(self._average.copies)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Put back what ``get_extra_state`` returned."""
        super().set_extra_state(state)
        self._average.copies = {i: value.clone() for i, value in state.get("averages", {}).items()}

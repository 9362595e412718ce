"""CoTTA: a model that adapts itself to a stream whose domain keeps changing (section 3 of the paper)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.cotta._adapting import AdaptingModule, adapting, check_batch, check_finite
from offprints.cotta._perview import Layout, ViewPredictor
from offprints.cotta.augmentation import ImageAugmentation
from offprints.cotta.confidence import confidences
from offprints.cotta.configuration import (
    OptimizerLike,
    call_model,
    check_model,
    collect_params,
    configure_model,
    make_optimizer,
)
from offprints.cotta.losses import cross_entropies
from offprints.cotta.teacher import ema_update_, stochastic_restore_
from offprints.shared.device import local_seed, working_dtype
from offprints.shared.validation import check_choice, check_number, check_same_shape


class CoTTA(AdaptingModule):
    """Continual test-time adaptation around a classifier or a segmentation network.

    Every call answers a batch with the teacher's logits and then adapts: the student learns the teacher's prediction,
    averaged over views where the source model is not confident; the teacher follows the student slowly; a few of the
    student's weights get their source values back.

    The wrapper takes ``model`` over: it becomes the student and is adapted in place; teacher and source are copies.
    ``state_dict`` holds all three, the optimizer's moments and the random state: loaded into a fresh wrapper of the
    original model it continues bit for bit. A batch that is refused changes nothing, neither does a loss that is not
    finite.

    Args:
        model: Returns logits ``[B, K, ...]`` (class axis 1), or torchvision's ``{"out": ...}``, or ``{"logits": ...}``.
            It holds its own normalization: inputs are in [0, 1].
        optimizer: An optimizer over the model's parameters, or a function that makes one of a list of parameters.
            Default: Adam(lr=1e-3, betas=(0.9, 0.999)).
        steps: Adaptation steps per batch; the answer is the last step's.
        episodic: Reset before every batch.
        ema_decay: The paper's alpha.
        restore_probability: The paper's p.
        confidence_threshold: The paper's p_th: views are averaged where the source model's confidence is below it. It
            depends on the model: see :func:`source_confidence_threshold`.
        num_augmentations: The paper's N.
        augmentation: Makes the views; default :class:`ImageAugmentation`. With a method ``average_predictions``
            (:class:`MultiScaleFlip`) that takes the place of the mean over views. Any other callable is called
            ``num_augmentations`` times on the batch and returns one view a call.
        symmetric: The loss of the official ImageNet code.
        average: Mean of the views' logits (the code) or of their probabilities (the paper); of these the answer is the
            logarithm.
        gate: The threshold decides for the batch, by its mean confidence (the code), or for each sample (the paper).
        params: All parameters learn, or only those called weight or bias (the code).
        configure: Call :func:`configure_model`; otherwise the model comes configured.
        train_mode: Leave dropout and stochastic depth on (the code).
        augmentation_batch: Views that share a forward of the teacher; default: by device and size. Every value gives
            the same result, bit for bit.
        seed: Of the views and the restoration; None draws one.
        validate: Look for NaN and infinity in every batch on an accelerator too.

    Attributes:
        model: The student.
        teacher: The averaged model, whose answers are returned.
        source: The model as it was.
        optimizer: The student's.
        last_loss: Loss of the last batch.
        last_confidence: The source model's mean confidence on it; with ``gate="sample"`` of each sample.
        last_augmented: Whether views were averaged; with ``gate="sample"`` for each sample.

    Raises:
        TypeError: ``model`` is not a module, ``optimizer`` is and makes no optimizer, ``augmentation`` is not callable.
        ValueError: a number or an option out of range, no parameter to adapt, an optimizer with foreign parameters.
    """

    generator: torch.Generator

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
    ) -> None:
        super().__init__()
        check_model(model)
        check_number(steps, "steps", low=1, integer=True)
        check_number(ema_decay, "ema_decay", low=0, high=1)
        check_number(restore_probability, "restore_probability", low=0, high=1)
        check_number(confidence_threshold, "confidence_threshold", low=0, high=1)
        check_number(num_augmentations, "num_augmentations", low=1, integer=True)
        check_choice(average, "average", ("logits", "probabilities"))
        check_choice(gate, "gate", ("batch", "sample"))
        check_choice(params, "params", ("all", "weight_bias"))
        if augmentation is not None and not (callable(augmentation) or hasattr(augmentation, "average_predictions")):
            raise TypeError(f"augmentation must be callable, got {type(augmentation).__name__}")
        if augmentation_batch is not None:
            check_number(augmentation_batch, "augmentation_batch", low=1, integer=True)
        if seed is not None:
            check_number(seed, "seed", low=0, high=2**63, open_high=True, integer=True)
        self.steps, self.episodic, self.validate = steps, episodic, validate
        self.ema_decay, self.restore_probability = ema_decay, restore_probability
        self.confidence_threshold, self.num_augmentations = confidence_threshold, num_augmentations
        self.symmetric, self.average, self.gate = symmetric, average, gate
        self.train_mode = train_mode

        if configure:
            configure_model(model, train_mode=train_mode)
        chosen, _ = collect_params(model, which=params)
        if not chosen:
            raise ValueError(
                f"model must have parameters to adapt, got none that require gradients (params={params!r})"
            )
        self.optimizer, self._adapted = make_optimizer(optimizer, chosen, model)
        self._initial_optimizer = copy.deepcopy(self.optimizer.state_dict())
        self.model = model
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        self.source = copy.deepcopy(model).requires_grad_(False)
        self.augmentation = ImageAugmentation() if augmentation is None else augmentation
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._adapted_names = [names[id(parameter)] for parameter in self._adapted]
        self._layout = Layout(enabled=not train_mode)
        self._predict_views = ViewPredictor(augmentation_batch, separate=train_mode)
        self.generator = torch.Generator(device=chosen[0].device)
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(int(seed))
        self.last_loss: Tensor
        self.last_confidence: Tensor
        self.last_augmented: bool | Tensor

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K ..."]:
        """Answer a batch and adapt to it; works under ``no_grad`` and ``inference_mode`` too.

        Args:
            x: The batch.

        Returns:
            The teacher's logits from before this batch's update, without gradient.

        Raises:
            TypeError: ``x`` is not a floating tensor, or the model returns no logits.
            ValueError: ``x`` is empty, NaN or infinite, too small for batch statistics, or student and teacher return
                logits of different shapes. Nothing is changed.
            FloatingPointError: the loss or its gradient is not finite; no weight is changed by that step.
        """
        check_batch(x, self.validate)
        random = self.generator.get_state()
        with adapting(x) as batch:
            try:
                if self.episodic:
                    self.reset()
                for _ in range(self.steps):
                    answer = self._adapt(batch)
            except Exception:
                self.optimizer.zero_grad(set_to_none=True)
                self.generator.set_state(random)
                raise
        return answer

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """The teacher's logits, without adapting to the batch."""
        check_batch(x, self.validate)
        with _evaluation_mode(self.teacher):
            return self._layout.first_call(self.teacher, x).contiguous()

    def reset(self) -> None:
        """Student, teacher and optimizer as they were at construction; the random stream runs on."""
        state = self.source.state_dict()
        self.model.load_state_dict(state)
        self.teacher.load_state_dict(state)
        self.optimizer.load_state_dict(self._initial_optimizer)

    def train(self, mode: bool = True) -> CoTTA:
        """Keep the modes that :func:`configure_model` gave the models: they are part of the method."""
        self.training = mode
        return self

    def _adapt(self, x: Tensor) -> Tensor:
        """One step: answer, learn, average, restore."""
        with self._random_streams():
            with torch.no_grad():
                target = self._target(x)
            self.optimizer.zero_grad(set_to_none=True)
            logits = call_model(self.model, x)
            check_same_shape(logits, target, ("the student's logits", "the teacher's logits"))
            loss = cross_entropies(logits, target, self.symmetric).mean()
            loss.backward()
        check_finite(loss, self._adapted)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        ema_update_(list(self.teacher.parameters()), list(self.model.parameters()), self.ema_decay)
        originals = [self.source.get_parameter(name) for name in self._adapted_names]
        stochastic_restore_(self._adapted, originals, self.restore_probability, generator=self.generator)
        self.last_loss = loss.detach()
        return target.contiguous()

    def _target(self, x: Tensor) -> Tensor:
        """The teacher's prediction, averaged over views where the source model is not confident."""
        confidence = confidences(self._layout.first_call(self.source, x))
        if self.gate == "batch":
            self.last_confidence = confidence.mean()
            self.last_augmented = bool(self.last_confidence < self.confidence_threshold)
            return self._average(x) if self.last_augmented else self._teach(x)
        self.last_confidence = confidence.flatten(1).mean(1) if confidence.ndim > 1 else confidence
        self.last_augmented = self.last_confidence < self.confidence_threshold
        if bool(self.last_augmented.all()):
            return self._average(x)
        plain = self._teach(x)
        if not bool(self.last_augmented.any()):
            return plain
        return torch.where(self.last_augmented.view(-1, *[1] * (plain.ndim - 1)), self._average(x), plain)

    def _teach(self, x: Tensor) -> Tensor:
        return call_model(self.teacher, self._layout(x))

    def _average(self, x: Tensor) -> Tensor:
        """The mean of the teacher's predictions of the views, as logits."""
        average = getattr(self.augmentation, "average_predictions", None)
        if average is not None:
            if self.average == "logits":
                return average(self._teach, x)
            mean = average(lambda view: self._teach(view).softmax(1), x)
            return mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
        total: Tensor | None = None
        group: list[Tensor] = []
        size = min(self._predict_views.views_per_forward(x), self.num_augmentations)
        for number, view in enumerate(self._views(x), 1):
            group.append(self._layout(view))
            if len(group) < size and number < self.num_augmentations:
                continue
            for logits in self._predict_views(self.teacher, group):  # added in order, whatever the groups
                dtype = logits.dtype
                logits = logits.to(working_dtype(dtype))
                if self.average == "probabilities":
                    logits = logits.log_softmax(1)
                    total = logits if total is None else torch.logaddexp(total, logits)
                else:
                    total = logits if total is None else total + logits
            group = []
        assert total is not None
        if self.average == "probabilities":
            return (total - math.log(self.num_augmentations)).to(dtype)
        return (total / self.num_augmentations).to(dtype)

    def _views(self, x: Tensor) -> Iterator[Tensor]:
        if isinstance(self.augmentation, ImageAugmentation):
            yield from self.augmentation.each_view(x, self.num_augmentations, self.generator)
            return
        for _ in range(self.num_augmentations):
            yield self.augmentation(x)

    def _random_streams(self) -> AbstractContextManager[None]:
        """Global streams of the step's own, where a model or a foreign augmentation may draw from them."""
        if not self.train_mode and isinstance(self.augmentation, ImageAugmentation):
            return nullcontext()
        seed = torch.randint(2**32, (), generator=self.generator, device=self.generator.device)
        return local_seed(int(seed))


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode

"""The teacher: a contrastive representation of labeled and unlabeled images together, learned without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.shared.device import evaluating, float32_region, local_seed, map_batches
from offprints.shared.estimators import check_fitted
from offprints.shared.validation import check_number
from offprints.wad._checks import as_samples, normalized
from offprints.wad._training import check_seed, modes_kept, place_of, shuffled_batches, training_region
from offprints.wad.augmentation import SimCLRAugmentation
from offprints.wad.contrastive import contrastive_loss

EMBED_BATCH = 512


class SimCLRTeacher(nn.Module):
    """An encoder and a projection head, trained by SimCLR; step 1 of the method.

    The projections are what `teacher_knowledge` compares. `fit` scales images to [0, 1] by the smallest and largest
    value that it saw; a teacher that was trained elsewhere takes images as they are, and is told so by
    `teacher.fitted.fill_(True)`.

    Args:
        encoder: Maps images `(N, C, H, W)` to features `(N, feature_dim)`; trained in place.
        feature_dim: Its number of features.
        projection_dim: Width of the projections.

    Attributes:
        history_: After `fit`, one dict an epoch: `step`, and the mean of `loss` over its batches.

    Raises:
        TypeError: `encoder` is not a module.
        ValueError: an encoder without parameters, numbers below 1.

    Example:
        >>> encoder = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten())
        >>> images = torch.rand(20, 1, 8, 8)
        >>> SimCLRTeacher(encoder, 8 * 36).fit(images, epochs=1, batch_size=10, seed=0).embed(images).shape
        torch.Size([20, 128])
    """

    fitted: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, encoder: nn.Module, feature_dim: int, *, projection_dim: int = 128) -> None:
        super().__init__()
        place = place_of(encoder, "encoder")
        feature_dim = check_number(feature_dim, "feature_dim", low=1, integer=True)
        projection_dim = check_number(projection_dim, "projection_dim", low=1, integer=True)
        options: dict[str, Any] = {"dtype": place.dtype, "device": place.device}
        self.encoder = encoder
        self.head = nn.Sequential(
            nn.Linear(feature_dim, feature_dim, **options),
            nn.ReLU(),
            nn.Linear(feature_dim, projection_dim, **options),
        )
        for name, value in (("low", 0.0), ("high", 1.0)):
            self.register_buffer(name, torch.tensor(value, **options))
        self.register_buffer("fitted", torch.tensor(False, device=place.device))
        self.history_: list[dict[str, float]] = []

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch projection"]:
        """Projections of images, scaled as in `fit`; their lengths have no meaning."""
        return self.project(self.scaled(images))

    def scaled(self, images: Tensor) -> Tensor:
        """Images on the scale of [0, 1] that the encoder was trained on."""
        return (images - self.low) / (self.high - self.low)

    def project(self, scaled: Tensor) -> Tensor:
        """Projections of images that are on that scale.

        Raises:
            ValueError: the encoder does not give `(N, feature_dim)`.
        """
        features = self.encoder(scaled)
        wanted = (len(scaled), self.head[0].in_features)
        if not isinstance(features, Tensor) or features.shape != wanted:
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"encoder must return features of shape {wanted} (feature_dim), got {got}")
        return self.head(features)

    def fit(
        self,
        images: Any,
        *,
        epochs: int,
        batch_size: int = 128,
        lr: float = 0.3,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        warmup_epochs: int = 1,
        temperature: float = 0.5,
        augment: Callable[[Tensor], Tensor] | None = None,
        seed: int | None = None,
    ) -> Self:
        """Train on images of labeled and unlabeled samples together, where the encoder is.

        SGD; the rate rises from a tenth of `lr` and falls along a cosine to 0. The defaults are for some thousand
        images; the paper has 700 or 2000 epochs of batches of 32 with `lr=1.0` and ten epochs of warm-up.

        Args:
            images: `(N, C, H, W)` floating, array or tensor, on any scale; at least two.
            epochs: Passes over the images.
            batch_size: Images a step, each seen twice; a shorter rest of an epoch is left out.
            lr: Largest learning rate.
            momentum: Of SGD, in [0, 1).
            weight_decay: Of SGD.
            warmup_epochs: Epochs of the rise.
            temperature: Of `nt_xent`.
            augment: Maps a batch of images in [0, 1] to random views of it, drawing from torch's global streams;
                None: SimCLR's crop, flip, color jitter and gray, another draw for each image. (A transform of
                torchvision applied to a batch draws once for all of it.)
            seed: Of order and views, whatever the global seeds, which are left alone; None draws from the global
                streams.

        Raises:
            TypeError: not floating images, an option of the wrong kind.
            ValueError: images of other than four axes, empty, NaN or infinite, an option out of range, a training that
                diverges.
        """
        place = place_of(self.encoder, "encoder")
        images = as_images(images, "images").to(device=place.device, dtype=place.dtype)
        epochs = check_number(epochs, "epochs", low=1, integer=True)
        seed = check_seed(seed, "seed")
        with training_region(place.device), local_seed(seed), modes_kept(self):
            training = ContrastiveTraining(
                self,
                images,
                epochs=epochs,
                batch_size=batch_size,
                lr=lr,
                momentum=momentum,
                weight_decay=weight_decay,
                warmup_epochs=warmup_epochs,
                temperature=temperature,
                augment=augment,
            )
            self.history_ = [training.epoch() for _ in range(epochs)]
            self.fitted.fill_(True)
        return self

    def embed(
        self,
        images: Any,
        *,
        n_views: int = 1,
        augment: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
    ) -> Float[Tensor, "images projection"]:
        """Projections `(N, projection_dim)` of images as they are, or means over random views of them.

        Args:
            images: `(N, C, H, W)`, array or tensor.
            n_views: With more than one, or with `augment`, the mean of the unit projections of so many views.
            augment: As in `fit`; None: SimCLR's, where there are several views.
            seed: Of the views; equal calls give equal results.

        Raises:
            NotFittedError: before `fit`.
            TypeError, ValueError: as in `fit`.
        """
        check_fitted(self, "is_fitted")
        place = place_of(self.encoder, "encoder")
        samples = as_images(images, "images")
        n_views = check_number(n_views, "n_views", low=1, integer=True)
        seed = check_number(seed, "seed", low=0, high=2**32, open_high=True, integer=True)
        check_augment(augment)
        plain = n_views == 1 and augment is None
        views = SimCLRAugmentation() if augment is None else augment

        def embedded(part: Tensor) -> Tensor:
            scaled = self.scaled(part.to(place.dtype))
            if plain:
                return self.project(scaled)
            return torch.stack([normalized(self.project(viewed(views, scaled))) for _ in range(n_views)]).mean(0)

        with torch.inference_mode(False), float32_region(place.device), evaluating(self), local_seed(seed):
            return map_batches(embedded, samples, batch_size=EMBED_BATCH, device=place.device)

    @property
    def is_fitted(self) -> bool | None:
        """True after `fit`, None before."""
        return bool(self.fitted) or None


def as_images(images: Any, name: str) -> Tensor:
    """Images `(N, C, H, W)`, floating and finite, as a tensor without a graph.

    Raises:
        TypeError: not a floating array or tensor.
        ValueError: not four axes, empty, NaN or infinite.
    """
    samples = as_samples(images, name)
    if samples.ndim != 4:
        raise ValueError(f"{name} must be images with 4 dimensions, [N, C, H, W], got shape {tuple(samples.shape)}")
    return samples


def check_augment(augment: Any) -> None:
    """Refuse what cannot be called.

    Raises:
        TypeError: neither None nor callable.
    """
    if augment is not None and not callable(augment):
        raise TypeError(f"augment must be a callable or None, got {type(augment).__name__}")


def viewed(augment: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Views of images by a callable of the user's, which must keep the batch.

    Raises:
        ValueError: it returns something else.
    """
    views = augment(images.clone())
    if not isinstance(views, Tensor) or views.ndim != 4 or len(views) != len(images) or views.dtype != images.dtype:
        got = f"{views.dtype} {tuple(views.shape)}" if isinstance(views, Tensor) else type(views).__name__
        raise ValueError(f"augment must return one image for each of {len(images)}, in {images.dtype}, got {got}")
    return views


class ContrastiveTraining:
    """The training of a teacher, epoch by epoch, with a state that can be stored.

    Args:
        teacher: Trained in place; takes its scale from the images.
        images: `(N, C, H, W)`, where the teacher is and of its type.
        epochs: In all, which the schedule needs.
        batch_size, lr, momentum, weight_decay, warmup_epochs, temperature, augment: As in `SimCLRTeacher.fit`.

    Raises:
        TypeError, ValueError: an option of the wrong kind or out of range, fewer than two images.
    """

    def __init__(
        self,
        teacher: SimCLRTeacher,
        images: Tensor,
        *,
        epochs: int,
        batch_size: int,
        lr: float,
        momentum: float,
        weight_decay: float,
        warmup_epochs: int,
        temperature: float,
        augment: Callable[[Tensor], Tensor] | None,
    ) -> None:
        batch_size = check_number(batch_size, "batch_size", low=2, integer=True)
        self.lr = check_number(lr, "lr", low=0, open_low=True)
        momentum = check_number(momentum, "momentum", low=0, high=1, open_high=True)
        self.weight_decay = check_number(weight_decay, "weight_decay", low=0)
        warmup_epochs = check_number(warmup_epochs, "warmup_epochs", low=0, integer=True)
        self.temperature = check_number(temperature, "temperature", low=0, open_low=True)
        check_augment(augment)
        if len(images) < 2:
            raise ValueError(f"images must be at least 2, which are told from each other, got {len(images)}")
        self.augment = SimCLRAugmentation() if augment is None else augment
        self.teacher, self.images, self.batch_size = teacher, images, min(batch_size, len(images))
        self.steps = len(images) // self.batch_size
        low, high = images.min(), images.max()
        teacher.low.copy_(low)
        teacher.high.copy_(torch.where(high > low, high, low + 1))
        self.optimizer = torch.optim.SGD(
            teacher.parameters(), lr=self.lr, momentum=momentum, weight_decay=self.weight_decay
        )
        warmup, total = warmup_epochs * self.steps, epochs * self.steps

        def factor(step: int) -> float:
            if step < warmup:
                return 0.1 + 0.9 * step / warmup
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.epochs_done = 0

    def epoch(self) -> dict[str, float]:
        """One pass; its number and its mean loss.

        Raises:
            ValueError: the loss is not finite, or `augment` does not return the batch.
        """
        self.teacher.train()
        losses = []
        for rows in shuffled_batches(len(self.images), self.steps, self.batch_size).to(self.images.device):
            scaled = self.teacher.scaled(self.images[rows])
            views = torch.cat([viewed(self.augment, scaled) for _ in range(2)])
            first, second = self.teacher.project(views).chunk(2)
            loss = contrastive_loss(first, second, self.temperature)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            losses.append(loss.detach())
        self.optimizer.zero_grad()
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise ValueError(
                f"lr={self.lr:g}, weight_decay={self.weight_decay:g} and temperature={self.temperature:g} make the"
                " training of the teacher diverge: lower lr, or scale images"
            )
        self.epochs_done += 1
        return {"step": self.epochs_done, "loss": mean}

    def state_dict(self) -> dict[str, Any]:
        """All that a training needs to go on, besides the random streams."""
        return {
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "epochs_done": self.epochs_done,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.epochs_done = state["epochs_done"]

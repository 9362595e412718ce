"""The teacher: a contrastive representation of labeled and unlabeled images together, learned without labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.shared.device import evaluating, float32_region, local_seed, map_batches, modes_kept, training_region
from offprints.shared.estimators import check_fitted
from offprints.shared.validation import check_number
from offprints.wad._checks import as_samples, normalized
from offprints.wad._training import check_seed, place_of
from offprints.wad.augmentation import SimCLRAugmentation
from offprints.wad.contrastive import ContrastiveTraining, check_augment, viewed

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
            self.fitted.fill_(False)  # until the training is over
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

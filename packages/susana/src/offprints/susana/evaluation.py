"""Accuracy over many episodes with its interval, beside the ICNN score of every episode."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Sized
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from offprints.shared.device import evaluating, resolve_device
from offprints.shared.validation import check_bool, check_choice, check_number
from offprints.susana.episodes import Episode, EpisodeCollate, EpisodeSampler
from offprints.susana.icnn import icnn_score
from offprints.susana.networks import PrototypicalNetwork
from offprints.susana.prototypes import compute_prototypes, prototypical_logits


def mean_confidence_interval(
    values: Sequence[float] | Any, *, confidence: float = 0.95, method: Literal["normal", "t"] = "normal"
) -> tuple[float, float]:
    """Compute the mean of values and the half width of its confidence interval.

    ``"normal"`` is the field's z * std(ddof=0) / sqrt(n), with z = 1.96 at 0.95; ``"t"`` is
    t_{n-1} * std(ddof=1) / sqrt(n), which is right for few values and needs two.

    Args:
        values: Numbers ``[n]``: a sequence, an array or a tensor.
        confidence: In (0, 1).
        method: ``"normal"`` or ``"t"``.

    Returns:
        Mean and half width.

    Raises:
        TypeError: Values are not numbers.
        ValueError: None, NaN or infinite ones, not 1-D; one value for ``"t"``; `confidence` out of range.

    Example:
        >>> mean, half = mean_confidence_interval([0.5, 0.6, 0.7])
        >>> round(mean, 3), round(half, 3)
        (0.6, 0.092)
    """
    confidence = check_number(confidence, "confidence", low=0, high=1, open_low=True, open_high=True)
    check_choice(method, "method", ("normal", "t"))
    array = _numbers(values)
    if array.ndim == 1 and array.size == 0:
        raise ValueError("values must not be empty, got shape (0,)")
    if array.dtype.kind not in "fiu":
        raise TypeError(f"values must be real numbers, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"values must have 1 dimension, got shape {array.shape}")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"values must be finite, got {array[~np.isfinite(array)][0]}")
    n, largest = len(array), max(float(np.abs(array).max()), 1e-300)
    scaled = array / largest  # so that no square overflows
    if method == "normal":
        z = 1.96 if confidence == 0.95 else NormalDist().inv_cdf((1 + confidence) / 2)
        half = z * float(scaled.std()) / math.sqrt(n)
    else:
        if n < 2:
            raise ValueError(f"values must be at least 2 for method='t', got {n}")
        from scipy.stats import t

        half = float(t.ppf((1 + confidence) / 2, n - 1)) * float(scaled.std(ddof=1)) / math.sqrt(n)
    return float(scaled.mean()) * largest, half * largest


def _numbers(values: Any) -> np.ndarray[Any, Any]:
    """Values of any kind as an array."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return np.asarray((values.double() if values.is_floating_point() else values).numpy())
    if isinstance(values, list | tuple) and any(isinstance(value, bool | np.bool_) for value in values):
        raise TypeError("values must be real numbers, got a boolean among them")
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ValueError("values must be a sequence of numbers, got items of different shapes") from error


class FewShotResult(NamedTuple):
    """What `evaluate_episodes` found.

    Attributes:
        accuracy: The mean over the episodes.
        ci: Half width of its interval of 95 %.
        per_episode: Accuracy of every episode ``[episodes]``.
        icnn: ICNN score of the query embeddings of every episode among themselves ``[episodes]``; NaN with fewer than
            four queries.

    Example:
        >>> result = FewShotResult(0.5, 0.1, torch.tensor([0.4, 0.6]), torch.tensor([0.3, 0.7]))
        >>> f"{100 * result.accuracy:.0f} +- {100 * result.ci:.0f} %"
        '50 +- 10 %'
    """

    accuracy: float
    ci: float
    per_episode: Float[Tensor, " episodes"]
    icnn: Float[Tensor, " episodes"]


def evaluate_episodes(
    model: PrototypicalNetwork,
    dataset: Dataset[Any],
    sampler: EpisodeSampler,
    *,
    device: str | torch.device | None = None,
    progress: bool = False,
    num_workers: int = 0,
) -> FewShotResult:
    """Classify the queries of every episode of a sampler; the model is in evaluation mode and gets its modes back.

    Args:
        model: The network; its `embed`, `metric` and `temperature` are used, as its `forward` uses them.
        dataset: Pairs of a sample (a tensor) and an integer label, as the sampler's labels say.
        sampler: The episodes.
        device: Where to compute; default: where the model's parameters are. The model returns to its place.
        progress: Whether to print how far it is, on one line.
        num_workers: Processes that read the samples; 0 reads them here.

    Returns:
        Accuracy, its interval, and both numbers of every episode; NaN where the sampler's share is empty.

    Raises:
        TypeError: An argument is of the wrong kind, the model overrides `forward`, samples are not tensors.
        ValueError: An unknown device, `num_workers` below 0; fewer items or other labels than the sampler's.

    Example:
        >>> x, y = torch.randn(60, 2) + 5 * (torch.arange(60) % 3)[:, None], torch.arange(60) % 3
        >>> data = torch.utils.data.TensorDataset(x, y)
        >>> sampler = EpisodeSampler(y, n_way=3, n_shot=5, n_query=5, n_episodes=20)
        >>> evaluate_episodes(PrototypicalNetwork(torch.nn.Flatten()), data, sampler).accuracy > 0.9
        True
    """
    if not isinstance(model, PrototypicalNetwork):
        raise TypeError(f"model must be a PrototypicalNetwork, got {type(model).__name__}")
    if type(model).forward is not PrototypicalNetwork.forward:
        raise TypeError(f"model must not have a forward of its own, which would not be called: {type(model).__name__}")
    if not isinstance(sampler, EpisodeSampler):
        raise TypeError(f"sampler must be an EpisodeSampler, got {type(sampler).__name__}")
    if not hasattr(dataset, "__getitem__"):
        raise TypeError(f"dataset must be a data set with items by index, got {type(dataset).__name__}")
    items = len(dataset) if isinstance(dataset, Sized) else sampler.num_items
    if items < sampler.num_items:
        raise ValueError(
            f"dataset must have an item for each of the sampler's labels, {sampler.num_items}, got {items}"
        )
    progress = check_bool(progress, "progress")
    num_workers = check_number(num_workers, "num_workers", low=0, integer=True)
    home = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    place = home if device is None else resolve_device(device)
    moves = place != home  # a model on several devices stays as it is
    collate = EpisodeCollate(n_way=sampler.n_way, n_shot=sampler.n_shot, n_query=sampler.n_query)
    loader: Iterable[Episode] = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=num_workers)
    accuracies, scores = [], []
    try:
        with evaluating(model.to(place) if moves else model):
            for number, episode in enumerate(loader, 1):
                accuracy, score = _evaluate(model, episode, place)
                accuracies.append(accuracy)
                scores.append(score)
                if progress:
                    end = "" if number < len(sampler) else "\n"
                    print(f"\r{number}/{len(sampler)} episodes", end=end, flush=True)  # noqa: T201 - asked for
    finally:
        if moves:
            model.to(home)
    if not accuracies:  # the share of a rank beyond the number of episodes
        return FewShotResult(math.nan, math.nan, torch.empty(0), torch.empty(0))
    per_episode, icnn = torch.stack(accuracies).cpu(), torch.stack(scores).cpu()
    return FewShotResult(*mean_confidence_interval(per_episode), per_episode, icnn)


def _evaluate(model: PrototypicalNetwork, episode: Episode, device: torch.device) -> tuple[Tensor, Tensor]:
    """Accuracy and score of one episode; nothing waits for the device."""
    support, support_labels, query, query_labels = (part.to(device) for part in episode[:4])
    features = model.embed(torch.cat([support, query]))
    embedded = features[len(support) :]
    prototypes = compute_prototypes(features[: len(support)], support_labels, n_way=len(episode.class_ids))
    logits = prototypical_logits(embedded, prototypes, metric=model.metric, temperature=model.temperature)
    accuracy = (logits.argmax(1) == query_labels).float().mean()
    score = icnn_score(embedded, query_labels).float() if len(query) > 3 else torch.full_like(accuracy, math.nan)
    return accuracy, score

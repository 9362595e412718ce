"""Heterogeneous clients from one data set: labels dealt unevenly, images shifted in look."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.shared.device import eagerly, make_generator
from offprints.shared.validation import check_number, check_tensor, should_check

MOST_DRAWS = 1000


def dirichlet_partition(
    labels: Int[Tensor, " n"], num_clients: int, *, alpha: float, min_size: int = 1, seed: int = 0
) -> list[Int[Tensor, " n_i"]]:
    """Deal the samples out so that each class is spread over the clients by shares drawn from Dirichlet(alpha).

    The smaller alpha, the fewer clients hold most of a class. Shares are drawn again until every client has `min_size`
    samples; after 1000 draws the smallest client takes samples from the largest, one by one.

    Args:
        labels: Integer classes, a tensor, an array or a list.
        num_clients: Number of clients.
        alpha: Concentration, above 0.
        min_size: Least number of samples of a client.
        seed: Of the draw.

    Returns:
        For each client the indices of its samples, sorted; together every sample once.

    Raises:
        TypeError: Labels or numbers of another kind.
        ValueError: No labels or labels with several axes, `alpha` not positive, more clients than samples allow.

    Example:
        >>> parts = dirichlet_partition([0, 0, 0, 1, 1, 1], 2, alpha=0.5, seed=1)
        >>> sorted(torch.cat(parts).tolist())
        [0, 1, 2, 3, 4, 5]
    """
    classes, members = _members(labels)
    _check_clients(num_clients, seed)
    check_number(alpha, "alpha", low=0, open_low=True)
    check_number(min_size, "min_size", low=0, integer=True)
    n = len(classes)
    if num_clients * max(min_size, 1) > n:
        raise ValueError(
            f"num_clients * min_size must be at most the {n} samples of labels (min_size 0 counts as 1),"
            f" got {num_clients} * {min_size}"
        )
    generator = np.random.default_rng(seed)
    counts = np.array([len(of_class) for of_class in members])
    # Beyond these the gamma variates behind the draw are all 0 or all infinite.
    concentration = np.full(num_clients, np.clip(alpha, 1e-300, 1e300))
    for _ in range(MOST_DRAWS):
        shares = np.nan_to_num(generator.dirichlet(concentration, size=len(members)))
        ends = np.minimum(np.floor(shares.cumsum(1) * counts[:, None] + 1e-9).astype(np.int64), counts[:, None])
        ends[:, -1] = counts
        sizes = np.diff(ends, axis=1, prepend=0)  # [classes, clients]
        if sizes.sum(0).min() >= min_size:
            break
    parts: list[list[int]] = [[] for _ in range(num_clients)]
    for of_class, end in zip(members, ends, strict=True):
        for part, some in zip(parts, np.split(generator.permutation(of_class), end[:-1]), strict=True):
            part.extend(some.tolist())
    while min(map(len, parts)) < min_size:
        largest = max(parts, key=len)
        min(parts, key=len).append(largest.pop(int(generator.integers(len(largest)))))
    return [_indices(part) for part in parts]


def shard_partition(
    labels: Int[Tensor, " n"], num_clients: int, *, classes_per_client: int, seed: int = 0
) -> list[Int[Tensor, " n_i"]]:
    """Deal whole classes out: every client owns exactly so many, and a class is split evenly among its owners.

    The classes are shuffled and dealt round robin, so that their numbers of owners differ by one at most.

    Args:
        labels: Integer classes, a tensor, an array or a list.
        num_clients: Number of clients.
        classes_per_client: Classes of each client.
        seed: Of the draw.

    Returns:
        For each client the indices of its samples, sorted; together every sample once.

    Raises:
        TypeError: Labels or numbers of another kind.
        ValueError: No labels or labels with several axes; more classes for a client than there are, too few to deal all
            of them, or a class with fewer samples than owners.

    Example:
        >>> labels = torch.tensor([0, 0, 1, 1, 2, 2])
        >>> [len(labels[part].unique()) for part in shard_partition(labels, 3, classes_per_client=2)]
        [2, 2, 2]
    """
    _, members = _members(labels)
    _check_clients(num_clients, seed)
    check_number(classes_per_client, "classes_per_client", low=1, integer=True)
    count = len(members)
    if classes_per_client > count:
        raise ValueError(f"classes_per_client must be at most the {count} classes of labels, got {classes_per_client}")
    if num_clients * classes_per_client < count:
        raise ValueError(
            f"num_clients * classes_per_client must be at least the {count} classes of labels, or some would be lost,"
            f" got {num_clients} * {classes_per_client}"
        )
    generator = np.random.default_rng(seed)
    order = generator.permutation(count)
    owners: list[list[int]] = [[] for _ in range(count)]
    for slot in range(num_clients * classes_per_client):
        owners[order[slot % count]].append(slot // classes_per_client)
    parts: list[list[int]] = [[] for _ in range(num_clients)]
    for of_class, owning in zip(members, owners, strict=True):
        if len(of_class) < len(owning):
            raise ValueError(
                f"labels must have a sample of each class for each of its {len(owning)} owners, got {len(of_class)}"
            )
        for client, some in zip(owning, np.array_split(generator.permutation(of_class), len(owning)), strict=True):
            parts[client].extend(some.tolist())
    return [_indices(part) for part in parts]


def _members(labels: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """The labels, and the indices of each class that is there."""
    if isinstance(labels, np.ma.MaskedArray):
        raise TypeError("labels must not be a masked array: take its filled values")
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.dtype.kind not in "iu" and values.size:
        raise TypeError(f"labels must have an integer type, got {values.dtype}")
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"labels must be one-dimensional and not empty, got shape {values.shape}")
    _, inverse = np.unique(values, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    return values, np.split(order, np.cumsum(np.bincount(inverse))[:-1])


def _check_clients(num_clients: int, seed: int) -> None:
    check_number(num_clients, "num_clients", low=1, integer=True)
    check_number(seed, "seed", low=0, integer=True)


def _indices(part: list[int]) -> Tensor:
    return torch.tensor(sorted(part), dtype=torch.int64, device="cpu")


class FeatureShift(nn.Module):
    """One client's look on images: its gamma, contrast, blur, noise and color, as if from a scanner of its own.

    The clients lie evenly spread on each of these, in an order of its own. The noise is a fixed pattern of the client,
    so that the same images give the same result, alone or in a batch. The module has no parameters and no state.

    Args:
        client: Which one, from 0.
        num_clients: Of how many, at most a million.
        strength: 0 changes nothing; at most 10.
        seed: Of the orders and of the noise.

    Raises:
        TypeError: A number of another kind; in `forward`, images that are not a floating tensor.
        ValueError: Numbers out of range; images that are not `[B, C, H, W]`, empty, or outside [0, 1].

    Example:
        >>> images = torch.full((2, 1, 4, 4), 0.25)
        >>> FeatureShift(0, 2, strength=0.0)(images).equal(images)
        True
        >>> [round(FeatureShift(i, 2)(images).mean().item(), 2) for i in range(2)]
        [0.4, 0.09]
    """

    def __init__(self, client: int, num_clients: int, *, strength: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        check_number(num_clients, "num_clients", low=1, high=1_000_000, integer=True)
        check_number(client, "client", low=0, high=num_clients, open_high=True, integer=True)
        check_number(strength, "strength", low=0, high=10)
        check_number(seed, "seed", low=0, integer=True)
        self.client, self.num_clients, self.strength, self.seed = int(client), int(num_clients), strength, int(seed)
        orders = np.random.default_rng(self.seed)
        # The places of this client on seven scales, each in (-1, 1) and 0 for a single client.
        places = [(2 * orders.permutation(self.num_clients)[self.client] + 1) / self.num_clients - 1 for _ in range(7)]
        gamma, contrast, blur, noise, *colors = (float(place) for place in places)
        self.gamma = float(np.exp(0.5 * strength * gamma))
        self.contrast = float(np.exp(0.3 * strength * contrast))
        self.blur = min(1.0, 0.5 * strength * (blur + 1) / 2)
        self.noise = 0.1 * strength * (noise + 1) / 2
        self.gains = [float(np.exp(0.2 * strength * color)) for color in colors]
        self._noise_seed = int(orders.integers(2**62)) ^ self.client

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The images as this client has them; channels take the three gains of color in turn."""
        check_tensor(images, "images", ndim=4)
        if should_check(images) and (bool(images.min() < 0) or bool(images.max() > 1)):
            low, high = images.min().item(), images.max().item()
            raise ValueError(f"images must lie in [0, 1], got values from {low:g} to {high:g}")
        gains = [self.gains[channel % 3] for channel in range(images.shape[1])]
        shifted = images.pow(self.gamma)
        shifted = shifted + (self.contrast - 1) * (shifted - 0.5)
        shifted = shifted + self.blur * (F.avg_pool2d(shifted, 3, 1, 1, count_include_pad=False) - shifted)
        shifted = shifted * torch.tensor(gains, dtype=images.dtype, device=images.device)[:, None, None]
        return (shifted + self.noise * self._pattern(images)).clamp(0, 1)

    @eagerly()
    def _pattern(self, images: Tensor) -> Tensor:
        generator = make_generator(self._noise_seed)
        return torch.randn(images.shape[1:], generator=generator, device="cpu").to(images)

    def extra_repr(self) -> str:
        """Show the client in the module's representation."""
        return f"client={self.client}, num_clients={self.num_clients}, strength={self.strength}, seed={self.seed}"

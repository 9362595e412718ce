"""Hyp-OC as the paper's code has it, step by step: one batch of live features, two losses.

Slow and plain, to be read first: NumPy, one sample, one pair, one class at a time. `HypOCLoss` and the functions of the
ball equal it.
"""

from __future__ import annotations

import numpy as np

Vector = np.ndarray


def mobius_add(x: Vector, y: Vector, c: float) -> Vector:
    """The sum of the ball of radius 1 / sqrt(c)."""
    xy, xx, yy = x @ y, x @ x, y @ y
    return ((1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y) / (1 + 2 * c * xy + c**2 * xx * yy)


def expmap(x: Vector, u: Vector, c: float) -> Vector:
    """The point reached from x along u; x = 0 gives tanh(sqrt(c) |u|) u / (sqrt(c) |u|)."""
    length = np.sqrt(u @ u)
    if length == 0:
        return x
    conformal = 2 / (1 - c * (x @ x))
    return mobius_add(x, np.tanh(np.sqrt(c) * conformal * length / 2) * u / (np.sqrt(c) * length), c)


def distance(x: Vector, y: Vector, c: float) -> float:
    """The length of the geodesic."""
    difference = mobius_add(-x, y, c)
    return float(2 / np.sqrt(c) * np.arctanh(np.sqrt(c * (difference @ difference))))


def shorten(x: Vector, limit: float) -> Vector:
    """x, or x rescaled to the length `limit`."""
    return x * min(1.0, limit / max(np.sqrt(x @ x), 1e-300))


def embed(x: Vector, origin: Vector, c: float, clip_radius: float) -> Vector:
    """1. Clip the feature, 2. go along it from the learned base point, 3. stay inside the ball."""
    inside = (1 - 1e-3) / np.sqrt(c)
    base = shorten(expmap(np.zeros_like(origin), origin, c), inside)
    return shorten(expmap(base, shorten(x, clip_radius), c), inside)


def gyroplane_logit(z: Vector, offset: Vector, normal: Vector, c: float) -> float:
    """4. The signed distance to the gyroplane through P with the normal A, times the size of A."""
    P = expmap(np.zeros_like(offset), offset, c)
    A = normal * (1 - c * (P @ P))
    difference, size, conformal = mobius_add(-P, z, c), np.sqrt(A @ A), 2 / (1 - c * (P @ P))
    sine = 2 * np.sqrt(c) * (difference @ A) / ((1 - c * (difference @ difference)) * size)
    return float(conformal * size / np.sqrt(c) * np.arcsinh(sine))


def pseudo_negatives(
    features: Vector, previous_mean: Vector, noise: Vector, alpha: float, variance: float
) -> tuple[Vector, Vector]:
    """5. Draw around a mean that lags behind; the second result is the next batch's `previous_mean`, 0 at first."""
    mean = alpha * previous_mean + (1 - alpha) * features.mean(0)
    return mean + np.sqrt(variance) * noise, features.mean(0)


def hyp_ce(logits: Vector, labels: Vector) -> float:
    """6. Cross-entropy of live (0) and pseudo-negative (1)."""
    terms = [np.log(np.exp(row).sum()) - row[k] for row, k in zip(logits, labels, strict=True)]
    return float(np.mean(terms))


def hyp_pc(live: Vector, c: float) -> float:
    """7. Pair the first half of the live embeddings with the second; the sum is divided by the batch, not the pairs."""
    b = len(live)
    return sum(distance(live[i], live[i + b // 2], c) for i in range(b // 2)) / b


def loss(
    features: Vector, negatives: Vector, layers: list[tuple[Vector, Vector]], origin: Vector,
    offsets: Vector, normals: Vector, *, c: float = 0.1, clip_radius: float = 2.0,
) -> float:  # fmt: skip
    """Hyp-CE + Hyp-PC of a batch of live features and as many pseudo-negatives; ReLU after every layer."""
    hidden = np.concatenate([features, negatives])
    for weight, bias in layers:
        hidden = np.maximum(hidden @ weight.T + bias, 0)
    z = np.array([embed(x, origin, c, clip_radius) for x in hidden])
    logits = np.array([[gyroplane_logit(p, *plane, c) for plane in zip(offsets, normals, strict=True)] for p in z])
    b = len(features)
    return hyp_ce(logits, np.repeat([0, 1], b)) + hyp_pc(z[:b], c)

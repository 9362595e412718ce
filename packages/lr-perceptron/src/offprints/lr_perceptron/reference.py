"""The paper's algorithms as the paper writes them, in NumPy and float64: read this first.

Samples ``Z`` ``[n, d]`` are signed, ``z_i = y_i a_i``; theta separates them when every margin ``z_i . theta`` is
positive, and a margin of 0 is misclassified.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Step = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x))."""
    return float(1 / (1 + np.exp(-x)) if x >= 0 else np.exp(x) / (1 + np.exp(x)))


def loss(Z: np.ndarray, theta: np.ndarray) -> float:
    """Equation (2): the mean of log(1 + exp(-z_i . theta))."""
    return float(np.mean([np.logaddexp(0, -z @ theta) for z in Z]))


def gradient(Z: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Of the loss: minus the mean of sigmoid(-z_i . theta) z_i."""
    total = np.zeros_like(theta)
    for z in Z:
        total -= sigmoid(-(z @ theta)) * z / len(Z)
    return total


def lr_gd(gamma: float) -> Step:
    """LR+GD: a step of gradient descent on the logistic loss."""
    return lambda Z, theta, t: theta - gamma * gradient(Z, theta)


def normalized_lr_gd(gamma: float) -> Step:
    """Normalized LR+GD: the gradient is multiplied by beta_t, one over the mean of the sigmoids."""

    def step(Z: np.ndarray, theta: np.ndarray, t: int) -> np.ndarray:
        sigmoids = [sigmoid(-(z @ theta)) for z in Z]
        if sum(sigmoids) == 0:
            raise FloatingPointError("beta_t is 1/0: all margins are too large for this formula")
        beta = 1 / np.mean(sigmoids)
        return theta - gamma * beta * gradient(Z, theta)

    return step


def batch_perceptron(Z: np.ndarray, theta: np.ndarray, t: int) -> np.ndarray:
    """Batch Perceptron: half the mean of all samples first, then the misclassified ones, each with 1/n."""
    if t == 0:
        return theta + Z.sum(0) / (2 * len(Z))
    return theta + Z[Z @ theta <= 0].sum(0) / len(Z)


def normalized_batch_perceptron(Z: np.ndarray, theta: np.ndarray, t: int) -> np.ndarray:
    """Normalized Batch Perceptron: the mean of the misclassified samples, in the first step too."""
    return theta + Z[Z @ theta <= 0].mean(0)


def perceptron(Z: np.ndarray, theta: np.ndarray, t: int) -> np.ndarray:
    """Perceptron: any one misclassified sample; here the first."""
    return theta + Z[np.flatnonzero(Z @ theta <= 0)[0]]


def run(step: Step, Z: np.ndarray, max_iter: int, *, stop: bool = True) -> list[np.ndarray]:
    """All iterates, from 0 on; the last one separates, unless ``max_iter`` updates were not enough."""
    # 1. Begin at 0, where every sample is misclassified.
    iterates = [np.zeros(Z.shape[1])]
    for t in range(max_iter):
        # 2. Done, once every margin is positive: the number of updates is t.
        if stop and (Z @ iterates[-1] > 0).all():
            break
        # 3. One update.
        iterates.append(step(Z, iterates[-1], t))
    return iterates

"""The paper's two classifiers as the paper writes them: Gaussian naive Bayes (section 2.2), logistic regression (2.1).

Slow and plain, on NumPy arrays in float64: what the fast code is tested against and is best read first.
"""

from __future__ import annotations

import numpy as np


def naive_bayes_fit(X: np.ndarray, y: np.ndarray, epsilon: float = 1e-9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log priors ``[K]``, means ``[K, d]`` and the shared variance ``[d]`` of samples X ``[m, d]``, y in 0..K-1."""
    K, m = int(y.max()) + 1, len(y)
    prior, mean, variance = np.zeros(K), np.zeros((K, X.shape[1])), np.zeros(X.shape[1])
    for k in range(K):
        members = X[y == k]
        # 1. The prior of class k is its share of the samples.
        prior[k] = len(members) / m
        # 2. Its mean.
        mean[k] = members.mean(0)
        # 3. The variance of every feature within the class (biased), weighted by the class's share.
        variance += prior[k] * (((members - mean[k]) ** 2).mean(0) + epsilon)
    return np.log(prior), mean, variance


def naive_bayes_scores(x: np.ndarray, log_prior: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """log p(k) + log p(x | k) of one sample x ``[d]`` for every class ``[K]``."""
    scores = np.zeros(len(log_prior))
    for k in range(len(log_prior)):
        # 4. Features are independent given the class, each of them normal.
        log_density = -((x - mean[k]) ** 2) / (2 * variance) - np.log(2 * np.pi * variance) / 2
        scores[k] = log_prior[k] + log_density.sum()
    return scores


def naive_bayes_linear(log_prior: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """5. The same rule as weights ``[K, d]`` and biases ``[K]``: what all classes share drops out of the comparison."""
    return mean / variance, log_prior - (mean**2 / (2 * variance)).sum(1)


def logistic_objective(W: np.ndarray, b: np.ndarray, X: np.ndarray, y: np.ndarray, C: float) -> float:
    """Mean multinomial log-loss of weights W ``[K, d]`` and biases b ``[K]``, with the penalty ``|W|^2 / (2 C m)``."""
    total = 0.0
    for x, k in zip(X, y, strict=True):
        logits = W @ x + b
        total += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[k]
    return float(total / len(y) + (W**2).sum() / (2 * C * len(y)))


def logistic_fit(X: np.ndarray, y: np.ndarray, C: float = 1.0, tol: float = 1e-6) -> tuple[np.ndarray, np.ndarray]:
    """Weights and biases at which the largest entry of the gradient is at most ``tol``, by gradient descent."""
    K, m = int(y.max()) + 1, len(y)
    W, b, one_hot = np.zeros((K, X.shape[1])), np.zeros(K), np.eye(K)[y]
    # The curvature of the log-loss is at most half the largest eigenvalue of the second moment.
    step = 1 / (np.linalg.norm(np.c_[X, np.ones(m)], 2) ** 2 / (2 * m) + 1 / (C * m))
    while True:
        logits = X @ W.T + b
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        gradient_W = (p - one_hot).T @ X / m + W / (C * m)
        gradient_b = (p - one_hot).mean(0)
        if max(abs(gradient_W).max(), abs(gradient_b).max()) <= tol:
            return W, b
        W, b = W - step * gradient_W, b - step * gradient_b

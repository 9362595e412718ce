"""AEF-OCL as the paper writes it, step by step in float64 NumPy: read this first. The tests compare the fast code."""

from __future__ import annotations

import numpy as np


def expand(features: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Step 1. The random buffer: phi = ReLU(A f), with a fixed A."""
    return np.maximum(features @ matrix.T, 0)


def joint_ridge(phi: np.ndarray, targets: np.ndarray, gamma: float) -> np.ndarray:
    """Step 2. What is to be learned: W = (Phi'Phi + gamma I)^-1 Phi'Y on all data at once."""
    return np.linalg.solve(phi.T @ phi + gamma * np.eye(phi.shape[1]), phi.T @ targets)


def recursion(R: np.ndarray, W: np.ndarray, phi: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Step 3. One batch of the stream, without the batches before it."""
    K = np.linalg.inv(np.eye(len(phi)) + phi @ R @ phi.T)
    R = R - R @ phi.T @ K @ phi @ R
    W = W + R @ phi.T @ (targets - phi @ W)
    return R, W


def class_moments(features: np.ndarray, labels: np.ndarray, K: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Step 4. Count, mean and unbiased deviation of each class, before the buffer; deviation 0 for one sample."""
    count = np.array([(labels == c).sum() for c in range(K)])
    mean = np.array([features[labels == c].mean(0) for c in range(K)])
    std = np.array([features[labels == c].std(0, ddof=1) if count[c] > 1 else 0 * mean[c] for c in range(K)])
    return count, mean, std


def pseudo_features(
    count: np.ndarray, mean: np.ndarray, std: np.ndarray, normals: np.ndarray, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Step 5. Fill each class up to the largest: mu_c + noise s_c N(0, I), classes ascending."""
    labels = np.repeat(np.arange(len(count)), count.max() - count)
    return mean[labels] + noise * std[labels] * normals, labels


class Reference:
    """Steps 1 to 6 on a stream of batches ``(features [B, d], labels [B])`` of K classes 0..K-1."""

    def __init__(self, matrix: np.ndarray, K: int, gamma: float, noise: float) -> None:
        self.matrix, self.noise, self.K = matrix, noise, K
        self.R = np.eye(len(matrix)) / gamma
        self.W = np.zeros((len(matrix), K))
        self.seen: list[tuple[np.ndarray, np.ndarray]] = []  # stored here alone: the method keeps running moments

    def batch(self, features: np.ndarray, labels: np.ndarray) -> None:
        """A batch of real data enters the recursion and the moments."""
        self.R, self.W = recursion(self.R, self.W, expand(features, self.matrix), np.eye(self.K)[labels])
        self.seen.append((features, labels))

    def moments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The class moments so far."""
        features, labels = (np.concatenate(parts) for parts in zip(*self.seen, strict=True))
        return class_moments(features, labels, self.K)

    def balanced(self, normals: np.ndarray) -> np.ndarray:
        """The weights with pseudo-features; the running R and W stay as they are."""
        features, labels = pseudo_features(*self.moments(), normals, self.noise)
        return recursion(self.R, self.W, expand(features, self.matrix), np.eye(self.K)[labels])[1]

    def predict(self, features: np.ndarray, W: np.ndarray) -> np.ndarray:
        """Step 6. The class of the highest score."""
        return (expand(features, self.matrix) @ W).argmax(1)

"""The paper's theory and its kernels as they are written, one number at a time, slow and plain: read this first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def implicit_constants(lam: np.ndarray, n: float, k: float, delta: float) -> tuple[float, float]:
    """Solve both implicit equations for kappa and gamma, one bisection inside another, on logarithmic scales."""

    def bisect(increasing: Callable[[float], float], low: float = -40.0, high: float = 40.0) -> float:
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if increasing(10.0**middle) < 0 else (low, middle)
        return 10.0**middle

    def gamma_of(kappa: float) -> float:
        # 1. Given kappa, the second equation: k = sum lam / (lam + gamma) + k kappa / gamma.
        return bisect(lambda gamma: k - (lam / (lam + gamma)).sum() - k * kappa / gamma)

    def first(kappa: float) -> float:
        # 2. The first equation: n = sum lam / (lam + gamma) + delta / kappa.
        return n - (lam / (lam + gamma_of(kappa))).sum() - delta / kappa

    kappa = bisect(first)
    return kappa, gamma_of(kappa)


def rf_risk(lam: np.ndarray, v: np.ndarray, n: float, k: float, delta: float, noise: float) -> tuple[float, ...]:
    """Test error, train error, kappa, gamma of ridge regression with k random features on n samples."""
    # 3. The two implicit constants.
    kappa, gamma = implicit_constants(lam, n, k, delta)
    # 4. The sums over the modes.
    z, q = (lam / (lam + gamma)).sum(), ((lam / (lam + gamma)) ** 2).sum()
    # 5. Noise and unlearned signal, amplified by the overfitting coefficient.
    unlearned = gamma / (lam + gamma) - kappa * lam / (lam + gamma) ** 2 * k / (k - q)
    overfitting = 1 / (1 - (q * (k - 2 * z) + z**2) / (n * (k - q)))
    test = overfitting * ((unlearned * v**2).sum() + noise)
    # 6. The train error is the same, times the square of delta / (n kappa).
    return test, (delta / (n * kappa)) ** 2 * test, kappa, gamma


def ridge_regression(K: np.ndarray, K_test: np.ndarray, y: np.ndarray, y_test: np.ndarray, delta: float) -> list[float]:
    """Train and test mse of f(x) = K(x, X) (K(X, X) + delta I)^-1 y, summed over the outputs."""
    dual = np.linalg.lstsq(K + delta * np.eye(len(K)), y, rcond=None)[0]
    return [float(((A @ dual - of) ** 2).sum(1).mean()) for A, of in ((K, y), (K_test, y_test))]


def relu_step(K: float, K_x: float, K_y: float, theta: float) -> tuple[float, float]:
    """What a ReLU makes of a covariance and of a tangent kernel: the arc-cosine kernels of degrees 1 and 0."""
    q = np.sqrt(K_x * K_y)
    t = np.arccos(np.clip(K / q, -1, 1)) if q > 0 else np.pi / 2
    return q * (np.sin(t) + (np.pi - t) * np.cos(t)) / (2 * np.pi), theta * (np.pi - t) / (2 * np.pi)


def relu_kernels(x: np.ndarray, y: np.ndarray, depth: int) -> tuple[float, float]:
    """NNGP and NTK of two inputs: depth times [dense of variance 2, ReLU], then a dense layer of variance 1."""
    K, K_x, K_y, theta = x @ y / len(x), x @ x / len(x), y @ y / len(x), 0.0
    for _ in range(depth):
        K, K_x, K_y, theta = 2 * K, 2 * K_x, 2 * K_y, 2 * K + 2 * theta
        K, theta = relu_step(K, K_x, K_y, theta)
        K_x, K_y = K_x / 2, K_y / 2
    return K, K + theta


def myrtle_kernels(x: np.ndarray, y: np.ndarray, counts: tuple[int, int, int]) -> tuple[float, float]:
    """NNGP and NTK of two images [C, s, s]: blocks of 3 x 3 convolutions and ReLUs, pools between, variances 1."""
    side = x.shape[1]
    pairs = {"xy": (x, y), "xx": (x, x), "yy": (y, y)}
    K = {name: np.einsum("cij,ckl->ijkl", a, b) / len(x) for name, (a, b) in pairs.items()}
    theta = np.zeros_like(K["xy"])

    def convolve(A: np.ndarray) -> np.ndarray:
        s = len(A)
        padded = np.pad(A, 1)
        shifts = [(slice(i, i + s), slice(j, j + s)) for i in range(3) for j in range(3)]
        return sum(padded[(*shift, *shift)] for shift in shifts) / 9  # type: ignore[return-value]

    def pool(A: np.ndarray) -> np.ndarray:
        s = len(A) // 2
        return A.reshape(s, 2, s, 2, s, 2, s, 2).mean((1, 3, 5, 7))

    for count, pools in zip(counts, (1, 1, int(np.log2(side)) - 2), strict=True):
        for _ in range(count):
            K, theta = {name: convolve(A) for name, A in K.items()}, convolve(theta)
            theta = theta + K["xy"]
            diagonal = {name: np.einsum("ijij->ij", K[name]).copy() for name in ("xx", "yy")}
            for name, A in K.items():
                for i, j, p, m in np.ndindex(A.shape):
                    of = (diagonal[2 * name[0]][i, j], diagonal[2 * name[1]][p, m], theta[i, j, p, m])
                    A[i, j, p, m], tangent = relu_step(A[i, j, p, m], *of)
                    theta[i, j, p, m] = tangent if name == "xy" else theta[i, j, p, m]
        for _ in range(pools):
            K, theta = {name: pool(A) for name, A in K.items()}, pool(theta)
    nngp, tangent = (np.einsum("ijij->ij", A).mean() for A in (K["xy"], theta))
    return nngp, nngp + tangent

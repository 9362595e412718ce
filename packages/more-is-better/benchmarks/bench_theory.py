"""The predicted risk on a grid of 60 widths x 31 ridges, M = 10 000 modes, beside solving point by point.

Beside it: SciPy's Brent root of the one scalar equation for every point, then the same sums; and, for one width and one
ridge, the nested bisection of `reference.py`, the paper's two equations as they stand.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq

from offprints.more_is_better import powerlaw_spectrum, reference, rf_risk
from offprints.shared.benchmark import Case, compare

N, NOISE, MODES = 256, 0.5, 10_000
WIDTHS = np.geomspace(10, 1e4, 60)
RIDGES = np.geomspace(1e-3, 1e2, 31)


def by_brent(lam: np.ndarray, v: np.ndarray) -> np.ndarray:
    powers, errors = v**2, np.empty((len(WIDTHS), len(RIDGES)))
    for i, k in enumerate(WIDTHS):
        for j, ridge in enumerate(RIDGES):

            def height(t: float, k: float = k, ridge: float = ridge) -> float:
                gamma = math.exp(t)
                z = (lam / (lam + gamma)).sum()
                c, s = k * ridge / gamma, abs(N - k)
                return z + 2 * c / (s + math.sqrt(s * s + 4 * c)) - min(N, k)

            gamma = math.exp(brentq(height, -30, 10, xtol=1e-10))
            L = lam / (lam + gamma)
            z, q = L.sum(), (L**2).sum()
            kappa = gamma * (1 - z / k)
            unlearned = gamma / (lam + gamma) - kappa * lam / (lam + gamma) ** 2 * k / (k - q)
            errors[i, j] = ((unlearned * powers).sum() + NOISE) / (1 - (q * (k - 2 * z) + z**2) / (N * (k - q)))
    return errors


def main() -> None:
    torch.set_num_threads(1)
    eigvals, coeffs = powerlaw_spectrum(MODES, 1.5, 1.5)
    lam, v = eigvals.numpy(), coeffs.numpy()
    widths, ridges = torch.from_numpy(WIDTHS)[:, None], torch.from_numpy(RIDGES)

    def agree(ours: Any, theirs: Any) -> None:
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)

    grid = Case(
        "60 widths x 31 ridges, 10 000 modes",
        lambda: rf_risk(eigvals, coeffs, N, widths, ridges, noise_var=NOISE).test_mse.numpy(),
        {"Brent's method, point by point": lambda: by_brent(lam, v)},
        agree,
    )
    point = Case(
        "one point, 10 000 modes",
        lambda: rf_risk(eigvals, coeffs, N, 100, 0.1, noise_var=NOISE).test_mse.item(),
        {"two bisections (reference.py)": lambda: reference.rf_risk(lam, v, N, 100, 0.1, NOISE)[0]},
        agree,
    )
    results = Path(__file__).parent / "results"
    compare([grid, point], results / "theory.json", rounds=3, threads=1, clock=time.process_time)


if __name__ == "__main__":
    main()

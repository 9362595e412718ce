"""The convolutional NTK of the Myrtle-5 network and the errors at 50 ridges, beside plain code and scikit-learn.

The only other implementation of the kernel that is known, neural_tangents, stands on JAX, which this workspace does not
install; beside ours is `reference.py`, pair by pair and position by position, on two pairs of images.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.kernel_ridge import KernelRidge

from offprints.more_is_better import myrtle_kernel, reference, relu_ntk, ridge_path
from offprints.shared.benchmark import Case, compare


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    small, large = torch.randn(16, 3, 8, 8), torch.randn(4, 3, 32, 32)
    pair = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    X = torch.randn(800, 20, dtype=torch.float64)
    K, y = relu_ntk(X), X[:, :2].abs()
    ridges = torch.logspace(-4, 3, 50, dtype=torch.float64)

    def agree(ours: Any, theirs: Any) -> None:
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-6)

    def with_scikit_learn() -> np.ndarray:
        blocks, errors = (K[:600, :600].numpy(), K[600:, :600].numpy()), []
        for ridge in ridges.tolist():
            model = KernelRidge(alpha=ridge, kernel="precomputed").fit(blocks[0], y[:600].numpy())
            errors.append(((model.predict(blocks[1]) - y[600:].numpy()) ** 2).sum(1).mean())
        return np.array(errors)

    cases = [
        Case(
            "Myrtle-5 NTK, one pair of 3 x 8 x 8, float64",
            lambda: myrtle_kernel(pair[:1], pair[1:]).item(),
            {"pair by pair (reference.py)": lambda: reference.myrtle_kernels(*pair.numpy(), (2, 1, 1))[1]},
            agree,
        ),
        Case("Myrtle-5 NTK, 16 images 3 x 8 x 8, float64", lambda: myrtle_kernel(small.double())),
        Case("Myrtle-5 NTK, 4 images 3 x 32 x 32, float32", lambda: myrtle_kernel(large)),
        Case(
            "kernel regression at 50 ridges, n = 600",
            lambda: ridge_path(K[:600, :600], K[600:, :600], y[:600], y[600:], ridges)[1].numpy(),
            {"scikit-learn": with_scikit_learn},
            agree,
        ),
    ]
    compare(cases, Path(__file__).parent / "results" / "kernels.json", rounds=3, threads=1, clock=time.process_time)


if __name__ == "__main__":
    main()

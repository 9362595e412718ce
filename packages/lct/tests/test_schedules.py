"""Grid, curriculum, index law and adaptive c."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from offprints.lct import (
    adaptive_c,
    discretization_curriculum,
    initial_c,
    karras_sigmas,
    lognormal_index_probabilities,
)


def test_values_of_the_specification() -> None:
    assert initial_c(4096) == pytest.approx(0.03456)
    values = [adaptive_c(n + 1, dim=4096) for n in (20, 40, 80, 160, 320, 640)]
    assert values == pytest.approx([0.0136, 0.00614, 0.00277, 0.00125, 0.000562, 0.000253], rel=4e-3)
    assert adaptive_c(41, dim=64, slope=-1.18, intercept=-0.72) == pytest.approx(0.006264, rel=1e-3)


@given(st.integers(2, 700), st.sampled_from([torch.float32, torch.float64]))
def test_grid(n: int, dtype: torch.dtype) -> None:
    sigmas = karras_sigmas(n, dtype=dtype)
    assert sigmas.dtype == dtype
    assert sigmas[0] == torch.tensor(0.002, dtype=dtype)
    assert sigmas[-1] == 80
    assert (sigmas.diff() > 0).all()
    law = lognormal_index_probabilities(sigmas)
    assert len(law) == n - 1
    assert float(law.sum()) == pytest.approx(1, abs=1e-5)
    assert (law > 0).all()


def test_index_law_keeps_its_digits_in_both_tails() -> None:
    sigmas = karras_sigmas(641, dtype=torch.float64)
    for p_mean in (-9.0, 9.0):
        law = lognormal_index_probabilities(sigmas, p_mean=p_mean, p_std=0.6)
        edges = ((sigmas.log() - p_mean) / 0.6).numpy()
        # The density at the middle times the width: an independent value where differences of the law cancel.
        middle, width = (edges[1:] + edges[:-1]) / 2, edges[1:] - edges[:-1]
        expected = torch.from_numpy(norm.logpdf(middle)) + torch.from_numpy(width).log()
        log_law = law.log()
        assert torch.isfinite(log_law).all()
        assert (log_law.diff() - expected.diff()).abs().max() < 2e-2


@given(st.integers(1, 40), st.integers(0, 300), st.integers(8, 3000))
def test_curriculum(initial: int, extra: int, total: int) -> None:
    final = initial + extra
    if total < 10:
        total += 10
    scales = [discretization_curriculum(k, total, initial=initial, final=final) for k in range(0, total + 1, 7)]
    assert scales[0] == initial + 1
    assert max(scales) <= final + 1
    assert scales == sorted(scales)
    assert discretization_curriculum(total, total, initial=initial, final=final) <= final + 1


def test_curriculum_reaches_the_end() -> None:
    assert discretization_curriculum(800, 800, final=20) == 21
    assert discretization_curriculum(399, 800, final=20) == 11
    assert discretization_curriculum(5, 10, initial=10, final=10) == 11


def test_types_of_the_grid() -> None:
    import numpy as np

    assert torch.equal(karras_sigmas(np.int64(5)), karras_sigmas(5))
    assert discretization_curriculum(np.int64(699), np.int64(700), final=np.int64(640)) == 641
    for dtype in (torch.int64, torch.bool, torch.complex64, float):
        with pytest.raises(TypeError, match="dtype must"):
            karras_sigmas(5, dtype=dtype)
    assert (karras_sigmas(641, dtype=torch.bfloat16).diff() > 0).all()
    for count, dtype, top in ((1281, torch.bfloat16, 80.0), (5, torch.float16, 1e6), (200_000, torch.float16, 80.0)):
        with pytest.raises(ValueError, match="dtype must"):
            karras_sigmas(count, dtype=dtype, sigma_max=top)

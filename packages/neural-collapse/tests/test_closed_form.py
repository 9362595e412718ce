"""The closed form: thresholds, roots, limits, bottlenecks, and speed-independent properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offprints.neural_collapse import collapse_threshold, gof_solution, minimum_class_count

DECAYS = st.floats(1e-5, 1e-2)


def scalar_problem(x: torch.Tensor, beta: float, M: int) -> torch.Tensor:
    return 1 / (x**M + 1) + beta * x


@pytest.mark.parametrize(("depth", "expected"), [(1, 1.0), (2, 0.5), (3, 4 ** (1 / 3) / 3), (6, 0.6373), (2**62, 1.0)])
def test_threshold(depth: int, expected: float) -> None:
    assert collapse_threshold(depth) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("M", [1, 2, 3, 6, 20])
def test_x_is_the_global_minimum_on_a_fine_grid(M: int) -> None:
    """Every branch: far below the threshold, just below it, between it and the last stationary point, beyond."""
    T = collapse_threshold(M)
    stationary = M * ((M - 1) / (M + 1)) ** ((M - 1) / M) / ((M - 1) / (M + 1) + 1) ** 2 if M > 1 else T
    grid = torch.linspace(0, 60, 600_001, dtype=torch.float64)
    for beta in (0.01 * T, 0.5 * T, 0.999 * T, 1.001 * T, (1.001 * T + stationary) / 2, 1.5 * stationary):
        # One class of two decides: b0 is a function of the decays, which are chosen to give beta.
        n, N = 10, 20
        feature_decay = (beta * n / (M * N)) ** M / N
        solution = gof_solution([n, n], weight_decay=[1.0] * M, feature_decay=feature_decay)
        assert solution.b / n == pytest.approx(beta, rel=1e-12)
        values = scalar_problem(grid, beta, M)
        best = values.min()
        ours = scalar_problem(solution.x[:1], beta, M)
        assert ours <= best + 1e-13
        assert (solution.x[0] == 0) == (beta >= T)
        if beta < T:
            slope = M * solution.x[0] ** (M - 1) / (solution.x[0] ** M + 1) ** 2
            assert slope == pytest.approx(beta, rel=1e-12)
        assert solution.loss == pytest.approx(float(ours) / 2, rel=1e-12)


def test_between_the_threshold_and_the_last_stationary_point_zero_is_the_minimum() -> None:
    """There the largest stationary root, which the official formula takes, has a higher loss than zero."""
    M, beta = 2, 0.6  # above T_2 = 0.5, below max 2x / (x^2 + 1)^2 = 0.6495
    grid = torch.linspace(0.6, 2, 100_001, dtype=torch.float64)
    slope = 2 * grid / (grid**2 + 1) ** 2
    root = grid[(slope >= beta).nonzero().max()]
    assert scalar_problem(root, beta, M) > 1
    solution = gof_solution([10, 10], weight_decay=[1.0, 1.0], feature_decay=(beta * 10 / 40) ** 2 / 20)
    assert solution.collapsed.all()
    assert solution.loss == pytest.approx(0.5, abs=1e-15)


def test_one_layer_has_a_square_root() -> None:
    """s_k = sqrt(sqrt(n_k lambda_H / lambda_W) - N lambda_H)."""
    n, w, h = torch.tensor([40.0, 20.0, 9.0], dtype=torch.float64), 2e-3, 3e-3
    expected = ((n * h / w).sqrt() - n.sum() * h).sqrt()
    solution = gof_solution([40, 20, 9], weight_decay=w, feature_decay=h)
    torch.testing.assert_close(solution.singular_values, expected, rtol=1e-12, atol=0)
    again = gof_solution([40, 20, 9], weight_decay=[w], feature_decay=h)
    assert torch.equal(again.x, solution.x)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 500), min_size=2, max_size=6), st.lists(DECAYS, min_size=1, max_size=5), DECAYS)
def test_relations(counts: list[int], decays: list[float], feature_decay: float) -> None:
    solution = gof_solution(counts, weight_decay=decays, feature_decay=feature_decay)
    N, M = sum(counts), len(decays)
    # Larger classes have larger x, equal ones equal x.
    order = np.argsort(counts, kind="stable")
    assert (np.diff(solution.x.numpy()[order]) >= 0).all()
    torch.testing.assert_close(solution.ww * solution.hh, solution.wh**2, rtol=1e-10, atol=1e-15)
    torch.testing.assert_close(solution.hh, solution.ww / (solution.ww + N * feature_decay) ** 2, rtol=1e-10, atol=0)
    product = solution.singular_values**M * math.sqrt(decays[0] ** M / math.prod(decays))
    torch.testing.assert_close(product**2, solution.ww, rtol=1e-9, atol=0)
    smallest = minimum_class_count(N, weight_decay=decays, feature_decay=feature_decay)
    assert solution.collapsed.tolist() == [n <= smallest * (1 + 1e-12) for n in counts]
    assert 0 < solution.loss <= 0.5
    assert ((solution.wh >= 0) & (solution.wh < 1)).all()
    reordered = gof_solution(counts[::-1], weight_decay=decays, feature_decay=feature_decay)
    assert torch.equal(reordered.x, solution.x.flip(0))


def test_minimum_class_count_is_where_the_class_goes() -> None:
    """With two layers the class jumps from a norm of its own to zero; with one it fades out."""
    decays, N = {"weight_decay": [2e-3, 2e-3], "feature_decay": 2e-3}, 400
    smallest = minimum_class_count(N, **decays)
    above, below = math.ceil(smallest), math.floor(smallest)
    assert above == below + 1
    survives = gof_solution([N - above, above], **decays)
    dies = gof_solution([N - below, below], **decays)
    assert dies.collapsed.tolist() == [False, True]
    assert survives.collapsed.tolist() == [False, False]
    assert survives.wh[1] > 0.5  # x^M = M - 1 at the threshold, that is wh = (M - 1) / M
    one = {"weight_decay": 2e-3, "feature_decay": 2e-3}
    above = math.ceil(minimum_class_count(10**6, **{**one, "feature_decay": 2e-8}))
    assert gof_solution([10**6 - above, above], **{**one, "feature_decay": 2e-8}).wh[1] < 0.1


def test_narrow_layers_keep_the_largest_classes() -> None:
    decays = {"weight_decay": [1e-3] * 3, "feature_decay": 1e-3}
    whole = gof_solution([10, 40, 20, 40], **decays)
    for rank, kept in ((1, [1]), (2, [1, 3]), (3, [1, 2, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])):
        narrow = gof_solution([10, 40, 20, 40], **decays, rank=rank)
        assert (~narrow.collapsed).nonzero().flatten().tolist() == kept
        assert torch.equal(narrow.x[kept], whole.x[kept])
        assert narrow.loss >= whole.loss
    losses = [gof_solution([10, 40, 20, 40], **decays, rank=rank).loss for rank in range(1, 6)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == losses[-2] == whole.loss


def test_many_classes_and_layers_at_once() -> None:
    counts = (torch.arange(100_000) % 977 + 1).tolist()
    solution = gof_solution(counts, weight_decay=[1e-9] * 3, feature_decay=1e-9)
    assert solution.x.shape == (100_000,)
    few = gof_solution([977, 500, *[1] * 10], weight_decay=[1e-9] * 3, feature_decay=1e-9)
    assert few.x.isfinite().all()
    # The product of 2000 decays is below the smallest float.
    deep = gof_solution([500, 400], weight_decay=[1e-4] * 2000, feature_decay=1e-4)
    assert all(t.isfinite().all() for t in (deep.x, deep.singular_values, deep.ww, deep.hh, deep.wh))
    assert math.isfinite(deep.loss)


def test_kinds_of_arguments() -> None:
    expected = gof_solution([20, 10, 5], weight_decay=[5e-3, 5e-3], feature_decay=5e-3)
    kinds = (
        (20, 10, 5),
        np.array([20, 10, 5], dtype=np.uint8),
        torch.tensor([20, 10, 5], dtype=torch.int32),
        [np.int64(20), 10, 5],
    )
    for counts in kinds:
        for decay in (
            np.array([5e-3, 5e-3]),
            torch.tensor([5e-3, 5e-3], dtype=torch.float64),
            (5e-3, np.float64(5e-3)),
        ):
            ours = gof_solution(counts, weight_decay=decay, feature_decay=np.float64(5e-3))
            assert torch.equal(ours.ww, expected.ww)
    assert expected.ww.dtype == torch.float64
    torch.testing.assert_close(expected.ww, torch.tensor([7.134, 4.407, 2.688], dtype=torch.float64), rtol=1e-3, atol=0)

"""The closed form of the server's rule: its properties, and where the official one has no value."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offprints.fedld import principal_aggregate, principal_coefficients
from offprints.shared.testing import check_arguments

RULES = ("signed", "projection")


def updates_of(seed: int, m: int = 5, d: int = 12) -> Tensor:
    """With a common part: independent updates leave the eigenvectors open."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(1, d, generator=generator, dtype=torch.float64)
    return common + 0.7 * torch.randn(m, d, generator=generator, dtype=torch.float64)


def rotation(d: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]


@given(st.integers(0, 1000), st.integers(1, 8), st.sampled_from(RULES), st.floats(0.05, 1.0))
@settings(max_examples=25)
def test_symmetries(seed: int, m: int, rule: str, k_proportion: float) -> None:
    updates = updates_of(seed, m)

    def f(u: Tensor) -> Tensor:
        return principal_aggregate(u, k_proportion=k_proportion, rule=rule)

    close = {"rtol": 1e-7, "atol": 1e-9}
    step = f(updates)
    order = torch.randperm(m, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(f(updates[order]), step, **close)
    turned = rotation(12, seed)
    torch.testing.assert_close(f(updates @ turned), step @ turned, **close)
    torch.testing.assert_close(f(-updates), -step, **close)
    torch.testing.assert_close(f(3.5 * updates), 3.5 * step, **close)
    rest = step - torch.linalg.lstsq(updates.T, step[:, None]).solution[:, 0] @ updates
    torch.testing.assert_close(rest, torch.zeros_like(rest), rtol=0, atol=1e-9)  # in the span of the clients


@pytest.mark.parametrize("rule", RULES)
def test_identical_clients_give_their_update(rule: str) -> None:
    update = updates_of(0, 1)
    torch.testing.assert_close(principal_aggregate(update.repeat(4, 1), rule=rule), update[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("rule", RULES)
def test_single_client_is_returned_as_it_is(rule: str) -> None:
    update = updates_of(1, 1)
    assert torch.equal(principal_aggregate(update, rule=rule), update[0])  # the official k = int(0.8) = 0 erases it


@pytest.mark.parametrize("rule", RULES)
def test_zero_updates_give_zero(rule: str) -> None:
    assert not principal_aggregate(torch.zeros(4, 6), rule=rule).any()
    assert not principal_coefficients(torch.zeros(3, 2, 2), rule=rule).any()


def test_orthogonal_client_counts_as_zero_and_not_by_the_sign_of_rounding() -> None:
    """Two groups in orthogonal subspaces, update norms 1 to 4, in two bases."""
    updates = torch.zeros(4, 4, dtype=torch.float64)
    updates[0, 0], updates[1, 0], updates[2, 1], updates[3, 1] = 1.0, 2.0, 3.0, 4.0
    expected = torch.zeros(4, dtype=torch.float64)
    # Directions e2 (eigenvalue 25) and e1 (5), k = 3: shares 25/30 and 5/30, lengths of the clients of each group.
    expected[1], expected[0] = 25 / 30 * (3 + 4) / 4, 5 / 30 * (1 + 2) / 4
    torch.testing.assert_close(principal_aggregate(updates), expected, rtol=0, atol=1e-12)
    for seed in range(5):
        turned = rotation(4, seed)
        torch.testing.assert_close(principal_aggregate(updates @ turned), expected @ turned, rtol=0, atol=1e-12)


def test_opposing_clients_cancel_instead_of_being_turned() -> None:
    """The code's rule, not the text's: the calibration of signs has no effect."""
    direction = torch.tensor([3.0, 4.0]).double()
    updates = torch.stack([direction, direction, direction, -direction])
    torch.testing.assert_close(principal_aggregate(updates), direction / 2, rtol=1e-12, atol=0)
    torch.testing.assert_close(principal_aggregate(updates[2:] * 2), 0 * direction, rtol=0, atol=1e-12)


def test_projection_keeps_the_mean_along_the_directions() -> None:
    updates = updates_of(2)
    mean = updates.mean(0)
    torch.testing.assert_close(principal_aggregate(updates, k_proportion=1.0, rule="projection"), mean)
    part = principal_aggregate(updates, k_proportion=0.4, rule="projection")
    assert part.norm() < mean.norm()
    torch.testing.assert_close(part @ (mean - part), torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("m", "k_proportion", "kept"), [(5, 0.2, 1), (10, 0.3, 3), (3, 0.99, 2), (4, 0.01, 1)])
def test_number_of_directions(m: int, k_proportion: float, kept: int) -> None:
    """0.2 of 5 is one direction, although 0.3 * 10 is below 3 in binary; never none."""
    updates = updates_of(3, m)
    e = torch.linalg.eigh(updates @ updates.T)[1][:, -kept:]
    expected = (e @ e.mean(0)) @ updates
    torch.testing.assert_close(principal_aggregate(updates, k_proportion=k_proportion, rule="projection"), expected)


def test_many_tensors_at_once_equal_one_by_one() -> None:
    grams = torch.stack([updates_of(seed) @ updates_of(seed).T for seed in range(6)]).reshape(2, 3, 5, 5)
    together = principal_coefficients(grams)
    assert together.shape == (2, 3, 5)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(together[i, j], principal_coefficients(grams[i, j]), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("factor", [1e-300, 1e-160, 1e160, 1e300])
def test_scale_does_not_overflow(factor: float) -> None:
    updates = updates_of(4)
    torch.testing.assert_close(principal_aggregate(updates * factor) / factor, principal_aggregate(updates))


def test_kinds_of_memory_and_types() -> None:
    updates = updates_of(5).float()
    step = principal_aggregate(updates)
    spread = torch.stack([updates, updates], -1)[..., 0]
    assert not spread.is_contiguous()
    assert torch.equal(principal_aggregate(spread), step)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(principal_aggregate(updates), step)
    learned = updates.clone().requires_grad_()
    assert not principal_aggregate(learned).requires_grad
    for dtype in (torch.bfloat16, torch.float16):
        got = principal_aggregate(updates.to(dtype))
        assert got.dtype == dtype
        torch.testing.assert_close(got, principal_aggregate(updates.to(dtype).float()).to(dtype))
    compiled = torch.compile(principal_coefficients, backend="aot_eager")
    gram = updates @ updates.T
    torch.testing.assert_close(compiled(gram), principal_coefficients(gram))


def test_every_argument() -> None:
    check_arguments(principal_aggregate, lambda g: (torch.randn(4, 6, generator=g) + 1,))
    check_arguments(
        principal_coefficients,
        lambda g: ((lambda u: u @ u.transpose(-1, -2))(torch.randn(2, 4, 6, generator=g) + 1),),
    )

"""Equality with the official code on its own outputs, and of the fast code with the reference."""

import pytest
import torch
from torch import Tensor

from offprints.fedld import PrincipalGradientAggregator, margin_control_loss, principal_aggregate
from offprints.fedld import reference as paper
from offprints.fedld.baselines import GradientHarmonization, harmonized_coefficients

FILES = ("aggregate_k08_m5", "aggregate_k05_m4", "aggregate_k1_m3")


def as_state(flat: Tensor, sizes: list[int]) -> dict[str, Tensor]:
    return {f"layer{i}": part.clone() for i, part in enumerate(flat.split(sizes))}


@pytest.mark.parametrize("file", FILES)
def test_rounds_of_the_official_code(golden, file: str) -> None:
    data = golden(file)
    sizes, k_proportion = data["sizes"].tolist(), float(data["k_proportion"])
    updates = [data[f"updates{i}"] for i in range(sum(name.startswith("updates") for name in data))]
    assert len(updates) >= 2
    assert 1 in sizes or file != FILES[0]
    server = PrincipalGradientAggregator(k_proportion=k_proportion)
    for number, (of_round, (step, history)) in enumerate(
        zip(updates, paper.server_rounds(updates, sizes, k_proportion), strict=True)
    ):
        tolerance = {"rtol": 0, "atol": 1e-13 * float(of_round.abs().max())}
        torch.testing.assert_close(step, data[f"aggregate{number}"], **tolerance)
        torch.testing.assert_close(history, data[f"history{number}"], **tolerance)
        start = torch.linspace(-1, 1, sum(sizes), dtype=torch.float64)
        clients = [as_state(start + update, sizes) for update in of_round]
        new, _ = server.aggregate(as_state(start, sizes), clients)
        ours = torch.cat(list(new.values())) - start
        torch.testing.assert_close(ours, data[f"aggregate{number}"], rtol=0, atol=1e-12 * float(of_round.abs().max()))


@pytest.mark.parametrize("case", range(3))
def test_margin_loss_of_the_official_code(golden, case: int) -> None:
    data = golden("margin_loss")
    logits = data[f"{case}.logits"].requires_grad_()
    target, penalty = data[f"{case}.target"], float(data[f"{case}.penalty"])
    loss = margin_control_loss(logits, target, penalty=penalty)
    loss.backward()
    torch.testing.assert_close(loss.detach(), data[f"{case}.loss"], rtol=0, atol=1e-12)
    torch.testing.assert_close(logits.grad, data[f"{case}.grad"], rtol=0, atol=1e-14)
    assert paper.margin_control(logits, target, penalty).item() == pytest.approx(loss.item(), abs=1e-12)


@pytest.mark.parametrize(
    ("m", "d", "k_proportion"), [(2, 3, 0.8), (5, 40, 0.8), (5, 40, 0.2), (7, 9, 1.0), (12, 5, 0.4)]
)
def test_gram_form_equals_the_rule_written_out(m: int, d: int, k_proportion: float) -> None:
    generator = torch.Generator().manual_seed(m)
    common = torch.randn(1, d, generator=generator, dtype=torch.float64)
    spread = torch.randn(m, d, generator=generator, dtype=torch.float64)
    updates = common + spread * torch.linspace(0.1, 1, d, dtype=torch.float64)
    expected = paper.principal_rule(updates, k_proportion)
    torch.testing.assert_close(principal_aggregate(updates, k_proportion=k_proportion), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 8, 11])
def test_harmonization_in_the_gram_matrix_equals_the_one_written_out(m: int) -> None:
    generator = torch.Generator().manual_seed(m)
    updates = torch.randn(m, 20, generator=generator, dtype=torch.float64)
    history = torch.randn(20, generator=generator, dtype=torch.float64)
    rows = torch.cat([updates, history[None]])
    step = harmonized_coefficients(rows @ rows.T) @ updates
    torch.testing.assert_close(step, paper.gradient_harmonization(updates, history), rtol=0, atol=1e-12)


def test_rounds_of_gradient_harmonization() -> None:
    generator = torch.Generator().manual_seed(3)
    server, history = GradientHarmonization(), torch.zeros(6, dtype=torch.float64)
    for number in range(3):
        updates = torch.randn(4, 6, generator=generator, dtype=torch.float64)
        expected = updates.mean(0) if number == 0 else paper.gradient_harmonization(updates, history)
        history = expected if number == 0 else 0.99 * history + 0.01 * expected
        start = {"w": torch.ones(2, 3, dtype=torch.float64)}
        new, _ = server.aggregate(start, [{"w": 1 + update.reshape(2, 3)} for update in updates])
        torch.testing.assert_close(new["w"].flatten() - 1, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(server.state_dict()["history"]["w"], history, rtol=0, atol=1e-12)

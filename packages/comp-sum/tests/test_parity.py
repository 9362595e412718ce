"""Equal to 40-digit arithmetic, to the official TRADES code and to torchattacks on their golden data."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from offprints.comp_sum import (
    comp_sum_loss,
    conditional_risk_minimum,
    inverse_transform,
    pgd_attack,
    rho_margin_comp_sum_loss,
    smooth_adversarial_comp_sum_loss,
    trades_loss,
    transform,
)

Golden = Callable[[str], dict[str, Tensor]]


@pytest.fixture
def data(golden: Golden) -> dict[str, Tensor]:
    return golden("golden.npz")


def network(data: dict[str, Tensor]) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 6)).double()
    values = (data[name] for name in ("W1", "b1", "W2", "b2"))
    model.load_state_dict(dict(zip(model.state_dict(), values, strict=True)))
    return model


@pytest.mark.parametrize("index", range(6))
def test_losses_and_gradients(data: dict[str, Tensor], index: int) -> None:
    tau = float(data["taus"][index])
    for logits, expected in (("logits", "loss"), ("extreme_logits", "extreme_loss")):
        losses = comp_sum_loss(data[logits], data["target"], tau=tau, reduction="none")
        torch.testing.assert_close(losses, data[f"{expected}_{index}"], rtol=1e-13, atol=0)
    leaf = data["logits"].clone().requires_grad_()
    comp_sum_loss(leaf, data["target"], tau=tau).backward()
    torch.testing.assert_close(leaf.grad, data[f"grad_{index}"], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("index", range(6))
def test_bounds(data: dict[str, Tensor], index: int) -> None:
    tau = float(data["taus"][index])
    for i, classes in enumerate(data["num_classes_list"].tolist()):
        expected = data["transform"][index, i]
        torch.testing.assert_close(transform(data["betas"], tau, classes), expected, rtol=1e-11, atol=0)
        torch.testing.assert_close(inverse_transform(expected, tau, classes), data["betas"], rtol=1e-9, atol=0)
    least = conditional_risk_minimum(data["cond_p"], tau)
    torch.testing.assert_close(least, data["cond_min"][index], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("index", range(3))
def test_adversarial_losses(data: dict[str, Tensor], index: int) -> None:
    tau, rho, nu = data[f"smooth_{index}_args"].tolist()
    options = {"tau": tau, "rho": rho, "reduction": "none"}
    smooth = smooth_adversarial_comp_sum_loss(
        data["clean_logits"], data["adv_logits"], data["x_target"], nu=nu, **options
    )
    torch.testing.assert_close(smooth, data[f"smooth_{index}"], rtol=1e-9, atol=0)
    margin = rho_margin_comp_sum_loss(data["clean_logits"], data["x_target"], **options)
    torch.testing.assert_close(margin, data[f"rho_margin_{index}"], rtol=1e-9, atol=1e-12)


def test_trades(data: dict[str, Tensor]) -> None:
    model = network(data)
    eps, step_size, steps, beta = data["pgd_args"].tolist()
    ball = {"eps": eps, "step_size": step_size, "steps": int(steps), "x_init": data["x_init"]}
    x_adv = pgd_attack(model, data["x"], data["x_target"], objective="kl", **ball)
    torch.testing.assert_close(x_adv, data["trades_x_adv"], rtol=0, atol=1e-9)
    torch.testing.assert_close(model(x_adv).detach(), data["adv_logits"], rtol=0, atol=1e-9)
    loss = trades_loss(model, data["x"], data["x_target"], beta=beta, **ball)
    loss.backward()
    torch.testing.assert_close(loss.detach(), data["trades_loss"], rtol=1e-9, atol=0)
    torch.testing.assert_close(model[2].weight.grad, data["trades_grad_W2"], rtol=0, atol=1e-9)


def test_pgd(data: dict[str, Tensor]) -> None:
    eps, step_size, steps, _ = data["pgd_args"].tolist()
    ball = {"eps": eps, "step_size": step_size, "steps": int(steps), "random_start": None}
    x_adv = pgd_attack(network(data), data["x"], data["x_target"], **ball)
    torch.testing.assert_close(x_adv, data["torchattacks_pgd"], rtol=0, atol=1e-9)

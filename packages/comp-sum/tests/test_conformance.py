"""The conformance suite on every public object."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from offprints.comp_sum import (
    CompSumLoss,
    SmoothAdversarialCompSumLoss,
    adv_comp_sum_loss,
    comp_sum_loss,
    conditional_risk_minimum,
    h_consistency_bound,
    inverse_transform,
    minimizability_gap,
    nu_ramp,
    pgd_attack,
    phi,
    rho_margin,
    rho_margin_comp_sum_loss,
    robust_accuracy,
    smooth_adversarial_comp_sum_loss,
    trades_loss,
    transform,
)
from offprints.shared.testing import check_arguments, check_loss, check_package, check_schedule

PUBLIC = """
comp_sum_loss CompSumLoss phi transform inverse_transform h_consistency_bound conditional_risk_minimum
minimizability_gap rho_margin rho_margin_comp_sum_loss smooth_adversarial_comp_sum_loss SmoothAdversarialCompSumLoss
pgd_attack trades_loss adv_comp_sum_loss nu_ramp robust_accuracy autoattack_accuracy
"""


def test_package() -> None:
    check_package("comp-sum", public=PUBLIC.split())


def test_readme(readme_example) -> None:
    names = readme_example()
    assert 0 <= names["robust"] <= names["clean"] <= 1
    assert 0 <= names["bound"] <= 1


def logits(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return 2 * torch.randn(7, 4, generator=generator), torch.randint(4, (7,), generator=generator)


def tie(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The label's term equals the sum of the others: log(1 + u) at u = 1."""
    return torch.tensor([[0.0, 0.0, -torch.inf], [1.5, -torch.inf, 1.5]]), torch.tensor([0, 2])


def masked(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.tensor([[1.0, -torch.inf, -torch.inf], [2.0, 0.5, -torch.inf]]), torch.tensor([0, 1])


def far(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A label that leads by 5, and one that trails by 5; float16 holds no more. Further out: in test_losses."""
    return torch.tensor([[5.0, 0.0, 0.5], [0.0, -5.0, 0.5]]), torch.tensor([0, 1])


SPECIAL = {"tie": tie, "masked": masked, "far": far}


@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0])
def test_losses(tau: float) -> None:
    special = SPECIAL if tau >= 1 else {"tie": tie, "masked": masked}
    check_loss(comp_sum_loss, logits, kwargs={"tau": tau}, nan="propagate", special=special)


def test_loss_modules() -> None:
    check_loss(CompSumLoss(tau=1.5), logits, nan="propagate", special=SPECIAL)


def pairs(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    clean, target = logits(generator)
    return clean.requires_grad_(), (clean.detach() + torch.randn(7, 4, generator=generator)).requires_grad_(), target


def unmoved(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    clean, target = logits(generator)
    return clean.requires_grad_(), clean.detach().clone().requires_grad_(), target


@pytest.mark.parametrize(
    "loss", [smooth_adversarial_comp_sum_loss, SmoothAdversarialCompSumLoss(tau=1.4, rho=0.5, nu=2.0)]
)
def test_smooth_adversarial_losses(loss: object) -> None:
    check_loss(loss, pairs, nan="propagate", special={"unmoved": unmoved})  # type: ignore[arg-type]


def test_rho_margin_loss() -> None:
    """With a margin of 3 no score of these draws lies on a kink."""
    check_loss(partial(rho_margin_comp_sum_loss, tau=1.5, rho=3.0), logits, nan="propagate")


def test_phi_and_rho_margin() -> None:
    for function in (partial(phi, tau=1.5), partial(phi, tau=1.0), partial(rho_margin, rho=2.0)):
        check_arguments(function, lambda g: (torch.rand(5, generator=g),), nan="propagate")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) @ self.weight.to(x).T


def batch(generator: torch.Generator) -> tuple[Model, Tensor, Tensor]:
    return Model(), 0.2 + 0.6 * torch.rand(5, 4, generator=generator), torch.tensor([0, 2, 1, 1, 0])


@pytest.mark.parametrize("loss", [trades_loss, adv_comp_sum_loss])
def test_adversarial_training_losses(loss: object) -> None:
    """From a given start, with the global stream left alone."""

    def inputs(generator: torch.Generator) -> tuple[Model, Tensor, Tensor, Tensor]:
        model, x, target = batch(generator)
        return model, x, target, x + 0.01 * torch.randn(x.shape, generator=generator)

    def from_start(model, x, target, x_init):
        return loss(model, x, target, eps=0.1, step_size=0.03, steps=3, x_init=x_init)  # type: ignore[operator]

    steps = "the sign of a gradient is no smooth function of the inputs"
    check_loss(
        from_start,
        inputs,
        skip={
            "networks: in place": "the attack needs the gradient, which that network cuts off",
            "gradcheck": "x' is taken as given, as in the official code",
            "double backward": steps,
            "torch.func": steps,
            "torch.compile": "modes and flags of the model are changed inside",
            "half types": "a half-typed model rounds at every step",
            "precision": steps,
            "device": "the model is on one device",
        },
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_arguments_of_attacks(norm: str) -> None:
    settings = {"eps": 0.1, "step_size": 0.03, "steps": 2, "norm": norm}
    skip = {"x: one class fewer": "the model's own refusal"}
    # So many steps end only after hours: what was asked for.
    check_arguments(pgd_attack, batch, kwargs=settings, seconds=0.5, skip=skip)
    if norm == "linf":
        check_arguments(robust_accuracy, batch, kwargs=settings, seconds=0.5, skip=skip)


def test_arguments_of_the_calculator() -> None:
    check_arguments(transform, lambda g: {"beta": torch.rand(4, generator=g), "tau": 1.5, "num_classes": 3})
    check_arguments(transform, lambda g: {"beta": 0.3, "tau": 0.5, "num_classes": 3})
    check_arguments(inverse_transform, lambda g: {"t": torch.rand(4, generator=g), "tau": 0.5, "num_classes": 3})
    check_arguments(h_consistency_bound, lambda g: {"excess": 0.1, "tau": 1.0, "num_classes": 3})
    check_arguments(conditional_risk_minimum, lambda g: (torch.rand(4, 3, generator=g).softmax(1), 1.5))
    weights = {"weights": torch.tensor([1.0, 2.0, 0.5, 1.0])}
    check_arguments(
        minimizability_gap,
        lambda g: {"best_risk": 0.7, "p": torch.rand(4, 3, generator=g).softmax(1), "tau": 1.0, **weights},
    )


def test_ramp() -> None:
    check_schedule(lambda step: nu_ramp(step, 20), 20, start=0.0, end=0.5, monotone="increasing")
    check_schedule(lambda step: nu_ramp(step, 7, nu=2.0, fraction=1.0), 7, start=0.0, end=2.0, monotone="increasing")
    check_schedule(lambda step: nu_ramp(step, 7, fraction=0.0), 7, start=0.5, end=0.5)
    assert nu_ramp(1000, 20) == 0.5

"""The conformance suite on every public object."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from offprints.shared.testing import check_loss, check_module, check_optimizer, check_package
from offprints.stablemax import (
    ExactCrossEntropyLoss,
    GrokMLP,
    GrokTransformer,
    OrthoGrad,
    StableMaxCrossEntropyLoss,
    exact_cross_entropy,
    linear_exact_cross_entropy,
    linear_stablemax_cross_entropy,
    stablemax_cross_entropy,
)

PUBLIC = [
    "stablemax",
    "log_stablemax",
    "stablemax_cross_entropy",
    "exact_cross_entropy",
    "StableMaxCrossEntropyLoss",
    "ExactCrossEntropyLoss",
    "linear_stablemax_cross_entropy",
    "linear_exact_cross_entropy",
    "orthogonalize_gradients_",
    "OrthoGrad",
    "softmax_collapse_fraction",
    "zero_loss_fraction",
    "zero_gradient_fraction",
    "nlm_alignment",
    "CollapseMonitor",
    "modular_arithmetic",
    "sparse_parity",
    "GrokMLP",
    "GrokTransformer",
    "GrokConfig",
    "GrokResult",
    "train_grokking",
]


def test_package() -> None:
    check_package("stablemax", public=PUBLIC)


def logits(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return 2 * torch.randn(7, 4, generator=generator), torch.randint(4, (7,), generator=generator)


def maps(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(3, 5, 2, 4, generator=generator), torch.randint(5, (3, 2, 4), generator=generator)


def tie(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows in which the label's term equals the sum of the others, for both losses."""
    return torch.tensor([[0.0, 0.0, -torch.inf], [0.0, -torch.inf, 0.0], [-torch.inf, 0.0, 0.0]]), torch.arange(3)


def masked(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """All classes but the label's are masked, or some are."""
    return torch.tensor([[1.0, -torch.inf, -torch.inf], [2.0, 0.5, -torch.inf]]), torch.tensor([0, 1])


def ignored(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    logits = torch.randn(5, 3, generator=generator)
    logits[1], logits[3, 0] = torch.nan, torch.inf
    return logits, torch.tensor([0, -100, 2, -100, 1])


COMPILED = {"torch.compile": "at these and more points, beside the right values, in test_paths"}
SPECIAL = {"tie": tie, "masked": masked, "ignored": ignored}


@pytest.mark.parametrize("loss", [stablemax_cross_entropy, exact_cross_entropy])
def test_losses(loss: object) -> None:
    check_loss(loss, logits, nan="propagate", special=SPECIAL, skip=COMPILED)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", [StableMaxCrossEntropyLoss, ExactCrossEntropyLoss])
def test_loss_modules(loss: type) -> None:
    weight = torch.tensor([0.5, 1.0, 2.0, 0.25, 1.5])
    criterion = loss(weight, ignore_index=2, label_smoothing=0.1)
    check_loss(criterion, maps, nan="propagate", reductions=(), skip=COMPILED)


@pytest.mark.parametrize("loss", [linear_stablemax_cross_entropy, linear_exact_cross_entropy])
def test_fused_losses(loss: object) -> None:
    def inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
        hidden, weight = torch.randn(7, 3, generator=generator), torch.randn(5, 3, generator=generator)
        labels, bias = torch.randint(5, (7,), generator=generator), torch.randn(5, generator=generator)
        return hidden.requires_grad_(), weight.requires_grad_(), labels, bias.requires_grad_()

    skip = {"torch.compile": "in test_linear"}
    check_loss(partial(loss, chunk_size=2), inputs, nan="propagate", skip=skip)  # type: ignore[arg-type]


def test_models() -> None:
    check_module(GrokMLP(6, 4, hidden=(8,)), lambda g: (torch.randn(5, 6, generator=g),))
    mlp = GrokMLP(6, 4, hidden=(8, 8), bias=True, alpha=2.0)
    check_module(mlp, lambda g: (torch.randn(5, 6, generator=g),))
    transformer = GrokTransformer(11, d_model=8, num_heads=2)
    skip = {"torch.compile": "torch's own encoder layer"}
    check_module(transformer, lambda generator: (torch.randint(11, (5, 2), generator=generator),), skip=skip)


@pytest.mark.parametrize("granularity", ["tensor", "row", "global"])
def test_optimizer(granularity: str) -> None:
    def adamw(params: object, foreach: bool | None = None) -> OrthoGrad:
        base = torch.optim.AdamW(params, lr=0.05)  # type: ignore[arg-type]
        return OrthoGrad(base, granularity=granularity, foreach=foreach)  # type: ignore[arg-type]

    check_optimizer(adamw)

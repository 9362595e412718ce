"""The conformance suite on every public object, and every bad input."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offprints.lct import (
    CauchyLoss,
    GemanMcClureLoss,
    LatentConsistencyLoss,
    LatentConsistencyModel,
    LatentNormalizer,
    NonScalingLayerNorm,
    PseudoHuberLoss,
    adaptive_c,
    cauchy_loss,
    consistency_sample,
    discretization_curriculum,
    geman_mcclure_loss,
    impulse_statistics,
    initial_c,
    karras_sigmas,
    lognormal_index_probabilities,
    ot_couple,
    ot_permutation,
    pseudo_huber_loss,
    replace_norms,
)
from offprints.shared.testing import (
    check_errors,
    check_loss,
    check_module,
    check_package,
    check_sampler,
    check_schedule,
    check_streaming,
)

PUBLIC = [
    "cauchy_loss",
    "pseudo_huber_loss",
    "geman_mcclure_loss",
    "CauchyLoss",
    "PseudoHuberLoss",
    "GemanMcClureLoss",
    "initial_c",
    "adaptive_c",
    "karras_sigmas",
    "lognormal_index_probabilities",
    "discretization_curriculum",
    "ot_permutation",
    "ot_couple",
    "NonScalingLayerNorm",
    "replace_norms",
    "LatentNormalizer",
    "impulse_statistics",
    "LatentConsistencyModel",
    "LatentConsistencyOutput",
    "LatentConsistencyLoss",
    "consistency_sample",
    "TWO_STEP_SIGMAS",
]


class Network(nn.Module):
    """Small, smooth and the same at every size of the batch."""

    def __init__(self, dim: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(dim, dim)

    def forward(self, x: Tensor, t: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        return torch.tanh(self.layer(x.flatten(1)) + t[:, None] + shift).view_as(x)


def pairs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    input, target = (torch.randn(5, 2, 3, generator=generator) for _ in range(2))
    return input.requires_grad_(), target.requires_grad_()


def test_package() -> None:
    check_package("lct", public=PUBLIC)


@pytest.mark.parametrize("loss", [cauchy_loss, pseudo_huber_loss, geman_mcclure_loss])
@pytest.mark.parametrize("norm", ["mean", "sum", "element"])
def test_losses(loss: Any, norm: str) -> None:
    skip = {}
    if loss is not cauchy_loss or norm == "sum":
        skip["torch.compile"] = "the same code as the Cauchy loss"
    check_loss(loss, pairs, nan="propagate", kwargs={"c": 0.7, "norm": norm}, skip=skip)


@pytest.mark.parametrize("loss", [CauchyLoss, PseudoHuberLoss, GemanMcClureLoss])
def test_loss_modules(loss: Any) -> None:
    def inputs(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        return (*pairs(generator), torch.rand(5, generator=generator) + 0.1)

    skip = {"torch.compile": "compiled as a function above"}
    check_loss(loss(c=0.7), inputs, nan="propagate", skip=skip)


def test_training_loss() -> None:
    loss = LatentConsistencyLoss(total_steps=70, c=0.3)
    model = LatentConsistencyModel(Network()).double()

    def call(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return loss(model, x, step=0)
        model.to(x.dtype)
        indices = torch.arange(len(x)) % 10
        noise = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)[: len(x)]
        return loss(model, x, step=0, noise=noise.to(x), indices=indices)

    check_loss(
        call,
        lambda generator: (torch.randn(5, 2, 3, generator=generator),),
        skip={
            "batch permutation": "the indices go by row",
            "gradcheck": "the target's dependence on x is cut",
            "torch.compile": "the assignment is made on the host",
            "torch.func": "the call moves the model to the type of x",
            "half types": "the call moves the model to the type of x",
            "double backward": "the call moves the model to the type of x",
            "arguments": "the call moves the model to the type of x",
        },
    )


def test_modules() -> None:
    for norm, length in ((NonScalingLayerNorm((3, 4)), 4), (NonScalingLayerNorm((3, 4), channel_bias=True), 7)):
        check_module(norm, lambda g, length=length: (torch.randn(5, 3, length, generator=g),))

    def noisy(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.randn(5, 2, 3, generator=generator), torch.rand(5, generator=generator) + 0.1

    check_module(LatentConsistencyModel(Network()), noisy, skip={"arguments: x: *": "the network's own errors"})


def normalizer() -> LatentNormalizer:
    made = LatentNormalizer((2, 3))
    made.update(torch.randn(40, 2, 3, generator=torch.Generator().manual_seed(0)) * 3 + 1)
    return made


def test_normalizer() -> None:
    check_module(normalizer(), lambda generator: (torch.randn(5, 2, 3, generator=generator),))
    batches = [torch.randn(n, 2, 3, generator=torch.Generator().manual_seed(n)) for n in (4, 7, 1, 9)]
    check_streaming(lambda: LatentNormalizer((2, 3)), batches, result=lambda made: (made.mean, made.std))


def test_schedules() -> None:
    check_schedule(lambda step: discretization_curriculum(step, 700), 700, start=11, end=641, monotone="increasing")
    check_schedule(lambda n: adaptive_c(n, dim=4096), 200, first=2, start=0.03456, monotone="decreasing")


def test_sampler() -> None:
    theta = torch.ones(3, requires_grad=True)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return theta.to(x) * x / (1 + sigma.to(x).square()).sqrt()[:, None]

    noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    check_sampler(lambda noise: consistency_sample(model, noise), noise)
    check_sampler(
        lambda noise, generator: consistency_sample(model, noise, sigmas=(80.0, 0.4), generator=generator),
        noise,
    )


def test_bad_input_of_functions() -> None:
    x = torch.randn(4, 2, 3)
    bad = x.clone()
    bad[1, 0, 0] = torch.nan
    infinite = x.clone()
    infinite[2, 1, 1] = torch.inf
    cases: list[tuple[Any, type[Exception], str]] = []
    for loss in (cauchy_loss, pseudo_huber_loss, geman_mcclure_loss):
        call = partial(loss, x, x)
        cases += [
            (call, TypeError, "c"),
            (partial(call, c=0.0), ValueError, "c must"),
            (partial(call, c=-1.0), ValueError, "c must"),
            (partial(call, c=math.nan), ValueError, "c must"),
            (partial(call, c=1.0, norm="max"), ValueError, "norm"),
            (partial(call, c=1.0, weight=torch.ones(3)), ValueError, "weight"),
            (partial(call, c=1.0, weight=torch.ones(4, 1)), ValueError, "weight"),
            (partial(loss, x[:, :1], x, c=1.0), ValueError, "input"),
            (partial(loss, torch.ones(4), torch.ones(4), c=1.0), ValueError, "input"),
        ]
    for module in (CauchyLoss, PseudoHuberLoss, GemanMcClureLoss):
        cases += [
            (module, TypeError, "c"),
            (partial(module, c=math.inf), ValueError, "c must"),
            (partial(module, c=1.0, norm="max"), ValueError, "norm"),
            (partial(module, c=1.0, reduction="max"), ValueError, "reduction"),
        ]
    cases += [
        (lambda: initial_c(0), ValueError, "dim"),
        (lambda: adaptive_c(1, dim=64), ValueError, "num_scales"),
        (lambda: adaptive_c(11, dim=64, initial_scales=0), ValueError, "initial_scales"),
        (lambda: adaptive_c(11, dim=64, slope=math.nan), ValueError, "slope"),
        (lambda: karras_sigmas(1), ValueError, "num_scales"),
        (lambda: karras_sigmas(5, sigma_min=0.0), ValueError, "sigma_min"),
        (lambda: karras_sigmas(5, sigma_min=2.0, sigma_max=1.0), ValueError, "sigma_max"),
        (lambda: karras_sigmas(5, rho=0.0), ValueError, "rho"),
        (lambda: lognormal_index_probabilities(torch.tensor([1.0])), ValueError, "sigmas"),
        (lambda: lognormal_index_probabilities(torch.tensor([2.0, 1.0])), ValueError, "sigmas"),
        (lambda: lognormal_index_probabilities(torch.tensor([0.0, 1.0])), ValueError, "sigmas"),
        (lambda: lognormal_index_probabilities(torch.arange(1, 4)), TypeError, "sigmas"),
        (lambda: lognormal_index_probabilities(karras_sigmas(5), p_std=0.0), ValueError, "p_std"),
        (lambda: lognormal_index_probabilities(karras_sigmas(5), p_mean=1e9), ValueError, "p_mean"),
        (lambda: discretization_curriculum(8, 7), ValueError, "step"),
        (lambda: discretization_curriculum(0, 6), ValueError, "total_steps"),
        (lambda: discretization_curriculum(0, 70, initial=0), ValueError, "initial"),
        (lambda: discretization_curriculum(0, 70, initial=10, final=9), ValueError, "final"),
        (lambda: impulse_statistics(torch.empty(0)), ValueError, "x"),
        (lambda: impulse_statistics(bad), ValueError, "x"),
        (lambda: impulse_statistics(torch.arange(4)), TypeError, "x"),
    ]
    for couple in (ot_permutation, ot_couple):
        cases += [
            (partial(couple, x, x[:3]), ValueError, "noise"),
            (partial(couple, x[:0], x[:0]), ValueError, "x"),
            (partial(couple, x[:, 0, 0], x[:, 0, 0]), ValueError, "x"),
            (partial(couple, bad, x), ValueError, "x must be finite"),
            (partial(couple, x, infinite), ValueError, "noise must be finite"),
            (partial(couple, x.long(), x), TypeError, "x"),
        ]
    check_errors(cases)


def test_bad_input_of_classes() -> None:
    x = torch.randn(4, 2, 3)
    bad = x.clone()
    bad[1, 0, 0] = torch.nan
    model = LatentConsistencyModel(Network())
    step = {"step": 0}
    loss = LatentConsistencyLoss(total_steps=70, c=0.1)
    free = LatentConsistencyLoss(total_steps=70, c=0.1, coupling="none")
    make = partial(LatentConsistencyLoss, total_steps=70)
    ready = normalizer()
    norm = NonScalingLayerNorm((2, 3))
    check_errors(
        [
            (lambda: LatentConsistencyLoss(total_steps=6), ValueError, "total_steps"),
            (lambda: make(robust="tukey"), ValueError, "robust"),
            (lambda: make(norm="max"), ValueError, "norm"),
            (lambda: make(coupling="sinkhorn"), ValueError, "coupling"),
            (lambda: make(c=0.0), ValueError, "c must"),
            (lambda: make(diffusion_fraction=1.5), ValueError, "diffusion_fraction"),
            (lambda: make(diffusion_weight=-1.0), ValueError, "diffusion_weight"),
            (lambda: make(sigma_data=0.0), ValueError, "sigma_data"),
            (lambda: make(sigma_max=0.001), ValueError, "sigma_max"),
            (lambda: loss(model, x, step=71), ValueError, "step"),
            (lambda: loss(model, x, step=-1), ValueError, "step"),
            (lambda: loss(model, x.long(), **step), TypeError, "x"),
            (lambda: loss(model, x[:0], **step), ValueError, "x"),
            (lambda: loss(model, x[:, 0, 0], **step), ValueError, "x"),
            (lambda: loss(model, bad, **step), ValueError, "x must be finite"),
            (lambda: loss(model, x, noise=x[:3], **step), ValueError, "noise"),
            (lambda: free(model, x, noise=bad, **step), ValueError, "noise must be finite"),
            (lambda: loss(model, x, indices=torch.tensor([0, 1, 2, 10]), **step), ValueError, "indices"),
            (lambda: loss(model, x, indices=torch.tensor([0, 1, 2, -1]), **step), ValueError, "indices"),
            (lambda: loss(model, x, indices=torch.zeros(3, dtype=torch.int64), **step), ValueError, "indices"),
            (lambda: loss(model, x, indices=torch.zeros(4), **step), TypeError, "indices"),
            (lambda: loss(lambda x, s: x[:, :1], x, **step), ValueError, "model"),
            (lambda: make(c=lambda n: -1.0)(model, x, **step), ValueError, "c must"),
            (lambda: LatentConsistencyModel(Network(), sigma_data=0.0), ValueError, "sigma_data"),
            (lambda: LatentConsistencyModel(Network(), sigma_min=-1.0), ValueError, "sigma_min"),
            (lambda: LatentConsistencyModel(Network(), noise_scale=0.0), ValueError, "noise_scale"),
            (lambda: model(x, 0.001), ValueError, "sigma"),
            (lambda: model(x, torch.ones(3)), ValueError, "sigma"),
            (lambda: model(x.long(), 1.0), TypeError, "x"),
            (lambda: consistency_sample(model, x, sigmas=()), ValueError, "sigmas"),
            (lambda: consistency_sample(model, x, sigmas=(1.0, 1.0)), ValueError, "sigmas"),
            (lambda: consistency_sample(model, x, sigmas=(1.0, 0.001)), ValueError, "sigmas"),
            (lambda: consistency_sample(model, bad), ValueError, "noise"),
            (lambda: NonScalingLayerNorm(()), ValueError, "normalized_shape"),
            (lambda: NonScalingLayerNorm((2, 0)), ValueError, "normalized_shape"),
            (lambda: NonScalingLayerNorm(2, eps=-1.0), ValueError, "eps"),
            (lambda: norm(torch.ones(4, 3, 2)), ValueError, "normalized shape"),
            (lambda: norm(torch.ones(3)), ValueError, "normalized shape"),
            (lambda: NonScalingLayerNorm((2, 3), channel_bias=True)(torch.ones(4, 3, 3)), ValueError, "x must"),
            (lambda: replace_norms(nn.Linear(2, 2), x), ValueError, "network"),
            (lambda: LatentNormalizer((2, 0)), ValueError, "shape"),
            (lambda: LatentNormalizer((2,), target_std=0.0), ValueError, "target_std"),
            (lambda: LatentNormalizer((2,), eps=0.0), ValueError, "eps"),
            (lambda: ready.update(x[:, :1]), ValueError, "batch"),
            (lambda: ready.update(bad), ValueError, "batch"),
            (lambda: ready(x[:, :1]), ValueError, "x"),
            (lambda: ready.inverse(x[:, :1]), ValueError, "x"),
            (lambda: LatentNormalizer((2, 3))(x), RuntimeError, "LatentNormalizer"),
            (lambda: LatentNormalizer((2, 3)).inverse(x), RuntimeError, "two"),
            (lambda: LatentNormalizer((2, 3)).std, RuntimeError, "two"),
            (lambda: ready.merge_(norm), TypeError, "other"),
        ]
    )

"""Coupling where the network is conditioned on labels, and guidance, editing and inpainting when sampling."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.testing import assert_close

from offprints.lct import (
    LatentConsistencyLoss,
    LatentConsistencyModel,
    consistency_sample,
    karras_sigmas,
    ot_couple,
    ot_permutation,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def two_classes(n: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    labels = torch.arange(n) % 2
    x = 0.1 * torch.randn(n, dim, generator=seeded(seed)) + (labels[:, None] - 0.5)
    return x, labels


@pytest.mark.parametrize("dim", [1, 64])
def test_noise_within_a_class_is_standard_normal(dim: int) -> None:
    x, labels = two_classes(512, dim)
    noise = torch.randn(512, dim, generator=seeded(1))
    direction = torch.ones(dim) / dim**0.5
    plain, within = ot_couple(x, noise), ot_couple(x, noise, labels=labels)
    for label in (0, 1):
        rows = labels == label
        # The noise of a class is that which was drawn for it: the very same rows, in another order.
        assert_close(within[rows].sort(0).values, noise[rows].sort(0).values)
        assert abs(float((plain[rows] @ direction).mean())) > 0.7
        assert abs(float((within[rows] @ direction).mean())) < 0.2
        cost = (x[rows].double()[:, None] - noise[rows].double()[None]).square().sum(2).numpy()
        best = cost[linear_sum_assignment(cost)].sum()
        assert float((x[rows] - within[rows]).double().square().sum()) == pytest.approx(best, rel=1e-6)


def test_groups_of_labels() -> None:
    x, noise = torch.randn(12, 3, generator=seeded(0)), torch.randn(12, 3, generator=seeded(1))
    one = torch.zeros(12, dtype=torch.uint8)
    assert torch.equal(ot_permutation(x, noise, labels=one), ot_permutation(x, noise))
    assert torch.equal(ot_permutation(x, noise, labels=torch.arange(12) * 10**9), torch.arange(12))
    both = torch.stack([torch.arange(12) % 2, torch.arange(12) % 3], 1)
    joint = ot_permutation(x, noise, labels=both)
    assert torch.equal(joint, ot_permutation(x, noise, labels=torch.arange(12) % 6))
    assert torch.equal(joint % 6, torch.arange(12) % 6)
    assert torch.equal(joint.sort().values, torch.arange(12))
    halves = ot_permutation(x, noise, labels=torch.arange(12) < 5)
    assert (halves[:5] < 5).all()


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        (torch.zeros(3, dtype=torch.int64), ValueError),
        (torch.zeros(4), TypeError),
        ([0, 0, 1, 1], TypeError),
        (np.zeros(4, dtype=int), TypeError),
        (torch.zeros(4, 1, 1, dtype=torch.int64), ValueError),
    ],
)
def test_labels_that_are_none(labels: object, error: type[Exception]) -> None:
    x = torch.randn(4, 3)
    with pytest.raises(error, match="labels must"):
        ot_permutation(x, x, labels=labels)
    with pytest.raises(error, match="labels must"):
        LatentConsistencyLoss(total_steps=70, c=0.1)(lambda x, s: x, x, step=0, labels=labels)


def test_data_far_from_zero() -> None:
    x, noise = torch.randn(64, 8, generator=seeded(0)), torch.randn(64, 8, generator=seeded(1))
    expected = ot_permutation(x.double(), noise.double())
    assert torch.equal(ot_permutation(x.double() + 1e9, noise.double()), expected)
    assert torch.equal(ot_permutation((x * 256).round() + 1e6, noise * 256), ot_permutation((x * 256).round(), noise))


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(3, 16)
        self.layers = nn.Sequential(nn.Linear(2 + 16, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.layers(torch.cat([x, t[:, None], self.embed(y)], 1))


def test_conditions_meet_a_plain_coupling() -> None:
    x, labels = two_classes(16, 1)
    model = LatentConsistencyModel(Conditional())
    loss = LatentConsistencyLoss(total_steps=70, c=0.1)
    with pytest.warns(UserWarning, match=r"conditions in model_kwargs \(y\).*labels="):
        loss(model, x, step=0, model_kwargs={"y": labels})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        noise = torch.randn(16, 1, generator=seeded(1))
        out = loss(model, x, step=0, noise=noise, model_kwargs={"y": labels}, labels=labels)
        assert torch.equal(out.noise, ot_couple(x, noise, labels=labels))
        free = LatentConsistencyLoss(total_steps=70, c=0.1, coupling="none")
        free(model, x, step=0, model_kwargs={"y": labels})
        loss(lambda x, s, shift: x + shift, x, step=0, model_kwargs={"shift": torch.ones(1)})


@pytest.mark.parametrize("coupling", ["none", "ot"])
def test_samples_keep_their_class(coupling: str) -> None:
    data, classes = two_classes(4096, 1)  # means -0.5 and 0.5; a plain coupling gives about 0
    model = LatentConsistencyModel(Conditional())
    loss = LatentConsistencyLoss(
        total_steps=400, final_scales=10, c=0.3, diffusion_weight=0.0, coupling=coupling, validate=False
    )
    optimizer = torch.optim.RAdam(model.parameters(), lr=1e-2)
    draws = seeded(2)
    for step in range(400):
        rows = torch.randint(4096, (128,), generator=draws)
        out = loss(
            model,
            data[rows],
            step=step,
            generator=draws,
            model_kwargs={"y": classes[rows]},
            labels=classes[rows] if coupling == "ot" else None,
        )
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    for label, mean in ((0, -0.5), (1, 0.5)):
        y = torch.full((2048,), label)
        samples = consistency_sample(model, torch.randn(2048, 1, generator=draws), model_kwargs={"y": y})
        assert float(samples.mean()) == pytest.approx(mean, abs=0.2)


def shifting(x: Tensor, sigma: Tensor, y: float = 0.0) -> Tensor:
    return x / (1 + sigma.square()).sqrt()[:, None] + y


NOISE = torch.randn(5, 3, generator=seeded(0))


@pytest.mark.parametrize(
    "sigmas",
    [
        karras_sigmas(5).flip(0),
        karras_sigmas(5, dtype=torch.bfloat16).flip(0),
        karras_sigmas(5).flip(0).numpy(),
        tuple(karras_sigmas(5).flip(0)),
        np.float32(80),
        torch.tensor(80.0),
        80,
    ],
)
def test_our_own_schedule_is_a_schedule(sigmas: object) -> None:
    if isinstance(sigmas, tuple):
        sigmas = tuple(float(s) for s in sigmas)
    ours = consistency_sample(shifting, NOISE, sigmas=sigmas, generator=seeded(1))
    numbers = np.asarray(sigmas.float() if isinstance(sigmas, Tensor) else sigmas, dtype=float).reshape(-1).tolist()
    x, draws = NOISE * 0, seeded(1)
    for k, level in enumerate(numbers):
        z = NOISE if k == 0 else torch.randn(5, 3, generator=draws)
        amount = level if k == 0 else max(level**2 - 0.002**2, 0) ** 0.5
        x = shifting(x + amount * z, torch.full((5,), level))
    assert_close(ours, x)


@pytest.mark.parametrize("low", [0.7, 0.1, 0.0037])
def test_a_lowest_level_that_its_type_rounds_down(low: float) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        grid = karras_sigmas(4, sigma_min=low, dtype=dtype).flip(0)
        model = LatentConsistencyModel(Plain(), sigma_min=low)
        assert consistency_sample(model, NOISE, sigmas=grid, sigma_min=low, generator=seeded(0)).isfinite().all()
    with pytest.raises(ValueError, match="sigmas must be at least"):
        consistency_sample(model, NOISE, sigmas=(1.0, 0.9 * low), sigma_min=low)


class Plain(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x + t[:, None])


@pytest.mark.parametrize("weight", [0.0, 2.5, -1.0])
def test_guidance(weight: float) -> None:
    ours = consistency_sample(
        shifting, NOISE, model_kwargs={"y": 1.0}, unconditional_kwargs={"y": 0.25}, guidance=weight
    )
    plain = consistency_sample(shifting, NOISE)
    assert_close(ours, plain + 0.25 + weight * 0.75)

    def in_place(x: Tensor, sigma: Tensor, y: float) -> Tensor:
        result = shifting(x, sigma, y)
        x.mul_(0)
        return result

    again = consistency_sample(
        in_place, NOISE, model_kwargs={"y": 1.0}, unconditional_kwargs={"y": 0.25}, guidance=weight
    )
    assert torch.equal(again, ours)
    with pytest.raises(ValueError, match="unconditional_kwargs"):
        consistency_sample(shifting, NOISE, guidance=2.0)


def test_editing_begins_at_what_is_given() -> None:
    start = torch.full((5, 3), 0.4)
    ours = consistency_sample(shifting, NOISE, sigmas=(0.5,), initial=start)
    assert_close(ours, (start + (0.25 - 0.002**2) ** 0.5 * NOISE) / 1.25**0.5)
    assert torch.equal(
        consistency_sample(shifting, NOISE, sigmas=(0.002,), initial=start), shifting(start, torch.full((5,), 0.002))
    )


def test_inpainting_keeps_what_is_known() -> None:
    known, mask, seen = torch.full((5, 3), 0.4), torch.tensor([True, False, False]), []
    ours = consistency_sample(
        shifting,
        NOISE,
        sigmas=(80.0, 1.0),
        known=known,
        mask=mask,
        generator=seeded(1),
        callback=lambda k, x: seen.append((k, x)),
    )
    free = consistency_sample(shifting, NOISE, sigmas=(80.0, 1.0), generator=seeded(1))
    assert torch.equal(ours[:, 0], known[:, 0])
    assert torch.equal(ours[:, 1:], free[:, 1:])
    assert [k for k, _ in seen] == [0, 1]
    assert torch.equal(seen[0][1][:, 0], known[:, 0])
    assert_close(seen[0][1][:, 1:], consistency_sample(shifting, NOISE)[:, 1:])
    for wrong, error in ((torch.ones(4, dtype=torch.bool), ValueError), (torch.ones(3), TypeError), (None, ValueError)):
        with pytest.raises(error, match="mask"):
            consistency_sample(shifting, NOISE, known=known, mask=wrong)


def test_gradients_through_the_sampler() -> None:
    model = LatentConsistencyModel(Plain()).double()
    noise = NOISE.double().requires_grad_()

    def run(noise: Tensor) -> Tensor:
        return consistency_sample(model, noise, sigmas=(5.0, 0.4), generator=seeded(0), differentiable=True)

    assert torch.autograd.gradcheck(run, noise)
    assert not consistency_sample(model, noise).requires_grad
    with torch.no_grad():
        assert not run(noise).requires_grad


def test_conditions_deep_in_the_arguments_are_seen() -> None:
    x, labels = two_classes(16, 1)
    loss = LatentConsistencyLoss(total_steps=70, c=0.1)
    for given in ({"added": {"y": labels}}, {"added": (1, [labels])}, {"added": labels.numpy()}):
        with pytest.warns(UserWarning, match=r"conditions in model_kwargs \(added\)"):
            loss(lambda x, s, added: x, x, step=0, model_kwargs=given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(lambda x, s, added: x, x, step=0, model_kwargs={"added": {"size": torch.ones(3), "name": "a", "no": None}})


class SameMemory:
    """A model whose result is at the same place each time, as that of a captured graph, and that works in place."""

    def __init__(self) -> None:
        self.memory = torch.zeros(5, 3)

    def __call__(self, x: Tensor, sigma: Tensor, y: float = 0.0) -> Tensor:
        self.memory.copy_(shifting(x, sigma, y))
        x.zero_()
        sigma.zero_()
        return self.memory


def test_a_model_may_keep_its_memory() -> None:
    model, seen = SameMemory(), []
    how = {"model_kwargs": {"y": 1.0}, "unconditional_kwargs": {"y": 0.25}, "guidance": 2.0, "sigmas": (80.0, 1.0)}
    ours = consistency_sample(model, NOISE, generator=seeded(1), callback=lambda k, x: seen.append(x), **how)
    assert torch.equal(ours, consistency_sample(shifting, NOISE, generator=seeded(1), **how))
    plain = consistency_sample(model, NOISE)
    model.memory.fill_(9)
    assert torch.equal(plain, consistency_sample(shifting, NOISE))
    loss = LatentConsistencyLoss(total_steps=70, c=0.1, coupling="none")
    given = {"step": 0, "noise": NOISE, "indices": torch.tensor([0, 1, 4, 7, 9])}
    assert torch.equal(loss(model, NOISE * 0.5, **given).loss, loss(shifting, NOISE * 0.5, **given).loss)


@pytest.mark.parametrize("model", [None, 3])
def test_models_that_cannot_be_called(model: object) -> None:
    with pytest.raises(TypeError, match="model must be callable"):
        consistency_sample(model, NOISE)
    with pytest.raises(TypeError, match="model must be callable"):
        LatentConsistencyLoss(total_steps=70, c=0.1)(model, NOISE, step=0)
    with pytest.raises(TypeError, match="callback must be callable"):
        consistency_sample(shifting, NOISE, callback=3)


@pytest.mark.parametrize("wrong", [3, [("y", 1.0)], {1: 2}])
def test_arguments_that_have_no_names(wrong: object) -> None:
    with pytest.raises(TypeError, match=r"^model_kwargs must map names"):
        consistency_sample(shifting, NOISE, model_kwargs=wrong)
    with pytest.raises(TypeError, match=r"^model_kwargs must map names"):
        LatentConsistencyLoss(total_steps=70, c=0.1)(shifting, NOISE, step=0, model_kwargs=wrong)
    with pytest.raises(TypeError, match=r"^unconditional_kwargs must map names"):
        consistency_sample(shifting, NOISE, unconditional_kwargs=wrong, guidance=2.0)

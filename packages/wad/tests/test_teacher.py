from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from offprints.shared.estimators import NotFittedError
from offprints.shared.testing import check_arguments, check_module
from offprints.wad import SimCLRTeacher, nt_xent
from offprints.wad._training import shuffled_batches
from offprints.wad.augmentation import SimCLRAugmentation, _changed_colors, _cropped, _turned
from offprints.wad.contrastive import ContrastiveTraining
from offprints.wad.networks import small_encoder, wide_resnet


def images(count: int = 24, channels: int = 1, seed: int = 0) -> Tensor:
    """Bars, upright or lying, at random places, with noise."""
    g = torch.Generator().manual_seed(seed)
    x = 0.2 * torch.rand(count, channels, 8, 8, generator=g)
    for number, place in enumerate(torch.randint(8, (count,), generator=g).tolist()):
        x[number, :, place if number % 2 else slice(None), slice(None) if number % 2 else place] += 0.8
    return x


def new_teacher(channels: int = 1, **options: int) -> SimCLRTeacher:
    torch.manual_seed(0)
    encoder, width = small_encoder(channels, width=4)
    return SimCLRTeacher(encoder, width, **options)


def test_module() -> None:
    check_module(
        new_teacher(projection_dim=5),
        lambda g: (torch.rand(3, 1, 8, 8, generator=g),),
        errors=[
            (lambda: SimCLRTeacher(nn.Linear(2, 2), 0), ValueError, "feature_dim"),
            (lambda: SimCLRTeacher(nn.Linear(2, 2), 2, projection_dim=0), ValueError, "projection_dim"),
            (lambda: SimCLRTeacher(nn.Flatten(), 4), ValueError, "encoder"),
            (lambda: SimCLRTeacher("resnet", 4), TypeError, "encoder"),
        ],
        skip={"arguments": "images as a network takes them: fit and embed check theirs"},
    )


def test_training_lowers_the_loss() -> None:
    """Beside the loss of a teacher that learns nothing, on the same views."""
    x = images(64)
    options = {"epochs": 12, "batch_size": 32, "seed": 0}
    trained, still = new_teacher().fit(x, **options), new_teacher().fit(x, **options, lr=1e-12)
    assert [entry["step"] for entry in trained.history_] == list(range(1, 13))
    assert trained.history_[-1]["loss"] < still.history_[-1]["loss"] - 0.1


def test_fit_is_a_loop_of_nt_xent() -> None:
    """One epoch written out: order, views, schedule, momentum and decay."""
    x = images(20)
    teacher = new_teacher()
    by_hand = copy.deepcopy(teacher)
    options = {
        "batch_size": 8,
        "lr": 0.2,
        "momentum": 0.5,
        "weight_decay": 0.01,
        "warmup_epochs": 1,
        "temperature": 0.3,
    }
    teacher.fit(x, epochs=2, seed=3, **options)
    low, high = x.min(), x.max()
    optimizer = torch.optim.SGD(
        [*by_hand.encoder.parameters(), *by_hand.head.parameters()], momentum=0.5, weight_decay=0.01
    )
    torch.manual_seed(3)
    views, step, losses = SimCLRAugmentation(), 0, []
    for _ in range(2):
        for rows in torch.rand(1, 20).argsort(1)[0, :16].view(2, 8):
            rate = 0.1 + 0.9 * step / 2 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / 2))
            optimizer.param_groups[0]["lr"] = 0.2 * rate
            scaled = (x[rows] - low) / (high - low)
            first = views(scaled)
            second = views(scaled)
            z = by_hand.head(by_hand.encoder(torch.cat([first, second])))
            loss = nt_xent(*z.chunk(2), temperature=0.3)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            step += 1
    assert [entry["loss"] for entry in teacher.history_] == pytest.approx(
        [np.mean(losses[:2]), np.mean(losses[2:])], rel=1e-5
    )
    for a, b in zip(teacher.head.parameters(), by_hand.head.parameters(), strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_embeddings() -> None:
    x = images()
    teacher = new_teacher(projection_dim=6).fit(x, epochs=1, batch_size=8, seed=0)
    plain = teacher.embed(x)
    assert plain.shape == (24, 6)
    assert not plain.requires_grad
    assert_close(plain, teacher.eval()(x).detach())
    assert_close(teacher.embed(x[5:6].double().numpy()), plain[5:6], rtol=1e-5, atol=1e-5)
    mean = teacher.embed(x, n_views=3, seed=1)
    assert torch.equal(teacher.embed(x, n_views=3, seed=1), mean)
    assert not torch.equal(teacher.embed(x, n_views=3, seed=2), mean)
    assert (mean.norm(dim=1) <= 1 + 1e-6).all()
    of_same = teacher.embed(x, n_views=4, augment=lambda views: views)
    assert_close(of_same, plain / plain.norm(dim=1, keepdim=True))
    assert_close(teacher.embed(x, augment=lambda views: views), of_same)


def test_scale_of_the_images_does_not_matter() -> None:
    x = images()
    expected = new_teacher().fit(x, epochs=1, batch_size=8, seed=0).embed(x)
    moved = 255 * x - 100
    assert_close(new_teacher().fit(moved, epochs=1, batch_size=8, seed=0).embed(moved), expected, rtol=1e-2, atol=1e-3)
    constant = torch.ones_like(x)
    assert new_teacher().fit(constant, epochs=1, batch_size=8, seed=0).embed(constant).isfinite().all()


def test_streams_modes_and_regions() -> None:
    x = images()
    teacher = new_teacher()
    teacher.encoder[1].eval()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    expected = copy.deepcopy(teacher).fit(x, epochs=1, batch_size=8, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert not expected.encoder[1].training
    assert expected.encoder[4].training
    for region in (
        torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"),
    ):  # fmt: skip
        found = copy.deepcopy(teacher)
        with region:
            found.fit(x, epochs=1, batch_size=8, seed=0)
            assert torch.equal(found.embed(x, n_views=2), expected.embed(x, n_views=2))
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(copy.deepcopy(teacher).fit(x, epochs=1, batch_size=8, seed=0).embed(x), expected.embed(x))
    finally:
        torch.set_default_dtype(torch.float32)
    torch.manual_seed(7)
    one = copy.deepcopy(teacher).fit(x, epochs=1, batch_size=8)
    two = copy.deepcopy(teacher).fit(x, epochs=1, batch_size=8)
    assert not torch.equal(one.embed(x), two.embed(x))


def test_stored_and_loaded(tmp_path: Path) -> None:
    x = images()
    teacher = new_teacher().fit(3 * x, epochs=1, batch_size=8, seed=0)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pt")
    other = new_teacher()
    with pytest.raises(NotFittedError, match="fit"):
        other.embed(x)
    other.load_state_dict(torch.load(tmp_path / "teacher.pt", weights_only=True))
    assert torch.equal(other.embed(x), teacher.embed(x))
    elsewhere = new_teacher()
    elsewhere.fitted.fill_(True)
    assert elsewhere.embed(x).shape == (24, 128)


def test_a_training_goes_on_from_its_state() -> None:
    x = images()
    options = {
        "epochs": 3, "batch_size": 8, "lr": 0.2, "momentum": 0.9, "weight_decay": 1e-4, "warmup_epochs": 1,
        "temperature": 0.5, "augment": None,
    }  # fmt: skip
    torch.manual_seed(1)
    whole = ContrastiveTraining(new_teacher(), x, **options)
    torch.manual_seed(1)
    expected = [whole.epoch() for _ in range(3)]
    torch.manual_seed(1)
    first = ContrastiveTraining(new_teacher(), x, **options)
    torch.manual_seed(1)
    found = [first.epoch()]
    state, stream = copy.deepcopy(first.state_dict()), torch.get_rng_state()
    second = ContrastiveTraining(new_teacher(), x, **options)
    second.load_state_dict(state)
    torch.set_rng_state(stream)
    found += [second.epoch() for _ in range(2)]
    assert found == expected


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_views(channels: int) -> None:
    x = images(200, channels)
    torch.manual_seed(0)
    views = SimCLRAugmentation()(x.clamp(0, 1))
    assert views.shape == x.shape
    assert views.min() >= 0
    assert views.max() <= 1
    torch.manual_seed(0)
    assert torch.equal(SimCLRAugmentation()(x.clamp(0, 1)), views)
    if channels == 3:
        gray = (views.amax(1) - views.amin(1)).flatten(1).amax(1) < 1e-6
        colored = torch.rand(200, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        gray = SimCLRAugmentation()(colored)
        share = ((gray.amax(1) - gray.amin(1)).flatten(1).amax(1) < 1e-6).double().mean()
        assert 0.1 < share < 0.3


def test_crops_show_parts() -> None:
    """A ramp from left to right: what a crop shows of it is an interval, and half of them are mirrored."""
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 64).expand(500, 1, 64, 64).contiguous()
    rows = _cropped(ramp)[:, 0, 32]
    slopes = rows[:, 1:] - rows[:, :-1]
    rising = slopes[:, 31] > 0
    assert 0.4 < rising.double().mean() < 0.6
    width = (rows.amax(1) - rows.amin(1)).square()  # about the share of the area
    assert width.min() > 0.03
    assert width.max() <= 1
    assert 0.3 < width.mean() < 0.7


def test_colors() -> None:
    torch.manual_seed(0)
    x = torch.rand(400, 3, 4, 4)
    changed = _changed_colors(x)
    same = (changed == x).flatten(1).all(1).double().mean()
    assert 0.12 < same < 0.28
    import colorsys

    turn = torch.full((5, 1, 1, 1), 0.07)
    found = _turned(x[:5], turn)
    for image, expected in zip(found, x[:5], strict=True):
        h, s, v = colorsys.rgb_to_hsv(*expected[:, 1, 2].tolist())
        assert image[:, 1, 2].tolist() == pytest.approx(colorsys.hsv_to_rgb((h + 0.07) % 1, s, v), abs=1e-5)


def test_batches_are_permutations() -> None:
    torch.manual_seed(0)
    rows = shuffled_batches(7, 5, 4).flatten()
    assert sorted(rows[:7].tolist()) == list(range(7))
    assert sorted(rows[7:14].tolist()) == list(range(7))
    assert shuffled_batches(2, 3, 5).shape == (3, 5)


def test_wide_resnet() -> None:
    torch.manual_seed(0)
    network = wide_resnet(3, 4)
    convolutions = [part for part in network.modules() if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3)]
    assert len(convolutions) == 25  # and three shortcuts, and the last layer: 28 with the first
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(1.47e6, rel=0.01)
    x = torch.rand(4, 3, 16, 16)
    network.eval()
    assert torch.equal(network(x), network(x))
    network.train()
    assert not torch.equal(network[0](x), x)
    assert network[0](x[:, :, :1, :2]).shape == (4, 3, 1, 2)
    assert network[0](x[:, :, :4, :1]).shape == (4, 3, 4, 1)


def test_bad_inputs() -> None:
    x = images()

    def fit(**change: object) -> SimCLRTeacher:
        return new_teacher().fit(**{"images": x, "epochs": 1, "batch_size": 8, **change})  # type: ignore[arg-type]

    check_arguments(
        fit_once,
        lambda g: {
            "images": x.clone(), "epochs": 1, "batch_size": 8, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-6,
            "warmup_epochs": 1, "temperature": 0.5, "seed": 0,
        },
        skip={"epochs: huge": "trains on and on", "warmup_epochs: huge": "a rate that stays low"},
    )  # fmt: skip
    with pytest.raises(ValueError, match="images"):
        fit(images=x[:1])
    with pytest.raises(ValueError, match="lr"):
        fit(lr=1e30, epochs=3)
    with pytest.raises(TypeError, match="augment"):
        fit(augment=3)
    for augment in (lambda views: views[:1], lambda views: None, lambda views: views.double()):
        with pytest.raises(ValueError, match="augment"):
            fit(augment=augment)
    with pytest.raises(ValueError, match="feature_dim"):
        SimCLRTeacher(small_encoder(1, width=4)[0], 7).fit(x, epochs=1)
    with pytest.raises(ValueError, match="gradient"):
        new_teacher().requires_grad_(False).fit(x, epochs=1)
    with torch.inference_mode():
        made_inside = new_teacher()
    with pytest.raises(ValueError, match="inference_mode"):
        made_inside.fit(x, epochs=1)
    fitted = fit()
    for options in ({"n_views": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            fitted.embed(x, **options)
    with pytest.raises(ValueError, match="images"):
        fitted.embed(x[0])


def test_a_training_that_fails_leaves_no_fitted_teacher() -> None:
    x = images()
    teacher = new_teacher().fit(x, epochs=1, batch_size=8, seed=0)
    expected = teacher.embed(x)
    with pytest.raises(ValueError, match="lr"):
        teacher.fit(7 * x, epochs=1, lr=-1.0)
    assert torch.equal(teacher.embed(x), expected)
    with pytest.raises(ValueError, match="augment"):
        teacher.fit(7 * x, epochs=1, augment=lambda views: views[:1])
    with pytest.raises(NotFittedError, match="fit"):
        teacher.embed(x)


def fit_once(
    images: Tensor, epochs: int, batch_size: int, lr: float, momentum: float, weight_decay: float,
    warmup_epochs: int, temperature: float, seed: int,
) -> Tensor:  # fmt: skip
    options = {
        "epochs": epochs, "batch_size": batch_size, "lr": lr, "momentum": momentum, "weight_decay": weight_decay,
        "warmup_epochs": warmup_epochs, "temperature": temperature, "seed": seed,
    }  # fmt: skip
    return new_teacher().fit(images, **options).embed(images)

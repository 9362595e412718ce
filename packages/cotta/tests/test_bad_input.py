"""Every bad input gets an error that names the argument."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from packages.cotta.tests.models import golden_net
from torch import nn

from offprints.cotta import (
    ACDC,
    BNAdapt,
    ConsistencyLoss,
    CorruptionStream,
    CoTTA,
    ImageAugmentation,
    ImageNetC,
    MultiScaleFlip,
    Source,
    Tent,
    collect_params,
    configure_model,
    consistency_loss,
    corrupt,
    ema_update_,
    load_cifar_c,
    mean_iou,
    severity_schedule,
    source_confidence_threshold,
    stochastic_restore_,
)
from offprints.shared.testing import check_errors

NAN = float("nan")
X = torch.rand(4, 3, 8, 8)
LABELS = torch.zeros(4, dtype=torch.int64)


def cotta(**settings: Any) -> CoTTA:
    return CoTTA(golden_net(), **settings)


def test_wrappers() -> None:
    cases: list[tuple[Any, type[Exception], str]] = [
        (partial(wrapper, "model"), TypeError, "model") for wrapper in (CoTTA, Tent, BNAdapt, Source)
    ]
    for wrapper in (CoTTA, Tent, BNAdapt, Source):
        made = wrapper(golden_net())
        spoiled = X.clone()
        spoiled[0, 0, 0, 0] = NAN
        for call in (made, made.predict):
            cases += [
                (partial(call, X.tolist()), TypeError, "x"),
                (partial(call, X.long()), TypeError, "x"),
                (partial(call, X[:0]), ValueError, "x"),
                (partial(call, X[0, 0, 0]), ValueError, "x"),
                (partial(call, spoiled), ValueError, "x"),
                (partial(call, X / 0), ValueError, "x"),
            ]
    for name in ("ema_decay", "restore_probability", "confidence_threshold"):
        cases += [(partial(cotta, **{name: value}), ValueError, name) for value in (-0.1, 1.1, NAN)]
    for name in ("steps", "num_augmentations", "augmentation_batch"):
        cases.append((partial(cotta, **{name: 0}), ValueError, name))
    for name in ("average", "gate", "params"):
        cases.append((partial(cotta, **{name: "none"}), ValueError, name))
    foreign = torch.optim.SGD(golden_net().parameters(), lr=0.1)
    no_norm = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    cases += [
        (partial(cotta, seed=-1), ValueError, "seed"),
        (partial(cotta, augmentation=3), TypeError, "augmentation"),
        (partial(cotta, optimizer=foreign), ValueError, "optimizer"),
        (partial(cotta, optimizer=0.1), TypeError, "optimizer"),
        (partial(cotta, optimizer=len), TypeError, "optimizer"),
        (partial(CoTTA, nn.Flatten()), ValueError, "model"),
        (partial(CoTTA, golden_net().requires_grad_(False), configure=False), ValueError, "model"),
        (partial(Tent, no_norm), ValueError, "batch-norm"),
        (partial(Tent, golden_net(), foreign), ValueError, "optimizer"),
        (partial(Tent, golden_net(), steps=0), ValueError, "steps"),
        (partial(BNAdapt, golden_net(), source_weight=1.5), ValueError, "source_weight"),
        (partial(configure_model, golden_net(), norm="layer"), ValueError, "norm"),
        (partial(configure_model, None), TypeError, "model"),
        (partial(collect_params, golden_net(), which="bias"), ValueError, "which"),
        (partial(CoTTA(nn.Sequential(nn.Conv2d(3, 2, 1), Tuple())), X), TypeError, "logits"),
        (partial(cotta(augmentation=lambda x: x[:2], confidence_threshold=1.0), X), ValueError, "augmentation"),
        (partial(cotta(confidence_threshold=1.0), X[:, :2].repeat(1, 2, 1, 1)), ValueError, "channels"),
    ]
    check_errors(cases)


def test_what_views_cannot_be_made_of() -> None:
    """At the first batch, whether the gate opens or not, and with the remedy."""
    dense = nn.Conv2d(3, 4, 1)
    calls: list[int] = []
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    check_errors(
        [
            (partial(CoTTA(dense, confidence_threshold=0.0), X), ValueError, "MultiScaleFlip"),
            (partial(CoTTA(dense, gate="sample"), X), ValueError, "MultiScaleFlip"),
            (partial(cotta(confidence_threshold=0.0, augmentation=MultiScaleFlip()), X), ValueError, "every pixel"),
            (partial(cotta(confidence_threshold=0.0), 4 * X - 2), ValueError, "normalize"),
            (partial(cotta(confidence_threshold=0.0), 255 * X), ValueError, "0, 1"),
            (
                partial(CoTTA(nn.Conv2d(4, 3, 8), confidence_threshold=0.0), X.repeat(1, 2, 1, 1)[:, :4]),
                ValueError,
                "channels",
            ),
            (partial(CoTTA(flat, confidence_threshold=0.0), torch.rand(4, 12)), ValueError, "augmentation"),
            (partial(cotta(normalize=([0.5] * 4, [1.0] * 4)), X), ValueError, "normalize"),
            (partial(cotta, normalize=([0.5], [0.0])), ValueError, "normalize"),
            (partial(cotta, normalize=([0.5], [1.0, 1.0])), ValueError, "normalize"),
            (partial(cotta, normalize="imagenet"), TypeError, "normalize"),
            (partial(cotta, logits_fn=0), TypeError, "logits_fn"),
            (partial(cotta(logits_fn=lambda out: out[0]), X), ValueError, "logits_fn"),
            (partial(cotta, skip_without_signal="no"), TypeError, "skip_without_signal"),
            (partial(cotta, episodic=1), TypeError, "episodic"),
            (partial(cotta, reset_every=0), ValueError, "reset_every"),
            (partial(cotta, precision="float16"), ValueError, "precision"),
            (partial(cotta, source_weight=1.5), ValueError, "source_weight"),
            (partial(cotta, source_weight=0.5, configure=False), ValueError, "configure_model"),
            (partial(Tent, golden_net(), source_weight=0.5, configure=False), ValueError, "configure_model"),
            *((partial(wrapper(nn.Conv2d(3, 1, 8)), X), ValueError, "2 classes") for wrapper in (Source, BNAdapt)),
            (partial(CoTTA(nn.Sequential(nn.Conv2d(3, 1, 8), nn.Flatten())), X), ValueError, "2 classes"),
        ]
    )
    own = cotta(confidence_threshold=0.0, augmentation=lambda x: calls.append(1) or x)
    assert own(4 * X - 2).isfinite().all(), "an augmentation of one's own takes any input"


def test_normalization_and_outputs_of_other_kinds() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = golden_net()

        def forward(self, x: torch.Tensor) -> tuple[str, torch.Tensor]:
            return "features", self.net(x)

    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    threshold = source_confidence_threshold(golden_net(), [(X - shift) / scale])
    options: dict[str, Any] = {"normalize": (mean, std), "logits_fn": lambda out: out[1]}
    assert source_confidence_threshold(Wrapped(), [X], **options) == threshold
    for wrapper in (Source, BNAdapt, Tent):
        torch.testing.assert_close(wrapper(Wrapped(), **options)(X), wrapper(golden_net())((X - shift) / scale))
    for pair in ((np.array(mean), np.array(std)), (torch.tensor(mean), torch.tensor(std))):
        assert torch.equal(Source(golden_net(), normalize=pair)(X), Source(golden_net(), normalize=(mean, std))(X))
    assert torch.equal(Source(golden_net(), normalize=(0.5, 2))(X), golden_net()((X - 0.5) / 2))
    shut = CoTTA(Wrapped(), confidence_threshold=0.0, **options)
    torch.testing.assert_close(shut(X), BNAdapt(golden_net())((X - shift) / scale), rtol=1e-4, atol=1e-5)
    options["normalize"] = lambda x: (x - shift) / scale
    opened = CoTTA(Wrapped(), confidence_threshold=1.0, num_augmentations=1, augmentation=lambda x: 0.5 * x, **options)
    torch.testing.assert_close(opened(X), BNAdapt(golden_net())((0.5 * X - shift) / scale), rtol=1e-4, atol=1e-5)


class Tuple(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (x,)


def test_functions() -> None:
    weights, other = [torch.zeros(3)], [torch.ones(3)]
    net = golden_net()
    check_errors(
        [
            (partial(ema_update_, weights, other, 1.1), ValueError, "decay"),
            (partial(ema_update_, weights, other, NAN), ValueError, "decay"),
            (partial(ema_update_, weights, [], 0.5), ValueError, "student"),
            (partial(ema_update_, weights, [torch.ones(2)], 0.5), ValueError, "student"),
            (partial(ema_update_, weights[0], other[0], 0.5), TypeError, "teacher"),
            (partial(ema_update_, None, other, 0.5), TypeError, "teacher"),
            (partial(ema_update_, [[0.0]], other, 0.5), TypeError, "teacher"),
            (partial(ema_update_, [weights[0].long()], other, 0.5), TypeError, "teacher"),
            (partial(ema_update_, weights, [other[0].bool()], 0.5), TypeError, "student"),
            (partial(ema_update_, [weights[0].bfloat16()], other, 0.999), TypeError, "teacher"),
            (partial(stochastic_restore_, [weights[0].long()], other, 0.5), TypeError, "parameters"),
            (partial(stochastic_restore_, weights, [other[0].int()], 0.5), TypeError, "source"),
            (partial(stochastic_restore_, weights, other, 0.5, generator=1), TypeError, "generator"),
            (partial(consistency_loss, torch.zeros(3, 1), torch.zeros(3, 1)), ValueError, "2 classes"),
            (partial(consistency_loss, torch.zeros(3, 2), torch.zeros(3, 2), symmetric=1), TypeError, "symmetric"),
            (partial(source_confidence_threshold, net, X), TypeError, "batches"),
            (partial(source_confidence_threshold, net, [X], gate="pixel"), ValueError, "gate"),
            (partial(source_confidence_threshold, net, [X], norm="own"), ValueError, "norm"),
            (partial(stochastic_restore_, weights, other, -0.1), ValueError, "probability"),
            (partial(stochastic_restore_, weights, other * 2, 0.1), ValueError, "source"),
            (partial(stochastic_restore_, weights, other, 0.1, masks=other), TypeError, "masks"),
            (partial(stochastic_restore_, weights, other, 0.1, masks=[]), ValueError, "masks"),
            (partial(consistency_loss, torch.zeros(3), torch.zeros(3)), ValueError, "student_logits"),
            (partial(ConsistencyLoss, reduction="all"), ValueError, "reduction"),
            (partial(source_confidence_threshold, net, []), ValueError, "batches"),
            (partial(source_confidence_threshold, net, [X], quantile=1.1), ValueError, "quantile"),
            (partial(source_confidence_threshold, net, [X], quantile=NAN), ValueError, "quantile"),
            (partial(source_confidence_threshold, net, [X], margin=NAN), ValueError, "margin"),
            (partial(source_confidence_threshold, net, [(X, LABELS)]), TypeError, "batches"),
            (partial(source_confidence_threshold, len, [X]), TypeError, "model"),
            (partial(mean_iou, LABELS, LABELS.float(), 3), TypeError, "target"),
            (partial(mean_iou, LABELS, LABELS[:2], 3), ValueError, "target"),
            (partial(mean_iou, LABELS + 3, LABELS, 3), ValueError, "prediction"),
            (partial(mean_iou, LABELS + 255, LABELS, 3), ValueError, "prediction"),
            (partial(mean_iou, LABELS, LABELS, 0), ValueError, "num_classes"),
        ]
    )


def test_views() -> None:
    augmentation = ImageAugmentation()
    params = augmentation.sample_params(2, X)
    check_errors(
        [
            (partial(ImageAugmentation, noise_std=-1.0), ValueError, "noise_std"),
            (partial(ImageAugmentation, flip_probability=2), ValueError, "flip_probability"),
            (partial(augmentation, X[0]), ValueError, "x"),
            (partial(augmentation, X[:, :2]), ValueError, "x"),
            (partial(augmentation, X.long()), TypeError, "x"),
            (partial(augmentation, X, 0), ValueError, "num_views"),
            (partial(augmentation.sample_params, 0, X), ValueError, "num_views"),
            (partial(augmentation, X[:2], params=params), ValueError, "noise"),
            (partial(augmentation, X, params={}), TypeError, "params"),
            (partial(augmentation, X, params=replace(params, hue=torch.zeros(3))), ValueError, "hue"),
            (partial(augmentation, X, params=replace(params, order=0 * params.order)), ValueError, "order"),
            (partial(augmentation, X, 2, generator=3), TypeError, "generator"),
            (partial(augmentation.sample_params, 2, X, generator="cpu"), TypeError, "generator"),
            (partial(augmentation, X, params=replace(params, angle=None)), TypeError, "angle"),
            (partial(augmentation, X, params=replace(params, gamma=params.gamma[:, None])), ValueError, "gamma"),
            (partial(augmentation, X, params=replace(params, scale=params.scale * NAN)), ValueError, "scale"),
            (partial(augmentation, X, params=replace(params, translate=params.translate[:, 0])), ValueError, "transl"),
            (partial(MultiScaleFlip, ()), ValueError, "scales"),
            (partial(MultiScaleFlip, (1.0, 0.0)), ValueError, "scales"),
            (partial(MultiScaleFlip((0.01,)).average_predictions, lambda x: x, X), ValueError, "scales"),
            (partial(MultiScaleFlip().average_predictions, lambda x: x.mean((2, 3)), X), ValueError, "prediction"),
            (partial(MultiScaleFlip().average_predictions, lambda x: x, X[0]), ValueError, "x"),
        ]
    )


def test_corruptions(tmp_path) -> None:
    textures = torch.rand(2, 3, 20, 20)
    check_errors(
        [
            (partial(corrupt, X, "rain", 1), ValueError, "name"),
            (partial(corrupt, X, "fog", 0), ValueError, "severity"),
            (partial(corrupt, X, "fog", 6), ValueError, "severity"),
            (partial(corrupt, X, "fog", 1, scale="mnist"), ValueError, "scale"),
            (partial(corrupt, X[0], "fog", 1), ValueError, "images"),
            (partial(corrupt, X[:, :2], "fog", 1), ValueError, "images"),
            (partial(corrupt, X, "fog", 1, generator=0), TypeError, "generator"),
            (partial(severity_schedule, None), TypeError, "corruptions"),
            (partial(severity_schedule, gradual="no"), TypeError, "gradual"),
            (partial(corrupt, X[:0], "fog", 1), ValueError, "images"),
            (partial(corrupt, X + 1, "fog", 1), ValueError, "images"),
            (partial(corrupt, X * NAN, "fog", 1), ValueError, "images"),
            (partial(corrupt, X.int(), "fog", 1), TypeError, "images"),
            (partial(corrupt, X.numpy(), "fog", 1), TypeError, "images"),
            (partial(corrupt, X, "frost", 1, frost_textures=textures), ValueError, "frost_textures"),
            (partial(corrupt, X, "frost", 1, frost_textures=textures[:, :1]), ValueError, "frost_textures"),
            (partial(severity_schedule, []), ValueError, "corruptions"),
            (partial(severity_schedule, "fog"), ValueError, "corruptions"),
            (partial(severity_schedule, ["rain"]), ValueError, "corruptions"),
            (partial(severity_schedule, severity=0), ValueError, "severity"),
            (partial(CorruptionStream, X, LABELS[:2]), ValueError, "labels"),
            (partial(CorruptionStream, X, LABELS.float()), TypeError, "labels"),
            (partial(CorruptionStream, X, LABELS[:, None]), ValueError, "labels"),
            (partial(CorruptionStream, X - 1, LABELS), ValueError, "images"),
            (partial(CorruptionStream, X, LABELS, batch_size=0), ValueError, "batch_size"),
            (partial(CorruptionStream, X, LABELS, repeats=0), ValueError, "repeats"),
            (partial(CorruptionStream, X, LABELS, corruptions=["rain"]), ValueError, "corruptions"),
            (partial(load_cifar_c, tmp_path, "rain", 1), ValueError, "corruption"),
            (partial(load_cifar_c, tmp_path, "fog", 7), ValueError, "severity"),
            (partial(load_cifar_c, tmp_path, "fog", 1, num_classes=20), ValueError, "num_classes"),
            (partial(ImageNetC, tmp_path, "rain", 1), ValueError, "corruption"),
            (partial(ImageNetC, tmp_path, "fog", 9), ValueError, "severity"),
            (partial(ACDC, tmp_path, "sun", "train"), ValueError, "condition"),
            (partial(ACDC, tmp_path, "fog", "test"), ValueError, "split"),
            (partial(ACDC, tmp_path, "fog", "train"), FileNotFoundError, "rgb_anon"),
        ]
    )


def test_what_functions_of_the_user_return() -> None:
    """A result of another number of rows would be broadcast."""

    class Averaged:
        def __init__(self, result: Any) -> None:
            self.result = result

        def average_predictions(self, predict: Any, x: torch.Tensor) -> Any:
            return self.result

    cases: list[tuple[Any, type[Exception], str]] = []
    for gate in ("batch", "sample"):
        opened = partial(cotta, confidence_threshold=1.0, num_augmentations=2, seed=0, gate=gate)
        for average in ("logits", "probabilities"):
            cases += [
                (partial(opened(augmentation=augmentation, average=average), X), error, "augmentation")
                for augmentation, error in (
                    (lambda x: None, TypeError),
                    (lambda x: x[:1], ValueError),
                    (lambda x: x[0], ValueError),
                    (Averaged(None), TypeError),
                    (Averaged(torch.zeros(1, 5)), ValueError),
                )
            ]
        for normalize in (lambda x: None, lambda x: x[:1], lambda x: x.numpy()):
            cases.append((partial(opened(normalize=normalize), X), TypeError, "normalize"))
    for wrapper in (CoTTA, Tent):
        cases.append((partial(wrapper, golden_net(), torch.optim.LBFGS), TypeError, "closure"))
    cases += [
        (partial(configure_model, configure_model(golden_net()), norm="source"), ValueError, "running statistics"),
    ]
    check_errors(cases)

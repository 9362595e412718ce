"""The heads, the model, the moving average, the wide residual network."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.testing import assert_close

from offprints.shared.testing import check_arguments, check_module
from offprints.shrinkmatch import AuxHead, ShrinkMatchLoss, ShrinkMatchModel, StudentEMA, wide_resnet
from offprints.shrinkmatch.model import decay_groups
from offprints.shrinkmatch.wide_resnet import WideResNet

BACKBONE = "the backbone's own affair"


def batches(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(rows, 6, generator=generator) for rows in (3, 5, 5))  # type: ignore[return-value]


def small(classes: int = 4) -> ShrinkMatchModel:
    torch.manual_seed(0)
    return ShrinkMatchModel(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()), 8, classes)


# ---- the auxiliary head ----------------------------------------------------------------------------------------------


def test_aux_head_conformance() -> None:
    torch.manual_seed(0)
    check_module(AuxHead(12, 5), lambda g: (torch.randn(4, 12, generator=g),))
    check_arguments(AuxHead, lambda g: {"in_features": 12, "num_classes": 5, "hidden": 4, "slope": 0.2})


def test_aux_head_layers() -> None:
    """Linear(d, d/4), BN, LeakyReLU(0.1), twice, Linear(d/4, C)."""
    layers = AuxHead(128, 10).layers
    kinds = [nn.Linear, nn.BatchNorm1d, nn.LeakyReLU] * 2 + [nn.Linear]
    assert [type(layer) for layer in layers] == kinds
    assert [layer.weight.shape for layer in layers if isinstance(layer, nn.Linear)] == [(32, 128), (32, 32), (10, 32)]
    assert layers[2].negative_slope == layers[5].negative_slope == 0.1
    assert AuxHead(3, 2).layers[0].out_features == 1
    assert AuxHead(8, 2, hidden=5, slope=0.0).layers[0].out_features == 5


def test_aux_head_needs_two_rows_to_train() -> None:
    with pytest.raises(ValueError, match="features must have at least 2 rows"):
        AuxHead(8, 3)(torch.zeros(1, 8))
    assert AuxHead(8, 3).eval()(torch.zeros(1, 8)).shape == (1, 3)


# ---- the model -------------------------------------------------------------------------------------------------------


def test_model_conformance() -> None:
    """Types are the backbone's affair, as are a mapping or a scalar in place of a batch."""
    skip = {
        f"arguments: {name}: {kind}": BACKBONE
        for name in ("x_lab", "x_weak", "x_strong")
        for kind in ("complex", "integer", "bool", "float16", "bfloat16", "float64")
    }
    skip |= {"arguments: x_weak: None": "refused, for x_strong has no partner", "arguments: x_strong: None": "the same"}
    check_module(small(), batches, skip=skip)
    check_arguments(ShrinkMatchModel, lambda g: {"backbone": nn.Linear(6, 8), "feature_dim": 8, "num_classes": 3})


def test_what_is_given_decides() -> None:
    model = small()
    x, weak, strong = batches(torch.Generator().manual_seed(0))
    for mode in (True, False):
        model.train(mode)
        assert [z.shape for z in model(x, weak, strong)] == [(3, 4), (5, 4), (5, 4), (5, 4)]
        assert model(x).shape == (3, 4)
    with pytest.raises(ValueError, match="x_weak must be given"):
        model(x, x_strong=strong)
    with pytest.raises(ValueError, match="x_strong must be given"):
        model(x, weak)


def test_one_pass_for_all_views() -> None:
    """The backbone's normalization sees the union of the three batches, the auxiliary head's the strong views alone."""
    model, plain = small(), small()
    x, weak, strong = batches(torch.Generator().manual_seed(0))
    logits = model(x, weak, strong)
    features = plain.backbone(torch.cat([x, weak, strong]))
    assert_close(torch.cat(logits[:3]), plain.head(features))
    assert_close(logits[3], plain.aux_head(features[8:]))
    for a, b in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(a, b)


def test_auxiliary_head_gets_the_shrunk_loss_alone() -> None:
    model = small()
    x, weak, strong = batches(torch.Generator().manual_seed(0))
    logits_x, *others = model(x, weak, strong)
    out = ShrinkMatchLoss(num_classes=4, threshold=0.6, align=None)(logits_x, torch.tensor([0, 1, 2]), *others)
    auxiliary = list(model.aux_head.parameters())
    without = torch.autograd.grad(out.supervised + out.certain, auxiliary, allow_unused=True, retain_graph=True)
    assert all(g is None for g in without)
    out.shrink.backward()
    assert out.shrink > 0
    assert all(p.grad is not None for p in model.aux_head.parameters())
    assert model.head.weight.grad is None
    assert model.backbone[0].weight.grad.any()


def test_weight_decay_is_of_matrices_alone() -> None:
    """Not of biases and batch normalization; what is frozen is not trained."""
    model = small()
    model.backbone[0].weight.requires_grad_(False)
    decayed, others = decay_groups(model, 0.1)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    names = {p: name for name, p in model.named_parameters()}
    assert {names[p] for p in decayed["params"]} == {"head.weight", *(f"aux_head.layers.{i}.weight" for i in (0, 3, 6))}
    rest = set(names.values()) - {names[p] for p in decayed["params"]} - {"backbone.0.weight"}
    assert {names[p] for p in others["params"]} == rest


@pytest.mark.parametrize(
    ("backbone", "error", "word"),
    [
        (nn.Linear(6, 7), ValueError, "backbone"),
        (nn.Flatten(0), ValueError, "backbone"),
        (nn.LSTM(6, 8), TypeError, "backbone"),
    ],
)
def test_other_backbones_are_named(backbone: nn.Module, error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        ShrinkMatchModel(backbone, 8, 3)(torch.zeros(4, 6))


def test_a_backbone_of_another_type() -> None:
    """A frozen encoder in bfloat16 under heads in float32."""
    model = ShrinkMatchModel(nn.Linear(6, 8).bfloat16(), 8, 3)
    logits = model(*(x.bfloat16() for x in batches(torch.Generator().manual_seed(0))))
    assert {z.dtype for z in logits} == {torch.float32}


# ---- the moving average ----------------------------------------------------------------------------------------------


def test_average_begins_as_a_copy_and_moves_from_the_first_update() -> None:
    model = small()
    ema = StudentEMA(model, decay=0.9)
    assert isinstance(ema, AveragedModel)
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.randn(9, 6))  # moves the buffers
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    ema.update(model)
    for old, average in zip(before, ema.module.parameters(), strict=True):
        assert_close(average.detach(), old + 0.1)
    for mine, theirs in zip(ema.module.buffers(), model.buffers(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr()
    assert not any(p.grad_fn for p in ema.module.parameters())


def test_average_is_stored() -> None:
    model = small()
    one, other = StudentEMA(model, decay=0.5), StudentEMA(small(), decay=0.5)
    for _ in range(2):
        with torch.no_grad():
            model.head.weight.add_(1.0)
        one.update(model)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for ema in (one, other):
        ema.update(model)
    assert torch.equal(one.module.head.weight, other.module.head.weight)


def test_average_is_pickled_and_copied() -> None:
    model = small()
    ema = StudentEMA(model, decay=0.5)
    others = [pickle.loads(pickle.dumps(ema)), copy.deepcopy(ema)]
    with torch.no_grad():
        model.head.weight.add_(1.0)
    for average in (ema, *others):
        average.update(model)
        assert torch.equal(average.module.head.weight, ema.module.head.weight)


def test_average_is_evaluated_as_it_is() -> None:
    """Batch normalization uses the stored moments and does not follow the samples; the model goes on training."""
    model = small()
    ema = StudentEMA(model, decay=0.0)
    model(torch.randn(9, 6))
    ema.update(model)
    before = copy.deepcopy(ema.module.state_dict())
    x = torch.randn(5, 6)
    assert_close(ema.module(x)[:1], ema.module(x[:1]))
    assert all(torch.equal(value, before[name]) for name, value in ema.module.state_dict().items())
    assert model.training


def test_average_of_integers_and_tied_weights() -> None:
    """Integers are copied; a tensor that two layers share moves once."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model.steps = nn.Parameter(torch.tensor(3), requires_grad=False)
    ema = StudentEMA(model, decay=0.5)
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(1.0)
        model.steps.add_(4)
    ema.update(model)
    assert ema.module.steps == 7
    assert ema.module[1].weight is ema.module[0].weight
    assert_close(ema.module[0].weight.detach(), before + 0.5)


def test_average_of_a_wrapped_model() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    model = small()
    ema = StudentEMA(model, decay=0.0)
    with torch.no_grad():
        model.head.weight.add_(1.0)
    ema.update(Wrapper(model))
    assert_close(ema.module.head.weight, model.head.weight)


def test_average_of_another_model_is_refused() -> None:
    """AveragedModel pairs parameters as far as they go."""
    ema = StudentEMA(small())
    with pytest.raises(ValueError, match="model must have the parameters"):
        ema.update(small(classes=5))
    with pytest.raises(ValueError, match="model must have the buffers"):
        ema.update(nn.ParameterList(nn.Parameter(p.detach()) for p in small().parameters()))
    with pytest.raises(TypeError, match="model"):
        ema.update("x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="half type"):
        StudentEMA(small().bfloat16())
    check_arguments(StudentEMA, lambda g: {"model": nn.Linear(2, 2), "decay": 0.9}, skip={"model: *": "tested above"})


# ---- the wide residual network ---------------------------------------------------------------------------------------


def test_wide_resnet_conformance() -> None:
    torch.manual_seed(0)
    check_module(WideResNet([4, 6], 1, in_channels=1), lambda g: (torch.randn(2, 1, 8, 8, generator=g),))
    check_arguments(
        wide_resnet,
        lambda g: {"depth": 10, "widen": 1, "slope": 0.1, "in_channels": 1, "bn_momentum": 0.1},
    )


def test_wide_resnet_sizes() -> None:
    """WRN-28-2 has 1.47 million parameters with its classifier, 1290 of them there."""
    network = wide_resnet()
    assert network.out_dim == 128
    assert sum(p.numel() for p in network.parameters()) == 1_467_610 - 1290
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == 1 + 12 * 2 + 3
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 128)
    assert wide_resnet(28, 8).out_dim == 512
    assert {m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {0.001}
    assert {m.negative_slope for m in network.modules() if isinstance(m, nn.LeakyReLU)} == {0.1}


def test_wide_resnet_every_normalization_is_trained() -> None:
    """Also those that begin the second and the third group, which the official code leaves out of its graph."""
    network = wide_resnet(10, 1)
    network(torch.randn(4, 3, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters())


@pytest.mark.parametrize("depth", [11, 4, 27])
def test_wide_resnet_depths(depth: int) -> None:
    with pytest.raises(ValueError, match="depth"):
        wide_resnet(depth)

"""The unified loss: its reference, its laws, every path to it, its memory."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packages.unpg.tests.cases import HEADS, make_batch, make_head
from torch import Tensor
from torch.nn import functional as F

from offprints.shared.device import peak_memory_mib, reset_peak_memory
from offprints.shared.testing import check_arguments, check_loss, check_module
from offprints.shared.testing.processes import fresh_process
from offprints.unpg import (
    ArcFaceHead,
    CosFaceHead,
    HeadOutput,
    MarginHead,
    MarginLoss,
    UNPGLoss,
    iqr_filter,
    pair_similarities,
    reference,
    unified_cross_entropy,
)

CHUNKS = (None, 1, 3, 100)
CLASSES = 7


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return 6 * torch.randn(9, 5, generator=generator), torch.randint(4, (9,), generator=generator)


def gradients(loss: MarginLoss, x: Tensor, y: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    value = loss(x, y)
    return [value, *torch.autograd.grad(value, [x, loss.head.weight])]


@pytest.mark.parametrize("whisker", [None, 0.0, 0.5, 1.5])
@pytest.mark.parametrize("name", HEADS)
def test_equals_the_reference(name: str, whisker: float | None) -> None:
    head = make_head(name, 5, CLASSES)
    x, y = make_batch(12, 5, CLASSES)
    options = {"scale": head.scale, "margin": getattr(head, "margin", 0.0)}
    x.requires_grad_()
    for pair_negatives in (True, False):
        expected = reference.unpg_loss(
            x, y, head.weight, name, whisker=whisker, pair_negatives=pair_negatives, **options
        )
        wanted = [expected, *torch.autograd.grad(expected, [x, head.weight])]
        for chunk in CHUNKS:
            make = partial(UNPGLoss, whisker=whisker) if pair_negatives else MarginLoss
            for ours, theirs in zip(gradients(make(head, class_chunk=chunk), x, y), wanted, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_without_a_filter_it_is_the_cross_entropy_of_the_concatenation() -> None:
    head = make_head("cosface", 5, CLASSES)
    x, y = make_batch(10, 5, CLASSES)
    negative = pair_similarities(x, y).negative
    for whisker, extra in ((None, negative), (0.5, iqr_filter(negative, whisker=0.5))):
        whole = torch.cat([head(x, y).cosine, extra.expand(10, -1)], 1)
        expected = F.cross_entropy(head.scale * whole, y)
        torch.testing.assert_close(UNPGLoss(head, whisker=whisker)(x, y), expected)
        logits = head.scale * head(x, y).cosine
        torch.testing.assert_close(unified_cross_entropy(logits, y, head.scale * extra), expected)
    assert len(iqr_filter(negative, whisker=0.5)) < len(negative)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_extra_negatives_is_the_plain_cross_entropy(reduction) -> None:
    logits, y = make_batch(6, 4, 4)
    expected = F.cross_entropy(logits, y, reduction=reduction)
    for extra in (None, logits.new_zeros(0)):
        found = unified_cross_entropy(logits, y, extra, reduction=reduction)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@given(
    st.sampled_from(sorted(HEADS)),
    st.integers(1, 10),
    st.sampled_from([None, 0.0, 1.0]),
    st.sampled_from(CHUNKS),
    st.integers(0, 99),
)
@settings(max_examples=20)
def test_laws(name: str, rows: int, whisker: float | None, chunk: int | None, seed: int) -> None:
    head = make_head(name, 4, CLASSES)
    x, y = make_batch(rows, 4, CLASSES, seed)
    unified, plain = UNPGLoss(head, whisker=whisker, class_chunk=chunk), MarginLoss(head, class_chunk=chunk)
    value = unified(x, y)
    assert value >= plain(x, y) - 1e-12
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(unified(x[order], y[order]), value, rtol=1e-10, atol=1e-10)
    rotation = torch.linalg.qr(make_batch(4, 4, 2, seed)[0])[0]
    turned = make_head(name, 4, CLASSES)
    turned.weight.data = head.weight.data @ rotation
    torch.testing.assert_close(UNPGLoss(turned, whisker=whisker)(x @ rotation, y), value, rtol=1e-9, atol=1e-9)
    if name != "magface":
        torch.testing.assert_close(unified(x * torch.linspace(0.1, 50, rows)[:, None], y), value, rtol=1e-9, atol=1e-9)
    if len(y.unique()) == 1:
        torch.testing.assert_close(value, plain(x, y), rtol=0, atol=1e-12)


def test_a_class_of_the_weights_more_or_less_in_one_block() -> None:
    """All sizes of blocks, with the own class of a row at either end of one."""
    head = make_head("arcface", 4, CLASSES)
    x, y = make_batch(CLASSES, 4, CLASSES)[0], torch.arange(CLASSES)
    expected = gradients(UNPGLoss(head), x, y)
    for chunk in range(1, CLASSES + 2):
        for ours, theirs in zip(gradients(UNPGLoss(head, class_chunk=chunk), x, y), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", HEADS)
def test_gradients_of_first_and_second_order(name: str) -> None:
    head = make_head(name, 3, 4)
    x, y = make_batch(5, 3, 4)
    x = (x / x.norm(dim=1, keepdim=True) * torch.tensor([20.0, 30, 40, 50, 60])[:, None]).requires_grad_()
    weight = head.weight.detach().clone().requires_grad_()
    second = []
    for chunk in (None, 3):
        loss = UNPGLoss(head, whisker=1.0, class_chunk=chunk)

        def call(x: Tensor, weight: Tensor, loss: UNPGLoss = loss) -> Tensor:
            return torch.func.functional_call(loss, {"head.weight": weight}, (x, y))

        assert torch.autograd.gradcheck(call, (x, weight))
        assert torch.autograd.gradgradcheck(call, (x, weight))
        hessian = torch.func.jacrev(torch.func.jacrev(call, argnums=1), argnums=1)
        second.append(hessian(x.detach(), weight.detach()))
    torch.testing.assert_close(*second, rtol=1e-8, atol=1e-8)


def special() -> dict[str, object]:
    """Points with a seam or a mask."""

    def rows(make):
        return lambda g: (make(g), torch.randint(4, (9,), generator=g))

    return {
        "one class": lambda g: (6 * torch.randn(9, 5, generator=g), torch.zeros(9, dtype=torch.int64)),
        "equal rows": rows(lambda g: torch.ones(9, 5)),
        "zeros": rows(lambda g: torch.zeros(9, 5)),
        "a row of zeros": rows(lambda g: torch.cat([torch.zeros(1, 5), 6 * torch.randn(8, 5, generator=g)])),
        "opposite rows": rows(lambda g: torch.tensor([2.0, -2.0]).repeat(5)[:9, None] * torch.ones(5)),
    }


SKIPPED = {"device": "its weights stay on the CPU there; test_module moves them"}


@pytest.mark.parametrize(("name", "chunk"), [("cosface", None), ("magface", None), ("arcface", 3)])
def test_conformance(name: str, chunk: int | None) -> None:
    loss = UNPGLoss(make_head(name, 5, 4, torch.float32), class_chunk=chunk)
    check_loss(loss, batch, special=special(), skip=SKIPPED)


def test_conformance_of_the_baseline_and_the_function() -> None:
    check_loss(MarginLoss(make_head("arcface", 5, 4, torch.float32)), batch, special=special(), skip=SKIPPED)

    def logits(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        drawn = [torch.randn(shape, generator=generator, requires_grad=True) for shape in ((7, 4), (5,))]
        return drawn[0], torch.randint(4, (7,), generator=generator), drawn[1]

    check_loss(unified_cross_entropy, logits)


@pytest.mark.parametrize("chunk", [None, 3])
def test_module(chunk: int | None) -> None:
    check_module(UNPGLoss(make_head("magface", 5, 4, torch.float32), class_chunk=chunk), batch, nan="raise")


def test_constructor_arguments() -> None:
    check_arguments(UNPGLoss, lambda g: {"head": CosFaceHead(4, 3)})
    check_arguments(MarginLoss, lambda g: {"head": CosFaceHead(4, 3)})


def test_a_head_of_ones_own() -> None:
    """By its margin, in blocks too; with a forward of its own, or a hook, as it is called."""

    class Half(MarginHead):
        def target_cosine(self, cosine: Tensor, embeddings: Tensor) -> Tensor:
            return cosine / 2

        def regularizer(self, embeddings: Tensor) -> Tensor:
            return embeddings.abs().mean()

    class Shifted(ArcFaceHead):
        def forward(self, embeddings: Tensor, labels: Tensor) -> HeadOutput:
            cosine, regularizer = super().forward(embeddings, labels)
            return HeadOutput(cosine - 0.25 * F.one_hot(labels, self.num_classes), regularizer)

    x, y = make_batch(8, 5, CLASSES)
    half = Half(5, CLASSES, scale=4.0).double()
    expected = F.cross_entropy(4 * half(x, y).cosine, y) + x.abs().mean()
    for chunk in CHUNKS:
        torch.testing.assert_close(MarginLoss(half, class_chunk=chunk)(x, y), expected)
    shifted = Shifted(5, CLASSES, scale=4.0).double()
    torch.testing.assert_close(MarginLoss(shifted)(x, y), F.cross_entropy(4 * shifted(x, y).cosine, y))
    with pytest.raises(ValueError, match="class_chunk"):
        MarginLoss(shifted, class_chunk=2)
    seen = []
    half.register_forward_hook(lambda *call: seen.append(call))
    UNPGLoss(half)(x, y)
    assert len(seen) == 1


@pytest.mark.parametrize("block", [1, 20, 2**19])
@pytest.mark.parametrize("name", sorted(HEADS))
def test_kept_cosines_are_those_of_the_called_head(monkeypatch: pytest.MonkeyPatch, name: str, block: int) -> None:
    """In one block and in several: value, gradients, second derivatives, several rows at once by vmap."""
    monkeypatch.setattr("offprints.unpg._classes.BLOCK", block)
    head, called = make_head(name, 4, CLASSES), make_head(name, 4, CLASSES)
    called.register_forward_hook(lambda *call: None)
    x, y = make_batch(6, 4, CLASSES)
    results = []
    for of in (head, called):
        loss, rows = UNPGLoss(of), x.clone().requires_grad_()
        value = loss(rows, y)
        first = torch.autograd.grad(value, [rows, of.weight], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), [rows, of.weight])
        many = torch.func.vmap(loss, in_dims=(0, None))(torch.stack([x, -x]), y)
        results.append([value, *first, *second, many])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # torch's own
def test_forward_mode_derivatives() -> None:
    head = make_head("arcface", 4, CLASSES)
    x, y = make_batch(6, 4, CLASSES)
    loss, along = UNPGLoss(head), make_batch(6, 4, CLASSES, seed=1)[0]
    value, slope = torch.func.jvp(lambda rows: loss(rows, y), (x,), (along,))
    expected = gradients(loss, x, y)
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(slope, (expected[1] * along).sum())


def test_parametrized_weights() -> None:
    """What stands between the parameter and the weight is used, in blocks too."""
    head = make_head("arcface", 5, CLASSES)
    torch.nn.utils.parametrizations.orthogonal(head, "weight")
    x, y = make_batch(8, 5, CLASSES)
    values = [UNPGLoss(head, class_chunk=chunk)(x, y) for chunk in (None, 3)]
    torch.testing.assert_close(*values)
    values[1].backward()
    assert head.parametrizations.weight.original.grad.abs().sum() > 0


def test_labels_of_any_integer_type_and_read_only_rows() -> None:
    head = make_head("cosface", 5, CLASSES)
    x, y = make_batch(8, 5, CLASSES)
    array = x.numpy().copy()
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says once in a process that it cannot keep it from being written
        fixed = torch.from_numpy(array)
    for chunk in (None, 3):
        expected = UNPGLoss(head, class_chunk=chunk)(x, y)
        for dtype in (torch.uint8, torch.int16, torch.int32):
            torch.testing.assert_close(UNPGLoss(head, class_chunk=chunk)(fixed, y.to(dtype)), expected, rtol=0, atol=0)


def test_frozen_weights_and_frozen_embeddings() -> None:
    head = make_head("arcface", 5, CLASSES)
    x, y = make_batch(8, 5, CLASSES)
    full = gradients(UNPGLoss(head), x, y)
    for chunk in (None, 3):
        loss = UNPGLoss(head, class_chunk=chunk)
        (of_weight,) = torch.autograd.grad(loss(x, y), head.weight)
        torch.testing.assert_close(of_weight, full[2])
        head.weight.requires_grad_(False)
        x.requires_grad_()
        (of_x,) = torch.autograd.grad(loss(x, y), x)
        torch.testing.assert_close(of_x, full[1])
        head.weight.requires_grad_()
        x = x.detach()


def test_small_losses_keep_their_gradient_in_blocks() -> None:
    """The own class is no term of the sum that its logit is subtracted from."""
    head = make_head("cosface", 2, 2, torch.float32, scale=20.0, margin=0.0)
    head.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    loss = MarginLoss(head, class_chunk=2)(torch.tensor([[3.0, 0.0]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(4.248354e-18, rel=1e-5)  # exp(-40)


@pytest.mark.parametrize("kind", [MarginLoss, UNPGLoss])
def test_logits_far_apart_have_second_derivatives_in_blocks(kind: type[MarginLoss]) -> None:
    """Their exponentials have no place in float32: with the own class far above all others, and far below."""
    second = []
    for chunk in (None, 2):
        head = make_head("cosface", 3, 4, torch.float32, scale=64.0)
        directions = torch.tensor([[1.0, 0, 0.1], [-1, 0, 0], [-1, 0.1, 0], [-1, 0, 0.2]])
        head.weight.data.copy_(directions)
        for y in (torch.tensor([0, 0]), torch.tensor([0, 1])):
            x = torch.tensor([[3.0, 0, 0.5], [2, 0.1, 0]], requires_grad=True)
            first = torch.autograd.grad(kind(head, class_chunk=chunk)(x, y), [x, head.weight], create_graph=True)
            second += torch.autograd.grad(sum(g.square().sum() + g.sum() for g in first), [x, head.weight])
    for whole, blocks in zip(second[: len(second) // 2], second[len(second) // 2 :], strict=True):
        assert whole.isfinite().all()
        torch.testing.assert_close(blocks, whole, rtol=1e-3, atol=1e-3)


def peak(rows: int, dim: int, classes: int, chunk: int | None) -> float:
    """Memory of one forward and backward beyond the weights and their gradient, in MiB."""
    torch.set_num_threads(1)
    loss = UNPGLoss(CosFaceHead(dim, classes), class_chunk=chunk)
    x, y = torch.randn(rows, dim, requires_grad=True), torch.arange(rows) % classes
    for _ in range(2):
        loss.head.weight.grad = None
        reset_peak_memory()
        before = peak_memory_mib()
        loss(x, y).backward()
    return peak_memory_mib() - before - classes * dim * 4 / 2**20


def test_memory_does_not_grow_with_the_classes() -> None:
    few, many = (fresh_process(partial(peak, 256, 16, classes, 4096)) for classes in (2**14, 2**18))
    whole = 256 * 2**18 * 4 / 2**20  # what one (B, C) takes
    assert many < few + 40 < whole / 2

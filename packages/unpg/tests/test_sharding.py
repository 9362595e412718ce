"""Two processes with parts of a batch are one process with the whole: values, gradients, training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from packages.unpg.tests.cases import HEADS, make_batch, make_head
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from offprints.shared.testing import check_arguments, check_module
from offprints.unpg import (
    ArcFaceHead,
    HeadOutput,
    MagFaceHead,
    MarginHead,
    MarginLoss,
    ShardedMarginHead,
    UNPGLoss,
    sharding,
)

DIM, CLASSES = 5, 7
SPLITS = {"even": (6, 6), "uneven": (8, 4), "one row": (11, 1)}
NETWORK = torch.randn(4, DIM, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def whole_batch() -> tuple[Tensor, Tensor]:
    """Inputs of a linear network, and labels of which each process has others."""
    x, _ = make_batch(12, 4, CLASSES)
    return x, torch.tensor([0, 0, 1, 2, 2, 1, 5, 6, 5, 6, 3, 3])


def options() -> list[dict[str, Any]]:
    return [{"whisker": whisker, "class_chunk": chunk} for whisker in (None, 0.5) for chunk in (None, 3)]


def one_process(name: str, kind: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    head, network = make_head(name, DIM, CLASSES), NETWORK.clone().requires_grad_()
    x, y = whole_batch()
    loss = kind(head, **options)(x @ network, y)
    return (loss.detach(), *torch.autograd.grad(loss, [network, head.weight]))


def rank_of_two(rank: int, sharded: bool) -> dict[Any, tuple[Tensor, Tensor, Tensor]]:
    """Loss, gradient of the network and of the weights, as DistributedDataParallel would average them."""
    found = {}
    for split, sizes in SPLITS.items():
        x, y = (part.split(sizes)[rank] for part in whole_batch())
        for name in HEADS:
            plain = make_head(name, DIM, CLASSES)
            head: Any = plain
            if sharded:
                head = ShardedMarginHead(HEADS[name], DIM, CLASSES, scale=plain.scale).double()
                head.load_state_dict(plain.state_dict())
            losses = {("unpg", *o.values()): UNPGLoss(head, **o) for o in options()}
            if sharded or split == "even":
                losses |= {("plain", chunk): MarginLoss(head, class_chunk=chunk) for chunk in (None, 3)}
            for key, loss in losses.items():
                network = NETWORK.clone().requires_grad_()
                value = loss(x @ network, y)
                gradients = torch.autograd.grad(value, [network, head.weight])
                averaged = [value.detach().clone(), gradients[0].clone()]
                averaged += [] if sharded else [gradients[1].clone()]
                for tensor in averaged:
                    dist.all_reduce(tensor)
                    tensor /= 2
                if sharded:
                    torch.testing.assert_close(value.detach(), averaged[0], rtol=0, atol=1e-12)  # the same on both
                    averaged.append(gradients[1])
                found[split, name, key] = tuple(averaged)
    return found


@pytest.mark.parametrize("sharded", [False, True])
def test_two_ranks_are_one(two_processes, sharded: bool) -> None:
    first, second = two_processes(rank_of_two, sharded)
    assert first.keys() == second.keys()
    assert len(first) == (54 if sharded else 42)
    for (split, name, key), ours in first.items():
        if key[0] == "unpg":
            expected = one_process(name, UNPGLoss, whisker=key[1], class_chunk=None)
        else:
            expected = one_process(name, MarginLoss)
        weight = torch.cat([ours[2], second[split, name, key][2]]) if sharded else ours[2]
        where = f"{split}, {name}, {key}"
        for a, b in zip((*ours[:2], weight), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda text, w=where: f"{w}: {text}")


def without_gathering(rank: int, sharded: bool) -> Tensor:
    x, y = (part.split((8, 4))[rank] for part in whole_batch())
    plain = make_head("cosface", DIM, CLASSES)
    head: Any = plain
    if sharded:
        head = ShardedMarginHead(HEADS["cosface"], DIM, CLASSES, scale=plain.scale).double()
        head.load_state_dict(plain.state_dict())
    network = NETWORK.clone().requires_grad_()
    loss = UNPGLoss(head, gather=False)(x @ network, y)
    gradient = torch.autograd.grad(loss, network)[0] * (len(x) / 6 if not sharded else 1)
    dist.all_reduce(gradient)
    return gradient / 2


def test_pairs_of_each_ranks_own_rows(two_processes) -> None:
    head, network = make_head("cosface", DIM, CLASSES), NETWORK.clone().requires_grad_()
    parts = zip(*(part.split((8, 4)) for part in whole_batch()), strict=True)
    loss = sum(UNPGLoss(head)(x @ network, y) * len(x) for x, y in parts) / 12
    (expected,) = torch.autograd.grad(loss, network)
    for sharded in (False, True):
        for found in two_processes(without_gathering, sharded):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def one_rank_without_gradient(rank: int, sharded: bool) -> tuple[Tensor, Tensor | None]:
    x, y = (part.split((8, 4))[rank] for part in whole_batch())
    plain = make_head("magface", DIM, CLASSES)
    head: Any = plain
    if sharded:
        head = ShardedMarginHead(HEADS["magface"], DIM, CLASSES, scale=plain.scale).double()
        head.load_state_dict(plain.state_dict())
    rows = (x @ NETWORK).requires_grad_(rank == 1)
    UNPGLoss(head)(rows, y).backward()
    return head.weight.grad, rows.grad


@pytest.mark.parametrize("sharded", [False, True])
def test_rows_of_one_rank_have_no_gradient(two_processes, sharded: bool) -> None:
    """The collective of backward has every rank, or none."""
    head, (x, y) = make_head("magface", DIM, CLASSES), whole_batch()
    rows = (x @ NETWORK).requires_grad_()
    UNPGLoss(head)(rows, y).backward()
    (first, none), (second, gradient) = two_processes(one_rank_without_gradient, sharded)
    assert none is None
    weight = torch.cat([first, second]) if sharded else (first + second) / 2
    torch.testing.assert_close(weight, head.weight.grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient / 2, rows.grad[8:], rtol=1e-9, atol=1e-9)


def twice(rank: int, sharded: bool) -> str:
    x, y = make_batch(4, DIM, CLASSES)
    head: Any = ShardedMarginHead(ArcFaceHead, DIM, CLASSES).double() if sharded else make_head("arcface", DIM, CLASSES)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(UNPGLoss(head)(x, y), x, create_graph=True)
    with pytest.raises(RuntimeError) as caught:
        gradient.square().sum().backward()
    return str(caught.value)


@pytest.mark.parametrize("sharded", [False, True])
def test_second_derivatives_over_ranks_are_refused(two_processes, sharded: bool) -> None:
    for message in two_processes(twice, sharded):
        assert "once_differentiable" in message


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, DIM, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def trained(rank: int, sharded: bool, processes: int = 2) -> tuple[Tensor, Tensor]:
    """Three steps of SGD with momentum; the network under DistributedDataParallel, the plain head too."""
    torch.manual_seed(0)
    network: Any = Network()
    torch.manual_seed(1)
    head: Any = (ShardedMarginHead if sharded else HEADS["magface"])(
        *((HEADS["magface"],) if sharded else ()), DIM, CLASSES, scale=8.0
    ).double()
    loss: Any = UNPGLoss(head, class_chunk=3)
    if processes > 1:
        network = DistributedDataParallel(network)
    model: Any = loss if sharded or processes == 1 else DistributedDataParallel(loss)
    optimizer = torch.optim.SGD([*network.parameters(), *model.parameters()], lr=0.05, momentum=0.9)
    for step in range(3):
        x, y = make_batch(12, 4, CLASSES, seed=step)
        if processes > 1:
            x, y = (part.split(6)[rank] for part in (x, y))
        optimizer.zero_grad()
        model(network(x), y).backward()
        optimizer.step()
    weight = head.full_weight() if sharded else head.weight.detach()
    return next(network.parameters()).detach(), weight


def test_training_with_distributed_data_parallel(two_processes) -> None:
    expected = trained(0, False, processes=1)
    for sharded in (False, True):
        for found in two_processes(trained, sharded):
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def shards(rank: int) -> dict[str, Any]:
    torch.manual_seed(5)
    head = ShardedMarginHead(ArcFaceHead, DIM, CLASSES, scale=8.0)
    x, y = (part.split(6)[rank] for part in whole_batch())
    x = (x @ NETWORK).float()
    output = head(x, y)
    half = UNPGLoss(head)(x.bfloat16(), y)
    other = ShardedMarginHead(ArcFaceHead, DIM, CLASSES, scale=8.0)
    other.load_state_dict(head.state_dict())
    with pytest.raises(ValueError, match="num_classes"):
        ShardedMarginHead(ArcFaceHead, DIM, 1)
    return {
        "first": head.first,
        "weight": head.weight.detach(),
        "full": head.full_weight(),
        "cosine": output.cosine.detach(),
        "half": half.item(),
        "same": torch.equal(other.weight, head.weight),
        "repr": repr(head),
    }


def test_shards(two_processes) -> None:
    first, second = two_processes(shards)
    torch.manual_seed(5)
    plain = ArcFaceHead(DIM, CLASSES, scale=8.0)
    assert (len(first["weight"]), len(second["weight"])) == (4, 3)
    assert (first["first"], second["first"]) == (0, 4)
    assert "classes 4 to 6 of 7" in second["repr"]
    x, y = whole_batch()
    x = (x @ NETWORK).float()
    cosine = torch.cat([first["cosine"], second["cosine"]], 1)
    torch.testing.assert_close(cosine, plain(x, y).cosine.detach())
    expected = UNPGLoss(plain)(x.bfloat16(), y).item()
    for of_rank in (first, second):
        torch.testing.assert_close(of_rank["full"], plain.weight.detach(), rtol=0, atol=0)
        assert of_rank["half"] == pytest.approx(expected, rel=1e-5)
        assert of_rank["same"]


def own_loss_of_cosines(rank: int) -> tuple[Tensor, Tensor]:
    x, y = (part.split((8, 4))[rank] for part in whole_batch())
    plain = make_head("magface", DIM, CLASSES)
    head = ShardedMarginHead(HEADS["magface"], DIM, CLASSES, scale=plain.scale).double()
    head.load_state_dict(plain.state_dict())
    network = NETWORK.clone().requires_grad_()
    cosine, regularizer = head(x @ network, y)
    of_network, of_weight = torch.autograd.grad(cosine.square().sum() + regularizer, [network, head.weight])
    dist.all_reduce(of_network)
    return of_network / 2, of_weight


def test_gradients_of_a_loss_of_ones_own(two_processes) -> None:
    """Each rank's loss is of its own classes; the averaged gradient is that of their sum."""
    head, network = make_head("magface", DIM, CLASSES), NETWORK.clone().requires_grad_()
    x, y = whole_batch()
    cosine, regularizer = head(x @ network, y)
    expected = torch.autograd.grad(cosine.square().sum() + regularizer, [network, head.weight])
    (first, one), (second, other) = two_processes(own_loss_of_cosines)
    for found in (first, second):
        torch.testing.assert_close(found, expected[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.cat([one, other]), expected[1], rtol=1e-9, atol=1e-9)


def drawn_in_blocks(rank: int) -> Tensor:
    sharding.BLOCK = 3  # in a process of its own
    torch.manual_seed(5)
    return ShardedMarginHead(ArcFaceHead, DIM, 11).weight.detach()


def test_initial_weights_are_drawn_in_blocks(two_processes) -> None:
    """A share begins and ends within a block."""
    torch.manual_seed(5)
    expected = ArcFaceHead(DIM, 11).weight.detach()
    torch.testing.assert_close(torch.cat(two_processes(drawn_in_blocks)), expected, rtol=0, atol=0)


def test_one_process_is_the_plain_head() -> None:
    torch.manual_seed(5)
    plain = MagFaceHead(DIM, CLASSES)
    torch.manual_seed(5)
    head = ShardedMarginHead(MagFaceHead, DIM, CLASSES)
    torch.testing.assert_close(head.weight, plain.weight, rtol=0, atol=0)
    torch.testing.assert_close(head.full_weight(), plain.weight.detach(), rtol=0, atol=0)
    assert (head.num_classes, head.in_features, head.scale) == (CLASSES, DIM, 64.0)
    x, y = make_batch(8, DIM, CLASSES)
    torch.testing.assert_close(head(x, y), plain(x, y), rtol=0, atol=0)
    for kind in (MarginLoss, UNPGLoss):
        for chunk in (None, 2):
            torch.testing.assert_close(kind(head, class_chunk=chunk)(x, y), kind(plain, class_chunk=chunk)(x, y))


def test_conformance() -> None:
    def inputs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.randn(6, DIM, generator=generator), torch.randint(CLASSES, (6,), generator=generator)

    check_module(ShardedMarginHead(ArcFaceHead, DIM, CLASSES), inputs, nan="raise")
    check_arguments(ShardedMarginHead, lambda g: {"head_type": ArcFaceHead, "in_features": 4, "num_classes": 3})


def test_heads_that_cannot_be_sharded() -> None:
    class Own(MarginHead):
        def forward(self, embeddings: Tensor, labels: Tensor) -> HeadOutput:
            return super().forward(embeddings, labels)

    for kind in (Own, nn.Linear, "ArcFaceHead"):
        with pytest.raises(TypeError, match="head_type"):
            ShardedMarginHead(kind, DIM, CLASSES)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="margin"):
        ShardedMarginHead(ArcFaceHead, DIM, CLASSES, margin=-1.0)

"""Training of a vision transformer's last block and cosine heads with SP²OT, on one process or many."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset

from offprints.shared.device import autocast, make_generator
from offprints.shared.distributed import all_reduce_, rank, world_size
from offprints.shared.experiment import Part, Run
from offprints.shared.extras import require
from offprints.shared.usage import UsageError
from offprints.sp2ot.graph import knn_similarity
from offprints.sp2ot.head import CosineHead
from offprints.sp2ot.losses import SP2OTLoss
from offprints.sp2ot.reproduce.images import Images, Views, evaluation_transform, training_transform
from offprints.sp2ot.scores import cluster_scores

BANK_BATCHES = 10
FINAL_LR = 0.1**3


@dataclass(frozen=True)
class Recipe:
    """How one network is trained; the defaults of the experiment's ``paper`` preset are the paper's."""

    backbone: str
    weights: str | None  # a file
    pretrained: bool
    download: bool
    image_size: int
    trainable_blocks: int
    n_heads: int
    epochs: int
    batch_size: int  # of all processes together
    bank_from_epoch: int
    lr: float
    workers: int
    n_neighbors: int
    loss: dict[str, Any]  # options of SP2OTLoss


class Network(nn.Module):
    """A backbone whose last blocks are trained, and heads on its features."""

    def __init__(self, recipe: Recipe, num_clusters: int) -> None:
        super().__init__()
        timm = require("timm", package="sp2ot", extra="timm")
        if recipe.pretrained and recipe.weights is None and not recipe.download:
            raise UsageError(
                f"the weights of {recipe.backbone}: give their file with --weights, or fetch with --download"
            )
        source = {} if recipe.weights is None else {"pretrained_cfg_overlay": {"file": recipe.weights}}
        self.backbone = timm.create_model(
            recipe.backbone, pretrained=recipe.pretrained, num_classes=0, img_size=recipe.image_size, **source
        )
        self.backbone.requires_grad_(False)
        blocks = list(self.backbone.blocks.children())
        for block in blocks[len(blocks) - recipe.trainable_blocks :]:
            block.requires_grad_(True)
        dim = self.backbone.num_features
        self.heads = nn.ModuleList(CosineHead(dim, num_clusters) for _ in range(recipe.n_heads))

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Logits of every head."""
        features = self.backbone(pictures)
        return [head(features) for head in self.heads]


def train(recipe: Recipe, images: Images, run: Part) -> dict[str, Any]:
    """Train one network and score its best head of its best epoch.

    The best epoch is that of the lowest mean loss by ``rho``, as the best head is.
    """
    device = run.device
    torch.manual_seed(run.seed)
    network = Network(recipe, images.num_classes).to(device)
    count = len(images.train_index)
    batch = min(recipe.batch_size, count)
    per_epoch = count // batch
    semantic = recipe.loss.get("semantic_weight", 1000.0) > 0
    graph = None
    if semantic:
        features = _features(network.backbone, images, recipe, run)
        graph = knn_similarity(features, k=min(recipe.n_neighbors, count - 1))
        del features
    criterion = SP2OTLoss(
        num_clusters=images.num_classes,
        total_steps=recipe.epochs * per_epoch,
        num_heads=recipe.n_heads,
        similarity=graph,
        bank_size=BANK_BATCHES * batch,
        **recipe.loss,
    ).to(device)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=recipe.lr)
    scaler = torch.amp.GradScaler(device.type, enabled=run.precision == "float16")
    best: dict[str, Any] = {"loss": math.inf, "head": 0, "model": _trained(network)}
    first = 0
    found = run.restore()
    if found is not None:
        first, state = found
        network.load_state_dict(state["model"], strict=False)
        criterion.load_state_dict(state["criterion"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        best = state["best"]
    wrapped: nn.Module = network
    if world_size() > 1:
        wrapped = DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)

    views = Views(images.train, images.train_index, training_transform(recipe.image_size), 2)
    bank_size = criterion.bank_size
    for epoch in run.progress(range(first, recipe.epochs)):
        criterion.bank_size = bank_size if epoch >= recipe.bank_from_epoch else 0
        if epoch == recipe.bank_from_epoch:
            _fill_banks(criterion, network, images, recipe, run)
        cosine = (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * (FINAL_LR + (1 - FINAL_LR) * cosine)
        torch.manual_seed(run.seed * 1_000_003 + epoch * world_size() + rank())  # of the augmentation
        totals = torch.zeros(recipe.n_heads, dtype=torch.float64)
        rho = 0.0
        for pictures, index in _batches(views, batch, recipe.workers, seed=run.seed, epoch=epoch):
            both = pictures.to(device, non_blocking=True)
            with autocast(run.precision, device):
                logits = wrapped(both.transpose(0, 1).flatten(0, 1))
                output = criterion(list(zip(*(head.chunk(2) for head in logits), strict=True)), index.to(device))
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(output.loss).backward()
            scaler.step(optimizer)
            scaler.update()
            totals += output.per_head.double().cpu() / output.rho
            rho = output.rho
        all_reduce_(totals, op="mean")
        means = totals / per_epoch
        run.log(epoch + 1, loss_by_rho=float(means.min()), rho=rho)
        if float(means.min()) < best["loss"]:
            best = {"loss": float(means.min()), "head": int(means.argmin()), "model": _trained(network)}
        run.checkpoint(
            epoch + 1,
            {
                "model": _trained(network),
                "criterion": criterion.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(),
                "best": best,
            },
        )
    network.load_state_dict(best["model"], strict=False)
    return {"best loss by rho": best["loss"]} | _scores(network, best["head"], images, recipe, run)


def kmeans_scores(recipe: Recipe, images: Images, run: Run) -> dict[str, Any]:
    """K-means on the features of the backbone as it comes."""
    from sklearn.cluster import KMeans

    torch.manual_seed(run.seed)
    backbone = Network(recipe, images.num_classes).backbone.to(run.device)
    train_features = _features(backbone, images, recipe, run).float()
    model = KMeans(images.num_classes, n_init=10, random_state=run.seed).fit(train_features.cpu().numpy())
    test_features = _evaluate(backbone, images, recipe, run, test=True).float()
    return _both_scores(
        images, torch.from_numpy(model.labels_), torch.from_numpy(model.predict(test_features.cpu().numpy()))
    )


def _trained(network: Network) -> dict[str, Tensor]:
    """Copies of what training changes."""
    wanted = {name for name, p in network.named_parameters() if p.requires_grad}
    return {name: value.detach().clone() for name, value in network.state_dict().items() if name in wanted}


def _batches(views: Views, batch: int, workers: int, *, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's part of the batches of one epoch; a shorter last batch is left out."""
    if batch % world_size():
        raise UsageError(f"--batch-size must be a multiple of the {world_size()} processes, got {batch}")
    order = torch.randperm(len(views), generator=make_generator(seed * 100_003 + epoch))
    order = order[: len(order) // batch * batch]
    mine = order.view(-1, world_size(), batch // world_size())[:, rank()].flatten()
    yield from DataLoader(Subset(views, mine.tolist()), batch_size=batch // world_size(), num_workers=workers)


@torch.no_grad()
def _evaluate(module: nn.Module, images: Images, recipe: Recipe, run: Run | Part, *, test: bool) -> Tensor:
    """Outputs of a module for all test or training images, un-augmented; every rank computes its share."""
    rows = images.test_index if test else images.train_index
    pictures = Views(images.test if test else images.train, rows, evaluation_transform(recipe.image_size), 1)
    mine = list(range(rank(), len(rows), world_size()))
    module.eval()
    parts = []
    for batch, _ in DataLoader(Subset(pictures, mine), batch_size=recipe.batch_size, num_workers=recipe.workers):
        with autocast(run.precision, run.device):
            parts.append(module(batch[:, 0].to(run.device)).float())
    module.train()
    own = torch.cat(parts)
    whole = own.new_zeros(len(rows), *own.shape[1:])
    whole[mine] = own
    all_reduce_(whole)
    return whole


def _features(backbone: nn.Module, images: Images, recipe: Recipe, run: Run | Part) -> Tensor:
    return _evaluate(backbone, images, recipe, run, test=False)


class _OneHead(nn.Module):
    """A network with the logits of one head, or of all of them side by side."""

    def __init__(self, network: Network, head: int | None = None) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, pictures: Tensor) -> Tensor:
        logits = self.network(pictures)
        return torch.stack(logits, 1) if self.head is None else logits[self.head]


def _fill_banks(criterion: SP2OTLoss, network: Network, images: Images, recipe: Recipe, run: Part) -> None:
    """Push logits of un-augmented images into the banks, until these are full."""
    count = len(images.train_index)
    order = torch.randperm(count, generator=make_generator(run.seed))[: criterion.bank_size].numpy()
    chosen = replace(images, train_index=images.train_index[order])
    logits = _evaluate(_OneHead(network), chosen, recipe, run, test=False)
    index = torch.from_numpy(order).to(logits.device)
    for head, bank in enumerate(criterion.banks):
        bank.push(logits[:, head], index)  # type: ignore[operator]


def _scores(network: Network, head: int, images: Images, recipe: Recipe, run: Part) -> dict[str, Any]:
    model = _OneHead(network, head)
    train_labels, test_labels = (
        _evaluate(model, images, recipe, run, test=test).argmax(1).cpu() for test in (False, True)
    )
    return _both_scores(images, train_labels, test_labels)


def _both_scores(images: Images, train_labels: Tensor, test_labels: Tensor) -> dict[str, Any]:
    scores = {}
    for name, true, predicted in (
        ("train", images.train_labels, train_labels),
        ("test", images.test_labels, test_labels),
    ):
        found = cluster_scores(true, predicted, num_clusters=images.num_classes)
        found.pop("mapping")
        scores[name] = found
    return scores

"""The paper's own settings on its own sets: CIFAR-10, CIFAR-100, STL-10, SVHN. ImageNet needs another method's term."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from offprints.shared.datasets import vision_dataset
from offprints.shared.device import local_seed, make_generator
from offprints.shared.distributed import rank, world_size
from offprints.shared.experiment import Run
from offprints.shared.experiment.part import Part
from offprints.shrinkmatch import split_labels, strong_transform, weak_transform, wide_resnet
from offprints.shrinkmatch.reproduce.training import Method, Recipe, Trainer
from offprints.shrinkmatch.transforms import OPERATIONS, AsPicture, _uniform, _vision, _whole, cut_out, standardize
from offprints.shrinkmatch.wide_resnet import WideResNet

Set = Literal["cifar10", "cifar100", "stl10", "svhn"]
METHODS: tuple[Method, ...] = ("supervised", "FixMatch + DA", "ShrinkMatch")
MEANS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "stl10": ((0.4408, 0.4278, 0.3867), (0.2682, 0.2612, 0.2686)),
    "svhn": ((0.4380, 0.4440, 0.4730), (0.1751, 0.1771, 0.1744)),
}
# Best averaged top-1 accuracy in the official logs, mean of their seeds, by the number of all labels.
LOGS: dict[str, dict[int, float]] = {
    "cifar10": {40: 0.9492, 250: 0.9526},
    "cifar100": {400: 0.6464, 2500: 0.7483},
    "stl10": {40: 0.8598, 250: 0.9155},
    "svhn": {40: 0.9749, 250: 0.9804},
}
MARGIN = 0.02  # how far below the logs a run may end, set before any run


@dataclass(frozen=True, kw_only=True)
class PaperSettings:
    """The paper's sets.

    Attributes:
        sets: Those to train on; with none this part is left out.
        labels: Numbers of all labels; none: the paper's two of each set.
        steps: Steps.
        batch_size: Labeled images a step, of all processes together.
        mu: Unlabeled images a step, in units of that.
        every: Steps between tests and checkpoints.
        depth: Of the wide residual network.
        widen: Its widths; 0: the paper's, 8 on CIFAR-100 and 2 elsewhere.
        workers: Processes that load images, for each process that trains.
    """

    sets: tuple[Set, ...] = ()
    labels: tuple[int, ...] = ()
    steps: int = 2**20
    batch_size: int = 64
    mu: int = 7
    every: int = 1024
    depth: int = 28
    widen: int = 0
    workers: int = 4


class WholeRange(nn.Module):
    """The strong views of STL-10 and SVHN, before flip and crop: three operations, all applied, at any strength."""

    def forward(self, image: Any) -> Any:
        names = list(OPERATIONS)
        for _ in range(3):
            image = OPERATIONS[names[_whole(0, len(names) - 1)]](image, _uniform())
        width = _vision(".functional").get_size(image)[1]
        return cut_out(image, int(0.5 * _uniform() * width), (125, 123, 114))


def transforms(name: Set) -> tuple[Any, Any, Any]:
    """Weak and strong views, and test images."""
    mean, std = MEANS[name]
    v2, last = _vision(""), standardize(mean, std)
    plain = v2.Compose([AsPicture(), last])
    if name in ("cifar10", "cifar100"):
        return weak_transform(32, mean=mean, std=std), strong_transform(32, mean=mean, std=std), plain
    crop = v2.RandomCrop(96 if name == "stl10" else 32, padding=4, padding_mode="reflect")
    moved = [v2.RandomHorizontalFlip(), crop]
    return v2.Compose([AsPicture(), *moved, last]), v2.Compose([AsPicture(), WholeRange(), *moved, last]), plain


def load(name: Set, data: Path | None, download: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pictures ``(N, H, W, 3)`` uint8 and labels: "train", "test", and "unlabeled" where there are more of those."""

    def split(of: str) -> tuple[np.ndarray, np.ndarray]:
        found: Any = vision_dataset(name, of, download=download, root=data)
        pictures = np.asarray(found.data)
        if name in ("stl10", "svhn"):
            return pictures.transpose(0, 2, 3, 1), np.asarray(found.labels, dtype=np.int64)
        return pictures, np.asarray(found.targets, dtype=np.int64)

    parts = {"train": split("train"), "test": split("test")}
    more = {"stl10": "unlabeled", "svhn": "extra"}.get(name)
    if more is not None:
        pairs = zip(split(more), parts["train"], strict=True)
        both = tuple(np.concatenate(pair) for pair in pairs)
        parts["unlabeled" if name == "stl10" else "train"] = (both[0], both[1])
    parts.setdefault("unlabeled", parts["train"])
    return parts


class Views(Dataset[tuple[Tensor, ...]]):
    """Views of pictures with their labels, one for each transform."""

    def __init__(self, pictures: np.ndarray, labels: np.ndarray, *made_by: Any) -> None:
        self.pictures, self.labels, self.made_by = pictures, labels, made_by

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return *(transform(self.pictures[index]) for transform in self.made_by), int(self.labels[index])


def loader(views: Views, batch_size: int, steps: int, workers: int, seed: int) -> DataLoader[Any]:
    """So many batches, drawn with replacement."""
    generator = make_generator(seed)
    sampler = RandomSampler(views, replacement=True, num_samples=steps * batch_size, generator=generator)
    return DataLoader(views, batch_size, sampler=sampler, num_workers=workers, generator=generator)


def network(name: Set, settings: PaperSettings) -> WideResNet:
    """WRN-28-2, WRN-28-8 on CIFAR-100, a fourth group on STL-10."""
    widen = settings.widen or (8 if name == "cifar100" else 2)
    if name != "stl10":
        return wide_resnet(settings.depth, widen)
    return WideResNet([16 * widen * 2**group for group in range(4)], (settings.depth - 4) // 6)


def train_paper(
    settings: PaperSettings, data: Path | None, download: bool, name: Set, labels: int, method: Method, part: Part
) -> dict[str, Any]:
    """One training; the last and the best test accuracy of the averaged network."""
    parts = load(name, data, download)
    pictures, known = parts["train"]
    classes = int(known.max()) + 1
    labeled = split_labels(known, labels // classes, seed=part.seed)[0]
    weak, strong, plain = transforms(name)
    few, many = Views(pictures[labeled], known[labeled], weak), Views(*parts["unlabeled"], weak, strong)
    batch = settings.batch_size // world_size()
    recipe = Recipe(
        steps=settings.steps,
        batch_size=batch,
        mu=settings.mu,
        lr=0.03,
        weight_decay=1e-3 if name == "cifar100" else 5e-4,
        ratio_momentum=0.999,
        ema_decay=0.999,
        align={"stl10": "ema", "svhn": None}.get(name, "queue"),
        pseudo_label="hard" if name in ("stl10", "svhn") else "soft",
    )
    with local_seed(part.seed):
        backbone = network(name, settings)
        trainer = Trainer(backbone, backbone.out_dim, classes, method, recipe, part.device, part.precision)
    best = 0.0
    if (found := part.restore()) is not None:
        trainer.load(found[1])
        best = float(found[1]["best"])
    test = Views(*parts["test"], plain)
    accuracy = 0.0
    for first in part.progress(range(trainer.done, recipe.steps, settings.every)):
        count = min(settings.every, recipe.steps - first)
        seed = ((part.seed * recipe.steps + first) * world_size() + rank()) % 2**32
        with local_seed(seed):  # what a stretch draws depends on where it begins, so that it can be resumed
            batches = zip(
                loader(few, batch, count, settings.workers, seed),
                loader(many, settings.mu * batch, count, settings.workers, seed + 1),
                strict=True,
            )
            for (x, y), (u_weak, u_strong, truth) in batches:
                loss = trainer.step(*(z.to(part.device) for z in (x, y, u_weak, u_strong, truth)))
        accuracy = test_accuracy(trainer, test, settings)
        best = max(best, accuracy)
        part.log(trainer.done, loss=float(loss), accuracy=accuracy)
        part.checkpoint(trainer.done, {**trainer.state(), "best": best})
    return {"accuracy": accuracy, "best": best, **trainer.results()}


def test_accuracy(trainer: Trainer, test: Views, settings: PaperSettings) -> float:
    """The averaged network's share of right predictions."""
    right = 0
    for x, y in DataLoader(test, 500, num_workers=settings.workers):
        right += int((trainer.predictions(x.to(trainer.device)).cpu() == y).sum())
    return right / len(test)


test_accuracy.__test__ = False  # type: ignore[attr-defined] # it is no test of pytest's


def reproduce_paper(settings: PaperSettings, data: Path | None, download: bool, run: Run) -> None:
    """Every set with its numbers of labels, beside the official logs."""
    for name in settings.sets:
        for labels in settings.labels or tuple(LOGS[name]):
            results = {
                method: run.part(f"{name}, {labels} labels, {method}").once(
                    partial(train_paper, settings, data, download, name, labels, method)
                )
                for method in METHODS
            }
            best = {method: float(result["best"]) for method, result in results.items()}
            logged = LOGS[name].get(labels)
            words = f"{name}, {labels} labels: best test accuracy of ShrinkMatch"
            if logged is None:
                run.report_value(f"{name}-{labels}", words, best["ShrinkMatch"])
            else:
                run.claim(
                    f"{name}-{labels}",
                    words,
                    best["ShrinkMatch"],
                    ">=",
                    logged - MARGIN,
                    paper_value=logged,
                    control=best["supervised"],
                    control_name="no loss of the unlabeled images, which batch normalization sees all the same",
                )
            run.report_value(
                f"{name}-{labels}-fixmatch", f"{words} minus FixMatch + DA", best["ShrinkMatch"] - best["FixMatch + DA"]
            )
            run.table(
                f"{name}, {labels} labels",
                [
                    {
                        "method": method,
                        "reference": method != "ShrinkMatch",
                        "best test accuracy": best[method],
                        "last": float(result["accuracy"]),
                    }
                    for method, result in results.items()
                ],
            )

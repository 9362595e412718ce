"""The experiment through the real command line, and the larger presets on tiny data in the real formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from offprints.susana import EpisodeSampler, FewShotLoss, conv4
from offprints.susana.reproduce.data import Images, omniglot, patches, split_classes
from offprints.susana.reproduce.training import episodes, pretrain, train_on_episodes


def test_smoke(paper_run, tmp_path: Path) -> None:
    run = paper_run("susana", "--preset", "smoke", out=tmp_path, status=(0, 1))
    assert run.figures == {"accuracy-novel-5", "accuracy-seen-5", "score_and_accuracy", "episode"}
    assert set(run.claims) == {"predicts-novel", "predicts-seen", "keeps-the-nearest"}


def test_patches() -> None:
    images = patches()
    assert images.x.shape[1:] == (1, 16, 16)
    counts = torch.bincount(images.y)
    assert len(counts) == 18
    assert counts.min() >= 16  # an episode of the test takes 1 + 15
    assert counts.max() == 60
    torch.testing.assert_close(images.x.mean((1, 2, 3)), torch.zeros(len(images.x)), rtol=0, atol=1e-4)
    base, novel = split_classes(images, 10, seed=0)
    assert len(base.y.unique()) == 10
    assert len(novel.y.unique()) == 8
    assert len(base.y) + len(novel.y) == len(images.y)
    rest = patches(rest=True)
    seen, _ = split_classes(rest, 10, seed=0)
    order = np.random.default_rng(0).permutation(18)[:10]  # the same number is the same picture
    for part, whole in ((base, images), (seen, rest)):
        expected = torch.bincount(whole.y, minlength=18)[torch.from_numpy(order)]
        assert torch.equal(torch.bincount(part.y, minlength=10), expected)
    known = {image.numpy().tobytes() for image in images.x}
    assert not any(image.numpy().tobytes() in known for image in rest.x)


def test_training_lowers_the_loss_and_separates() -> None:
    base, _ = split_classes(patches(per_class=20), 10, seed=0)
    torch.manual_seed(0)
    backbone = conv4(in_channels=1, hidden=8)
    loss = FewShotLoss(("cross_entropy", "full_icnn"), n_way=5)
    optimizer = torch.optim.Adam(backbone.parameters(), lr=1e-2)
    values = []
    for epoch in range(2):
        sampler = EpisodeSampler(base.y, n_way=5, n_shot=2, n_query=3, n_episodes=15)
        sampler.set_epoch(epoch)
        values.append(train_on_episodes(backbone, loss, episodes(base, sampler), optimizer))
    assert values[1] < 0.95 * values[0]


def test_pretraining_classifies_the_base_classes() -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(40) % 2
    x = torch.randn(40, 4, generator=g) + 3 * y[:, None]
    body, told = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), []
    pretrain(
        body,
        lambda epoch: [(x, y)],
        num_classes=2,
        epochs=30,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        milestones=(20,),
        report=lambda epoch, values: told.append(values["pretraining_loss"]),
    )
    assert len(told) == 30
    assert told[-1] < 0.5 * told[0]


def test_small_omniglot(tmp_path: Path) -> None:
    """The packed file: pixels, turns, and characters that no two splits share."""
    drawings = np.zeros((24, 105, 105), np.uint8)
    drawings[:, :, :50] = 1
    packed = np.packbits(np.pad(drawings.reshape(24, -1), ((0, 0), (0, 7))), axis=1)
    names = np.array([f"A/{i:02}" for i in range(12)])
    np.savez(tmp_path / "omniglot_small.npz", packed=packed, label=np.repeat(np.arange(12), 2), character=names)
    sizes = []
    for split in ("train", "val", "test"):
        images = omniglot(split, data=tmp_path, download=False)  # type: ignore[arg-type]
        sizes.append(len(images.y.unique()))
        assert images.x.shape == (len(images.y), 1, 28, 28)
        upright, turned = images.x[images.y % 4 == 0][0, 0], images.x[images.y % 4 == 1][0, 0]
        assert upright[:, :13].min() == 1
        assert upright[:, 14:].max() == 0
        torch.testing.assert_close(turned, upright.rot90(1))
    assert sum(sizes) == 48


def folder(root: Path) -> None:
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        lines = ["filename,label"]
        for label in range(5):
            for i in range(17):
                name = f"{split}_{label}_{i}.png"
                Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(root / "images" / name)
                lines.append(f"{name},{split}{label}")
        (root / f"{split}.csv").write_text("\n".join(lines))


def test_the_paper_on_tiny_data(paper_run, tmp_path: Path) -> None:
    """The whole chain: pretraining, episodes, validation, the test on its own and on another set."""
    for name in ("mini_imagenet", "dogs"):
        folder(tmp_path / name)
    flags = {
        "--data": tmp_path,
        "--paper.datasets": "mini_imagenet",
        "--paper.transfer": "dogs",
        "--paper.backbones": "conv4",
        "--paper.shots": "1",
        "--paper.train-ways": "5",
        "--paper.epochs": "2",
        "--paper.episodes": "2",
        "--paper.validation": "2",
        "--paper.test": "3",
        "--paper.pretraining": "1",
        "--paper.size": "16",
        "--paper.workers": "0",
    }
    words = [str(word) for pair in flags.items() for word in pair]
    run = paper_run(
        "susana",
        "--preset",
        "paper",
        *words,
        "--terms",
        "cross_entropy",
        "proto_triplet+full_icnn",
        out=tmp_path / "runs",
    )
    assert run.figures == {"mini_imagenet-conv4-1"}
    report = (run.folder / "report.md").read_text()
    assert "dogs accuracy" in report
    assert "claimed: +2" in report


def test_images_by_class() -> None:
    images = Images(torch.arange(6).float(), torch.tensor([0, 1, 2, 0, 1, 2]))
    part = images.of_classes(torch.tensor([2, 0]))
    assert part.x.tolist() == [0, 2, 3, 5]
    assert part.y.tolist() == [1, 0, 1, 0]


@pytest.mark.slow
def test_quick(paper_run, tmp_path: Path) -> None:
    paper_run("susana", "--preset", "quick", "--seed", "3", out=tmp_path)

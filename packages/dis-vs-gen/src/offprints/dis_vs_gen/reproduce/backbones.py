"""The paper's frozen backbones and their features of CIFAR-10 and CIFAR-100 (section 5.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offprints.dis_vs_gen.features import extract_features
from offprints.shared.datasets import vision_dataset
from offprints.shared.extras import require, require_folder
from offprints.shared.validation import check_choice

Split = tuple[Tensor, Tensor]

# timm's name and the layer whose input is the feature; None: the model's output.
TIMM: dict[str, tuple[str, str | None]] = {
    "vit": ("vit_base_patch16_224.augreg_in21k", "head"),
    "resnet50": ("resnet50.tv_in1k", "fc"),
    "clip": ("resnet50_clip.openai", None),
}
# Checkpoints of the authors of the methods, in one of timm's models: key of the state dict and prefix of its names.
CHECKPOINTS: dict[str, tuple[str, str, str, str]] = {
    "moco_v2": ("resnet50.tv_in1k", "fc", "state_dict", "module.encoder_q."),
    "mae": ("vit_base_patch16_224.augreg_in21k", "head", "model", ""),
}
# The paper's tuned strengths, CIFAR-10 and CIFAR-100.
TUNED_C = {
    "vit": (0.1, 0.1),
    "resnet50": (0.2, 0.2),
    "clip": (0.1, 0.2),
    "moco_v2": (1.0, 1.0),
    "simclr_v2": (1.0, 1.0),
    "mae": (5.0, 5.0),
    "simmim": (20.0, 20.0),
}
UNNORMALIZED = ("vit", "simclr_v2")  # as in the official extraction
LAYOUT = """<folder>/train_features.npy   float [n, d + 1], the last column the label
<folder>/val_features.npy     the same of the test set"""


def load_backbone(name: str, *, checkpoint: str = "", pretrained: bool = True) -> tuple[nn.Module, str | None]:
    """A backbone and the layer whose input is its feature.

    Raises:
        ImportError: timm is not installed (extra ``timm``).
        ValueError: an unknown name, no checkpoint where one is needed, one that does not fit.
    """
    check_choice(name, "backbone", (*TIMM, *CHECKPOINTS))
    timm = require("timm", package="dis-vs-gen", extra="timm")
    if name in TIMM:
        model, layer = TIMM[name]
        return timm.create_model(model, pretrained=pretrained), layer
    model, layer, key, prefix = CHECKPOINTS[name]
    if not checkpoint:
        raise ValueError(f"backbone {name!r} needs a checkpoint: name={name} is given as {name}=<path of the file>")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)[key]
    state = {entry.removeprefix(prefix): value for entry, value in state.items() if entry.startswith(prefix)}
    backbone = timm.create_model(model, pretrained=False)
    wanted = backbone.state_dict()
    missing = [entry for entry in wanted if entry not in state and not entry.startswith(f"{layer}.")]
    if missing:
        raise ValueError(f"checkpoint {checkpoint} lacks {len(missing)} tensors of {model}, such as {missing[0]}")
    kept = {entry: value for entry, value in state.items() if entry in wanted and not entry.startswith(f"{layer}.")}
    backbone.load_state_dict(kept, strict=False)
    return backbone, layer


def image_transform(name: str) -> Any:
    """The official preprocessing: 224 pixels, bicubic, CLIP's normalization for most."""
    transforms = require("torchvision.transforms", package="dis-vs-gen", extra="timm")
    bicubic = transforms.InterpolationMode.BICUBIC
    steps = [transforms.Resize((224, 224), interpolation=bicubic), transforms.ToTensor()]
    if name not in UNNORMALIZED:
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        steps.append(transforms.Normalize(mean, std))
    return transforms.Compose(steps)


def image_features(
    backbone: nn.Module, layer: str | None, images: Any, *, device: torch.device, amp: bool, workers: int = 4
) -> Split:
    """Features and labels of a data set of images."""
    loader = torch.utils.data.DataLoader(images, batch_size=100, num_workers=workers)
    return extract_features(backbone, loader, layer=layer, device=device, amp=amp)


def cifar_features(
    name: str, dataset: Any, *, checkpoint: str, device: torch.device, amp: bool, download: bool
) -> tuple[Split, Split]:
    """Features and labels of the training and the test images of a CIFAR set under a backbone."""
    backbone, layer = load_backbone(name, checkpoint=checkpoint)
    train, test = (
        image_features(
            backbone,
            layer,
            vision_dataset(dataset, split, download=download, transform=image_transform(name)),
            device=device,
            amp=amp,
        )
        for split in ("train", "test")
    )
    return train, test


def stored_features(folder: str | Path) -> tuple[Split, Split]:
    """Features in the files that the official extraction writes, of any backbone.

    Raises:
        FileNotFoundError: the folder or a file is missing.
        ValueError: a file of another form.
    """
    splits = []
    for name in ("train_features.npy", "val_features.npy"):
        path = require_folder(folder, LAYOUT) / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; expected:\n{LAYOUT}")
        table = np.load(path, allow_pickle=False)
        if table.ndim != 2 or table.shape[1] < 2 or table.dtype.kind != "f":
            raise ValueError(f"{path} must be a floating [n, d + 1] array, got {table.dtype} {table.shape}")
        features, labels = torch.from_numpy(table[:, :-1].astype(np.float32)), torch.from_numpy(table[:, -1])
        if not bool((labels == labels.round()).all()):
            raise ValueError(f"the last column of {path} must hold labels, got fractions")
        splits.append((features, labels.long()))
    return splits[0], splits[1]

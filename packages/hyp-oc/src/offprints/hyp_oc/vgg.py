"""The paper's encoder: VGG-16 as VGG-Face has it, up to fc6."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.shared.extras import MissingData
from offprints.shared.validation import check_tensor

# Channels over 64, and the number of convolutions, of the five blocks.
BLOCKS = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))
SIDE = 224
# Red, green, blue, on the scale 0 to 255.
MEAN = (129.186, 104.762, 93.594)


def vgg_face(*, weights: str | Path | None = None, trainable: Sequence[str] = ("conv5", "fc6")) -> nn.Module:
    """VGG-16 up to `fc6` and its ReLU: images `(B, 3, 224, 224)` to features `(B, 4096)`, at least 0.

    Images are RGB on the scale 0 to 255 less `MEAN` of this module, as the weights of VGG-Face expect (470 MiB).

    Args:
        weights: A state dict with VGG-Face's names (`conv1_1.weight` ... `fc6.bias`; what comes after fc6 is left
            out), as `vgg_face_dag.pth` on the Hugging Face hub, kartiknarayan/hyp-oc. None: random weights.
        trainable: Layers (`"conv5_1"`, `"fc6"`) and blocks (`"conv5"`) that are trained; all others are frozen.

    Raises:
        TypeError: `trainable` is not a sequence of names.
        ValueError: an unknown layer; a file that lacks weights, or has others.
        MissingData: no such file.

    Example:
        >>> with torch.device("meta"):  # shapes alone
        ...     encoder = vgg_face()
        >>> encoder(torch.empty(2, 3, 224, 224, device="meta")).shape
        torch.Size([2, 4096])
    """
    encoder = VGGFace()
    encoder.freeze_but(trainable)
    if weights is not None:
        load_weights(encoder, weights)
    return encoder


class VGGFace(nn.Module):
    """VGG-16 up to fc6, its layers under VGG-Face's names; `width` 64 and `out_features` 4096 are the real one.

    Args:
        width: Channels of the first block.
        out_features: Width of fc6.
    """

    def __init__(self, *, width: int = 64, out_features: int = 4096) -> None:
        super().__init__()
        inner = 3
        for block, (times, count) in enumerate(BLOCKS, 1):
            for number in range(1, count + 1):
                self.add_module(f"conv{block}_{number}", nn.Conv2d(inner, times * width, 3, padding=1))
                inner = times * width
        self.fc6 = nn.Linear(inner * (SIDE // 2 ** len(BLOCKS)) ** 2, out_features)

    def forward(self, images: Float[Tensor, "batch 3 224 224"]) -> Float[Tensor, "batch out_features"]:
        """Features of a batch of images.

        Raises:
            TypeError: not a floating tensor.
            ValueError: another shape, an empty batch, NaN or infinity.
        """
        check_tensor(images, "images", shape=(None, 3, SIDE, SIDE))
        x = images
        for block, (_, count) in enumerate(BLOCKS, 1):
            for number in range(1, count + 1):
                x = F.relu(self.get_submodule(f"conv{block}_{number}")(x))
            x = F.max_pool2d(x, 2)
        return F.relu(self.fc6(x.flatten(1)))

    def freeze_but(self, trainable: Sequence[str]) -> None:
        """Freeze every layer but those named; a block's name stands for its layers.

        Raises:
            TypeError: not a sequence of names.
            ValueError: an unknown layer.
        """
        if isinstance(trainable, str) or not isinstance(trainable, Sequence):
            raise TypeError(f"trainable must be a sequence of layers' names, got {trainable!r}")
        layers = dict(self.named_children())
        known = [*layers, *dict.fromkeys(name.partition("_")[0] for name in layers if "_" in name)]
        for name in trainable:
            if name not in known:
                raise ValueError(f"trainable must hold names of layers or blocks, {', '.join(known)}, got {name!r}")
        for name, layer in layers.items():
            layer.requires_grad_(name in trainable or name.partition("_")[0] in trainable)


def load_weights(encoder: VGGFace, weights: str | Path) -> None:
    """Take the encoder's weights from a file; nothing in it is executed.

    Raises:
        ValueError: a file that lacks weights, or has others.
        MissingData: no such file.
    """
    path = Path(weights).expanduser()
    if not path.is_file():
        raise MissingData(
            f"weights {path} are not there: vgg_face_dag.pth is on the Hugging Face hub, kartiknarayan/hyp-oc"
        )
    stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    wanted = encoder.state_dict()
    for name, value in wanted.items():
        if name not in stored:
            raise ValueError(f"weights {path} lack {name}")
        if stored[name].shape != value.shape:
            raise ValueError(
                f"weights {path} must have {name} of shape {tuple(value.shape)}, got {tuple(stored[name].shape)}"
            )
    encoder.load_state_dict({name: stored[name] for name in wanted})

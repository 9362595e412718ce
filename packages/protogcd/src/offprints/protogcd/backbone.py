"""The paper's backbone."""

from __future__ import annotations

from torch import nn

from offprints.shared.extras import require
from offprints.shared.validation import check_bool, check_number

NAME = "vit_base_patch16_224.dino"
BLOCKS = 12


def dino_backbone(*, pretrained: bool = True, trainable_blocks: int = 1) -> nn.Module:
    """The vision transformer ViT-B/16 that was trained with DINO, frozen but for its last blocks.

    It maps images `(N, 3, 224, 224)`, normalized as ImageNet's, to features of the class token, `(N, 768)`. Frozen
    blocks keep no graph: a step costs little more than the last block's.

    Args:
        pretrained: Fetch the weights (through timm, 330 MB) where they are not there yet.
        trainable_blocks: How many of the twelve blocks are trained; the paper trains the last one.

    Raises:
        MissingExtra: timm is not installed (extra ``timm``).
        TypeError: An argument of the wrong kind.
        ValueError: Not 0 to 12 blocks.

    Example:
        >>> backbone = dino_backbone(pretrained=False)
        >>> sum(p.numel() for p in backbone.parameters() if p.requires_grad)
        7087872
    """
    pretrained = check_bool(pretrained, "pretrained")
    trainable = check_number(trainable_blocks, "trainable_blocks", low=0, high=BLOCKS, integer=True)
    timm = require("timm", package="protogcd", extra="timm")
    backbone: nn.Module = timm.create_model(NAME, pretrained=pretrained, num_classes=0)
    return trained_last(backbone, trainable)


def trained_last(backbone: nn.Module, trainable: int) -> nn.Module:
    """Freeze a transformer but for its last blocks."""
    backbone.requires_grad_(False)
    blocks = list(backbone.get_submodule("blocks").children())
    for block in blocks[len(blocks) - trainable :]:
        block.requires_grad_(True)
    return backbone

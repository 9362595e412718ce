"""IResNet, the networks of the paper: residual networks with stride-1 stem whose stages all halve the image."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from offprints.shared.validation import check_choice, check_number, check_tensor

STAGES = {34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}
WIDTHS = (64, 128, 256, 512)


class _Block(nn.Module):
    """BN, conv, BN, PReLU, conv (stride), BN, beside a shortcut that is projected where the shape changes."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != width:
            projection = nn.Conv2d(inputs, width, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.residual(x) + self.shortcut(x)
        return total


class _IResNet(nn.Module):
    """The network of `iresnet`."""

    def __init__(self, depth: int, embedding_size: int, dropout: float, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
        self.stages = nn.Sequential()
        inputs = 64
        for width, blocks in zip(WIDTHS, STAGES[depth], strict=True):
            for number in range(blocks):
                self.stages.append(_Block(inputs, width, 2 if number == 0 else 1))
                inputs = width
        side = image_size // 16
        self.embedding = nn.Sequential(
            nn.BatchNorm2d(512),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(512 * side * side, embedding_size),
            nn.BatchNorm1d(embedding_size),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch embedding"]:
        """Embed images `(B, 3, S, S)` of the size S that the network was made for."""
        check_tensor(images, "images", shape=(None, 3, self.image_size, self.image_size), finite=False)
        embedded: Tensor = self.embedding(self.stages(self.stem(images)))
        return embedded


def iresnet(
    depth: Literal[34, 50, 100], *, embedding_size: int = 512, dropout: float = 0.0, image_size: int = 112
) -> nn.Module:
    """Build the network of the paper, from images `(B, 3, S, S)` to embeddings `(B, embedding_size)`.

    Stages have 3, 4, 6, 3 blocks (34), 3, 4, 14, 3 (50) or 3, 13, 30, 3 (100) of widths 64 to 512, each halves the
    image. Convolutions have no bias and are drawn from a Kaiming-normal distribution (fan out). The embedding is a
    linear layer between batch normalizations: it is not of length 1.

    Args:
        depth: 34, 50 or 100.
        embedding_size: Width of the embeddings.
        dropout: Share of the features that training drops before the linear layer, in [0, 1); the official option
            `drop_lastfc` stands for 0.4.
        image_size: Side of the images, a multiple of 16.

    Raises:
        TypeError: an argument that is no such number.
        ValueError: an unknown `depth`, numbers out of range; in `forward`, `images` of another shape.

    Example:
        >>> network = iresnet(34, embedding_size=64, image_size=16).eval()
        >>> network(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 64])
    """
    check_choice(depth, "depth", tuple(STAGES))
    embedding_size = check_number(embedding_size, "embedding_size", low=1, integer=True)
    dropout = check_number(dropout, "dropout", low=0, high=1, open_high=True)
    image_size = check_number(image_size, "image_size", low=16, integer=True)
    if image_size % 16:
        raise ValueError(f"image_size must be a multiple of 16, got {image_size}")
    return _IResNet(int(depth), embedding_size, dropout, image_size)

"""The two backbones of the field, and the network of prototypes around any backbone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.shared.device import float32_region
from offprints.shared.extras import require
from offprints.shared.validation import check_choice, check_number, check_same_device, check_tensor
from offprints.susana.prototypes import (
    METRICS,
    Metric,
    check_class_labels,
    check_logits,
    check_temperature,
    class_means,
    count_ways,
    logits_between,
)


class PrototypicalNetwork(nn.Module):
    """A classifier of new classes: a backbone, prototypes of the embedded support, and logits of the distances.

    Support and query go through the backbone as one batch, so that batch normalization in training mode sees both.

    Args:
        backbone: A module from samples ``[n, ...]`` to features ``[n, d]``.
        metric: As in `prototypical_logits`.
        temperature: What the logits are divided by, more than 0.

    Raises:
        TypeError: `backbone` is not a module, `temperature` not a number.
        ValueError: An unknown `metric`; `temperature` is not positive.

    Example:
        >>> network = PrototypicalNetwork(torch.nn.Flatten())
        >>> support, query = torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0]])
        >>> network(support, torch.tensor([0, 1]), query)
        tensor([[-1., -9.]])
    """

    def __init__(self, backbone: nn.Module, *, metric: Metric = "sqeuclidean", temperature: float = 1.0) -> None:
        super().__init__()
        if not isinstance(backbone, nn.Module):
            raise TypeError(f"backbone must be a torch.nn.Module, got {type(backbone).__name__}")
        check_choice(metric, "metric", METRICS)
        self.backbone = backbone
        self.metric: Metric = metric
        self.temperature = check_temperature(temperature)

    def embed(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        """Compute the features of samples.

        Args:
            x: Samples ``[n, ...]``, as the backbone takes them.

        Raises:
            TypeError: The backbone gives no floating tensor.
            ValueError: It gives no row of features for each sample.
        """
        features: Tensor = self.backbone(x)
        check_tensor(features, "the result of backbone", finite=False)
        if features.ndim != 2 or len(features) != len(x):
            raise ValueError(f"backbone must return shape ({len(x)}, *), got {tuple(features.shape)}")
        return features

    def forward(
        self,
        support: Float[Tensor, "supports ..."],
        support_labels: Int[Tensor, " supports"],
        query: Float[Tensor, "queries ..."],
    ) -> Float[Tensor, "queries ways"]:
        """Compute the logits of the queries of an episode.

        Args:
            support: Samples ``[s, ...]``.
            support_labels: Their classes ``[s]``, 0..n_way-1 in any order.
            query: Samples ``[q, ...]`` of the same shape.

        Raises:
            TypeError, ValueError: Samples of different shapes; labels as in `compute_prototypes`; logits that overflow.
        """
        check_tensor(support, "support", min_ndim=2, finite=False)
        check_tensor(query, "query", min_ndim=2, finite=False)
        if support.shape[1:] != query.shape[1:]:
            raise ValueError(
                f"query must have samples of the shape of support's, {tuple(support.shape[1:])}, "
                f"got shape {tuple(query.shape)}"
            )
        check_same_device(support, query, names=("support", "query"))
        if support.dtype != query.dtype:
            raise TypeError(f"support and query must have the same type, got {support.dtype} and {query.dtype}")
        labels = check_class_labels(support_labels, support, "support_labels", of="support")
        n_way = count_ways(labels, "support_labels", None)
        embedded, queries = self.embed(torch.cat([support, query])).split([len(support), len(query)])
        check_tensor(embedded, "the features of support")
        check_tensor(queries, "the features of query")
        with float32_region(support.device):
            prototypes = class_means(embedded, labels, n_way, "support_labels")
        logits = logits_between(queries, prototypes, self.metric, self.temperature)
        return check_logits(logits, "support and query")


def conv4(*, in_channels: int = 3, hidden: int = 64, pool: Literal["global", "flatten"] = "global") -> nn.Module:
    """Build Conv4: four blocks of a 3 x 3 convolution, batch normalization, ReLU and 2 x 2 max pooling.

    113,088 parameters with the defaults. Images have at least 16 x 16 pixels, 84 x 84 in the paper.

    Args:
        in_channels: Channels of the images.
        hidden: Channels of every block.
        pool: ``"global"`` for the maximum over the last map, `hidden` features; ``"flatten"`` for all of it.

    Returns:
        A module from ``[n, in_channels, h, w]`` to ``[n, d]``.

    Raises:
        TypeError, ValueError: A count is not an integer of at least 1, an unknown `pool`.

    Example:
        >>> conv4()(torch.rand(2, 3, 84, 84)).shape
        torch.Size([2, 64])
    """
    in_channels = check_number(in_channels, "in_channels", low=1, integer=True)
    hidden = check_number(hidden, "hidden", low=1, integer=True)
    check_choice(pool, "pool", ("global", "flatten"))
    blocks = [
        nn.Sequential(
            nn.Conv2d(in_channels if i == 0 else hidden, hidden, 3, padding=1),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        for i in range(4)
    ]
    return nn.Sequential(*blocks, *([nn.AdaptiveMaxPool2d(1)] if pool == "global" else []), nn.Flatten())


class _ResidualBlock(nn.Module):
    """Three 3 x 3 convolutions beside a 1 x 1 projection, then max pooling."""

    def __init__(self, in_channels: int, channels: int, drop: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(3):
            layers.append(nn.Conv2d(in_channels if i == 0 else channels, channels, 3, padding=1, bias=False))
            layers.append(nn.BatchNorm2d(channels))
            layers += [nn.LeakyReLU(0.1)] if i < 2 else []
        self.body = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        # Drops blocks in training mode alone, scaled so that the mean stays.
        ops = require("torchvision.ops", package="susana", extra="vision") if drop else None
        self.drop = nn.Identity() if ops is None else ops.DropBlock2d(drop, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.body(x) + self.shortcut(x), 0.1)
        dropped: Tensor = self.drop(F.max_pool2d(x, 2))
        return dropped


def resnet12(
    *, in_channels: int = 3, channels: Sequence[int] = (64, 160, 320, 640), drop_block: float = 0.0
) -> nn.Module:
    """Build ResNet12: four residual blocks of three convolutions, each halving the map, and a global average.

    12,424,320 parameters with the field's widths, which are the default; the authors' own are (64, 128, 256, 512).

    Args:
        in_channels: Channels of the images.
        channels: Channels of the four blocks; the last is the number of features.
        drop_block: Drop rate, in [0, 1), of 5 x 5 blocks in the last two residual blocks, in training mode alone. More
            than 0 needs the extra ``vision``.

    Returns:
        A module from ``[n, in_channels, h, w]`` to ``[n, channels[-1]]``.

    Raises:
        TypeError, ValueError: A count is not an integer of at least 1, not four of them, `drop_block` out of range.
        MissingExtra: torchvision is needed and not installed.

    Example:
        >>> resnet12(channels=(4, 8, 8, 16)).eval()(torch.rand(2, 3, 84, 84)).shape
        torch.Size([2, 16])
    """
    in_channels = check_number(in_channels, "in_channels", low=1, integer=True)
    if not isinstance(channels, Sequence):
        raise TypeError(f"channels must be a sequence of four integers, got {channels!r}")
    if len(channels) != 4:
        raise ValueError(f"channels must be four integers, got {len(channels)}")
    widths = [in_channels, *(check_number(width, "channels", low=1, integer=True) for width in channels)]
    drop_block = check_number(drop_block, "drop_block", low=0, high=1, open_high=True)
    blocks: OrderedDict[str, nn.Module] = OrderedDict(
        (f"block{i + 1}", _ResidualBlock(widths[i], widths[i + 1], drop_block if i >= 2 else 0.0)) for i in range(4)
    )
    network = nn.Sequential(blocks)
    network.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu", a=0.1)
    return network

"""The classifier of a clustering network: cosines with one prototype per cluster."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.shared.validation import check_number, check_tensor

SAFE = (1e-3, 1e3)  # largest entries of a row whose squares every floating type holds; others are brought to 1 before


class CosineHead(nn.Module):
    """Logits ``scale * cos(x, prototype)``.

    Args:
        in_features: Dimension of the features.
        num_clusters: Number of prototypes.
        scale: Inverse temperature.

    Raises:
        TypeError, ValueError: a size below 1 or not an integer, a scale that is not positive.

    Example:
        >>> head = CosineHead(in_features=2, num_clusters=2)
        >>> head.reset_prototypes(torch.eye(2))
        >>> head(torch.tensor([[3.0, 4.0]]))
        tensor([[6., 8.]], grad_fn=<MulBackward0>)
    """

    def __init__(self, in_features: int, num_clusters: int, *, scale: float = 10.0) -> None:
        super().__init__()
        check_number(in_features, "in_features", low=1, integer=True)
        check_number(num_clusters, "num_clusters", low=1, integer=True)
        check_number(scale, "scale", low=0, open_low=True)
        self.scale = float(scale)
        self.weight = nn.Parameter(torch.randn(num_clusters, in_features))

    @property
    def prototypes(self) -> Float[Tensor, "clusters dim"]:
        """Rows of unit length."""
        return _unit(self.weight)

    @torch.no_grad()
    def reset_prototypes(self, centers: Float[Tensor, "clusters dim"]) -> None:
        """Point the prototypes at ``centers``.

        Raises:
            TypeError: not a floating tensor.
            ValueError: another shape, not finite, a center at the origin, which has no direction.
        """
        check_tensor(centers, "centers", shape=self.weight.shape)
        zeros = int((centers == 0).all(1).sum())
        if zeros:
            raise ValueError(f"centers must not be zero, got {zeros} rows of zeros")
        self.weight.copy_(_unit(centers))

    def forward(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch clusters"]:
        """Logits of a batch.

        Raises:
            TypeError: features that are not a floating tensor.
            ValueError: another number of axes or features.
        """
        check_tensor(features, "features", shape=(None, self.weight.shape[1]), finite=False, allow_empty=True)
        dtype = torch.promote_types(features.dtype, self.weight.dtype)
        return self.scale * F.linear(_unit(features.to(dtype)), self.prototypes.to(dtype))

    def extra_repr(self) -> str:
        """Sizes, as they appear in the module's repr."""
        clusters, dim = self.weight.shape
        return f"in_features={dim}, num_clusters={clusters}, scale={self.scale}"


def _unit(rows: Float[Tensor, "n dim"]) -> Float[Tensor, "n dim"]:
    """Rows of unit length, whatever their unit; rows of zeros stay. Half types are computed in float32."""
    wide = rows.float() if rows.itemsize < 4 else rows
    size = wide.detach().abs().amax(1, keepdim=True)
    unusual = (size > 0) & ((size < SAFE[0]) | (size > SAFE[1]))
    return F.normalize(wide / torch.where(unusual, size, 1.0), dim=1).to(rows.dtype)

"""Gyroplanes, the hyperplanes of the Poincare ball, and the linear classifier made of them."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.hyp_oc import _unit_ball as unit
from offprints.hyp_oc.ball import check_curvature, check_vectors
from offprints.shared.device import float32_region
from offprints.shared.validation import check_number


def gyroplane_logits(
    x: Float[Tensor, "*batch d"], points: Float[Tensor, "K d"], normals: Float[Tensor, "K d"], *, c: float
) -> Float[Tensor, "*batch K"]:
    """Signed distances to K gyroplanes, each times the size of its normal, by one matrix product.

    With P the points, A the normals and + the Mobius sum,

    `logit_k(x) = (lambda_P |A| / sqrt(c)) arsinh(2 sqrt(c) <(-P) + x, A> / ((1 - c |(-P) + x|^2) |A|))`.

    The denominators of the sums cancel, and what is left is linear in `[x, 1 + c |x|^2] / (1 - c |x|^2)`, the point on
    the hyperboloid: memory is `(B, K)`, never `(B, K, d)`. Computed in float64. For c to 0 the logit is
    `4 <x - P, A>`. A normal of length 0 gives logits 0.

    Args:
        x: Points of the ball `(..., d)`.
        points: A point of each gyroplane, in the ball, `(K, d)`.
        normals: Normals at the points, `(K, d)`, as tangent vectors transported there.
        c: Curvature, positive.

    Returns:
        `(..., K)`; positive on the side to which the normal points.

    Raises:
        TypeError: not floating tensors.
        ValueError: another width, `points` and `normals` not of one shape with two axes; c is not positive.

    Example:
        >>> points, normals = torch.tensor([[0.5, 0.0]]), torch.tensor([[1.0, 0.0]])
        >>> gyroplane_logits(torch.tensor([[0.0, 0.0], [0.8, 0.0]]), points, normals, c=1.0)
        tensor([[-2.9296],
                [ 2.9296]])
    """
    c = check_curvature(c)
    for name, vectors in (("points", points), ("normals", normals)):
        if isinstance(vectors, Tensor) and vectors.ndim != 2:
            raise ValueError(f"{name} must have 2 dimensions, got shape {tuple(vectors.shape)}")
    if isinstance(points, Tensor) and isinstance(normals, Tensor) and points.shape != normals.shape:
        raise ValueError(
            f"points and normals must have the same shape, got {tuple(points.shape)} and {tuple(normals.shape)}"
        )
    first = slice(0, 1)
    heads = [v[first] if isinstance(v, Tensor) else v for v in (points, normals)]
    dtype = check_vectors(x=x, points=heads[0], normals=heads[1])
    root = c**0.5
    on = root * unit.wide(points)
    return _logits(root * unit.wide(x), on, unit.gap(on), unit.wide(normals), root).to(dtype)


def _logits(x: Tensor, points: Tensor, gaps: Tensor, normals: Tensor, root: float) -> Tensor:
    """Logits of the unit ball's points; the gaps `(K, 1)` of the gyroplanes' points are given."""
    length = unit.norm(normals)
    direction = normals / torch.where(length == 0, 1.0, length)
    height = 2 * (points * direction).sum(-1, keepdim=True) / gaps
    # <(-P) + x, n> / (1 - |(-P) + x|^2) = ((1 - |P|^2) <x, n> - (1 - 2 <P, x> + |x|^2) <P, n>) / (gap_P gap_x)
    planes = torch.cat([2 * direction + 2 * height * points, -height], 1)
    gap = unit.gap(x)
    hyperboloid = torch.cat([x, 2 - gap], -1) / gap
    with float32_region(x.device):
        sines = hyperboloid @ planes.mT
    return (2 * length / gaps / root).squeeze(-1) * sines.asinh()


class GyroplaneClassifier(nn.Module):
    """Multinomial logistic regression in the ball: one gyroplane a class.

    The point of class k is `P_k = expmap0(offsets_k)` and its normal `A_k = normals_k (1 - c |P_k|^2)`, so that both
    parameters are Euclidean and any optimizer will do.

    Args:
        dim: Width d of the points.
        num_classes: K.
        c: Curvature, positive.

    Attributes:
        normals: `(K, d)`, Kaiming-uniform as a linear layer's weight.
        offsets: `(K, d)`, tangent vectors at 0, the same.

    Raises:
        TypeError: not numbers.
        ValueError: not positive.

    Example:
        >>> classifier = GyroplaneClassifier(8, 3, c=1.0)
        >>> classifier(project(torch.randn(5, 8), c=1.0)).shape
        torch.Size([5, 3])
    """

    def __init__(self, dim: int, num_classes: int, *, c: float = 0.1) -> None:
        super().__init__()
        self.dim = check_number(dim, "dim", low=1, integer=True)
        self.num_classes = check_number(num_classes, "num_classes", low=1, integer=True)
        self.c = check_curvature(c)
        self.normals = nn.Parameter(torch.empty(self.num_classes, self.dim))
        self.offsets = nn.Parameter(torch.empty(self.num_classes, self.dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        for parameter in (self.normals, self.offsets):
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))

    def forward(self, z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch K"]:
        """Logits of points of the ball.

        Raises:
            TypeError: z is not a floating tensor.
            ValueError: z has another width.
        """
        heads = (self.offsets[:1], self.normals[:1])
        dtype = check_vectors(z=z, offsets=heads[0], normals=heads[1])
        root = self.c**0.5
        tangent = root * unit.wide(self.offsets)
        points = unit.exp0(tangent)
        # 1 - tanh^2 would cancel far out; and the logit has lambda |A| = 2 |normals|.
        gaps = unit.norm(tangent).clamp(max=unit.REACH).cosh().pow(-2)
        normals = unit.wide(self.normals) * gaps
        return _logits(root * unit.wide(z), points, gaps, normals, root).to(dtype)

    def extra_repr(self) -> str:
        """Show the hyperparameters in the module's representation."""
        return f"dim={self.dim}, num_classes={self.num_classes}, c={self.c:g}"

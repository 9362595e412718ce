"""From Euclidean features to the ball: clipping, the exponential map at a learned point, the Riemannian gradient."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.hyp_oc import _unit_ball as unit
from offprints.hyp_oc.ball import MARGIN, check_curvature, check_vectors
from offprints.shared.device import working_dtype
from offprints.shared.validation import check_bool, check_number, check_tensor


class _RiemannianGradient(torch.autograd.Function):
    """The identity; gradients are multiplied by the inverse of the metric, `(1 - c |z|^2)^2 / 4`.

    The curvature goes with each call: two modules of different curvature do not know of each other. The backward is
    made of torch's operations, so that derivatives of training steps have the factor's own derivative.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, c: float) -> Tensor:
        return z.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        z, ctx.c = inputs
        ctx.save_for_backward(z)
        ctx.save_for_forward(z)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return _inverse_metric(z, ctx.c) * gradients[0], None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (z,) = ctx.saved_tensors
        moved: Tensor = _inverse_metric(z, ctx.c) * tangents[0]
        return moved


def _inverse_metric(z: Tensor, c: float) -> Tensor:
    return (unit.gap(c**0.5 * unit.wide(z)).square() / 4).to(z.dtype)


class ToPoincare(nn.Module):
    """Map Euclidean features into the Poincare ball: clip their length, go along them from a base point, project.

    `z = project(expmap(o, clip_features(x)))` with the base point `o = project(expmap0(origin))`. Half types come back
    as float32.

    Args:
        c: Curvature, positive.
        dim: Width d of the features; needed where the origin is learned, otherwise only checked.
        learn_origin: Whether the base point is a parameter, which starts at 0; otherwise it is 0.
        clip_radius: Largest length of a feature; None does not clip.
        riemannian_gradient: Whether the gradient that comes back through z is multiplied by `(1 - c |z|^2)^2 / 4`, the
            inverse of the metric, as in the official code. It is then not the derivative of the result.

    Attributes:
        origin: The base point as a tangent vector at 0, `(d,)`, or None.

    Raises:
        TypeError: not numbers, not switches.
        ValueError: `c`, `dim` or `clip_radius` not positive; `learn_origin` without `dim`.

    Example:
        >>> to_poincare = ToPoincare(c=1.0, clip_radius=1.0)
        >>> to_poincare(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.4570, 0.6093],
                [0.0000, 0.0000]])
    """

    def __init__(
        self,
        *,
        c: float = 0.1,
        dim: int | None = None,
        learn_origin: bool = False,
        clip_radius: float | None = 2.0,
        riemannian_gradient: bool = True,
    ) -> None:
        super().__init__()
        self.c = check_curvature(c)
        self.dim = None if dim is None else check_number(dim, "dim", low=1, integer=True)
        self.clip_radius = (
            None if clip_radius is None else check_number(clip_radius, "clip_radius", low=0, open_low=True)
        )
        self.riemannian_gradient = check_bool(riemannian_gradient, "riemannian_gradient")
        self.origin: nn.Parameter | None = None
        if check_bool(learn_origin, "learn_origin"):
            if self.dim is None:
                raise ValueError("learn_origin needs dim, the width of the features")
            self.origin = nn.Parameter(torch.zeros(self.dim))

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Map features `(..., d)` to points of the same shape.

        Raises:
            TypeError: x is not a floating tensor.
            ValueError: x has another width, or holds NaN or infinity.
        """
        check_vectors(x=x)
        check_tensor(x, "x", allow_empty=True)
        if self.dim is not None and x.shape[-1] != self.dim:
            raise ValueError(f"x must have the width {self.dim}, got shape {tuple(x.shape)}")
        return self.embed(x)

    def embed(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Do what `forward` does, without looking at the values: what overflowed before gives NaN and no error."""
        dtype = working_dtype(x) if self.origin is None else working_dtype(x, self.origin)
        root, slack = self.c**0.5, 4 * torch.finfo(dtype).eps
        tangent = unit.wide(x)
        if self.clip_radius is not None:
            tangent = unit.shortened(tangent, self.clip_radius)
        tangent = root * tangent
        if self.origin is None:
            z = unit.exp0(tangent)
        else:
            base = unit.shortened(unit.exp0(root * unit.wide(self.origin)), 1 - MARGIN)
            z = unit.add(base, unit.exp0(tangent / unit.gap(base)))
        z = (unit.shortened(z, 1 - MARGIN, slack) / root).to(dtype)
        return _RiemannianGradient.apply(z, self.c) if self.riemannian_gradient else z

    def extra_repr(self) -> str:
        """Show the hyperparameters in the module's representation."""
        origin = "learn_origin=True" if self.origin is not None else "learn_origin=False"
        return f"c={self.c:g}, dim={self.dim}, {origin}, clip_radius={self.clip_radius}"

"""Classification heads whose logits are cosines with a margin on the own class: CosFace, ArcFace, MagFace (step 1)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offprints.shared.device import float32_region, working_dtype
from offprints.shared.validation import check_number
from offprints.unpg._classes import among
from offprints.unpg._geometry import check_embeddings, clamped_norms, directions
from offprints.unpg.pairs import check_batch_labels


class HeadOutput(NamedTuple):
    """What a head returns.

    Attributes:
        cosine: `(B, C)`, with the margin on the entry of the own class, not yet scaled.
        regularizer: 0-dimensional, with its weight; 0 for CosFace and ArcFace.

    Example:
        >>> head = CosFaceHead(4, 3)
        >>> head(torch.ones(2, 4), torch.tensor([0, 2])).cosine.shape
        torch.Size([2, 3])
    """

    cosine: Float[Tensor, "batch classes"]
    regularizer: Float[Tensor, ""]


class MarginHead(nn.Module):
    """Class weights, and cosines of embeddings with them. Without a margin of its own: a normalized softmax.

    A head of your own overrides `target_cosine`, and `regularizer` if it has one; it then works inside of `MarginLoss`,
    `UNPGLoss` and `ShardedMarginHead`, chunked or not. All is computed in float32 for half types, also under autocast.

    Attributes:
        weight: `(C, d)`; only its directions matter.
        scale: What the losses multiply the cosines with.

    Args:
        in_features: Width d of the embeddings.
        num_classes: Number C of classes, at least 2.
        scale: Positive.

    Raises:
        TypeError, ValueError: an argument that is no such number; in `forward` as the losses say.

    Example:
        >>> head = MarginHead(8, 5, scale=16.0)
        >>> cosine, regularizer = head(torch.randn(3, 8), torch.tensor([4, 0, 1]))
        >>> cosine.shape, regularizer.item()
        (torch.Size([3, 5]), 0.0)
    """

    weight: Tensor

    def __init__(self, in_features: int, num_classes: int, *, scale: float = 64.0) -> None:
        super().__init__()
        self.in_features = check_number(in_features, "in_features", low=1, integer=True)
        self.num_classes = check_number(num_classes, "num_classes", low=2, integer=True)
        self.scale = float(check_number(scale, "scale", low=0, open_low=True))
        self.weight = nn.Parameter(torch.empty(num_classes, in_features))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the class weights: Xavier-uniform."""
        self.draw_rows_(self.weight)

    def draw_rows_(self, rows: Float[Tensor, "classes dim"]) -> None:
        """Fill rows of `weight` in place with initial values; `rows` may be a part of the classes."""
        bound = math.sqrt(6 / (self.num_classes + self.in_features))
        rows.uniform_(-bound, bound)

    def target_cosine(
        self, cosine: Float[Tensor, " batch"], embeddings: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, " batch"]:
        """Put the margin on cosines with the own class; `embeddings` are those rows, not normalized."""
        return cosine

    def regularizer(self, embeddings: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
        """Compute the term that is added to the loss of a batch, with its weight."""
        return embeddings.new_zeros(())

    def forward(self, embeddings: Float[Tensor, "batch dim"], labels: Int[Tensor, " batch"]) -> HeadOutput:
        """Compute the cosines of a batch, with the margin, and the regularizer.

        Raises:
            TypeError: `embeddings` is no floating tensor, `labels` no integer one.
            ValueError: not `(B, d)` and `(B,)`, an empty batch, values that are not finite, a label out of range.
        """
        labels = check_batch(self, embeddings, labels)
        with float32_region(embeddings.device):
            x = embeddings.to(working_dtype(embeddings, self.weight))
            return HeadOutput(cosines_with_margin(self, x, labels), self.regularizer(x))

    def extra_repr(self) -> str:
        """Show the sizes and hyperparameters in the module's representation."""
        return f"in_features={self.in_features}, num_classes={self.num_classes}, scale={self.scale:g}"


def check_batch(head: MarginHead, embeddings: Tensor, labels: Tensor) -> Tensor:
    """Check a batch against a head; the labels as int64."""
    check_embeddings(embeddings, width=head.in_features)
    return check_batch_labels(labels, embeddings, head.num_classes)


def unit_rows(weight: Float[Tensor, "classes dim"]) -> Float[Tensor, "classes dim"]:
    """Rows of length 1; a row of zeros stays one."""
    squares = weight.square().sum(1, keepdim=True)
    return weight * torch.where(squares > 0, squares, 1).rsqrt()


def cosines_with_margin(head: MarginHead, x: Tensor, labels: Tensor, first: int = 0) -> Float[Tensor, "batch classes"]:
    """Cosines with the rows of `head.weight`, of which the first belongs to the class `first`.

    The margin is computed for the gathered entries of the own classes alone, and a row whose own class is not among
    these gets none.
    """
    cosine = directions(x) @ unit_rows(head.weight.to(x.dtype)).T
    own, index = among(labels, first, len(head.weight))
    before = cosine.gather(1, index)[:, 0]
    after = head.target_cosine(before, x)
    if first > 0 or len(head.weight) < head.num_classes:
        after = torch.where(own, after, before)
    return cosine.scatter(1, index, after[:, None])


def add_angle(cosine: Float[Tensor, " batch"], margin: float | Tensor) -> Float[Tensor, " batch"]:
    """`cos(arccos(c) + m)` without the arc cosine: `c cos m - sqrt(1 - c^2) sin m`.

    Rounding makes cosines of parallel rows exceed 1, and the root has no finite derivative there: the cosine is kept
    1e-7 (float64: 1e-15) away from both ends, where its gradient is zero.
    """
    margin = torch.as_tensor(margin, dtype=cosine.dtype, device=cosine.device)
    end = 1 - (1e-15 if cosine.dtype == torch.float64 else 1e-7)
    c = cosine.clamp(-end, end)
    return c * margin.cos() - ((1 - c) * (1 + c)).sqrt() * margin.sin()


class CosFaceHead(MarginHead):
    """CosFace: `cos(theta) - margin` for the own class.

    Args:
        in_features: Width d of the embeddings.
        num_classes: Number C of classes, at least 2.
        scale: Positive.
        margin: Not negative.

    Raises:
        TypeError, ValueError: an argument that is no such number; in `forward` as the losses say.

    Example:
        >>> head = CosFaceHead(2, 2, margin=0.4)
        >>> _ = head.weight.data.copy_(torch.eye(2))
        >>> head(torch.tensor([[3.0, 0.0]]), torch.tensor([0])).cosine.detach()
        tensor([[0.6000, 0.0000]])
    """

    def __init__(self, in_features: int, num_classes: int, *, scale: float = 64.0, margin: float = 0.4) -> None:
        super().__init__(in_features, num_classes, scale=scale)
        self.margin = float(check_number(margin, "margin", low=0))

    def target_cosine(self, cosine: Tensor, embeddings: Tensor) -> Tensor:
        """Subtract the margin."""
        return cosine - self.margin

    def extra_repr(self) -> str:
        """Show the sizes and hyperparameters in the module's representation."""
        return f"{super().extra_repr()}, margin={self.margin:g}"


class ArcFaceHead(MarginHead):
    """ArcFace: `cos(theta + margin)` for the own class, at every angle.

    There is no easy margin: beyond `theta + margin = pi` the value rises again, as in the reference.

    Args:
        in_features: Width d of the embeddings.
        num_classes: Number C of classes, at least 2.
        scale: Positive.
        margin: In [0, pi].

    Raises:
        TypeError, ValueError: an argument that is no such number; in `forward` as the losses say.

    Example:
        >>> head = ArcFaceHead(2, 2, margin=0.5)
        >>> _ = head.weight.data.copy_(torch.eye(2))
        >>> head(torch.tensor([[1.0, 1.0]]), torch.tensor([0])).cosine.detach()
        tensor([[0.2815, 0.7071]])
    """

    def __init__(self, in_features: int, num_classes: int, *, scale: float = 64.0, margin: float = 0.5) -> None:
        super().__init__(in_features, num_classes, scale=scale)
        self.margin = float(check_number(margin, "margin", low=0, high=math.pi))

    def target_cosine(self, cosine: Tensor, embeddings: Tensor) -> Tensor:
        """Add the margin to the angle."""
        return add_angle(cosine, self.margin)

    def extra_repr(self) -> str:
        """Show the sizes and hyperparameters in the module's representation."""
        return f"{super().extra_repr()}, margin={self.margin:g}"


class MagFaceHead(MarginHead):
    """MagFace: ArcFace with a margin that grows with the length of the embedding, which measures its quality.

    With `a` the length clamped to [l_a, u_a], the margin is `l_margin` at `l_a`, `u_margin` at `u_a` and linear between
    them. It is an easy margin: it applies where the cosine is positive. The regularizer is
    `lambda_g * mean(a / u_a^2 + 1 / a)`. The gradient passes through `a` in both, and is zero where it is clamped.
    Lengths matter: a network that ends in a normalization to length 1 leaves `a` at `l_a`.

    Args:
        in_features: Width d of the embeddings.
        num_classes: Number C of classes, at least 2.
        scale: Positive.
        l_margin: Margin of the shortest embeddings, in [0, pi].
        u_margin: Margin of the longest, in [l_margin, pi].
        l_a: Positive length below which embeddings count as of this length.
        u_a: Length above which they do, above `l_a`.
        lambda_g: Weight of the regularizer, not negative.

    Raises:
        TypeError, ValueError: an argument that is no such number; in `forward` as the losses say.

    Example:
        >>> head = MagFaceHead(4, 3)
        >>> head(10 * torch.ones(2, 4), torch.tensor([0, 2])).regularizer.item()  # 35 * (20 / 110**2 + 1 / 20)
        1.807851...
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        scale: float = 64.0,
        l_margin: float = 0.45,
        u_margin: float = 0.8,
        l_a: float = 10.0,
        u_a: float = 110.0,
        lambda_g: float = 35.0,
    ) -> None:
        super().__init__(in_features, num_classes, scale=scale)
        self.l_margin = float(check_number(l_margin, "l_margin", low=0, high=math.pi))
        self.u_margin = float(check_number(u_margin, "u_margin", low=self.l_margin, high=math.pi))
        self.l_a = float(check_number(l_a, "l_a", low=0, open_low=True))
        self.u_a = float(check_number(u_a, "u_a"))
        if self.u_a <= self.l_a:
            raise ValueError(f"u_a must be larger than l_a, {self.l_a:g}, got {self.u_a:g}")
        self.lambda_g = float(check_number(lambda_g, "lambda_g", low=0))

    def draw_rows_(self, rows: Float[Tensor, "classes dim"]) -> None:
        """Fill rows of `weight` in place: uniform on [-1, 1), then of length 1."""
        rows.uniform_(-1, 1)
        rows.copy_(unit_rows(rows))

    def target_cosine(self, cosine: Tensor, embeddings: Tensor) -> Tensor:
        """Add the margin of each row's length to the angle, where the cosine is positive."""
        a = clamped_norms(embeddings, self.l_a, self.u_a)
        margin = self.l_margin + (self.u_margin - self.l_margin) / (self.u_a - self.l_a) * (a - self.l_a)
        return torch.where(cosine > 0, add_angle(cosine, margin), cosine)

    def regularizer(self, embeddings: Tensor) -> Tensor:
        """Compute `lambda_g * mean(a / u_a^2 + 1 / a)`."""
        a = clamped_norms(embeddings, self.l_a, self.u_a)
        return self.lambda_g * (a / self.u_a**2 + 1 / a).mean()

    def extra_repr(self) -> str:
        """Show the sizes and hyperparameters in the module's representation."""
        own = ("l_margin", "u_margin", "l_a", "u_a", "lambda_g")
        return ", ".join([super().extra_repr(), *(f"{name}={getattr(self, name):g}" for name in own)])

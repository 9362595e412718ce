"""The two losses: Hyp-CE tells live from pseudo-negative, Hyp-PC pulls the live embeddings together."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.hyp_oc import _unit_ball as unit
from offprints.hyp_oc.ball import check_curvature
from offprints.shared.device import working_dtype
from offprints.shared.validation import check_choice, check_labels, check_number, check_tensor, should_check

Form = Literal["geodesic", "arctan"]
FORMS = ("geodesic", "arctan")


def hyp_pc_loss(x: Float[Tensor, "batch d"], *, c: float = 0.1, form: Form = "geodesic") -> Tensor:
    """Hyp-PC, the pairwise confusion loss in the ball: half the mean distance of sample i to sample i + b / 2.

    `L = (1 / b) sum_{i < b/2} d(x_i, x_{i + b/2})`, divided by b and not by the number of pairs. `"geodesic"` takes the
    distance of the ball, `(2 / sqrt(c)) artanh(sqrt(c) |(-x_i) + x_j|)`; `"arctan"` has arctan in the place of artanh,
    as the official code does. Half types are computed in float64 as all others, and give a float32.

    Args:
        x: Points of the ball, `(b, d)`, b even.
        c: Curvature, positive.
        form: Which distance.

    Returns:
        A number; its gradient at coincident points is 0.

    Raises:
        TypeError: x is not a floating tensor.
        ValueError: x is not `(b, d)`, empty, odd, NaN, or outside the ball; c is not positive; an unknown form.

    Example:
        >>> x = torch.tensor([[0.5, 0.0], [0.1, 0.1], [-0.5, 0.0], [0.1, 0.1]])
        >>> hyp_pc_loss(x, c=1.0)
        tensor(0.5493)
    """
    check_tensor(x, "x", ndim=2)
    c = check_curvature(c)
    check_choice(form, "form", FORMS)
    if len(x) % 2:
        raise ValueError(f"x must have an even number of rows, to be paired, got {len(x)}")
    root = c**0.5
    points = root * unit.wide(x)
    if should_check(x) and not bool((unit.gap(points.detach()) > 0).all()):
        longest = float(x.detach().double().norm(dim=1).max())
        raise ValueError(
            f"x must hold points of the ball, shorter than {1 / root:.4g} for c={c:g}, got one of length {longest:.4g}:"
            " ToPoincare maps features there"
        )
    first, second = points.chunk(2)
    sine = unit.separation(first, second)
    # artanh and arctan of the length t of the Mobius difference, with sinh(artanh t)^2 = t^2 / (1 - t^2).
    half = unit.half_distance(sine) if form == "geodesic" else unit.half_angle(sine)
    return (2 / root * half.sum() / len(x)).to(working_dtype(x))


class HypPCLoss(nn.Module):
    """The module of `hyp_pc_loss`.

    Args:
        c: Curvature, positive.
        form: Which distance.

    Raises:
        TypeError: c is not a number.
        ValueError: c is not positive; an unknown form.

    Example:
        >>> loss = HypPCLoss(c=1.0, form="arctan")
        >>> loss(torch.tensor([[0.5, 0.0], [-0.5, 0.0]]))
        tensor(0.6747)
    """

    def __init__(self, *, c: float = 0.1, form: Form = "geodesic") -> None:
        super().__init__()
        self.c = check_curvature(c)
        check_choice(form, "form", FORMS)
        self.form: Form = form

    def forward(self, x: Float[Tensor, "batch d"]) -> Tensor:
        """Compute the loss of a batch of points."""
        return hyp_pc_loss(x, c=self.c, form=self.form)

    def extra_repr(self) -> str:
        """Show the hyperparameters in the module's representation."""
        return f"c={self.c:g}, form={self.form!r}"


def hyp_ce_loss(logits: Float[Tensor, "batch K"], labels: Int[Tensor, " batch"]) -> Tensor:
    """Hyp-CE: the mean cross-entropy of gyroplane logits; live is class 0, pseudo-negative class 1.

    Args:
        logits: `(B, K)`.
        labels: Integers in [0, K), `(B,)`.

    Returns:
        A number, float32 for half types.

    Raises:
        TypeError: logits are not floating, labels not integers.
        ValueError: other shapes, an empty batch, a label out of range, NaN or infinity.

    Example:
        >>> hyp_ce_loss(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1]))
        tensor(0.1269)
    """
    check_tensor(logits, "logits", ndim=2)
    labels = check_labels(labels, "labels", length=len(logits), num_classes=logits.shape[1])
    if labels.ndim != 1:
        raise ValueError(f"labels must have 1 dimensions, got shape {tuple(labels.shape)}")
    return F.cross_entropy(logits.to(working_dtype(logits)), labels)


class HypCELoss(nn.Module):
    """The module of `hyp_ce_loss`.

    Example:
        >>> loss = HypCELoss()
        >>> loss(torch.zeros(2, 2), torch.tensor([0, 1]))
        tensor(0.6931)
    """

    def forward(self, logits: Float[Tensor, "batch K"], labels: Int[Tensor, " batch"]) -> Tensor:
        """Compute the loss of a batch."""
        return hyp_ce_loss(logits, labels)


def check_weight(weight: float, name: str) -> float:
    """A loss's weight as a plain number, at least 0."""
    return check_number(weight, name, low=0)

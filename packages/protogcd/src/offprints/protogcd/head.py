"""The head: one prototype a class, in the space of the features, and a projector for the contrastive terms."""

from __future__ import annotations

import itertools
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.protogcd._rows import products, unit_rows
from offprints.protogcd.regularization import check_directions
from offprints.shared.device import working_dtype
from offprints.shared.validation import check_number, check_tensor

PROJECTOR_STD = 0.02  # of the projector's initial weights


class PrototypeHead(nn.Module):
    """Cosines of features to prototypes, and projections of the features.

    Prototypes are the rows of one weight divided by their lengths: a weight norm whose gain stays 1. Cosines are
    computed in float32 at least, under autocast and for half weights too: the pseudo-labels divide them by 0.05.

    Args:
        in_features: D.
        num_classes: K, old and new classes together, at least 2.
        hidden: Width of the projector's layers.
        projection_dim: E, of the projections.
        layers: Linear layers of the projector, with GELU between them.

    Raises:
        TypeError: A number of the wrong kind.
        ValueError: A number out of range.

    Example:
        >>> head = PrototypeHead(16, 10, hidden=32, projection_dim=8)
        >>> projections, logits, prototypes = head(torch.randn(4, 16))
        >>> projections.shape, logits.shape, prototypes.shape
        (torch.Size([4, 8]), torch.Size([4, 10]), torch.Size([10, 16]))
    """

    def __init__(
        self, in_features: int, num_classes: int, *, hidden: int = 2048, projection_dim: int = 256, layers: int = 3
    ) -> None:
        super().__init__()
        self.in_features = check_number(in_features, "in_features", low=1, integer=True)
        self.num_classes = check_number(num_classes, "num_classes", low=2, integer=True)
        hidden = check_number(hidden, "hidden", low=1, integer=True)
        projection_dim = check_number(projection_dim, "projection_dim", low=1, integer=True)
        layers = check_number(layers, "layers", low=1, high=1000, integer=True)
        widths = [self.in_features, *[hidden] * (layers - 1), projection_dim]
        parts: list[nn.Module] = []
        for inner, outer in itertools.pairwise(widths):
            linear = nn.Linear(inner, outer)
            nn.init.trunc_normal_(linear.weight, std=PROJECTOR_STD)
            nn.init.zeros_(linear.bias)
            parts += [linear, nn.GELU()]
        self.projector = nn.Sequential(*parts[:-1])
        self.weight = nn.Parameter(torch.empty(self.num_classes, self.in_features))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as of nn.Linear

    @property
    def prototypes(self) -> Float[Tensor, "K dim"]:
        """The prototypes, `(K, D)` of unit length, with their gradient."""
        return unit_rows(self.weight.to(working_dtype(self.weight)))

    @torch.no_grad()
    def set_prototypes(self, values: Float[Tensor, "rows dim"], *, start: int = 0) -> None:
        """Give prototypes from `start` on other values, such as the means of the labeled classes.

        Args:
            values: `(M, D)`; their lengths do not matter.
            start: The first class whose prototype is set.

        Raises:
            TypeError: `values` are not floating, or `start` is no integer.
            ValueError: `values` are not `(M, D)`, more than there are classes from `start` on, not finite, or a row is
                zero.
        """
        check_tensor(values, "values", shape=(None, self.in_features))
        start = check_number(start, "start", low=0, high=self.num_classes - 1, integer=True)
        if start + len(values) > self.num_classes:
            raise ValueError(
                f"values must have at most {self.num_classes - start} rows from start={start} on, got {len(values)}"
            )
        check_directions(values, "values")
        rows = unit_rows(values.to(working_dtype(values)))
        self.weight[start : start + len(values)] = rows.to(self.weight)

    def forward(
        self, features: Float[Tensor, "rows dim"]
    ) -> tuple[Float[Tensor, "rows E"], Float[Tensor, "rows K"], Float[Tensor, "K dim"]]:
        """Projections, cosine logits and unit prototypes.

        Args:
            features: `(N, D)`, of any floating type; they are brought to that of the weights.

        Raises:
            TypeError: `features` are not floating.
            ValueError: `features` are not `(N, D)`.
        """
        check_tensor(features, "features", shape=(None, self.in_features), finite=False, allow_empty=True)
        features = features.to(self.weight.dtype)
        prototypes = self.prototypes
        return self.projector(features), self.cosines(features, prototypes), prototypes

    def cosines(
        self, features: Float[Tensor, "rows dim"], prototypes: Float[Tensor, "K dim"] | None = None
    ) -> Float[Tensor, "rows K"]:
        """The logits alone, for predictions, which need no projections.

        Args:
            features: `(N, D)`.
            prototypes: What `prototypes` gave, where it is at hand.
        """
        prototypes = self.prototypes if prototypes is None else prototypes
        return products(unit_rows(features.to(prototypes.dtype)), prototypes)

    def extra_repr(self) -> str:
        """Show the sizes in the module's representation."""
        return f"in_features={self.in_features}, num_classes={self.num_classes}"

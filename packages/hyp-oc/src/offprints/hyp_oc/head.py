"""The head on top of any feature extractor, and the loss that trains it on the live class alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from offprints.hyp_oc.ball import check_curvature
from offprints.hyp_oc.embedding import ToPoincare
from offprints.hyp_oc.gyroplanes import GyroplaneClassifier
from offprints.hyp_oc.losses import FORMS, Form, check_weight, hyp_ce_loss, hyp_pc_loss
from offprints.hyp_oc.pseudo_negatives import PseudoNegativeSampler
from offprints.shared.validation import check_choice, check_number, check_tensor

WIDEST = 2**24  # a layer's width: what is more is a mistake


class HypOCOutput(NamedTuple):
    """What `HypOCHead` gives.

    Attributes:
        embedding: Points of the ball, `(B, d)`.
        logits: Gyroplane logits, `(B, K)`; class 0 is live.

    Example:
        >>> HypOCHead(16, (8, 4))(torch.randn(3, 16)).embedding.shape
        torch.Size([3, 4])
    """

    embedding: Tensor
    logits: Tensor


class HypOCHead(nn.Module):
    """Linear layers with ReLU, the last one too; then into the ball, and gyroplanes.

    Args:
        in_features: Width of the features; 4096 for VGG-Face's fc6.
        hidden: Widths of the layers; the last is the ball's.
        c: Curvature, positive.
        clip_radius: Largest length before the ball; None does not clip.
        learn_origin: Whether the base point is learned.
        num_classes: Gyroplanes; class 0 is live, 1 pseudo-negative.
        riemannian_gradient: As in `ToPoincare`.

    Attributes:
        layers: The linear layers.
        to_poincare: `ToPoincare`.
        classifier: `GyroplaneClassifier`.

    Raises:
        TypeError: not numbers, not switches.
        ValueError: out of range; no layers.

    Example:
        >>> head = HypOCHead(16, (8, 4))
        >>> embedding, logits = head(torch.randn(3, 16))
        >>> logits.softmax(1)[:, 1].shape  # the spoof score
        torch.Size([3])
    """

    def __init__(
        self,
        in_features: int = 4096,
        hidden: Sequence[int] = (8192, 1000, 512, 128),
        *,
        c: float = 0.1,
        clip_radius: float | None = 2.0,
        learn_origin: bool = True,
        num_classes: int = 2,
        riemannian_gradient: bool = True,
    ) -> None:
        super().__init__()
        self.in_features = check_number(in_features, "in_features", low=1, integer=True)
        self.c = check_curvature(c)
        sizes = check_hidden(hidden)
        num_classes = check_number(num_classes, "num_classes", low=2, integer=True)
        widths = (self.in_features, *sizes)
        self.to_poincare = ToPoincare(
            c=self.c,
            dim=sizes[-1],
            learn_origin=learn_origin,
            clip_radius=clip_radius,
            riemannian_gradient=riemannian_gradient,
        )
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(widths))
        self.classifier = GyroplaneClassifier(sizes[-1], num_classes, c=self.c)

    def forward(self, features: Float[Tensor, "batch in_features"]) -> HypOCOutput:
        """Embed and classify features `(B, in_features)`, in the type of the head's parameters.

        Raises:
            TypeError: not a floating tensor.
            ValueError: not two axes, empty, of another width, NaN or infinite.
        """
        check_features(features, self.in_features)
        x = features.to(self.classifier.normals.dtype)  # of an encoder in half precision, too
        for layer in self.layers:
            x = F.relu(layer(x))
        embedding = self.to_poincare.embed(x)
        return HypOCOutput(embedding, self.classifier(embedding))


class HypOCLossOutput(NamedTuple):
    """What `HypOCLoss` gives; unpacks as two.

    Attributes:
        loss: The weighted sum, a number.
        parts: `"hyp_ce"` and `"hyp_pc"` before their weights, with their graphs: detach what you keep.

    Example:
        >>> output = HypOCLossOutput(torch.tensor(2.0), {"hyp_ce": torch.tensor(1.5), "hyp_pc": torch.tensor(0.5)})
        >>> float(output.loss)
        2.0
    """

    loss: Tensor
    parts: dict[str, Tensor]


class HypOCLoss(nn.Module):
    """Draw pseudo-negatives, run the head once on both, and add Hyp-CE and Hyp-PC.

    A training epoch begins with `sampler.reset()`. The paper clips the gradient of the head's parameters to the norm 3.

    Args:
        head: `HypOCHead`, or a module that returns `(embedding, logits)` and has the curvature as its attribute `c`.
        sampler: `PseudoNegativeSampler`.
        pc_weight: Weight of Hyp-PC, at least 0.
        ce_weight: Weight of Hyp-CE, at least 0.
        form: Distance of Hyp-PC.

    Raises:
        TypeError: `head` or `sampler` is another kind of thing, a weight not a number.
        ValueError: a negative weight, an unknown form.

    Example:
        >>> criterion = HypOCLoss(HypOCHead(16, (8, 4)), PseudoNegativeSampler(16))
        >>> loss, parts = criterion(torch.randn(6, 16))
        >>> sorted(parts)
        ['hyp_ce', 'hyp_pc']
    """

    def __init__(
        self,
        head: nn.Module,
        sampler: PseudoNegativeSampler,
        *,
        pc_weight: float = 1.0,
        ce_weight: float = 1.0,
        form: Form = "geodesic",
    ) -> None:
        super().__init__()
        if not isinstance(head, nn.Module) or not hasattr(head, "c"):
            raise TypeError(f"head must be a HypOCHead, or a module with the attribute c, got {type(head).__name__}")
        if not isinstance(sampler, PseudoNegativeSampler):
            raise TypeError(f"sampler must be a PseudoNegativeSampler, got {type(sampler).__name__}")
        width = getattr(head, "in_features", sampler.dim)
        if width != sampler.dim:
            raise ValueError(f"sampler must draw features of the head's width, {width}, got {sampler.dim}")
        self.pc_weight = check_weight(pc_weight, "pc_weight")
        self.ce_weight = check_weight(ce_weight, "ce_weight")
        check_choice(form, "form", FORMS)
        self.form: Form = form
        self.c = check_curvature(head.c)  # type: ignore[arg-type]
        self.head = head
        self.sampler = sampler

    def forward(
        self, features: Float[Tensor, "batch in_features"], *, generator: torch.Generator | None = None
    ) -> HypOCLossOutput:
        """Compute the loss of a batch of features of the live class, `(b, in_features)`, b even.

        Args:
            features: As they come from the encoder, with or without a gradient.
            generator: Of the pseudo-negatives.

        Raises:
            TypeError: not a floating tensor; a head of one's own that returns another kind of thing.
            ValueError: not two axes, empty, odd, of another width, NaN or infinite; other shapes from the head.
        """
        check_features(features, self.sampler.dim)
        live = len(features)
        if live % 2:
            raise ValueError(f"features must have an even number of rows, for Hyp-PC's pairs, got {live}")
        negatives = self.sampler(features, generator=generator)
        embedding, logits = _pair(self.head(torch.cat([features, negatives])), 2 * live)
        labels = torch.arange(2 * live, device=features.device) // live
        parts = {
            "hyp_ce": hyp_ce_loss(logits, labels),
            "hyp_pc": hyp_pc_loss(embedding[:live], c=self.c, form=self.form),
        }
        return HypOCLossOutput(self.ce_weight * parts["hyp_ce"] + self.pc_weight * parts["hyp_pc"], parts)

    def extra_repr(self) -> str:
        """Show the hyperparameters in the module's representation."""
        return f"pc_weight={self.pc_weight:g}, ce_weight={self.ce_weight:g}, form={self.form!r}"


def _pair(output: object, rows: int) -> tuple[Tensor, Tensor]:
    """What a head returns for so many rows; it may be the user's own."""
    if not isinstance(output, (tuple, list)) or len(output) != 2 or not all(isinstance(o, Tensor) for o in output):
        raise TypeError(f"head must return the two tensors (embedding, logits), got {type(output).__name__}")
    embedding, logits = output
    for name, part, width in (("embedding", embedding, 1), ("logits", logits, 2)):
        if part.ndim != 2 or len(part) != rows or part.shape[1] < width:
            raise ValueError(
                f"head must return {name} of shape ({rows}, at least {width}) for {rows} rows, got {tuple(part.shape)}"
            )
    return embedding, logits


def check_features(features: Tensor, width: int) -> None:
    """Refuse what is not a batch of finite features of this width."""
    check_tensor(features, "features", ndim=2)
    if features.shape[1] != width:
        raise ValueError(f"features must have the width {width}, got shape {tuple(features.shape)}")


def check_hidden(hidden: Sequence[int]) -> tuple[int, ...]:
    """The widths as plain integers."""
    if isinstance(hidden, (str, bytes)) or not isinstance(hidden, Sequence):
        raise TypeError(f"hidden must be a sequence of widths, got {hidden!r} ({type(hidden).__name__})")
    if not hidden:
        raise ValueError("hidden must hold at least one width, that of the ball")
    return tuple(check_number(width, "hidden", low=1, high=WIDEST, integer=True) for width in hidden)

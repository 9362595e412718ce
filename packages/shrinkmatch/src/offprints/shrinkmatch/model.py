"""The network: a backbone, the main head, and the auxiliary head that only training uses (step 7)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offprints.shared.validation import check_number, check_same_device, check_tensor


class AuxHead(nn.Module):
    """The auxiliary head: two hidden layers with batch normalization, for the shrunk loss alone.

    Linear, BatchNorm, LeakyReLU, twice, then Linear: ``(B, in_features)`` to ``(B, num_classes)``. In training mode a
    batch needs at least two rows.

    Args:
        in_features: d.
        num_classes: C.
        hidden: Width of the hidden layers; None: d/4, at least 1.
        slope: Of LeakyReLU.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.

    Example:
        >>> AuxHead(128, 10)(torch.randn(6, 128)).shape
        torch.Size([6, 10])
    """

    def __init__(self, in_features: int, num_classes: int, *, hidden: int | None = None, slope: float = 0.1) -> None:
        super().__init__()
        self.in_features = check_number(in_features, "in_features", low=1, integer=True)
        num_classes = check_number(num_classes, "num_classes", low=1, integer=True)
        width = max(1, self.in_features // 4)
        if hidden is not None:
            width = check_number(hidden, "hidden", low=1, integer=True)
        slope = check_number(slope, "slope", low=0)
        self.layers = nn.Sequential(
            nn.Linear(self.in_features, width),
            nn.BatchNorm1d(width),
            nn.LeakyReLU(slope),
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
            nn.LeakyReLU(slope),
            nn.Linear(width, num_classes),
        )

    def forward(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """Logits ``(B, C)`` of features ``(B, d)``, in the type of the weights.

        Raises:
            TypeError: not a floating tensor.
            ValueError: not ``(B, d)``, or empty; in training mode, one row.
        """
        check_tensor(features, "features", shape=(None, self.in_features), finite=False)
        if self.training and len(features) < 2:
            raise ValueError("features must have at least 2 rows in training mode, for batch normalization, got 1")
        found: Tensor = self.layers(features.to(next(self.parameters()).dtype))
        return found


class ShrinkMatchModel(nn.Module):
    """A backbone with the main head and the auxiliary head.

    The labeled batch and both views go through the backbone and the main head together, so that batch normalization
    sees their union; the auxiliary head sees the strong views alone. With one argument it is a classifier.

    Args:
        backbone: Any module from a batch of samples to features ``(N, feature_dim)``; it is used as it is, not copied.
        feature_dim: d.
        num_classes: C, at least 2.

    Attributes:
        backbone, head, aux_head: The parts; ``head`` is linear.

    Raises:
        TypeError: ``backbone`` is not a module.
        ValueError: a number out of range.

    Example:
        >>> model = ShrinkMatchModel(torch.nn.Linear(20, 16), 16, num_classes=5)
        >>> labeled, weak, strong = torch.randn(2, 20), torch.randn(6, 20), torch.randn(6, 20)
        >>> [logits.shape[0] for logits in model(labeled, weak, strong)]
        [2, 6, 6, 6]
        >>> model.eval()(labeled).shape
        torch.Size([2, 5])
    """

    def __init__(self, backbone: nn.Module, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        if not isinstance(backbone, nn.Module):
            raise TypeError(f"backbone must be a torch.nn.Module, got {type(backbone).__name__}")
        self.feature_dim = check_number(feature_dim, "feature_dim", low=1, integer=True)
        num_classes = check_number(num_classes, "num_classes", low=2, integer=True)
        self.backbone = backbone
        self.head = nn.Linear(self.feature_dim, num_classes)
        self.aux_head = AuxHead(self.feature_dim, num_classes)

    def forward(
        self, x_lab: Tensor, x_weak: Tensor | None = None, x_strong: Tensor | None = None
    ) -> Float[Tensor, "batch classes"] | tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits of one batch, or those of a training step: what is given decides, not the mode.

        Args:
            x_lab: ``(B_x, ...)``, labeled samples, or any samples.
            x_weak: ``(B, ...)``, weak views; None with ``x_strong``.
            x_strong: ``(B, ...)``, strong views of the same samples.

        Returns:
            ``(B_x, C)``, or the four logits that `ShrinkMatchLoss` takes: labeled ``(B_x, C)``, weak, strong, and
            strong from the auxiliary head, ``(B, C)`` each.

        Raises:
            TypeError: what is not a tensor; a backbone that does not return one.
            ValueError: one view without the other, empty batches, samples of different shapes or devices, other numbers
                of views; features that are not ``(N, feature_dim)``.
        """
        check_tensor(x_lab, "x_lab", min_ndim=1, floating=False, finite=False)
        if x_weak is None and x_strong is None:
            return self._main(self._features(x_lab))
        if x_weak is None or x_strong is None:
            missing = "x_weak" if x_weak is None else "x_strong"
            raise ValueError(f"{missing} must be given with the other view, got None")
        for x, name in ((x_weak, "x_weak"), (x_strong, "x_strong")):
            check_tensor(x, name, min_ndim=1, floating=False, finite=False)
            if x.shape[1:] != x_lab.shape[1:]:
                shape = tuple(x_lab.shape[1:])
                raise ValueError(f"{name} must hold samples of x_lab's shape, {shape}, got {tuple(x.shape[1:])}")
        if len(x_weak) != len(x_strong):
            raise ValueError(f"x_strong must have as many rows as x_weak, {len(x_weak)}, got {len(x_strong)}")
        check_same_device(x_lab, x_weak, x_strong, names=("x_lab", "x_weak", "x_strong"))
        features = self._features(torch.cat([x_lab, x_weak, x_strong]))
        sizes = [len(x_lab), len(x_weak), len(x_strong)]
        logits_x, logits_w, logits_s = self._main(features).split(sizes)
        return logits_x, logits_w, logits_s, self.aux_head(features[-len(x_strong) :])

    def _features(self, x: Tensor) -> Tensor:
        features = self.backbone(x)
        if not isinstance(features, Tensor):
            raise TypeError(f"backbone must return a tensor, got {type(features).__name__}")
        if features.shape != (len(x), self.feature_dim):
            raise ValueError(
                f"backbone must return features of shape {(len(x), self.feature_dim)}, got {tuple(features.shape)}"
            )
        return features

    def _main(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features.to(self.head.weight.dtype))
        return logits


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameters for an optimizer: no weight decay on biases and batch normalization."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]

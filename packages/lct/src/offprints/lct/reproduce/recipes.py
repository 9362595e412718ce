"""The parts of the paper, each of which can be off: the full recipe, its ablation, the baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from offprints.lct.schedules import adaptive_c, initial_c
from offprints.lct.training import LatentConsistencyLoss

RecipeName = Literal["full", "no-cauchy", "no-diffusion", "no-coupling", "no-adaptive-c", "no-norm", "baseline"]
SQUARED = 1000.0  # Pseudo-Huber with so large a c is the squared loss


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Which parts of the paper are on.

    Attributes:
        robust: the loss; "squared" is neither the paper's nor the baseline's.
        diffusion: the diffusion loss at early timesteps.
        coupling: "ot" or "none".
        adaptive: adaptive scaling-c; otherwise c stays at its first value.
        norm: "non_scaling" LayerNorm or the "usual" normalization of the network.
    """

    robust: Literal["squared", "pseudo_huber", "cauchy"] = "cauchy"
    diffusion: bool = True
    coupling: Literal["ot", "none"] = "ot"
    adaptive: bool = True
    norm: Literal["non_scaling", "usual"] = "non_scaling"

    def loss(self, *, total_steps: int, final_scales: int, dim: int, validate: bool = True) -> LatentConsistencyLoss:
        """The training loss; ``dim`` is the one whose c is taken."""
        c: Any = SQUARED if self.robust == "squared" else initial_c(dim)
        return LatentConsistencyLoss(
            total_steps=total_steps,
            final_scales=final_scales,
            robust="cauchy" if self.robust == "cauchy" else "pseudo_huber",
            c=(lambda n: adaptive_c(n, dim=dim)) if self.adaptive else c,
            diffusion_weight=5.0 if self.diffusion else 0.0,
            coupling=self.coupling,
            validate=validate,
        )


RECIPES: dict[RecipeName, Recipe] = {
    "full": Recipe(),
    "no-cauchy": Recipe(robust="pseudo_huber"),
    "no-diffusion": Recipe(diffusion=False),
    "no-coupling": Recipe(coupling="none"),
    "no-adaptive-c": Recipe(adaptive=False),
    "no-norm": Recipe(norm="usual"),
    "baseline": Recipe(robust="pseudo_huber", diffusion=False, coupling="none", adaptive=False, norm="usual"),
}

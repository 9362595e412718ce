"""Causal training of physics-informed neural networks (Wang, Sankaran, Perdikaris; arXiv 2203.07404).

A PINN that minimizes the residual at all times at once may settle in a wrong solution of low residual. Here the
residual at a time counts by ``exp(-eps x accumulated earlier residual)``: later times only once the earlier ones are
solved.

**Patent notice.** The authors state that the causal training algorithm is patented (University of Pennsylvania) and not
for commercial use. The license of this package covers its code alone: it grants no right under that patent.
"""

from typing import TYPE_CHECKING

from offprints.pinn_causal.boundary import Dirichlet, Neumann, Periodic, Robin
from offprints.pinn_causal.embeddings import FourierFeatures, SpaceTimeEmbedding
from offprints.pinn_causal.equation import Equation, Problem
from offprints.pinn_causal.exact import ExactInitialCondition
from offprints.pinn_causal.jets import derivatives, jet
from offprints.pinn_causal.networks import MLP, ModifiedMLP
from offprints.pinn_causal.problems import AllenCahn, KuramotoSivashinsky, Lorenz, NavierStokes2d
from offprints.pinn_causal.references import (
    Reference,
    Reference2d,
    relative_l2,
    solve_allen_cahn,
    solve_kuramoto_sivashinsky,
    solve_lorenz,
    solve_navier_stokes_2d,
)
from offprints.pinn_causal.schedule import EpsilonSchedule
from offprints.pinn_causal.weights import CausalLoss, CausalLossResult, causal_loss, causal_weights
from offprints.shared.lazy import attach as _attach

if TYPE_CHECKING:
    from offprints.pinn_causal.estimator import CausalPINN

__all__ = [
    "MLP",
    "AllenCahn",
    "CausalLoss",
    "CausalLossResult",
    "CausalPINN",
    "Dirichlet",
    "EpsilonSchedule",
    "Equation",
    "ExactInitialCondition",
    "FourierFeatures",
    "KuramotoSivashinsky",
    "Lorenz",
    "ModifiedMLP",
    "NavierStokes2d",
    "Neumann",
    "Periodic",
    "Problem",
    "Reference",
    "Reference2d",
    "Robin",
    "SpaceTimeEmbedding",
    "causal_loss",
    "causal_weights",
    "derivatives",
    "jet",
    "relative_l2",
    "solve_allen_cahn",
    "solve_kuramoto_sivashinsky",
    "solve_lorenz",
    "solve_navier_stokes_2d",
]

# What stands on scikit-learn, which takes as long to import as torch, is loaded when it is asked for.
__getattr__, __dir__ = _attach(__name__, {"CausalPINN": "offprints.pinn_causal.estimator"})

"""Causal training of physics-informed neural networks (Wang, Sankaran, Perdikaris; arXiv 2203.07404).

A PINN that minimizes the residual at all times at once may settle in a wrong solution of low residual. Here the
residual at a time counts by ``exp(-eps x accumulated earlier residual)``: later times only once the earlier ones are
solved.

**Patent notice.** The authors state that the causal training algorithm is patented (University of Pennsylvania) and not
for commercial use. The license of this package covers its code alone: it grants no right under that patent.
"""

from offprints.pinn_causal.embeddings import FourierFeatures, SpaceTimeEmbedding
from offprints.pinn_causal.estimator import CausalPINN
from offprints.pinn_causal.jets import jet
from offprints.pinn_causal.networks import MLP, ExactInitialCondition, ModifiedMLP
from offprints.pinn_causal.problems import AllenCahn, KuramotoSivashinsky, Lorenz, NavierStokes2d, Problem
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

__all__ = [
    "MLP",
    "AllenCahn",
    "CausalLoss",
    "CausalLossResult",
    "CausalPINN",
    "EpsilonSchedule",
    "ExactInitialCondition",
    "FourierFeatures",
    "KuramotoSivashinsky",
    "Lorenz",
    "ModifiedMLP",
    "NavierStokes2d",
    "Problem",
    "Reference",
    "Reference2d",
    "SpaceTimeEmbedding",
    "causal_loss",
    "causal_weights",
    "jet",
    "relative_l2",
    "solve_allen_cahn",
    "solve_kuramoto_sivashinsky",
    "solve_lorenz",
    "solve_navier_stokes_2d",
]

"""The package keeps the form that all of them have; the README's example runs."""

import offprints.pinn_causal as package
from offprints.shared.testing import check_package

PUBLIC = """
CausalLossResult causal_weights causal_loss CausalLoss EpsilonSchedule jet SpaceTimeEmbedding FourierFeatures MLP
ModifiedMLP ExactInitialCondition Equation Dirichlet Neumann Robin Periodic derivatives
Problem AllenCahn KuramotoSivashinsky Lorenz NavierStokes2d Reference Reference2d
solve_allen_cahn solve_kuramoto_sivashinsky solve_lorenz solve_navier_stokes_2d relative_l2 CausalPINN
"""


def test_package() -> None:
    check_package(
        "pinn-causal",
        public=PUBLIC.split(),
    )


def test_patent_notice() -> None:
    assert "patented" in package.__doc__
    assert "not\nfor commercial use" in package.__doc__


def test_readme(readme_example) -> None:
    names = readme_example()
    assert names["error"] < 0.1

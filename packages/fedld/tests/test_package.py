"""The package keeps the form that all of them have, and does without Flower."""

import subprocess
import sys

from offprints.shared.testing import check_package

PUBLIC = [
    "AggregationReport",
    "FeatureShift",
    "FedLDStrategy",
    "FederatedResult",
    "LocalConfig",
    "MarginControlLoss",
    "PrincipalGradientAggregator",
    "client_app",
    "dirichlet_partition",
    "loss_decomposition",
    "margin_control_loss",
    "principal_aggregate",
    "principal_coefficients",
    "server_app",
    "shard_partition",
    "simulate",
    "train_client",
]


def test_package() -> None:
    check_package("fedld", public=PUBLIC)


def test_readme(readme_example) -> None:
    left = readme_example()
    assert left["report"].rejected == {2: "weight is not finite"}
    assert left["result"].history[-1]["accuracy"] > 0.8


def test_without_flower_the_error_names_the_extra() -> None:
    source = """
import sys
sys.modules["flwr"] = None  # as if it were not installed
import offprints.fedld as fedld
assert fedld.principal_aggregate
try:
    fedld.FedLDStrategy
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, timeout=120)
    assert "pip install 'offprints-fedld[flower]'" in done.stdout

"""The experiment of the paper: its presets and its claims."""

from __future__ import annotations

from dataclasses import dataclass

from offprints.shared.experiment import Experiment, Run


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the experiment, in the paper's names."""


def reproduce(config: Config, run: Run) -> None:
    """Record the paper's claims."""


experiment = Experiment(
    name="pndm",
    title="Pseudo numerical methods for diffusion models on manifolds",
    arxiv="2202.09778",
    config=Config,
    presets={"smoke": Config(), "quick": Config(), "paper": Config()},
    function=reproduce,
)

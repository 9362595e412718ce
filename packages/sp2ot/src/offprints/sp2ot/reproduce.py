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
    name="sp2ot",
    title="SP²OT: Semantic-regularized progressive partial optimal transport for imbalanced clustering",
    arxiv="2404.03446",
    config=Config,
    presets={"smoke": Config(), "quick": Config(), "paper": Config()},
    function=reproduce,
)

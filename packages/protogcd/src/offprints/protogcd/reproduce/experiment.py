"""The experiment: digits; Fashion-MNIST on features made on the spot and CIFAR-10; the paper's data sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from offprints.protogcd.reproduce.clothing import MediumSettings, reproduce_medium
from offprints.protogcd.reproduce.digits import DigitsSettings, reproduce_digits
from offprints.protogcd.reproduce.paper import PaperSettings, reproduce_paper
from offprints.protogcd.reproduce.training import TrainingSettings
from offprints.shared.experiment import Experiment, Run


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the experiment.

    Attributes:
        digits: Handwritten digits.
        medium: Fashion-MNIST and CIFAR-10. With any split, this is all that is run.
        paper: The paper's data sets. With the name of one, this is all that is run.
        data: Folder of the folders of Fashion-MNIST and CIFAR-10, or of the paper's data sets; default:
            ``OFFPRINTS_DATA``.
        download: Fetch data and weights where they are missing.
    """

    digits: DigitsSettings = field(default_factory=DigitsSettings)
    medium: MediumSettings = field(default_factory=MediumSettings)
    paper: PaperSettings = field(default_factory=PaperSettings)
    data: Path | None = None
    download: bool = False


def reproduce(config: Config, run: Run) -> None:
    """Record the claims."""
    if config.paper.dataset:
        reproduce_paper(config.paper, config.data, config.download, run)
    elif config.medium.splits:
        reproduce_medium(config.medium, config.data, config.download, run)
    else:
        reproduce_digits(config.digits, run)


experiment = Experiment(
    name="protogcd",
    title="ProtoGCD: unified and unbiased prototype learning for generalized category discovery",
    arxiv="2504.03755",
    config=Config,
    presets={
        "smoke": Config(
            digits=DigitsSettings(splits=1, more_splits=1, max_classes=7, training=TrainingSettings(epochs=2))
        ),
        "quick": Config(),
        "medium": Config(medium=MediumSettings(splits=3)),
        "paper": Config(paper=PaperSettings(dataset="cifar100")),
    },
    function=reproduce,
)

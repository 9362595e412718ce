"""An experiment: a config dataclass, its presets, its claims; run directories that can be resumed."""

from offprints.shared.experiment.claims import Claim, Relation
from offprints.shared.experiment.experiment import Experiment
from offprints.shared.experiment.run import Run
from offprints.shared.experiment.units import UnitError

__all__ = ["Claim", "Experiment", "Relation", "Run", "UnitError"]

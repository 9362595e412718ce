"""The experiment: what `offprints run susana` carries out. Nothing outside this folder imports it."""

from offprints.susana.reproduce.experiment import experiment

__all__ = ["experiment"]

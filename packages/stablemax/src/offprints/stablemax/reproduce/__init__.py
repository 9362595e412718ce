"""The experiment: what `offprints run stablemax` carries out. Nothing outside this folder imports it."""

from offprints.stablemax.reproduce.experiment import experiment

__all__ = ["experiment"]

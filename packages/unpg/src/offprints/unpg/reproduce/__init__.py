"""The experiment: what `offprints run unpg` carries out. Nothing outside this folder imports it."""

from offprints.unpg.reproduce.experiment import experiment

__all__ = ["experiment"]

"""The experiment: what `offprints run protogcd` carries out. Nothing outside this folder imports it."""

from offprints.protogcd.reproduce.experiment import experiment

__all__ = ["experiment"]

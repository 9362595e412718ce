"""The experiment: what `offprints run lct` carries out. Nothing outside this folder imports it."""

from offprints.lct.reproduce.experiment import experiment

__all__ = ["experiment"]

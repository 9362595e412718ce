"""The experiment: what `offprints run shrinkmatch` carries out. Nothing outside this folder imports it."""

from offprints.shrinkmatch.reproduce.experiment import experiment

__all__ = ["experiment"]

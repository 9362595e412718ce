"""The experiment: what `offprints run neural-collapse` carries out. Nothing outside this folder imports it."""

from offprints.neural_collapse.reproduce.experiment import experiment

__all__ = ["experiment"]

"""The experiment: what `offprints run comp-sum` carries out. Nothing outside this folder imports it."""

from offprints.comp_sum.reproduce.experiment import experiment

__all__ = ["experiment"]

"""The experiment: what `offprints run betti-matching` carries out. Nothing outside this folder imports it."""

from offprints.betti_matching.reproduce.experiment import experiment

__all__ = ["experiment"]

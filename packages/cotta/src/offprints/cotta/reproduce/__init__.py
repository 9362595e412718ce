"""The experiment: what `offprints run cotta` carries out. Nothing outside this folder imports it."""

from offprints.cotta.reproduce.experiment import experiment

__all__ = ["experiment"]

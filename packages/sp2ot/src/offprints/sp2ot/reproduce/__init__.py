"""The experiment: what `offprints run sp2ot` carries out. Nothing outside this folder imports it."""

from offprints.sp2ot.reproduce.experiment import experiment

__all__ = ["experiment"]

"""The experiment: what `offprints run pndm` carries out. Nothing outside this folder imports it."""

from offprints.pndm.reproduce.experiment import experiment

__all__ = ["experiment"]

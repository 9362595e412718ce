"""The experiment: what `offprints run aef-ocl` carries out. Nothing outside this folder imports it."""

from offprints.aef_ocl.reproduce.experiment import experiment

__all__ = ["experiment"]

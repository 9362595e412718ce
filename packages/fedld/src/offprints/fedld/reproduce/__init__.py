"""The experiment: what `offprints run fedld` carries out. Nothing outside this folder imports it."""

from offprints.fedld.reproduce.experiment import experiment

__all__ = ["experiment"]

"""The experiment: what `offprints run more-is-better` carries out. Nothing outside this folder imports it."""

from offprints.more_is_better.reproduce.experiment import experiment

__all__ = ["experiment"]

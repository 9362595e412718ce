"""The experiment: what `offprints run dis-vs-gen` carries out. Nothing outside this folder imports it."""

from offprints.dis_vs_gen.reproduce.experiment import experiment

__all__ = ["experiment"]

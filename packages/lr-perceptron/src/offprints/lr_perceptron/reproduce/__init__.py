"""The experiment: what `offprints run lr-perceptron` carries out. Nothing outside this folder imports it."""

from offprints.lr_perceptron.reproduce.experiment import experiment

__all__ = ["experiment"]

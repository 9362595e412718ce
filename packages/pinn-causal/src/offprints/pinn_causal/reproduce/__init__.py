"""The experiment: what `offprints run pinn-causal` carries out. Nothing outside this folder imports it."""

from offprints.pinn_causal.reproduce.experiment import experiment

__all__ = ["experiment"]

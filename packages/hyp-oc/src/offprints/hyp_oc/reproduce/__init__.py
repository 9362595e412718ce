"""The experiment: what `offprints run hyp-oc` carries out. Nothing outside this folder imports it."""

from offprints.hyp_oc.reproduce.experiment import experiment

__all__ = ["experiment"]

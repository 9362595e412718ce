"""The experiment: what `offprints run wad` carries out. Nothing outside this folder imports it."""

from offprints.wad.reproduce.experiment import experiment

__all__ = ["experiment"]

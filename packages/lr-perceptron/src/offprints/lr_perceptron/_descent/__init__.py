"""The engine behind `separate`, `sweep` and the estimators: many problems on the same samples at once."""

from offprints.lr_perceptron._descent.loop import Outcome, descend
from offprints.lr_perceptron._descent.problems import Problems

__all__ = ["Outcome", "Problems", "descend"]

"""Compiled combinatorics: filtrations, discrete gradients, reductions. Private to the method."""

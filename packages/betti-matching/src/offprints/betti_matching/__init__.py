"""Betti matching: topologically faithful image segmentation via induced matching of persistence barcodes.

Stucki, Paetzold, Shit, Menze, Bauer, ICML 2023, https://arxiv.org/abs/2211.15272.
"""

from offprints.betti_matching.cycles import representative_cycles
from offprints.betti_matching.losses import BettiMatchingLoss, DiceBettiMatchingLoss, betti_matching_loss
from offprints.betti_matching.matching import (
    betti_numbers,
    compute_barcode,
    compute_matching,
    compute_matching_batch,
)
from offprints.betti_matching.metrics import BettiMatchingMetric, betti_matching_error, betti_number_error
from offprints.betti_matching.options import Comparison, Construction, Filtration
from offprints.betti_matching.pairs import Matching, PairList
from offprints.betti_matching.plots import plot_barcodes, plot_matching

__all__ = [
    "BettiMatchingLoss",
    "BettiMatchingMetric",
    "Comparison",
    "Construction",
    "DiceBettiMatchingLoss",
    "Filtration",
    "Matching",
    "PairList",
    "betti_matching_error",
    "betti_matching_loss",
    "betti_number_error",
    "betti_numbers",
    "compute_barcode",
    "compute_matching",
    "compute_matching_batch",
    "plot_barcodes",
    "plot_matching",
    "representative_cycles",
]

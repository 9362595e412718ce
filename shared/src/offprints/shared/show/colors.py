"""The colors of all figures: Okabe and Ito's, told apart by color-blind readers too, and four shades of gray."""

from __future__ import annotations

BLUE = "#0072B2"
VERMILION = "#D55E00"
GREEN = "#009E73"
PINK = "#CC79A7"
SKY = "#56B4E9"
ORANGE = "#E69F00"
BLACK = "#000000"
YELLOW = "#F0E442"  # faint on white

INK = "#262626"  # text
GRAY = "#595959"  # ticks, and what is said in passing
MUTED = "#8C8C8C"  # frames, and what is there for reference
PALE = "#E3E3E3"  # grids

CYCLE = (BLUE, VERMILION, GREEN, PINK, SKY, ORANGE, BLACK, YELLOW)

"""One style for every figure, drawn by Agg without pyplot, so that the caller's matplotlib stays as it is."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from offprints.shared.show import colors

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def style() -> dict[str, Any]:
    """The settings of matplotlib that make the house style."""
    from cycler import cycler

    return {
        "axes.axisbelow": True,
        "axes.edgecolor": colors.MUTED,
        "axes.grid": True,
        "axes.labelcolor": colors.INK,
        "axes.labelsize": 10,
        "axes.linewidth": 0.8,
        "axes.prop_cycle": cycler(color=colors.CYCLE),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": colors.INK,
        "axes.titlelocation": "left",
        "axes.titlepad": 8.0,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "errorbar.capsize": 2.5,
        "figure.constrained_layout.h_pad": 0.06,
        "figure.constrained_layout.w_pad": 0.06,
        "figure.dpi": 150,
        "figure.facecolor": "white",
        "figure.titlesize": 12,
        "figure.titleweight": "bold",
        "font.family": "sans-serif",
        "font.size": 10,
        "grid.color": colors.PALE,
        "grid.linewidth": 0.7,
        "hist.bins": 30,
        "image.cmap": "viridis",
        "image.interpolation": "nearest",
        "legend.fontsize": 9,
        "legend.frameon": False,
        "legend.handlelength": 1.6,
        "lines.linewidth": 1.8,
        "lines.markersize": 4.5,
        "patch.linewidth": 0.0,
        "savefig.dpi": 150,
        "scatter.edgecolors": "none",
        "text.color": colors.INK,
        "xtick.color": colors.GRAY,
        "xtick.labelsize": 9,
        "xtick.major.size": 3.0,
        "ytick.color": colors.GRAY,
        "ytick.labelsize": 9,
        "ytick.major.size": 3.0,
    }


_OF_FIGURE = ("figsize", "dpi", "layout", "facecolor", "edgecolor", "linewidth", "frameon")


@contextlib.contextmanager
def drawing(nrows: int, ncols: int, **options: Any) -> Iterator[tuple[Figure, Any]]:
    """A styled figure and its axes; ``options`` go to Figure and to Figure.subplots."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    of_figure = {key: options.pop(key) for key in _OF_FIGURE if key in options}
    size = (6.0, 4.0) if nrows == ncols == 1 else (4.2 * ncols, 3.4 * nrows)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the reader's own matplotlibrc does not change the figures
        matplotlib.rcParams.update(cast("Any", style()))
        figure = Figure(**{"figsize": size, "layout": "constrained"} | of_figure)
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(nrows, ncols, **options)


def to_png(figure: Figure) -> bytes:
    """The picture, without a stamp of the software that made it."""
    image = io.BytesIO()
    figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()

"""Draw charts as PNG files; the only module of `scaler` that imports matplotlib.

Figures are made without pyplot, so no backend is chosen and no figure has to be closed. The import takes a second:
modules that do more than draw import this one where they draw.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogFormatter, LogFormatterMathtext, LogLocator, MaxNLocator

from scaler.core.files import whole_file

__all__ = [
    "COLOURS",
    "MARKERS",
    "Axes",
    "Figure",
    "FuncFormatter",
    "Line2D",
    "LogLocator",
    "MaxNLocator",
    "Patch",
    "one_panel",
    "panels",
    "save",
]

# names of runs, labels and sources are text, also where they have two "$"
matplotlib.rcParams["text.parse_math"] = False

# Okabe and Ito 2008, "Color Universal Design": the colour-blind can tell these apart. Markers do so in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"


def panels(count: int, width: float, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure of `width` x `height` inches and its panels, side by side.

    Args:
        options: further arguments of matplotlib's Figure, such as dpi or layout.
    """
    figure = Figure(figsize=(width, height), **options)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def one_panel(width: float = 8, height: float = 4.5, dpi: int = 120, **options: Any) -> tuple[Figure, Axes]:
    """Return a figure of `width` x `height` inches with a single panel, and that panel."""
    figure, (axes,) = panels(1, width, height, dpi=dpi, **options)
    return figure, axes


def save(figure: Figure, path: Path, **options: Any) -> None:
    """Write a figure as a PNG file that appears whole or not at all."""
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        for ticks in (axis.major, axis.minor):
            if isinstance(ticks.formatter, LogFormatterMathtext):  # whose labels would need parse_math
                set_formatter = axis.set_major_formatter if ticks is axis.major else axis.set_minor_formatter
                set_formatter(LogFormatter())
    with whole_file(path) as file:
        figure.savefig(cast(IO[bytes], file), format="png", **options)

"""Draw curves as PNG files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from scaler.core.files import whole_file


def draw_curves(curves: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Draw the held-out losses of runs, each by step, in one picture."""
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    for name, curve in curves.items():
        axes.plot([*curve], [*curve.values()], marker="o", markersize=3, label=name)
    axes.set(xlabel="optimizer step", ylabel="held-out masked-LM loss (nats)")
    save(figure, axes, path)


def save(figure: Any, axes: Any, path: Path) -> None:
    """Finish a picture with legend and grid, and write it as a PNG that appears whole."""
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    with whole_file(path) as file:
        figure.savefig(file, format="png")
    plt.close(figure)

"""A confusion matrix as a table and as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

MOST_LABELS = 60  # of a picture; beyond, its names cannot be read


def confusion_csv(table_LL: np.ndarray, labels: Sequence[str]) -> str:
    """A row for each gold label, a column for each predicted one."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["gold \\ predicted", *labels])
    for label, row in zip(labels, table_LL.tolist(), strict=True):
        writer.writerow([label, *row])
    return stream.getvalue()


def confusion_png(table_LL: np.ndarray, labels: Sequence[str]) -> bytes | None:
    """The same, coloured by the share of each gold label; None where matplotlib is not installed, or labels are too many."""
    if len(labels) > MOST_LABELS:
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    shares_LL = table_LL / np.maximum(table_LL.sum(1, keepdims=True), 1)
    side = 2.5 + 0.45 * len(labels)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares_LL, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=90)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("gold")
    for row, column in np.argwhere(table_LL > 0).tolist():
        colour = "white" if shares_LL[row, column] > 0.5 else "black"
        axes.text(column, row, str(table_LL[row, column]), ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, label="share of the gold label")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()

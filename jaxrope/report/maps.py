"""Maps of retrieval: the mean score in each cell of length and depth (or another column of items).

Colours and scale are those of Fu et al. (2024, "Data Engineering for Scaling Language Models to
128K Context"), whose maps many papers show: red at 0, amber, green at 1.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrope.report import floors

COLOURS = ("#F0496E", "#EBB839", "#0CD79F")  # at 0, 0.5 and 1
MOST_CELLS = 10  # of a column of numbers; more values share cells of equal width

Row = Mapping[str, Any]


class Map(NamedTuple):
    """The content of one map.

    Attributes:
      title: of the panel.
      lengths: tokens, of each column of cells.
      names: of each row of cells, the first one at the top.
      cells: mean scores [names, lengths], NaN where there is no item.
      sentence: to write instead of the cells, or "".
    """

    title: str
    lengths: list[int]
    names: list[str]
    cells: np.ndarray
    sentence: str


def collect(rows: Sequence[Row], original_len: int | None) -> list[Map]:
    """Returns a map for each suite, label and column; one for all labels that are at floor.

    Args:
      rows: of eval.json; those without "columns" have none.
      original_len: tokens the model was trained on, or None.
    """
    retrieval_maps = []
    for suite in dict.fromkeys(row["suite"] for row in rows if row.get("columns")):
        suite_rows = [row for row in rows if row["suite"] == suite]
        low = floors.labels(suite_rows, original_len)
        if low:
            sentence = floors.sentence(suite_rows, original_len)
            retrieval_maps.append(Map(suite, [], [], np.zeros((0, 0)), sentence))
        for label in dict.fromkeys(row["label"] for row in suite_rows if row["label"] not in low):
            label_rows = sorted(
                (r for r in suite_rows if r["label"] == label), key=lambda row: row["length"]
            )
            retrieval_maps += [
                _map(label_rows, f"{suite}, {label}", column) for column in label_rows[0]["columns"]
            ]
    return retrieval_maps


def draw(ax, retrieval_map: Map, original_len: int | None) -> None:
    """Draws a map; a white line stands between the lengths up to the trained one and the others."""
    ax.set_title(retrieval_map.title)
    if retrieval_map.sentence:
        say(ax, retrieval_map.sentence)
        return
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("retrieval", COLOURS)
    height, width = retrieval_map.cells.shape
    edges = np.arange(width + 1), np.arange(height + 1)
    border = dict(edgecolors="grey", linestyle="--", linewidth=0.5)
    mesh = ax.pcolormesh(*edges, retrieval_map.cells, cmap=colours, vmin=0, vmax=1, **border)
    ax.invert_yaxis()  # depth 0, the beginning of the text, is at the top
    ax.grid(False)
    ax.set_xticks(np.arange(width) + 0.5, [f"{n:,}" for n in retrieval_map.lengths], rotation=45)
    ax.set_yticks(np.arange(height) + 0.5, retrieval_map.names)
    inside = sum(n <= original_len for n in retrieval_map.lengths) if original_len else 0
    if inside:
        ax.axvline(inside, color="white", linestyle="--", linewidth=2)
    ax.set(xlabel="length, tokens")
    ax.figure.colorbar(mesh, ax=ax, ticks=(0, 0.5, 1))


def say(ax, text: str) -> None:
    """Writes a sentence where there is nothing to draw."""
    ax.set_axis_off()
    write(ax, text, (0.0, 0.9))


def write(ax, text: str, place: tuple[float, float], width: int = 60) -> None:
    """Writes a sentence in lines of `width` characters, from a place in shares of the panel
    downwards."""
    ax.text(*place, textwrap.fill(text, width), transform=ax.transAxes, va="top", fontsize=8)


def _map(rows: Sequence[Row], title: str, column: str) -> Map:
    values = [value for row in rows for value in row["items"][column] if value is not None]
    names, place_fn = _cells(values)
    cells = np.full((len(names), len(rows)), math.nan)
    for x, row in enumerate(rows):
        items = row["items"]
        scores = items["score"] if "score" in items else items["found"]
        by_place: dict[int, list[float]] = {}
        for value, score in zip(items[column], scores, strict=True):
            if value is not None:
                by_place.setdefault(place_fn(value), []).append(float(score))
        for y, cell_scores in by_place.items():
            cells[y, x] = np.mean(cell_scores)
    return Map(f"{title}: {column}", [row["length"] for row in rows], names, cells, "")


def _cells(values: Sequence[float | str]):
    """Returns (the names of a column's cells, value -> its cell)."""
    distinct = sorted(set(values))
    if len(distinct) <= MOST_CELLS or isinstance(distinct[0], str):
        return [_name(value) for value in distinct], distinct.index
    low, high = min(distinct[0], 0), max(distinct[-1], 1)  # a depth is a share
    width = (high - low) / MOST_CELLS
    names = [_name(low + (i + 0.5) * width) for i in range(MOST_CELLS)]
    return names, lambda value: min(int((value - low) / width), MOST_CELLS - 1)


def _name(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"

"""Maps of retrieval: the mean score in each cell of length and depth (or another column of items).

The maps are those of Fu et al. (2024, "Data Engineering for Scaling Language Models to 128K
Context"), in colours that everybody tells apart: orange at 0, blue at 1.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrope.report import floors

COLOURS = ("#E08214", "#F2E8D5", "#5FA8DC")  # at 0, 0.5 and 1
LINE = "#1f2328"  # at the trained length; on the colours, in either theme
MOST_LEVEL = 3  # lengths below a map that are not turned
MOST_NAMES = 6  # beside a map; of more, every second one
MOST_CELLS = 10  # of a column of numbers; more values share cells of equal width

Row = Mapping[str, Any]


class Map(NamedTuple):
    """The content of one map.

    Attributes:
      suite, label, column: whose scores, and of what.
      lengths: tokens, of each column of cells.
      names: of each row of cells, the first one at the top.
      cells: mean scores [names, lengths], NaN where there is no item.
      sentence: to write instead of the cells, or "".
    """

    suite: str
    label: str
    column: str
    lengths: list[int]
    names: list[str]
    cells: np.ndarray
    sentence: str

    @property
    def title(self) -> str:
        """Returns what the map is of."""
        return f"{self.suite}, {self.label}: {self.column}" if self.label else self.suite


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
            retrieval_maps.append(Map(suite, "", "", [], [], np.zeros((0, 0)), sentence))
        for label in dict.fromkeys(row["label"] for row in suite_rows if row["label"] not in low):
            label_rows = sorted(
                (r for r in suite_rows if r["label"] == label), key=lambda row: row["length"]
            )
            retrieval_maps += [_map(label_rows, column) for column in label_rows[0]["columns"]]
    return retrieval_maps


def draw(
    ax, retrieval_map: Map, original_len: int | None, *, has_words: bool, has_bar: bool
) -> None:
    """Draws a map; a line stands between the lengths up to the trained one and the others. Without
    `has_words` a caption says what it is of.
    """
    ax.set_title(retrieval_map.title if has_words else retrieval_map.label)
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
    turn = 90 if width > MOST_LEVEL else 0
    lengths = [f"{n:,}" for n in retrieval_map.lengths]
    ax.set_xticks(np.arange(width) + 0.5, lengths, rotation=turn)
    few = slice(None, None, 1 + (height > MOST_NAMES))
    ax.set_yticks(np.arange(height)[few] + 0.5, retrieval_map.names[few])
    inside = sum(n <= original_len for n in retrieval_map.lengths) if original_len else 0
    if inside:
        ax.axvline(inside, color=LINE, linestyle="--", linewidth=2)
    if has_words:
        ax.set(xlabel="length, tokens" + ("; dashed: trained" if inside else ""))
    if has_bar:
        ax.figure.colorbar(mesh, ax=ax, ticks=(0, 0.5, 1), label="share found")


def say(ax, text: str) -> None:
    """Writes a sentence where there is nothing to draw."""
    ax.set_axis_off()
    write(ax, text, (0.0, 0.9))


def write(ax, text: str, place: tuple[float, float], width: int = 60) -> None:
    """Writes a sentence in lines of `width` characters, from a place in shares of the panel
    downwards."""
    ax.text(*place, textwrap.fill(text, width), transform=ax.transAxes, va="top", fontsize=8)


def _map(rows: Sequence[Row], column: str) -> Map:
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
    suite, label = rows[0]["suite"], rows[0]["label"]
    return Map(suite, label, column, [row["length"] for row in rows], names, cells, "")


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

"""The numbers behind each figure, as rows of a table; the first row is the header.

They are what is drawn, unrounded: a CSV beside the page has them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrope.report import panels
from jaxrope.report.maps import Map

Row = Mapping[str, Any]
Numbers = list[list[Any]]


def scores(rows: Sequence[Row], suite: str) -> Numbers:
    """Returns label, length, score and its 95% interval of one suite."""
    own = [row for row in rows if row["suite"] == suite]
    name = next(iter(own[0]["metrics"]))
    found: Numbers = [["label", "length", name, "low", "high"]]
    for row in own:
        metrics = row["metrics"]
        found.append([row["label"], row["length"], *(metrics[k] for k in (name, "low", "high"))])
    return found


def needles(rows: Sequence[Row]) -> Numbers:
    """Returns what `scores` does, of all suites "needle-K"."""
    return scores(panels.needle_rows(rows), "needle")


def differences(rows: Sequence[Row]) -> Numbers:
    """Returns label, length, and the paired difference of mean NLL with its interval."""
    found: Numbers = [["label", "length", "nats per token", "low", "high", "baseline"]]
    for row in rows:
        if gap := row.get("difference"):
            values = [gap[k] for k in ("mean", "low", "high", "baseline")]
            found.append([row["label"], row["length"], *values])
    return found


def positions(rows: Sequence[Row]) -> Numbers:
    """Returns label and mean loss of each range of positions at the longest length, unsmoothed."""
    own = [row for row in rows if row["suite"] == "perplexity"]
    longest = max(row["length"] for row in own)
    found: Numbers = [["label", "from position", "to position", "nats per token"]]
    for row in own:
        if row["length"] == longest:
            edges = row["items"]["position_edges"]
            some = zip(edges[:-1], edges[1:], row["items"]["position_nll"], strict=True)
            found += [[row["label"], *values] for values in some]
    return found


def of_map(shown: Map) -> Numbers:
    """Returns a map: a row for each of its rows, a column for each length."""
    found: Numbers = [[shown.title, *shown.lengths]]
    for name, cells in zip(shown.names, shown.cells.tolist(), strict=True):
        found.append([name, *cells])
    return found


def columns(rows: Sequence[Row], names: Sequence[str]) -> Numbers:
    """Returns the named values of each row; what a row lacks is empty."""
    return [list(names), *([row.get(name) for name in names] for row in rows)]


def factors(curves: Mapping[str, Any]) -> Numbers:
    """Returns a row for each rotary pair and a column for each method; with factors by layer, a
    column for each layer.
    """
    header: list[Any] = ["rotary pair"]
    values = []
    for name, curve in curves.items():
        layers = np.atleast_2d(curve)
        many = len(layers) > 1
        header += [f"{name}, layer {i}" if many else name for i in range(len(layers))]
        values += layers.tolist()
    pairs = max(map(len, values))
    padded = [value + [None] * (pairs - len(value)) for value in values]
    return [header, *([pair, *row] for pair, row in enumerate(zip(*padded, strict=True)))]

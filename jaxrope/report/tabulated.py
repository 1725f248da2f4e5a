"""The numbers behind each figure, as rows of a table; the first row is the header.

They are the drawn values, unrounded, for the CSV beside the page.
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
    suite_rows = [row for row in rows if row["suite"] == suite]
    name = next(iter(suite_rows[0]["metrics"]))
    numbers: Numbers = [["label", "length", name, "low", "high"]]
    for row in suite_rows:
        metrics = row["metrics"]
        numbers.append([row["label"], row["length"], *(metrics[k] for k in (name, "low", "high"))])
    return numbers


def needles(rows: Sequence[Row]) -> Numbers:
    """Returns the same as `scores`, for all suites "needle-K"."""
    return scores(panels.needle_rows(rows), "needle")


def differences(rows: Sequence[Row]) -> Numbers:
    """Returns label, length, and the paired difference of mean NLL with its interval."""
    numbers: Numbers = [["label", "length", "nats per token", "low", "high", "baseline"]]
    for row in rows:
        if gap := row.get("difference"):
            values = [gap[k] for k in ("mean", "low", "high", "baseline")]
            numbers.append([row["label"], row["length"], *values])
    return numbers


def positions(rows: Sequence[Row]) -> Numbers:
    """Returns label and mean loss of each range of positions at the longest length, unsmoothed."""
    suite_rows = [row for row in rows if row["suite"] == "perplexity"]
    longest = max(row["length"] for row in suite_rows)
    numbers: Numbers = [["label", "from position", "to position", "nats per token"]]
    for row in suite_rows:
        if row["length"] == longest:
            edges = row["items"]["position_edges"]
            bins = zip(edges[:-1], edges[1:], row["items"]["position_nll"], strict=True)
            numbers += [[row["label"], *values] for values in bins]
    return numbers


def of_maps(retrieval_maps: Sequence[Map]) -> Numbers:
    """Returns maps of one suite: a row for each cell."""
    numbers: Numbers = [["label", "length", retrieval_maps[0].column, "score"]]
    for each in retrieval_maps:
        for name, cells in zip(each.names, each.cells.tolist(), strict=True):
            places = zip(each.lengths, cells, strict=True)
            numbers += [[each.label, length, name, score] for length, score in places]
    return numbers


def columns(rows: Sequence[Row], names: Sequence[str]) -> Numbers:
    """Returns the named values of each row; a missing value is None."""
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

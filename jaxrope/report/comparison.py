"""Several workdirs side by side: figures on common axes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrope.report import curves, evaluations, figures, searches
from jaxrope.report.page import Figure, Origin, Section

Row = Mapping[str, Any]
MOST_LINES = 8  # of runs in one figure; more cannot be distinguished


def sections(names: Sequence[str], parts: Sequence[Any]) -> list[Section]:
    """Returns the sections that compare workdirs; [] if no figure has common axes.

    Args:
      names: of the workdirs.
      parts: a collect.Part of each.
    """
    optional_sections = [
        _evaluations(names, parts),
        _factors(_named(names, parts, "factors")),
        _runs("Searches", curves.draw_searches, _named(names, parts, "generations"), "search"),
        _runs("Trainings", curves.draw_losses, _named(names, parts, "steps"), "training"),
    ]
    return [section for section in optional_sections if section is not None]


def _evaluations(names, parts) -> Section | None:
    lengths = {part.original_len for part in parts if part.rows}
    having = [(name, part.rows) for name, part in zip(names, parts, strict=True) if part.rows]
    if len(having) < 2:
        return None
    rows, texts, measured = [], {}, {}
    for name, run_rows in having:
        for row in run_rows:
            place = row["suite"], row["length"]
            texts.setdefault(place, set()).add(row.get("fingerprint"))
            same = (*place, row["label"], row.get("fingerprint"), str(row["metrics"]))
            if same in measured:  # a baseline that both runs have measured
                continue
            measured[same] = row
            plain = {key: value for key, value in row.items() if key != "difference"}
            of = {"of": row["label"], "label": f"{row['label']}, {name}", "columns": []}
            rows.append(plain | of)
    shared = {suite for suite in {row["suite"] for row in rows} if _shares(having, suite)}
    rows = [row for row in rows if row["suite"] in shared]
    if not rows:
        return None
    other = any(
        len(fingerprints) > 1 for (suite, _), fingerprints in texts.items() if suite in shared
    )
    charts = evaluations.charts(rows, lengths.pop() if len(lengths) == 1 else None)
    title = "Side by side" + (", not all of them of the same text" if other else "")
    return Section(title, [], charts, Origin(), kind="evaluation")


def _shares(having, suite: str) -> bool:
    return sum(any(row["suite"] == suite for row in rows) for _, rows in having) > 1


def _factors(named: Mapping[str, Any]) -> Section | None:
    different: dict[str, Any] = {}
    for name, factors in named.items():
        if not any(np.array_equal(factors, other) for other in different.values()):
            different[name] = factors
    if len(different) < 2:
        return None
    figure = searches.factors_figure(different, None)
    return Section("Side by side", [], [figure], Origin(), kind="factors")


def _named(names, parts, kind: str) -> dict[str, Any]:
    """Returns {name: what a run has of `kind`}, with the workdir where two have one name."""
    runs: dict[str, Any] = {}
    for workdir, part in zip(names, parts, strict=True):
        for name, run in getattr(part, kind).items():
            if name in runs:
                name = f"{name}, {workdir}"
            while name in runs:
                name += "'"
            runs[name] = run
    return runs


def _runs(title: str, draw, runs: Mapping[str, list[Row]], kind: str) -> Section | None:
    runs = {name: rows for name, rows in runs.items() if len(rows) > 1}
    if not 2 <= len(runs) <= MOST_LINES:
        return None
    key = "best" if "best" in next(iter(runs.values()))[0] else "loss"
    ends = ", ".join(f"{name} {rows[-1][key]:.4g}" for name, rows in runs.items())
    numbers: list[list[Any]] = [["workdir", "place", key]]
    for name, rows in runs.items():
        numbers += [[name, row.get("generation", row.get("step")), row[key]] for row in rows]
    figure = Figure(
        name=title.lower(),
        drawing=figures.one(lambda ax: draw(ax, runs)),
        alt=f"{title} of {len(runs)} runs; at the end: {ends}.",
        caption=f"{title}: at the end {ends}.",
        numbers=numbers,
    )
    return Section("Side by side", [], [figure], Origin(), kind=kind)

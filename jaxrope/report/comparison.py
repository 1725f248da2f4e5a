"""Several workdirs side by side: figures on common axes."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxrope.report import curves, evaluations, figures, searches
from jaxrope.report.page import Figure, Folder, Section

Row = Mapping[str, Any]
MOST_LINES = 8  # of runs in one figure; more cannot be distinguished


def folder(names: Sequence[str], parts: Sequence[Any]) -> Folder | None:
    """Returns the part of the page that compares workdirs; None if no figure has common axes.

    Args:
      names: of the workdirs.
      parts: a collect.Part of each.
    """
    optional_sections = [
        _evaluations(names, parts),
        _factors(names, parts),
        _runs("Searches", curves.draw_searches, _lines(names, parts, "generations", least=2)),
        _runs("Training", curves.draw_losses, _lines(names, parts, "steps", least=1)),
    ]
    sections = [section for section in optional_sections if section is not None]
    return Folder("Side by side", ", ".join(names), [], sections) if sections else None


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
            rows.append({**plain, "label": f"{row['label']}, {name}", "columns": []})
    shared = {suite for suite in {row["suite"] for row in rows} if _shares(having, suite)}
    rows = [row for row in rows if row["suite"] in shared]
    if not rows:
        return None
    other = any(
        len(fingerprints) > 1 for (suite, _), fingerprints in texts.items() if suite in shared
    )
    charts = evaluations.charts(rows, lengths.pop() if len(lengths) == 1 else None)
    title = "Evaluations, not all of them of the same text" if other else "Evaluations"
    return Section(title, [], charts, "", {})


def _shares(having, suite: str) -> bool:
    return sum(any(row["suite"] == suite for row in rows) for _, rows in having) > 1


def _factors(names, parts) -> Section | None:
    run_factors = {n: p.factors for n, p in zip(names, parts, strict=True) if p.factors is not None}
    if len(run_factors) < 2:
        return None
    return Section("Factors", [], [searches.factors_figure(run_factors, None)], "", {})


def _lines(names, parts, kind: str, *, least: int) -> dict[str, list[Row]]:
    """Returns {workdir, or workdir/stage: rows}, of runs with `least` rows at least."""
    runs = {}
    for name, part in zip(names, parts, strict=True):
        for stage, rows in getattr(part, kind).items():
            if len(rows) >= least:
                runs[f"{name}/{stage}" if stage else name] = rows
    return runs


def _runs(title: str, draw, runs: Mapping[str, list[Row]]) -> Section | None:
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
    return Section(title, [], [figure], "", {})

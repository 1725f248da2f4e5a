"""From eval.json to a section of a page, and to lines of its summary."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrope.report import figures, floors, maps, panels, tables, tabulated
from jaxrope.report.page import Figure, Origin, Section
from jaxrope.shell import duration

Row = Mapping[str, Any]
MOST_TABLES = 3  # of tasks; more are one table
SCORES = ("perplexity", "longppl")  # suites of losses; all others look for something
MOST_OPEN = 16  # figures of one evaluation that are open at first
CAPTIONS = {
    "perplexity": "Perplexity by length; the table has the numbers.",
    "difference": "Paired difference of mean loss, with its 95% interval from 5 windows on.",
    "position": "Loss by position in the longest windows, smoothed.",
    "passkey": "Share of keys found, with Wilson's 95% interval.",
    "needle": "Share of needles found, with Wilson's 95% interval.",
}


def complete(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows with the columns of their maps, which older files do not name."""
    return [row if "columns" in row else {**row, "columns": _columns(row["items"])} for row in rows]


def joined(contents: Sequence[Row]) -> Row:
    """Returns the first of several eval.json, with the suites of the others that it lacks."""
    rows: list[Row] = []
    for content in contents:
        suites = {row["suite"] for row in rows}
        rows += [row for row in content["rows"] if row["suite"] not in suites]
    ruler = next((content["ruler"] for content in contents if content.get("ruler")), {})
    return {**contents[0], "rows": rows, "ruler": ruler}


def sections(content: Row, origin: Origin) -> list[Section]:
    """Returns the sections of an evaluation: its scores, and what it has found in long texts.

    Args:
      content: of eval.json, its rows `complete`.
      origin: of the sections.
    """
    rows, original_len = content["rows"], tables.trained_len(content["model"])
    retrieval = [row for row in rows if row["suite"] not in SCORES]
    scores = [row for row in rows if row["suite"] in SCORES]
    name, sections = Path(content["model"]["source"]).name, []
    for kind, title, kind_rows in (
        ("evaluation", f"Evaluation of {name}", scores),
        ("retrieval", f"Retrieval and tasks of {name}", retrieval),
    ):
        if kind_rows:
            shown = _tables(kind_rows, original_len)
            more = [table for table in shown if table[0].startswith(tables.DIFFERENCE)]
            shown = [table for table in shown if table not in more]  # its figure is open
            if kind == "retrieval" and content.get("ruler"):
                shown.append(tables.ruler_table(content["ruler"]))
            drawn = charts(kind_rows, original_len)
            folded = len(drawn) > MOST_OPEN
            look = dict(kind=kind, is_folded=folded, more=[*more, tables.cost_table(kind_rows)])
            sections.append(Section(title, shown, drawn, origin, **look))
    return sections


def charts(rows: Sequence[Row], original_len: int | None) -> list[Figure]:
    """Returns every figure of the rows: curves, then the maps of each suite. A task at floor is
    named above its table, and has no figure; what has one length only has no curve."""
    shown = []
    for name, drawing in figures.evaluation_figures(rows, original_len=original_len).items():
        numbers = _numbers(name, rows)
        places = {line[1] for line in numbers[1:]}
        if drawing.axes[0].axison and (len(places) > 1 or name == "perplexity"):
            shown.append(Figure(name, drawing, alt(name, rows), caption(name), numbers))
    groups: dict[str, list[maps.Map]] = {}
    for each in maps.collect(rows, original_len):
        if not each.sentence:
            groups.setdefault(f"map of {each.suite}: {each.column}", []).append(each)
    for name, group in groups.items():
        drawing, numbers = figures.maps_of_suite(group, original_len), tabulated.of_maps(group)
        shown.append(Figure(name, drawing, alt(name, rows), caption(name), numbers))
    return shown


def lines(content: Row) -> list[dict[str, str]]:
    """Returns the line of the inventory for an evaluation, by column."""
    rows, model = content["rows"], content["model"]
    cost = f"{sum(row['tokens'] for row in rows):,} forward tokens"
    line = {
        "What": f"evaluation of {', '.join(dict.fromkeys(row['label'] for row in rows))}",
        "Model": Path(model["source"]).name,
        "Window": _window(tables.trained_len(model), max(row["length"] for row in rows)),
        "Cost": f"{duration(sum(row['seconds'] for row in rows))}, {cost}",
    }
    return [line]


def caption(name: str) -> str:
    """Returns the caption of a figure, a sentence."""
    if name.startswith("map of "):
        scale = "mean score from 0 (orange) to 1 (blue); dashed after the trained lengths"
        return f"{name[0].upper()}{name[1:]} down, length across, {scale}."
    return CAPTIONS.get(name, f"{name}: mean score with its 95% interval.")


def alt(name: str, rows: Sequence[Row]) -> str:
    """Returns the text for a figure that cannot be seen: its caption and its right end."""
    if name.startswith("map of "):
        return caption(name)
    suite = "perplexity" if name in ("difference", "position") else name
    rows = panels.needle_rows(rows) if name == "needle" else rows
    chosen = [row for row in rows if row["suite"] == suite]
    longest = max(row["length"] for row in chosen)
    ends = [row for row in chosen if row["length"] == longest]
    if name == "difference":
        values = [(r["label"], r["difference"]["mean"]) for r in ends if r.get("difference")]
    else:
        values = [(r["label"], next(iter(r["metrics"].values()))) for r in ends]
    text = ", ".join(f"{label} {tables.number(value)}" for label, value in values)
    return f"{caption(name)} At {longest:,} tokens: {text}."


def _numbers(name: str, rows: Sequence[Row]) -> tabulated.Numbers:
    if name == "difference":
        return tabulated.differences(rows)
    if name == "position":
        return tabulated.positions(rows)
    return tabulated.needles(rows) if name == "needle" else tabulated.scores(rows, name)


def _columns(items: Row) -> list[str]:
    has_scores = "score" in items or "found" in items
    return ["depth"] if has_scores and "depth" in items else []


def _window(original_len: int, longest: int) -> str:
    beyond = longest > original_len
    return f"{original_len:,} → {longest:,}" if beyond else f"{original_len:,}"


def _tables(rows: Sequence[Row], original_len: int | None) -> list[tables.Table]:
    """Returns the tables of the rows; many tasks are one table, with a row for each and label."""
    tasks = list(panels.task_panels(rows))
    if len(tasks) <= MOST_TABLES:
        return tables.evaluation_tables(rows, original_len=original_len)
    others = [row for row in rows if row["suite"] not in tasks]
    task_rows = [
        {**row, "suite": "task", "label": f"{row['suite']}, {row['label']}"}
        for task in tasks
        for row in rows
        if row["suite"] == task
    ]
    ((_, cells),) = tables.evaluation_tables(task_rows)
    low = {
        f"{task}, {label}"
        for task in tasks
        for label in floors.labels([row for row in rows if row["suite"] == task], original_len)
    }
    marked = [[f"{name} ◦" if name in low else name, *rest] for name, *rest in cells]
    title = "Mean score of each task [95% interval]"
    title += "; ◦ at floor inside the model's own window, and not drawn" if low else ""
    return [*tables.evaluation_tables(others, original_len=original_len), (title, marked)]

"""From eval.json to a section of a page, and to lines of its summary."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrope.report import figures, floors, maps, panels, tables, tabulated
from jaxrope.report.page import Figure, Section
from jaxrope.shell import duration

Row = Mapping[str, Any]
MOST_TABLES = 3  # of tasks; more are one table
MOST_OPEN = 16  # figures of one evaluation that are open at first
CAPTIONS = {
    "perplexity": "Perplexity with its 95% interval over windows.",
    "difference": "Paired difference of mean NLL with its 95% interval over windows.",
    "position": "Loss by position in the longest window, smoothed.",
    "passkey": "Share of keys found, with Wilson's 95% interval.",
    "needle": "Share of needles found, with Wilson's 95% interval.",
}


def complete(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows with the columns of their maps, which older files do not name."""
    return [row if "columns" in row else {**row, "columns": _columns(row["items"])} for row in rows]


def section(content: Row) -> Section:
    """Returns the section of an evaluation; `content` is that of eval.json."""
    rows, original_len = complete(content["rows"]), tables.trained_len(content["model"])
    section_tables = _tables(rows, original_len)
    if content.get("ruler"):
        section_tables.append(tables.ruler_table(content["ruler"]))
    section_figures = charts(rows, original_len)
    return Section(
        f"Evaluation of {Path(content['model']['source']).name}",
        section_tables,
        section_figures,
        content["command"],
        content["config"],
        more=[tables.cost_table(rows)],
        is_folded=len(section_figures) > MOST_OPEN,
    )


def charts(rows: Sequence[Row], original_len: int | None) -> list[Figure]:
    """Returns every figure of the rows: curves, then maps. A task at floor is named above its
    table, and has no figure."""
    drawn = figures.evaluation_figures(rows, original_len=original_len)
    maps_by_name = {
        f"map of {retrieval_map.title}": retrieval_map
        for retrieval_map in maps.collect(rows, original_len)
    }
    return [
        Figure(
            name=name,
            drawing=drawing,
            alt=alt(name, rows),
            caption=caption(name),
            numbers=tabulated.of_map(maps_by_name[name])
            if name in maps_by_name
            else _numbers(name, rows),
        )
        for name, drawing in drawn.items()
        if any(ax.axison for ax in drawing.axes)
    ]


def lines(content: Row) -> list[dict[str, str]]:
    """Returns the lines of the summary for an evaluation, by column: a line for each label."""
    rows, model = content["rows"], content["model"]
    trained_len = tables.trained_len(model)
    cost = f"{sum(row['tokens'] for row in rows):,} forward tokens"
    cost = f"{duration(sum(row['seconds'] for row in rows))}, {cost}"
    summary = []
    for label in dict.fromkeys(row["label"] for row in rows):
        label_rows = [row for row in rows if row["label"] == label]
        longest = max(row["length"] for row in label_rows)
        scores = {
            "Perplexity": _score(label_rows, "perplexity"),
            "Pass key": _score(label_rows, "passkey", rows, trained_len),
            "Needle": _needles(label_rows, rows, trained_len),
            "RULER": _ruler(content, label),
        }
        summary.append(
            {
                "What": f"evaluation, {label}",
                "Model": Path(model["source"]).name,
                "Window": _window(trained_len, longest),
                **scores,
                "Cost": "" if summary else cost,
            }
        )
    return summary


def caption(name: str) -> str:
    """Returns the caption of a figure, a sentence."""
    if name.startswith("map of "):
        return f"{name[0].upper()}{name[1:]}: mean score by length, from 0 (red) to 1 (green)."
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


def _score(
    label_rows, suite: str, rows: Sequence[Row] = (), original_len: int | None = None
) -> str:
    """Returns the score at the longest length of one label's rows, or ""."""
    suite_rows = [row for row in label_rows if row["suite"] == suite]
    if not suite_rows:
        return ""
    row = max(suite_rows, key=lambda row: row["length"])
    if row["label"] in floors.labels([r for r in rows if r["suite"] == suite], original_len):
        return "at floor in its own window"
    return f"{tables.number(next(iter(row['metrics'].values())))} at {row['length']:,}"


def _ruler(content: Row, label: str) -> str:
    scores = (content.get("ruler") or {}).get(label)
    if not scores:
        return ""
    length, mean = list(scores["mean"].items())[-1]
    return f"{mean:.1f} at {int(length):,}, {len(scores['tasks'])} tasks"


def _needles(label_rows, rows: Sequence[Row], original_len: int) -> str:
    suites = dict.fromkeys(row["suite"] for row in label_rows if row["suite"].startswith("needle-"))
    return "; ".join(
        f"{_score(label_rows, suite, rows, original_len)}, one of {suite.removeprefix('needle-')}"
        for suite in suites
    )

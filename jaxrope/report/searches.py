"""From the files of a search, finished or running, to a section of a page."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrope.report import curves, figures, panels, tables, tabulated
from jaxrope.report.page import Figure, Origin, Section
from jaxrope.shell import duration

Row = Mapping[str, Any]
ON_TEXT = "On the text of the search; each method with its best attention factor"


def of_journal(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Returns what a search has measured so far, from its journal.

    Args:
      rows: of journal.jsonl; the first one is its header.

    Returns:
      "generations", "baselines", "descents" (name of the start -> steps), "candidates" (generation
      and fitness of each), "judged", "target_len", "original_len", "seconds"; "best", the best row
      on the text of the search, with its "name", or None. None: the journal has no header.
    """
    if not rows or "target_len" not in rows[0]:
        return None
    header, rows = rows[0], rows[1:]
    bred = [row for row in rows if "generation" in row and _is_number(row.get("fitness"))]
    descents: dict[str, list[Row]] = {}
    for row in rows:
        if "descent" in row and row.get("loss") is not None:
            descents.setdefault(row["descent"], []).append(row)
    compared = [row for row in rows if "baseline" in row]
    scored = [row | {"name": row["baseline"]} for row in compared if _is_number(row["fitness"])]
    ramps = [row for row in rows if "ramp" in row and _is_number(row["fitness"])]
    scored += [row | {"name": "ramp"} for row in ramps]
    scored += [row | {"name": "evolution"} for row in bred]
    return {
        "target_len": header["target_len"],
        "original_len": header["original_len"],
        "generations": _generations(bred),
        "candidates": [(row["generation"], row["fitness"]) for row in bred],
        "baselines": compared,
        "descents": descents,
        "judged": [row for row in rows if "judged" in row],
        "best": min(scored, key=lambda row: row["fitness"], default=None),
        "seconds": _seconds(rows),
    }


def baselines(rows: Sequence[Row]) -> dict[str, Row]:
    """Returns {name: the row with its lowest fitness} of those that did not fail."""
    lowest: dict[str, Row] = {}
    for row in rows:
        if _is_number(row["fitness"]):
            best = lowest.get(row["baseline"])
            if best is None or row["fitness"] < best["fitness"]:
                lowest[row["baseline"]] = row
    return lowest


def section(
    content: Row, journal: Row | None, *, name: str, origin: Origin, published: Mapping[str, Any]
) -> Section:
    """Returns the section of a finished search.

    Args:
      content: of result.json.
      journal: as `of_journal` has it, or None.
      name: of the result on the page.
      origin: of the section.
      published: name -> factors to draw for comparison.
    """
    best, unit = content["best"], content["unit"]
    compared = baselines(content["baselines"])
    on_text = [["", "attention factor", unit]]
    on_text += [_line(row, label) for label, row in compared.items()]
    progress = journal or {"descents": {}, "candidates": []}
    progress = {**progress, "descents": _named(progress["descents"], content, name)}
    beside = panels.beside(compared, best["factors"])
    curves = {**beside, **published, name: best["factors"]}
    charts = []
    if best["max_len"] > (content.get("original_len") or 0):  # of a recovery search.png has them
        charts = [factors_figure(curves, best)]
        charts += _figures(content["generations"], progress, compared, name, unit)
    return Section(
        f"Search to {best['max_len']:,} tokens",
        [_finalists(content, name)],
        charts,
        origin,
        kind="search",
        more=[*_at_short(content, name), (ON_TEXT, on_text)],
        lead=content["verdict"]["sentence"],
    )


def running_section(journal: Row, *, name: str, origin: Origin, published) -> Section:
    """Returns the section of a search that has a journal and no result yet. See section."""
    compared = baselines(journal["baselines"])
    best, charts = journal["best"], []
    cells = [["", "attention factor", "fitness"]]
    cells += [_line(row, label) for label, row in compared.items()]
    if best is not None:
        cells.append(_line(best, f"best so far, {best['name']}"))
        beside = panels.beside(compared, best["factors"])
        charts.append(factors_figure({**beside, **published, name: best["factors"]}, best))
    named = {**journal, "descents": _named(journal["descents"], None, name)}
    charts += _figures(journal["generations"], named, compared, name, "fitness")
    shown = [(ON_TEXT, cells)]
    if journal["judged"]:
        judged = [_line(row, row["judged"]) for row in journal["judged"]]
        shown = [("Judged so far", [["", "attention factor", "fitness"], *judged]), *shown]
    title = f"Search to {journal['target_len']:,} tokens, not finished"
    return Section(title, shown, charts, origin, kind="search")


def _named(descents: Mapping[str, Any], content: Row | None, name: str) -> dict[str, Any]:
    """Returns the descents under the names of what they lead to, as the tables have them."""
    result = content and content["verdict"]["result"]
    ends = {start: f"{start}, descended" for start in descents}
    return {name if ends[k] == result else ends[k]: rows for k, rows in descents.items()}


def _finalists(content: Row, name: str) -> tuple[str, list[list[str]]]:
    """Returns the table of those who were judged, best first; the result, if it is no known method,
    has its name on the page.
    """
    verdict, unit = content["verdict"], content["unit"]
    losses = {row["name"]: row["loss"] for row in reversed(content["judged"])}
    known = verdict["best_baseline"]
    cells = [["", "attention factor", unit, *([f"loss less that of {known}"] if known else [])]]
    renamed = {} if verdict.get("is_baseline") else {verdict["result"]: name}
    origin = "".join(f"; {new} is {old}" for old, new in renamed.items())
    for row in content["judged"]:
        line = _line(row, renamed.get(row["name"], row["name"]))
        if known:
            line.append(_difference(row["loss"], losses[known]) if row["name"] != known else "")
        cells.append(line)
    for row in content["beside"]:
        if "sliding" in row:
            gaps = [_difference(_mean(row["losses"]), losses[known])] if known else []
            cells.append(["sliding", "", f"{row['fitness']:.4f}", *gaps])
            origin += f"; sliding: its own {row['sliding']:,} tokens"
    if known and verdict["interval"]:
        low, high = verdict["interval"]
        star = "*" if low > 0 or high < 0 else ""
        cells[1][-1] += f" [{low:+.4f}, {high:+.4f}]{star}"
    fresh = "fresh samples, which chose nothing" if verdict["fresh"] else "samples of the search"
    about = "; 95% interval of the result, * excludes 0" if known and verdict["interval"] else ""
    return f"On {verdict['samples']} {fresh}{about}{origin}", cells


def _at_short(content: Row, name: str) -> list[tuple[str, list[list[str]]]]:
    """Returns the table of what the result costs where the model needs no extension; [] where that
    was not measured.
    """
    shown = []
    for row in content["beside"]:
        if "short" in row:
            change = _difference(_mean(row["losses"]), _mean(row["own_losses"]))
            cells = [["", content["unit"], "loss less that of none"]]
            cells.append([name, f"{row['fitness']:.4f}", change])
            cells.append(["none", f"{row['own_fitness']:.4f}", ""])
            shown.append((f"At {row['short']:,} tokens, with the same factors", cells))
    return shown


def _mean(losses: Sequence[float]) -> float:
    return sum(losses) / len(losses)


def _difference(loss: float | None, known: float | None) -> str:
    return "" if loss is None or known is None else f"{loss - known:+.4f}"


def factors_figure(named_factors: Mapping[str, Any], best: Row | None) -> Figure:
    """Returns the figure of factors by rotary pair; the last of `named_factors` is the result."""
    *_, name = named_factors
    factors = np.asarray(named_factors[name])
    ends = f"from {factors.min():g} to {factors.max():g}"
    others = ", ".join(other for other in named_factors if other != name)
    start = "" if best is None else f" Start tokens: {best['start_tokens']}."
    return Figure(
        name="factors",
        drawing=figures.one(lambda ax: panels.draw_factors(ax, named_factors)),
        alt=f"Factors by rotary pair: {name} {ends}" + (f", beside {others}." if others else "."),
        caption=f"What each rotary pair is slowed by; {name}: {ends}.{start}",
        numbers=tabulated.factors(named_factors),
    )


def line(content: Row) -> dict[str, str]:
    """Returns the line of the inventory for a finished search, by column."""
    original, ends = original_len(content), f"{content['best']['max_len']:,}"
    return {
        "What": "search",
        "Model": Path(content.get("model", {}).get("source", "")).name,
        "Window": f"{original:,} → {ends}" if original else f"to {ends}",
        "Cost": f"{duration(content['seconds'])}, {content['forward_tokens']:,} forward tokens",
    }


def running_line(journal: Row, config: Row) -> dict[str, str]:
    """Returns the line of the inventory for a search that is not finished."""
    path = config["model"].get("path", "") if "model" in config else ""
    return {
        "What": "search, not finished",
        "Model": Path(path).name,
        "Window": f"{journal['original_len']:,} → {journal['target_len']:,}",
        "Cost": f"{duration(journal['seconds'])} so far",
    }


def original_len(content: Row) -> int:
    """Returns the window before the search, tokens, or 0 where result.json lacks it."""
    return int(content.get("original_len") or 0)


def _figures(generations, journal, baseline_rows, name, unit) -> list[Figure]:
    charts = []
    if len(generations) > 1:
        best_text = f"best {tables.number(generations[-1]['best'])}"
        charts.append(
            Figure(
                name="progress",
                drawing=figures.one(
                    lambda ax: curves.draw_progress(
                        ax, generations, baseline_rows, name, unit, journal["candidates"]
                    )
                ),
                alt=f"{unit.capitalize()} by generation: {best_text} after {len(generations)}.",
                caption=f"{unit.capitalize()} of every candidate (dots), of the best so far and "
                "the mean of each generation; methods without a search are level lines.",
                numbers=tabulated.columns(generations, ("generation", "best", "mean")),
            )
        )
    if descents := journal["descents"]:
        rows = [row for steps in descents.values() for row in steps]
        ends = ", ".join(f"{name} {steps[-1]['loss']:.3f}" for name, steps in descents.items())
        charts.append(
            Figure(
                name="descent",
                drawing=figures.one(lambda ax: curves.draw_descents(ax, descents)),
                alt=f"Loss of each step of the descents; in their last steps: {ends}.",
                caption="Loss of every draw (dots), each of other text, and its running mean.",
                numbers=tabulated.columns(rows, ("descent", "step", "loss", "attention_factor")),
            )
        )
    return charts


def _is_number(fitness: float | None) -> bool:
    return fitness is not None and math.isfinite(fitness)


def _seconds(rows: Sequence[Row]) -> float:
    """The rows of a batch are consecutive and have the same seconds."""
    stamps = [row["seconds"] for row in rows if "seconds" in row]
    return sum(stamp for i, stamp in enumerate(stamps) if i == 0 or stamp != stamps[i - 1])


def _generations(scored: Sequence[Row]) -> list[dict]:
    by_place: dict[int, list[float]] = {}
    for row in scored:
        by_place.setdefault(row["generation"], []).append(row["fitness"])
    generations, best = [], math.inf
    for place in sorted(by_place):
        best = min(best, *by_place[place])
        mean = sum(by_place[place]) / len(by_place[place])
        generations.append({"generation": place, "best": best, "mean": mean})
    return generations


def _line(row: Row, name: str) -> list[str]:
    factor, fitness = row.get("attention_factor"), row["fitness"]
    return [
        name,
        "" if factor is None else f"{factor:.4f}",
        "failed" if fitness is None else f"{fitness:.4f}",
    ]

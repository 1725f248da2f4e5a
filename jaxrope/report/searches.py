"""From the files of a search, finished or running, to a section of a page."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrope.report import curves, figures, panels, tables, tabulated
from jaxrope.report.page import Figure, Section
from jaxrope.shell import duration

Row = Mapping[str, Any]
ON_TEXT = "On the text of the search; each method with its better attention factor"
LOSSES = ("perplexity",)  # units of a fitness that is exp(mean loss)


def of_journal(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Returns the content of result.json so far, from the journal of a search.

    Args:
      rows: of journal.jsonl; the first one is its header.

    Returns:
      "generations", "baselines", "descents", "candidates" (generation and fitness of each),
      "target_len", "original_len"; "best" (a row) or None; "seconds". None: it has no header.
    """
    if not rows or "target_len" not in rows[0]:
        return None
    header, rows = rows[0], rows[1:]
    scored = [row for row in rows if "generation" in row and row.get("fitness") is not None]
    scored = [row for row in scored if math.isfinite(row["fitness"])]
    descents: dict[str, list[Row]] = {}
    for row in rows:
        if "descent" in row and row.get("loss") is not None:
            descents.setdefault(row["descent"], []).append(row)
    return {
        "target_len": header["target_len"],
        "original_len": header["original_len"],
        "generations": _generations(scored),
        "candidates": [(row["generation"], row["fitness"]) for row in scored],
        "baselines": [row for row in rows if "baseline" in row],
        "descents": descents,
        "best": min(scored, key=lambda row: row["fitness"], default=None),
        "seconds": sum(row.get("seconds", 0.0) for row in rows),
    }


def baselines(rows: Sequence[Row]) -> dict[str, Row]:
    """Returns {name: the row with its lowest fitness} of those that did not fail."""
    lowest: dict[str, Row] = {}
    for row in rows:
        if row["fitness"] is not None and math.isfinite(row["fitness"]):
            best = lowest.get(row["baseline"])
            if best is None or row["fitness"] < best["fitness"]:
                lowest[row["baseline"]] = row
    return lowest


def section(
    content: Row, journal: Row | None, *, origin: tuple[str, Row], published: Mapping[str, Any]
) -> Section:
    """Returns the section of a finished search.

    Args:
      content: of result.json.
      journal: as `of_journal` has it, or None.
      origin: the command, or "", and the config.
      published: name -> factors to draw for comparison.
    """
    best, unit = content["best"], content["unit"]
    fitness = content["generations"][-1]["best"]
    cells = [["", "attention factor", unit]]
    cells += [_line(row, name) for name, row in baselines(content["baselines"]).items()]
    cells.append(["searched", f"{best['attention_factor']:.4f}", f"{fitness:.4f}"])
    charts = _figures(
        content["generations"],
        journal or {"descents": {}, "candidates": []},
        baselines(content["baselines"]),
        unit,
    )
    baseline_factors = {row["baseline"]: row["factors"] for row in content["baselines"]}
    charts.append(
        factors_figure({**baseline_factors, **published, "searched": best["factors"]}, best)
    )
    title = f"Search to {best['max_len']:,} tokens"
    return Section(title, [(ON_TEXT, cells)], charts, *origin)


def running_section(journal: Row, *, origin: tuple[str, Row], published) -> Section:
    """Returns the section of a search that has a journal and no result yet. See section."""
    baseline_factors = {row["baseline"]: row["factors"] for row in journal["baselines"]}
    charts = _figures(journal["generations"], journal, baselines(journal["baselines"]), "fitness")
    best = journal["best"]
    cells = [["", "attention factor", "fitness"]]
    cells += [_line(row, name) for name, row in baselines(journal["baselines"]).items()]
    if best is not None:
        cells.append(_line(best, "best so far"))
        charts.append(
            factors_figure({**baseline_factors, **published, "best so far": best["factors"]}, best)
        )
    title = f"Search to {journal['target_len']:,} tokens, not finished"
    return Section(title, [(ON_TEXT, cells)], charts, *origin)


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
    """Returns the line of the summary for a finished search, by column."""
    unit, fitness = content["unit"], content["generations"][-1]["best"]
    others = [
        f"{name} {tables.number(row['fitness'])}"
        for name, row in baselines(content["baselines"]).items()
        if name != "none"
    ]
    against = f" ({', '.join(others)})" if others else ""
    original = original_len(content)
    ends = f"{content['best']['max_len']:,}"
    score = f"{tables.number(fitness)}{against} of the search"
    return {
        "What": "search",
        "Model": Path(content.get("model", {}).get("source", "")).name,
        "Window": f"{original:,} → {ends}" if original else f"to {ends}",
        "Perplexity": score if unit in LOSSES else f"{unit} {score}",
        "Cost": f"{duration(content['seconds'])}, {content['forward_tokens']:,} forward tokens",
    }


def running_line(journal: Row, config: Row) -> dict[str, str]:
    """Returns the line of the summary for a search that is not finished."""
    best = journal["best"]
    path = config["model"].get("path", "") if "model" in config else ""
    return {
        "What": "search, not finished",
        "Model": Path(path).name,
        "Window": f"{journal['original_len']:,} → {journal['target_len']:,}",
        "Perplexity": "" if best is None else f"fitness {tables.number(best['fitness'])} so far",
        "Cost": f"{duration(journal['seconds'])} so far",
    }


def original_len(content: Row) -> int:
    """Returns the window before the search, tokens, or 0 where result.json lacks it."""
    return int(content.get("original_len") or 0)


def _figures(generations, journal, baseline_rows, unit) -> list[Figure]:
    charts = []
    if len(generations) > 1:
        best_text = f"best {tables.number(generations[-1]['best'])}"
        charts.append(
            Figure(
                name="progress",
                drawing=figures.one(
                    lambda ax: curves.draw_progress(
                        ax, generations, baseline_rows, journal["candidates"], unit
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
                alt=f"Loss of each step of the descents; at their ends: {ends} nats per token.",
                caption="Loss of each step of the descent, fresh text in every step (pale), and "
                "its running mean. A line is named after the method it began at.",
                numbers=tabulated.columns(rows, ("descent", "step", "loss", "attention_factor")),
            )
        )
    return charts


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

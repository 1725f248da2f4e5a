"""Sections of the page from attention.json, and the format of that file as far as it is read.

{"format": "jaxrope.attention/1",
 "command": text, "config": {...},                of the analysis
 "model": {"source", "original_len"},             original_len in tokens
 "evaluation": name,                              of the stage with the perplexity of its settings
 "trained_lens": {label: tokens},                 of the continual training of each setting
 "findings": [{"finding", "holds", "why", "evidence"}],
 "statistics": [{"label", "length", "name", "value", "low", "high"}],
 "curves": [{"label", "length", "axis", "edges", "mass", "heads"}],
 "similarities": [{"label", "length", "reference", "kind", "js", "root_js"}],
 "maps": [{"label", "length", "name", "values_LN"}],
 "needles": [{"label", "length", "depth", "score", "entropy"}],
 "predictions": [{"name", "auroc", "low", "high", "partial"}],
 "objectives": [{"objective", "forward_tokens", "score", "low", "high"}]}

A label names a setting ("none", "yarn"), a length is in tokens. Missing lists are not shown, and
other keys are ignored. Of a row, "low", "high" (a 95% interval), "heads", "why" and
"partial" may be missing or null.

  findings      holds: true, false, or null = not decided, and "why"; evidence has the intervals.
  statistics    of a query at that length, mean over heads: name is one of STATISTICS, or another
                that is drawn under its own name.
  curves        mean attention to one key (mass of a bin / its keys) against "axis", one of AXES:
                `mass` [E] for the bins between `edges` [E + 1], mean over heads; `heads` [any, E].
  similarities  Jensen-Shannon divergence `js` in nats, of `kind` ("below", "relative",
                "interpolated", ...), from the patterns of `reference`; `root_js` is a metric.
  maps          a value for each layer and head; name as in statistics, or another.
  needles       a cell: depth from 0 to 1, share found, mean entropy (nats) of the answer's tokens.
  predictions   how well a statistic tells failures from successes; `partial`: its correlation with
                failure, given the length.
  objectives    of an ablation: cost of a search by that objective, and its held-out retrieval.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxrope.report import attention_panels as draw
from jaxrope.report import evaluations, figures, tables, tabulated
from jaxrope.report.page import Figure, Origin, Section

FORMAT = "jaxrope.attention/1"
MOST_TABLES = 2  # of a section that are open at first
LISTS = (
    "findings",
    "statistics",
    "curves",
    "similarities",
    "maps",
    "needles",
    "predictions",
    "objectives",
)
Row = Mapping[str, Any]


class Attention(NamedTuple):
    """The content of an attention.json.

    Attributes:
      source: of the model.
      original_len: tokens the rope was trained on.
      evaluation: the stage with the perplexity of its settings, or "".
      trained_lens: label -> tokens of the continual training.
      origin: of its sections.
      lists: name of LISTS -> rows.
    """

    source: str
    original_len: int
    evaluation: str
    trained_lens: Mapping[str, int]
    origin: Origin
    lists: Mapping[str, list[Row]]


def read(content: Row) -> Attention:
    """Returns the content of the file.

    Raises:
      ValueError: it has another format, or a list is not one.
      KeyError: the model is missing.
    """
    if content.get("format") != FORMAT:
        raise ValueError(f"format must be {FORMAT}, got {content.get('format')!r}")
    lists = {name: content.get(name) or [] for name in LISTS}
    for name, rows in lists.items():
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{name} must be a list of mappings")
    model = content["model"]
    return Attention(
        source=str(model["source"]),
        original_len=int(model["original_len"]),
        evaluation=str(content.get("evaluation") or ""),
        trained_lens=content.get("trained_lens") or {},
        origin=Origin(content.get("command") or "", content.get("config") or {}),
        lists=lists,
    )


def line(analysis: Attention) -> dict[str, str]:
    """Returns its line of the inventory, by column."""
    lengths = [row["length"] for rows in analysis.lists.values() for row in rows if "length" in row]
    verdicts = [row["holds"] for row in analysis.lists["findings"]]
    held = f", {sum(map(bool, verdicts))} of {len(verdicts)} findings hold" if verdicts else ""
    held += f", {verdicts.count(None)} not decided" if None in verdicts else ""
    return {
        "What": f"attention{held}",
        "Model": Path(analysis.source).name,
        "Window": f"{analysis.original_len:,} → {max(lengths):,}" if lengths else "",
    }


def sections(analysis: Attention) -> list[Section]:
    """Returns the sections of the page, for the lists that the file has."""
    page_sections = []
    for title, list_names, make_fn in (
        ("Findings", ("findings",), _findings),
        ("Attention: uncertainty", ("statistics",), _uncertainty),
        ("Attention: patterns", ("curves", "similarities"), _patterns),
        ("Attention: heads", ("maps",), _heads),
        ("Attention: needle", ("needles", "predictions"), _needles),
        ("Attention as an objective", ("objectives",), _objectives),
    ):
        if any(analysis.lists[name] for name in list_names):
            all_tables, charts = make_fn(analysis)
            open_tables, more = all_tables[:MOST_TABLES], all_tables[MOST_TABLES:]
            folded = len(charts) > evaluations.MOST_OPEN
            page_sections.append(
                Section(title, open_tables, charts, analysis.origin, more=more, is_folded=folded)
            )
    return page_sections


def _findings(analysis: Attention):
    words = {True: "holds", False: "does not hold", None: "not decided"}
    cells = [["Finding", "Here", "Evidence"]]
    for row in analysis.lists["findings"]:
        why = f": {row['why']}" if row.get("why") else ""
        cells.append([row["finding"], words[row["holds"]] + why, row["evidence"]])
    return [("What the paper found, and whether it holds here", cells)], []


def _uncertainty(analysis: Attention):
    rows = analysis.lists["statistics"]
    charts = []
    for name in dict.fromkeys(row["name"] for row in rows):
        statistic_rows = [row for row in rows if row["name"] == name]
        title, unit = draw.title_and_unit(name)
        charts.append(
            Figure(
                name=name,
                drawing=figures.one(
                    lambda ax, statistic_rows=statistic_rows, name=name: draw.draw_statistic(
                        ax, statistic_rows, name, analysis.original_len
                    )
                ),
                alt=f"{title} against length. {_ends(statistic_rows, 'value')}",
                caption=f"{title}{f', {unit}' if unit else ''}: mean over heads and queries.",
                numbers=tabulated.columns(
                    statistic_rows, ("label", "length", "value", "low", "high")
                ),
            )
        )
    return [], charts


def _patterns(analysis: Attention):
    charts, rows = [], analysis.lists["curves"]
    for axis, length in dict.fromkeys((row["axis"], row["length"]) for row in rows):
        curves = [row for row in rows if (row["axis"], row["length"]) == (axis, length)]
        words = draw.AXES.get(axis, axis)
        charts.append(
            Figure(
                name=f"{axis}-{length}",
                drawing=figures.one(lambda ax, curves=curves: draw.draw_curves(ax, curves)),
                alt=f"Mean attention to a key against {words} at {length:,} tokens, for "
                f"{', '.join(row['label'] for row in curves)}.",
                caption=f"Attention to one key against {words}, at {length:,} tokens.",
                numbers=_curve_numbers(curves),
            )
        )
        charts += [_curve_figure(row, words) for row in curves if row.get("heads")]
    return _similarities(analysis.lists["similarities"]), charts


def _similarities(rows: Sequence[Row]) -> list[tables.Table]:
    """Returns a table for each kind of comparison: label by length."""
    comparison_tables = []
    for kind, reference in dict.fromkeys((row["kind"], row["reference"]) for row in rows):
        kind_rows = [row for row in rows if (row["kind"], row["reference"]) == (kind, reference)]
        lengths = sorted({row["length"] for row in kind_rows})
        cells = [["", *(f"{length:,}" for length in lengths)]]
        for label in dict.fromkeys(row["label"] for row in kind_rows):
            label_rows = [row for row in kind_rows if row["label"] == label]
            divergences = {r["length"]: f"{r['js']:.4f} [{r['root_js']:.4f}]" for r in label_rows}
            cells.append([label, *(divergences.get(length, "") for length in lengths)])
        title = (
            f"Jensen-Shannon divergence from {reference}, patterns compared on: {kind}; nats, "
            "0.693 at most [its root, a metric]"
        )
        comparison_tables.append((title, cells))
    return comparison_tables


def _curve_figure(row: Row, words: str) -> Figure:
    setting = f"{row['label']} at {row['length']:,} tokens"
    return Figure(
        name=f"{row['axis']}-{row['length']}-{row['label']}-heads",
        drawing=figures.one(lambda ax: draw.draw_heads(ax, row)),
        alt=f"Attention to one key against {words}, {setting}: every head, and their mean.",
        caption=f"{setting}: each head (pale) and the mean of all.",
        numbers=_curve_numbers([row]),
    )


def _curve_numbers(rows: Sequence[Row]) -> tabulated.Numbers:
    numbers: tabulated.Numbers = [["label", "length", "from", "to", "mass"]]
    for row in rows:
        bins = zip(row["edges"][:-1], row["edges"][1:], row["mass"], strict=True)
        numbers += [[row["label"], row["length"], *values] for values in bins]
    return numbers


def _heads(analysis: Attention):
    charts, maps = [], analysis.lists["maps"]
    for row in maps:
        title, unit = draw.title_and_unit(row["name"])
        same = [r["values_LN"] for r in maps if r["name"] == row["name"]]
        values, place = row["values_LN"], f"{row['label']} at {row['length']:,} tokens"
        flat = [value for line in values for value in line if value is not None]
        header = ["layer", *(f"head {i}" for i in range(len(values[0])))]
        charts.append(
            Figure(
                name=f"{row['name']}-{row['label']}-{row['length']}",
                drawing=figures.one(lambda ax, row=row, same=same: draw.draw_layers(ax, row, same)),
                alt=f"{title} of each head, {place}: from {min(flat):.3g} to {max(flat):.3g}.",
                caption=f"{title}{f', {unit}' if unit else ''}, of each layer and head: {place}. "
                "Maps of one statistic share their colours.",
                numbers=[header, *([i, *line] for i, line in enumerate(values))],
            )
        )
    return [], charts


def _needles(analysis: Attention):
    charts, rows = [], analysis.lists["needles"]
    for label in dict.fromkeys(row["label"] for row in rows):
        label_rows = [row for row in rows if row["label"] == label]
        trained = analysis.trained_lens.get(label, 0)
        trained = trained if any(row["length"] <= trained for row in label_rows) else None
        mean = sum(row["score"] for row in label_rows) / len(label_rows)
        charts.append(
            Figure(
                name=f"needle-{label}",
                drawing=figures.one(
                    lambda ax, label_rows=label_rows, trained=trained: draw.draw_needles(
                        ax, label_rows, trained
                    ),
                    draw.BROAD,
                ),
                alt=f"Needle found by {label}, by length and depth: {mean:.2f} of all cells.",
                caption=f"{label}: share found, from 0 (orange) to 1 (blue); the number in a cell "
                "is the mean attention entropy of the answer, nats"
                + (f". Dashed: the {trained:,} tokens of its training." if trained else "."),
                numbers=tabulated.columns(
                    label_rows, ("label", "length", "depth", "score", "entropy")
                ),
                is_broad=True,
            )
        )
    predictions = analysis.lists["predictions"]
    cells = [["", "AUROC", "95% interval", "partial correlation given length"]]
    for row in predictions:
        partial = row.get("partial")
        bounds = _interval(row)
        correlation = "" if partial is None else f"{partial:+.3f}"
        cells.append(
            [draw.title_and_unit(row["name"])[0], f"{row['auroc']:.3f}", bounds, correlation]
        )
    if predictions:
        charts.append(
            Figure(
                name="prediction",
                drawing=figures.one(
                    lambda ax: draw.draw_predictions(ax, predictions), draw.size_of(predictions)
                ),
                alt="How well each statistic tells failures from successes. "
                + ", ".join(
                    f"{draw.title_and_unit(row['name'])[0]} {row['auroc']:.2f}"
                    for row in predictions
                ),
                caption="AUROC for predicting that a needle is missed, with its 95% interval; "
                "0.5 (the line) is chance.",
                numbers=tabulated.columns(predictions, ("name", "auroc", "low", "high", "partial")),
            )
        )
    return [("Does it predict that a needle is missed?", cells)] if predictions else [], charts


def _objectives(analysis: Attention):
    rows = analysis.lists["objectives"]
    cells = [["objective", "forward tokens", "held-out retrieval", "95% interval"]]
    for row in rows:
        score, cost = tables.number(row["score"]), f"{row['forward_tokens']:,}"
        cells.append([row["objective"], cost, score, _interval(row)])
    figure = Figure(
        name="objectives",
        drawing=figures.one(lambda ax: draw.draw_objectives(ax, rows), draw.size_of(rows)),
        alt="Held-out retrieval of the factors that each objective found. "
        + ", ".join(f"{row['objective']} {row['score']:.2f}" for row in rows),
        caption="Held-out retrieval of the factors found, with its 95% interval.",
        numbers=tabulated.columns(rows, ("objective", "forward_tokens", "score", "low", "high")),
    )
    return [("Searches by other objectives, at their cost", cells)], [figure]


def _interval(row: Row) -> str:
    if row.get("low") is None or row.get("high") is None:
        return ""
    return f"[{row['low']:.3f}, {row['high']:.3f}]"


def _ends(rows: Sequence[Row], key: str) -> str:
    longest = max(row["length"] for row in rows)
    ends = [row for row in rows if row["length"] == longest]
    values = ", ".join(f"{row['label']} {row[key]:.3g}" for row in ends)
    return f"At {longest:,} tokens: {values}."

"""Writes the results: attention.json for the page, findings.json and findings.md, and the paper's
figures as PNG with their numbers as CSV."""

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrope import report
from jaxrope.analyse import findings as judged
from jaxrope.analyse import numbers
from jaxrope.analyse.findings import Finding
from jaxrope.analyse.numbers import Measurements
from jaxrope.analyse.plan import BASE, HALF, PERPLEXITY, TWICE
from jaxrope.analysis import prediction
from jaxrope.errors import InputError
from jaxrope.report import attention, attention_panels, figures, tables, tabulated
from jaxrope.shell import cli
from jaxrope.store import files, sealed

FORMAT = "jaxrope.findings/1"
FIGURES = "figures"
Drawn = tuple[str, Any, list[list[Any]]]  # name, matplotlib Figure or None, numbers


def write(
    measurements: Measurements,
    findings: Sequence[Finding],
    workdir: Path,
    *,
    predicted: Mapping[str, prediction.Prediction],
    command: str,
) -> None:
    """Writes the results of a model; those of the second model go into second/.

    Args:
      measurements: what was measured.
      findings: the verdicts; () for the second model, as the first one's cover both.
      workdir: of the program.
      predicted: numbers.predictions of the first model.
      command: the command line.
    """
    folder = workdir / "second" if measurements.study.name else workdir
    predicted = {} if measurements.study.name else predicted
    content = {"command": command} | attention_json(measurements, findings, predicted)
    sealed.write_json(folder / "attention.json", content)
    for name, figure, rows in drawn(measurements, content):
        files.write_text_atomic(folder / FIGURES / f"{name}.csv", _csv(rows))
        if figure is not None:
            files.write_bytes_atomic(folder / FIGURES / f"{name}.png", figures.png_file(figure))
    cells = table1_cells(content["similarities"], measurements.settings)
    table = [("Table 1: Jensen-Shannon divergence, nats [95%], 0.693 at most", cells)]
    files.write_text_atomic(folder / FIGURES / "table1_js.md", tables.as_markdown(table))
    cli.print_line("\n" + tables.as_text(table))
    if findings:
        about = _about(measurements)
        text = judged.as_markdown(findings, about)
        files.write_text_atomic(folder / "findings.md", text)
        record = {"command": command} | _findings_json(measurements, findings, predicted)
        sealed.write_json(folder / "findings.json", record)
        cli.print_line(
            "\n" + "\n".join(f"{finding.verdict}: {finding.claim}" for finding in findings)
        )
    cli.print_line(f"wrote attention.json and {FIGURES} into {folder}")


def attention_json(
    measurements: Measurements,
    findings: Sequence[Finding],
    predicted: Mapping[str, prediction.Prediction],
) -> dict[str, Any]:
    """Returns the content of attention.json (report/attention.py documents its format)."""
    study = measurements.study
    trained = {s.label: s.trained_len for s in study.subjects if s.is_trained}
    trained |= {
        numbers.needle_label(label, task): length
        for label, length in list(trained.items())
        for task in study.config.analysis.tasks
    }
    return {
        "format": attention.FORMAT,
        "config": study.config.to_dict(),
        "model": {"source": str(study.config.model.path), "original_len": study.trained_len},
        "evaluation": f"{study.name}{PERPLEXITY}",
        "trained_lens": trained,
        "findings": [_plain_finding(finding) for finding in findings],
        "statistics": numbers.statistic_rows(measurements),
        "curves": numbers.curve_rows(measurements),
        "similarities": numbers.similarities(measurements),
        "maps": numbers.map_rows(measurements),
        "needles": numbers.needle_rows(measurements) if measurements.answers else [],
        "predictions": numbers.prediction_rows(predicted),
        "objectives": [],
    }


def _plain_finding(finding: Finding) -> dict[str, Any]:
    plain = finding.plain()
    keys = ("holds", "verdict", "why", "evidence")
    return {"finding": finding.claim, **{key: plain[key] for key in keys}}


def drawn(measurements: Measurements, content: Mapping[str, Any]) -> Iterator[Drawn]:
    """Yields the paper's figures; without matplotlib their numbers alone."""
    makers = _figures(measurements, content)
    for name, make_fn, rows in makers:
        try:
            figure = make_fn()
        except InputError as error:  # no plotting library is no reason to fail after hours
            cli.print_line(f"{name}.png is left out: {error}")
            figure = None
        yield re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-"), figure, rows


def _figures(measurements: Measurements, content: Mapping[str, Any]):
    """Yields (name, function that draws the figure, its numbers)."""
    original_len = measurements.study.trained_len
    labels = numbers.figure_labels(measurements)
    rows = [row for row in measurements.evaluation if row["label"] in labels]
    scores = tabulated.scores(measurements.evaluation, "perplexity")
    yield (
        "fig1_ppl_vs_length",
        lambda: report.perplexity_figure(rows, original_len=original_len),
        scores,
    )
    yield from _pattern_figures(measurements, content["curves"])
    same = [row for row in content["similarities"] if row["kind"].startswith("same length")]
    names = ("label", "length", "reference", "kind", "js", "low", "high", "root_js")
    yield "table1_js", lambda: None, tabulated.columns(same, (*names, "js_of_mean", "samples"))
    yield from _needle_figures(measurements, content)
    predictions = content["predictions"]
    if predictions:
        size = attention_panels.size_of(predictions)
        names = ("name", "auroc", "low", "high", "partial")
        yield (
            "prediction",
            lambda: figures.one(
                lambda ax: attention_panels.draw_predictions(ax, predictions), size
            ),
            tabulated.columns(predictions, names),
        )


def _pattern_figures(measurements: Measurements, curves: Sequence[Mapping[str, Any]]):
    """Figure 2: plain RoPE at half and twice the trained length, extensions at twice."""
    half, twice = measurements.length(HALF), measurements.length(TWICE)
    settings = numbers.figure_labels(measurements)
    panels = [(BASE, half), *((name, twice) for name in settings)]
    by_place = {(r["label"], r["length"]): r for r in curves if r["axis"] == "distance"}
    for label, length in panels:
        row = by_place[label, length]
        yield (
            f"fig2_pattern_{label}_{length}",
            lambda row=row: figures.one(lambda ax: attention_panels.draw_heads(ax, row)),
            _of_heads(row),
        )
    together = [by_place[name, twice] for name in settings]
    yield (
        f"fig2_patterns_{twice}",
        lambda: figures.one(lambda ax: attention_panels.draw_curves(ax, together)),
        [_of_heads(together[0])[0], *(line for row in together for line in _of_heads(row)[1:])],
    )


def _of_heads(row: Mapping[str, Any]) -> list[list[Any]]:
    """Returns a pattern: a line for each bin, the mean and each head."""
    header = ["label", "length", "from", "to", "mean", *range(len(row["heads"]))]
    heads = zip(*row["heads"], strict=True)
    bins = zip(row["edges"][:-1], row["edges"][1:], row["mass"], heads, strict=True)
    where = [row["label"], row["length"]]
    return [
        header,
        *([*where, low, high, mean, *head_values] for low, high, mean, head_values in bins),
    ]


def _needle_figures(measurements: Measurements, content: Mapping[str, Any]):
    """Figure 4: retrieval and entropy by length and depth; (e), (f): short and long training."""
    cells, trained = content["needles"], content["trained_lens"]
    names = ("label", "length", "depth", "score", "entropy", "entropy_of_mean", "trials")
    for label in dict.fromkeys(row["label"] for row in cells):
        label_cells = [row for row in cells if row["label"] == label]

        def draw(ax, label_cells=label_cells, label=label):
            attention_panels.draw_needles(ax, label_cells, trained.get(label))

        yield (
            f"fig4_needle_heatmap_with_entropy_{label}",
            lambda draw=draw: figures.one(draw, attention_panels.BROAD),
            tabulated.columns(label_cells, names),
        )
    short = measurements.study.config.analysis.longer_setting
    both = [name for name in measurements.answers if name == short or name.startswith(f"{short}, ")]
    for key in ("entropy at the answer", "entropy_of_mean at the answer"):
        rows = [r for r in content["statistics"] if r["name"] == key and r["label"] in both]
        if len(both) > 1 and rows:
            yield (
                f"fig4ef_trainlen_{key}",
                lambda rows=rows, key=key: figures.one(
                    lambda ax: attention_panels.draw_statistic(
                        ax, rows, key, measurements.study.trained_len
                    )
                ),
                tabulated.columns(rows, ("label", "length", "value", "low", "high")),
            )


def table1_cells(
    similarities: Sequence[Mapping[str, Any]], settings: Sequence[str]
) -> list[list[str]]:
    """Returns Table 1 as the paper has it: a line for each reference, a column for each setting."""
    same_length = [row for row in similarities if row["kind"] == "same length"]
    labels = [BASE, *settings]
    cells = [["compared with", *labels]]
    for reference in dict.fromkeys(row["reference"] for row in same_length):
        by_label = {r["label"]: r for r in same_length if r["reference"] == reference}
        line = [
            f"{by_label[n]['js']:.4f} [{by_label[n]['low']:.4f}, {by_label[n]['high']:.4f}]"
            if n in by_label
            else ""
            for n in labels
        ]
        cells.append([reference, *line])
    return cells


def _about(measurements: Measurements) -> dict[str, str]:
    """Returns the introduction to the findings: {title: paragraph}."""
    study = measurements.study
    section, original_len = study.config.analysis, study.trained_len
    tokens = study.config.train.steps * study.config.train.batch_size * original_len
    paragraphs = {
        "Model": f"{study.title}, pre-trained at {original_len:,} tokens. Every setting is "
        f"fine-tuned on {tokens:,} tokens of the same text at that length; patterns are compared "
        f"at half and at twice that length on {section.sequences} texts, over which intervals are "
        "resampled (few texts make them too narrow rather than too wide).",
        "Divergences": "Jensen-Shannon, in nats, one for each text, layer and head, 0.693 at most. "
        "The paper's numbers exceed this bound by a factor that it does not state: only the order "
        "can be compared.",
        "Entropy": "In nats, at the tokens of the answer that the model itself wrote. `entropy` is "
        "the mean over heads and layers, `entropy_of_mean` that of their mean row.",
    }
    paragraphs["Verdicts"] = (
        "By 95% intervals; where settings are compared in nats, a difference below "
        f"{judged.LEAST['nats']:g} decides nothing, however sure it is."
    )
    row = measurements.haystack
    if row is not None:
        metrics = row["metrics"]
        low = metrics["low"] <= numbers.FLOOR
        paragraphs["Needle"] = (
            f"Fu et al.'s needle inside the window: {metrics['score']:.2f} "
            f"[{metrics['low']:.2f}, {metrics['high']:.2f}]"
            + (
                ". It is at floor for so small a model: "
                f"{' and '.join(section.tasks)} stand in for it."
                if low
                else f"; the maps are those of {' and '.join(section.tasks)}."
            )
        )
    return paragraphs


def _findings_json(
    measurements: Measurements, findings: Sequence[Finding], predicted
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "model": str(measurements.study.config.model.path),
        "about": _about(measurements),
        "findings": [finding.plain() for finding in findings],
        "predictions": {
            name: _plain_prediction(performance) for name, performance in predicted.items()
        },
        "by_setting": {
            label: {
                name: _plain_prediction(performance)
                for name, performance in numbers.predictions(measurements, [label]).items()
            }
            for label in measurements.answers
        },
    }


def _plain_prediction(performance: prediction.Prediction) -> dict[str, Any]:
    return {
        name: value if isinstance(value, int) else [x if math.isfinite(x) else None for x in value]
        for name, value in performance._asdict().items()
    }


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()

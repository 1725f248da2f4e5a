"""From the files that a search, a training or an evaluation left to the sections of a page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrope import files
from jaxrope.errors import InputError
from jaxrope.progress import duration
from jaxrope.report import figures, panels, tables
from jaxrope.report.page import Figure, Section

SUMMARY_HEADER = ["Folder", "What", "Window", "Result", "Cost"]


def collect(folder: Path) -> tuple[list[list[str]], list[Section]]:
    """Returns (rows of the summary table, sections) of what programs left in a folder.

    Raises:
      InputError: there is nothing, or a file is broken.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Give a workdir of search.py, train.py, ...")
    found = []
    for name, read, make in (
        ("result.json", _json, _search),
        ("metrics.jsonl", _rows, _training),
        ("eval.json", _json, _evaluation),
    ):
        path = folder / name
        if path.is_file():
            found.append(_made(path, read, make))
    if not found:
        raise InputError(
            f"{folder} has none of result.json, metrics.jsonl and eval.json. Give a workdir of "
            "search.py, train.py or `python -m jaxrope.evaluate`."
        )
    return [[str(folder), *line] for line, _ in found], [section for _, section in found]


def _made(path: Path, read, make):
    try:
        return make(read(path), path.parent)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"{path} is not what its program writes ({type(error).__name__}: {error}). "
            "Run the program again, or leave the folder out."
        ) from None


def _search(content: Mapping[str, Any], folder: Path):
    config, best = content["config"], content["best"]
    unit, generations = content["unit"], content["generations"]
    baselines = {row["baseline"]: row for row in content["baselines"] if row["fitness"] is not None}
    fitness = generations[-1]["best"]
    seconds = duration(content["seconds"])
    line = [
        "search",
        f"to {best['max_len']:,}",
        f"{unit} {tables.number(fitness)}"
        + "".join(f", {name} {tables.number(row['fitness'])}" for name, row in baselines.items()),
        f"{content['forward_tokens']:,} forward tokens, {seconds}",
    ]
    drawn = figures.search_figures(generations, baselines, factors=best["factors"])
    ends = f"from {np.min(best['factors']):g} to {np.max(best['factors']):g}"
    alts = (
        f"Best and mean {unit} by generation; the best ends at {tables.number(fitness)}.",
        f"The factors found, {ends}, by rotary pair, beside those of {', '.join(baselines)}.",
    )
    captions = (
        f"{unit.capitalize()} of the best candidate so far and mean of each generation.",
        f"Factors found ({ends}), start tokens {best['start_tokens']}.",
    )
    shown = [_figure(*parts) for parts in zip(drawn, alts, captions, strict=True)]
    cells = [["", "attention factor", unit]] + [
        [
            row["baseline"],
            f"{row['attention_factor']:.4f}",
            "failed" if row["fitness"] is None else f"{row['fitness']:.4f}",
        ]
        for row in content["baselines"]
    ]
    cells.append(["searched", f"{best['attention_factor']:.4f}", f"{fitness:.4f}"])
    title = f"Search to {best['max_len']:,} tokens"
    return line, Section(title, [("On the text of the search", cells)], shown, "", config)


def _training(rows: Sequence[Mapping[str, Any]], folder: Path):
    steps = [row for row in rows if row.get("loss") is not None]
    scores = [row for row in rows if "eval" in row]
    config_path = folder / "config.json"
    config = _json(config_path) if config_path.is_file() else {}
    tokens = sum(row["tokens"] for row in steps)
    last = steps[-1]
    line = [
        "training",
        f"rows of {config['train']['seq_len']:,}" if "train" in config else "",
        f"loss {steps[0]['loss']:.4f} to {last['loss']:.4f}",
        f"{last['step']:,} steps, {tokens:,} tokens",
    ]
    alts = (
        f"Training loss from {steps[0]['loss']:.3f} to {last['loss']:.3f} in {last['step']} steps.",
        f"Learning rate by step, at most {max(row['lr'] for row in steps):.3g}.",
    )
    captions = ("Loss of each step (pale) and its running mean.", "Learning rate.")
    drawn = zip(figures.training_figures(steps), alts, captions, strict=True)
    shown = [_figure(*parts) for parts in drawn]
    made = []
    if scores:
        names = list(scores[-1]["eval"])
        cells = [["step", *names]] + [
            [f"{row['step']:,}", *(tables.number(row["eval"].get(name)) for name in names)]
            for row in scores
        ]
        made.append(("Evaluations on the way", cells))
    return line, Section(f"Training, {last['step']:,} steps", made, shown, "", config)


def _evaluation(content: Mapping[str, Any], folder: Path):
    rows, original_len = content["rows"], content["model"]["original_len"]
    longest = max(row["length"] for row in rows)
    at_longest = [row for row in rows if row["length"] == longest]
    seconds = sum(row["seconds"] for row in rows)
    scores = [
        f"{row['label']} {tables.number(next(iter(row['metrics'].values())))}"
        for row in at_longest
        if row["suite"] == rows[0]["suite"]
    ]
    line = [
        "evaluation",
        f"{original_len:,} to {longest:,}",
        f"{rows[0]['suite']} at {longest:,}: " + ", ".join(scores),
        f"{sum(row['tokens'] for row in rows):,} forward tokens, {duration(seconds)}",
    ]
    made = tables.evaluation_tables(rows, original_len=original_len)
    if content.get("ruler"):
        made.append(tables.ruler_table(content["ruler"]))
    made.append(tables.cost_table(rows))
    drawn = figures.evaluation_figures(rows, original_len=original_len)
    shown = [_figure(fig, _alt(name, rows), _caption(name)) for name, fig in drawn.items()]
    title = f"Evaluation of {content['model']['source']}"
    return line, Section(title, made, shown, content["command"], content["config"])


_CAPTIONS = {
    "perplexity": "Perplexity with its 95% interval over windows.",
    "difference": "Paired difference of mean NLL with its 95% interval over windows.",
    "position": "Loss by position in the longest window, smoothed.",
    "passkey": "Share of keys found, with Wilson's 95% interval.",
    "needle": "Share of needles found, with Wilson's 95% interval.",
}


def _caption(name: str) -> str:
    if name.startswith("map of "):
        return f"{name[0].upper()}{name[1:]}: mean score by length, from 0 (red) to 1 (green)."
    return _CAPTIONS.get(name, f"{name}: mean score with its 95% interval.")


def _alt(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns in words what a figure shows at its right end."""
    if name.startswith("map of "):
        return _caption(name)
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
    return f"{_caption(name)} At {longest:,} tokens: {text}."


def _figure(drawing, alt: str, caption: str) -> Figure:
    return Figure(svg=figures.as_svg(drawing), alt=alt, caption=caption)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _rows(path: Path) -> list[dict]:
    return files.read_jsonl(path, repair=False)

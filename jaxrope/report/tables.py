"""Tables of an evaluation, for a terminal, for Markdown and for a page.

They are built from the rows of eval.json: a table has a row for each label and a column for each
length, and every cell is text.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxrope.report import floors

DIFFERENCE = "Mean NLL minus that of"  # beginning of a title
LEAST_WINDOWS = 5  # of an interval over windows: fewer say nothing about their spread

Row = Mapping[str, Any]
Table = tuple[str, list[list[str]]]  # title, cells; the first row of cells is the header


def trained_len(model: Mapping[str, Any]) -> int | None:
    """Returns the tokens that a model of eval.json was trained on: what its own scaling reaches,
    which older files do not say.
    """
    return model.get("trained_len", model["original_len"])


def evaluation_tables(rows: Sequence[Row], *, original_len: int | None = None) -> list[Table]:
    """Returns a table for each suite, one of the tasks of lm-evaluation-harness, one of perplexity
    by position, and one of the differences from the baseline.

    Args:
      rows: of eval.json.
      original_len: tokens the model was trained on; a title names the labels at floor within them.
    """
    tables = []
    tasks = [row for row in rows if row["suite"].startswith("harness/")]
    tasks = [row for row in tasks if "score" not in row["metrics"]]  # those of RULER have lengths
    if tasks:
        tables.append(_harness_table(tasks))
    for suite in dict.fromkeys(row["suite"] for row in rows if row not in tasks):
        chosen = [row for row in rows if row["suite"] == suite]
        name = next(iter(chosen[0]["metrics"]))
        title = name.capitalize() if name == suite else f"{suite.capitalize()}: {name}"
        sentence = floors.sentence(chosen, original_len)
        heading = title + _about(chosen) + (f". {sentence}" if sentence else "")
        tables.append((heading, _cells(chosen, score)))
    tables += _by_position(rows, original_len)
    compared = [row for row in rows if row.get("difference")]
    if compared:
        title = f"{DIFFERENCE} {compared[0]['difference']['baseline']}, nats per token"
        title += _about(compared, ", paired over windows") + "; below 0 is better"
        title += ", * excludes 0" if any(map(has_interval, compared)) else ""
        tables.append((title, _cells(compared, _gap)))
    return tables


def num_windows(row: Row) -> int | None:
    """Returns how many windows of text a row has scored; None: it has scored no windows, or an
    older file does not say."""
    windows = row["items"].get("window_nll")
    return None if windows is None else len(windows)


def has_interval(row: Row) -> bool:
    """Returns whether a row has windows enough for an interval."""
    count = num_windows(row)
    return count is None or count >= LEAST_WINDOWS


def _about(rows: Sequence[Row], how: str = "") -> str:
    if any(map(has_interval, rows)):
        return f" [95% interval{how}]"
    return f"; no interval, for there are fewer than {LEAST_WINDOWS} windows"


def ruler_table(ruler_scores: Mapping[str, Mapping[str, Any]]) -> Table:
    """Returns the mean over RULER's tasks at each length, the effective length and the averages
    with weights that grow (wAvg inc) or fall (wAvg dec) with the length, in per cent.
    """
    first = next(iter(ruler_scores.values()))
    lengths = [f"{int(length):,}" for length in first["mean"]]
    cells = [["", *lengths, "effective length", "wAvg inc", "wAvg dec"]]
    for label, score in ruler_scores.items():
        means = [f"{value:.1f}" for value in score["mean"].values()]
        reached = f"{score['effective_length']:,}" if score["effective_length"] else "none"
        cells.append(
            [label, *means, reached, f"{score['wavg_inc']:.1f}", f"{score['wavg_dec']:.1f}"]
        )
    return " ".join([f"RULER: mean score, per cent ({first['version']}).", *first["notes"]]), cells


def cost_table(rows: Sequence[Row]) -> Table:
    """Returns the cost of each suite for each label: forward tokens, and tokens per second."""
    suites = list(dict.fromkeys(row["suite"] for row in rows))
    cells = [["", *suites]]
    for label in dict.fromkeys(row["label"] for row in rows):
        label_rows = [row for row in rows if row["label"] == label]
        cells.append([label, *(_cost([r for r in label_rows if r["suite"] == s]) for s in suites)])
    return "Cost: tokens read and written, and tokens per second", cells


def as_text(tables: Sequence[Table]) -> str:
    """Returns tables for a terminal, columns aligned."""
    blocks = []
    for title, cells in tables:
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if place else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in cells
        ]
        blocks.append("\n".join([title, *lines]))
    return "\n\n".join(blocks)


def as_markdown(tables: Sequence[Table]) -> str:
    """Returns tables for a Markdown file."""
    blocks = []
    for title, cells in tables:
        rule = ["---"] + ["--:"] * (len(cells[0]) - 1)
        # escaped: an asterisk or a bar would be markup
        safe = [[cell.replace("*", "\\*").replace("|", "\\|") for cell in row] for row in cells]
        lines = ["| " + " | ".join(row) + " |" for row in (safe[0], rule, *safe[1:])]
        blocks.append("\n".join([f"## {title.replace('*', chr(92) + '*')}", "", *lines]))
    return "\n\n".join(blocks) + "\n"


def number(value: float | None) -> str:
    """Returns a score as text; null, which stands for a number that is not finite, as "inf"."""
    if value is None or not math.isfinite(value):
        return "inf"
    return f"{value:.2f}" if value < 10_000 else f"{value:.3g}"


def _harness_table(rows: Sequence[Row]) -> Table:
    """Returns a row for each label, and a column for each task with the metric that is shown."""
    suites = list(dict.fromkeys(row["suite"] for row in rows))
    scored = {(row["label"], row["suite"]): row for row in rows}
    first = {row["suite"]: next(iter(row["metrics"])) for row in rows}
    shots = {row["suite"]: ", ".join(map(str, row["items"]["shots"])) for row in rows}
    heads = [f"{s.removeprefix('harness/')} ({shots[s]} shots): {first[s]}" for s in suites]
    cells = [["", *heads]]
    for label in dict.fromkeys(row["label"] for row in rows):
        label_rows = [scored.get((label, suite)) for suite in suites]
        cells.append([label, *(_share(row) if row else "" for row in label_rows)])
    return "Tasks of lm-evaluation-harness [95% interval]", cells


def _share(row: Row) -> str:
    metrics = row["metrics"]
    score, low, high = next(iter(metrics.values())), metrics["low"], metrics["high"]
    share = f"{score:.4f}" if score is not None else "none"
    return share if low is None else f"{share} [{low:.4f}, {high:.4f}]"


def _by_position(rows: Sequence[Row], original_len: int | None) -> list[Table]:
    """Returns the table of perplexity within the original length, from there to its double, and so
    on, in the longest windows; [] where none is longer than that.
    """
    curves = [row for row in rows if row["items"].get("position_nll")]
    curves = [row for row in curves if None not in row["items"]["position_nll"]]
    longest = max((row["length"] for row in curves), default=0)
    if not original_len or longest <= original_len:
        return []
    ends = [original_len * 2**i for i in range(math.ceil(math.log2(longest / original_len)))]
    cells: list[list[str]] = []
    for row in curves:
        if row["length"] == longest:
            edges = row["items"]["position_edges"]
            near = [min(edges, key=lambda edge, end=end: abs(edge - end)) for end in ends]
            bounds = sorted({edges[0], *near, edges[-1]})
            spans = list(zip(bounds[:-1], bounds[1:], strict=True))
            cells = cells or [["", *(f"{begin:,} to {end - 1:,}" for begin, end in spans)]]
            cells.append([row["label"], *(number(_span(row, *span)) for span in spans)])
    return [(f"Perplexity by position in {longest:,} tokens", cells)]


def _span(row: Row, begin: int, end: int) -> float:
    """Returns the perplexity of the positions from begin to end - 1, edges of bins."""
    edges = row["items"]["position_edges"]
    bins = zip(edges[:-1], edges[1:], row["items"]["position_nll"], strict=True)
    total = sum((high - low) * nll for low, high, nll in bins if begin <= low < end)
    return math.exp(min(total / (end - begin), 700.0))


def _cells(rows: Sequence[Row], cell_fn: Callable[[Row], str]) -> list[list[str]]:
    lengths = sorted({row["length"] for row in rows})
    by_place = {(row["label"], row["length"]): cell_fn(row) for row in rows}
    labels = dict.fromkeys(row["label"] for row in rows)
    header = ["", *(f"{length:,}" for length in lengths)]
    cells = [[label, *(by_place.get((label, n), "") for n in lengths)] for label in labels]
    return [header, *cells, *_counts(rows, lengths)]


def _counts(rows: Sequence[Row], lengths: Sequence[int]) -> list[list[str]]:
    """Returns the line with the number of windows, or of trials, at each length; [] if unknown."""
    name = "trials" if all(num_windows(row) is None for row in rows) else "windows"
    counts: dict[int, set[int]] = {length: set() for length in lengths}
    for row in rows:
        kind = next((k for k in ("window_nll", "found", "score") if k in row["items"]), None)
        if kind:
            counts[row["length"]].add(len(row["items"][kind]))
    if not any(counts.values()):
        return []
    ends = [sorted(numbers)[:: max(len(numbers) - 1, 1)] for numbers in counts.values()]
    return [[name, *(" to ".join(map(str, numbers)) for numbers in ends)]]


def score(row: Row) -> str:
    """Returns a row's score with its interval, if it has one."""
    metrics = row["metrics"]
    score = next(iter(metrics.values()))
    if metrics.get("n_key_token") == 0:  # of LongPPL
        return "no key token"
    if not has_interval(row):
        return number(score)
    return f"{number(score)} [{number(metrics['low'])}, {number(metrics['high'])}]"


def _cost(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    tokens, seconds = (sum(row[name] for row in rows) for name in ("tokens", "seconds"))
    return f"{tokens:,}, {tokens / max(seconds, 1e-3):,.0f}/s"


def _gap(row: Row) -> str:
    difference = row["difference"]
    values = [difference["mean"], difference["low"], difference["high"]]
    if None in values:
        return "inf"
    mean, low, high = values
    if not has_interval(row):
        return f"{mean:+.4f}"
    star = "*" if low > 0 or high < 0 else ""
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]{star}"

"""What a program writes about results: the record for eval.json, tables for people.

A table has a row per setting and a column per length. Nothing here runs a model.
"""

import dataclasses
import math
from collections.abc import Sequence

from jaxrope.evaluation import statistics
from jaxrope.evaluation.scoring import Result
from jaxrope.evaluation.statistics import Difference

FORMAT = "jaxrope.eval/1"
Differences = dict[tuple[str, int], Difference]  # (label, length) -> against the baseline


def differences(
    results: Sequence[Result], *, baseline: str, num_samples: int, seed: int
) -> Differences:
    """Returns each row's paired difference of mean NLL from the row `baseline`, token for token.

    Lengths where the baseline was not scored, or scored other tokens, have none.
    """
    scored = [result for result in results if result.nll_WT is not None]
    bases = {result.length: result for result in scored if result.label == baseline}
    return {
        (result.label, result.length): statistics.compare(
            result.nll_WT, bases[result.length].nll_WT, num_samples=num_samples, seed=seed
        )
        for result in scored
        if result.label != baseline
        and result.length in bases
        and result.fingerprint == bases[result.length].fingerprint
    }


def record(results: Sequence[Result], found: Differences, *, baseline: str) -> list[dict]:
    """Returns results as JSON values, without the NLL of tokens. What is not finite is null."""
    rows = []
    for result in results:
        row = {
            "suite": result.suite,
            "label": result.label,
            "length": result.length,
            "metrics": {name: _finite(value) for name, value in result.metrics.items()},
            "items": {name: [_finite(v) for v in values] for name, values in result.items.items()},
            "fingerprint": result.fingerprint,
            "tokens": result.tokens,
            "seconds": round(result.seconds, 3),
            "tokens_per_second": round(result.tokens / result.seconds, 1),
        }
        difference = found.get((result.label, result.length))
        if result.nll_WT is not None and difference:
            row["difference"] = {"baseline": baseline, **dataclasses.asdict(difference)}
        rows.append(row)
    return rows


def tables(
    results: Sequence[Result], found: Differences, *, baseline: str
) -> list[tuple[str, list]]:
    """Returns (title, cells) of every table; the first row of the cells is the header."""
    made = []
    for suite in dict.fromkeys(result.suite for result in results):
        chosen = [result for result in results if result.suite == suite]
        name = next(iter(chosen[0].metrics))
        made.append((f"{suite}: {name} [95% interval]", _cells(chosen, _score)))
    if found:
        chosen = [result for result in results if (result.label, result.length) in found]
        title = (
            f"mean NLL minus that of {baseline}, nats per token [95% interval, paired over "
            "windows]; below 0 is better, * excludes 0"
        )
        made.append(
            (title, _cells(chosen, lambda result: _gap(found[result.label, result.length])))
        )
    return made


def as_text(made: Sequence[tuple[str, list]]) -> str:
    """Returns tables for a terminal, columns aligned."""
    blocks = []
    for title, cells in made:
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        rights = [[c.rjust(w) for c, w in zip(row, widths, strict=True)] for row in cells]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *right[1:]])
            for row, right in zip(cells, rights, strict=True)
        ]
        blocks.append("\n".join([title, *lines]))
    return "\n\n".join(blocks)


def as_markdown(made: Sequence[tuple[str, list]]) -> str:
    """Returns tables for a Markdown file."""
    blocks = []
    for title, cells in made:
        rule = ["---"] + ["--:"] * (len(cells[0]) - 1)
        lines = ["| " + " | ".join(row) + " |" for row in (cells[0], rule, *cells[1:])]
        # an asterisk after a bracket would begin emphasis
        blocks.append(f"## {title}\n\n" + "\n".join(line.replace("*", "\\*") for line in lines))
    return "\n\n".join(blocks) + "\n"


def _cells(results: Sequence[Result], cell_fn) -> list[list[str]]:
    lengths = sorted({result.length for result in results})
    by_place = {(result.label, result.length): cell_fn(result) for result in results}
    labels = dict.fromkeys(result.label for result in results)
    header = ["", *(f"{length:,}" for length in lengths)]
    return [header] + [
        [label, *(by_place.get((label, length), "") for length in lengths)] for label in labels
    ]


def _score(result: Result) -> str:
    score = next(iter(result.metrics.values()))
    return f"{_number(score)} [{_number(result.metrics['low'])}, {_number(result.metrics['high'])}]"


def _gap(difference: Difference) -> str:
    star = "*" if difference.decided else ""
    return f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]{star}"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:.2f}" if value < 10_000 else f"{value:.3g}"


def _finite(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""What a program writes about results: rows of JSON values, and each row's paired comparison."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrope.evaluate import ruler, statistics
from jaxrope.evaluate.scoring import Result
from jaxrope.evaluate.statistics import Difference

FORMAT = "jaxrope.eval/2"
Differences = dict[tuple[str, int], Difference]  # (label, length) -> difference from the baseline


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


def of_ruler(results: Sequence[Result]) -> dict[str, dict]:
    """Returns {label: what RULER says of it}, see ruler.summary; {} without its tasks."""
    scores: dict[str, dict[str, dict[int, float]]] = {}
    for result in results:
        if result.suite.startswith("ruler/"):
            tasks = scores.setdefault(result.label, {})
            tasks.setdefault(result.suite, {})[result.length] = result.metrics["score"]
    return {label: ruler.summary(tasks) for label, tasks in scores.items()}


def record(results: Sequence[Result], comparisons: Differences, *, baseline: str) -> list[dict]:
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
            "chance": result.chance,
            "columns": list(result.columns),
            "weights": result.weights,
            "original_len": result.original_len,
        }
        difference = comparisons.get((result.label, result.length))
        if result.nll_WT is not None and difference:
            row["difference"] = {
                "baseline": baseline,
                **{k: _finite(v) for k, v in dataclasses.asdict(difference).items()},
            }
        rows.append(row)
    return rows


def columns(content: Mapping[str, Any]) -> dict[str, float | int | None]:
    """Returns {"perplexity at 512": 32.9, ..., "forward tokens": 12345} of an eval.json: the scores
    of its first row, and the tokens of all rows.
    """
    rows = content["rows"]
    scores = {
        f"{row['suite']} at {row['length']}": next(iter(row["metrics"].values()))
        for row in rows
        if row["label"] == rows[0]["label"]
    }
    return scores | {"forward tokens": sum(row["tokens"] for row in rows)}


def _finite(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value

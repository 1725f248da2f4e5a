"""Tasks that a model cannot do even inside its own window: said in one sentence, and not drawn.

A curve or a map of them would look like a failure beyond the window, which it is not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def labels(rows: Sequence[Row], original_len: int | None) -> list[str]:
    """Returns the labels that are at floor, in order: each measured inside the window at one length
    at least, and at none of them above chance by the lower end of its 95% interval.

    Args:
      rows: of eval.json, of one suite.
      original_len: tokens the model was trained on; None = not known, then none is at floor.
    """
    return [
        label for label, own in _inside(rows, original_len).items() if not any(map(_above, own))
    ]


def sentence(rows: Sequence[Row], original_len: int | None) -> str:
    """Returns which labels are at floor, with the numbers that say so; "" if none is."""
    inside = _inside(rows, original_len)
    told = []
    for label in labels(rows, original_len):
        row = max(inside[label], key=lambda row: row["length"])
        score, low, high = _interval(row)
        told.append(f"{label} {score:.2f} [{low:.2f}, {high:.2f}] at {row['length']:,}")
    if not told:
        return ""
    return (
        f"At floor inside the model's own window of {original_len:,} tokens, not above chance "
        f"({rows[0]['chance']:g}), and not drawn: {', '.join(told)}."
    )


def _inside(rows: Sequence[Row], original_len: int | None) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        known = row.get("chance") is not None and original_len
        if known and row["length"] <= original_len:
            found.setdefault(row["label"], []).append(row)
    return found


def _above(row: Row) -> bool:
    return _interval(row)[1] > row["chance"]


def _interval(row: Row) -> tuple[float, float, float]:
    metrics = row["metrics"]
    return next(iter(metrics.values())), metrics["low"], metrics["high"]

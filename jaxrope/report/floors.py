"""Tasks that a model cannot do even inside its own window: stated in one sentence, and not drawn.

A curve or a map of them would look like a failure beyond the window, which it is not. A model is
its weights: rows that differ only in their factors are judged together, so that factors which fail
where those of the model do not are drawn as a failure.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def labels(rows: Sequence[Row], original_len: int | None) -> list[str]:
    """Returns the labels that are at floor, in order: those of a model that was measured inside its
    own window and is at no length there above chance, by the lower end of its 95% interval.

    Args:
      rows: of eval.json, of one suite. Each names its model and trained length ("weights",
        "original_len"); in older files each label is a model.
      original_len: tokens the model was trained on, for rows without it; None = unknown, then such
        a row is not at floor.
    """
    inside = _inside(rows, original_len)
    models = {label: _model(label_rows[0]) for label, label_rows in inside.items()}
    able = {models[label] for label, label_rows in inside.items() if any(map(_above, label_rows))}
    return [label for label, model in models.items() if model not in able]


def sentence(rows: Sequence[Row], original_len: int | None) -> str:
    """Returns which labels are at floor, with the numbers that show it; "" if none is."""
    inside = _inside(rows, original_len)
    scores, windows, chances = [], {}, {}
    for label in labels(rows, original_len):
        row = max(inside[label], key=lambda row: row["length"])
        score, low, high = _interval(row)
        scores.append(f"{label} {score:.2f} [{low:.2f}, {high:.2f}] at {row['length']:,}")
        windows[f"{_window(row, original_len):,}"] = chances[f"{row['chance']:.2g}"] = None
    if not scores:
        return ""
    return (
        f"At floor inside the model's own window of {' or '.join(windows)} tokens, not above "
        f"chance ({' or '.join(chances)}), and not drawn: {', '.join(scores)}."
    )


def _inside(rows: Sequence[Row], original_len: int | None) -> dict[str, list[Row]]:
    by_label: dict[str, list[Row]] = {}
    for row in rows:
        window = _window(row, original_len)
        if row.get("chance") is not None and window and row["length"] <= window:
            by_label.setdefault(row["label"], []).append(row)
    return by_label


def _window(row: Row, original_len: int | None) -> int | None:
    return row.get("original_len") or original_len


def _model(row: Row) -> str:
    return row.get("weights") or row["label"]


def _above(row: Row) -> bool:
    return _interval(row)[1] > row["chance"]


def _interval(row: Row) -> tuple[float, float, float]:
    metrics = row["metrics"]
    return next(iter(metrics.values())), metrics["low"], metrics["high"]

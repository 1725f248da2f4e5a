"""From the files of a training to a section of a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrope.report import figures, panels, tables, tabulated
from jaxrope.report.page import Figure, Origin, Section

Row = Mapping[str, Any]


def steps(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows of metrics.jsonl that are steps."""
    return [row for row in rows if row.get("loss") is not None]


def section(rows: Sequence[Row], *, name: str, origin: Origin) -> Section:
    """Returns the section of a training that made the row `name` of the page."""
    step_rows = steps(rows)
    last = step_rows[-1]
    numbers = tabulated.columns(step_rows, ("step", "loss", "lr", "grad_norm", "tokens"))
    words = (
        (
            "loss",
            f"Training loss from {step_rows[0]['loss']:.3f} to {last['loss']:.3f} in "
            f"{last['step']} steps.",
            "Loss of each step (pale), and its running mean.",
        ),
        (
            "rate",
            f"Learning rate by step, at most {max(row['lr'] for row in step_rows):.3g}.",
            "Learning rate by step.",
        ),
    )
    charts = [
        Figure(name=name, drawing=drawing, alt=alt, caption=caption, numbers=numbers)
        for drawing, (name, alt, caption) in zip(
            figures.training_figures(step_rows, name), words, strict=True
        )
    ]
    section_tables, scores = [], [row for row in rows if "eval" in row]
    if scores:
        names = list(scores[-1]["eval"])
        cells = [["step", *names]] + [
            [f"{row['step']:,}", *(tables.number(row["eval"].get(name)) for name in names)]
            for row in scores
        ]
        section_tables.append(("Evaluations on the way", cells))
    is_unnamed = name.partition(",")[0] == panels.TRAINING
    title = name[0].upper() + name[1:] if is_unnamed else f"Training of {name}"
    title += f", {last['step']:,} steps"
    return Section(title, section_tables, charts, origin, kind="training")


def line(rows: Sequence[Row], config: Row) -> dict[str, str]:
    """Returns the line of the inventory for a training, by column."""
    step_rows = steps(rows)
    last, tokens = step_rows[-1], sum(row["tokens"] for row in step_rows)
    path = config["model"].get("path", "") if "model" in config else ""
    return {
        "What": f"training, loss {step_rows[0]['loss']:.3f} → {last['loss']:.3f}",
        "Model": Path(path).name,
        "Window": f"rows of {config['train']['seq_len']:,}" if "train" in config else "",
        "Cost": f"{last['step']:,} steps, {tokens:,} tokens",
    }

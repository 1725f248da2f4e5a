"""The table of `make serve`: a row for each route and program that was run."""

from pathlib import Path

import pytest

from jaxrope import data

_ROWS: dict[tuple[str, str], dict[str, list]] = {}
_COLUMNS = ("opens", "inside", "beyond", "greedy", "KL", "first choices")


@pytest.fixture
def record():
    """Adds to a row: (route, program with its version, column=value) -> None.

    opens: "yes" or why not; inside, beyond: (median, largest) difference of a log-probability at a
    length; greedy: (equal tokens, all tokens); KL: divergence; first_choices: share that is equal.
    """

    def add(route: str, program: str, **cells) -> None:
        row = _ROWS.setdefault((route, program), {})
        for column, value in cells.items():
            row.setdefault(column.replace("_", " "), []).append(value)

    return add


@pytest.fixture(scope="session")
def book_ids(books_6m, shared):
    """The ids of a piece of a novel that no training saw, int32."""
    text: Path = sorted((shared / "books" / "val").glob("*.txt"))[0]
    return data.load_tokenizer(books_6m).prompt(text.read_text()[20_000:40_000])


def _shown(column: str, values: list) -> str:
    if column == "opens":
        return values[0]
    if column == "greedy":
        equal, number = (sum(parts) for parts in zip(*values, strict=True))
        return f"{equal} of {number}" if number else ""
    if column in ("inside", "beyond"):  # the worst of all lengths
        return " ".join(f"{max(parts):.0e}" for parts in zip(*values, strict=True))
    return f"{max(values):.0e}" if column == "KL" else f"{min(values):.1%}"


def pytest_terminal_summary(terminalreporter):
    if not _ROWS:
        return
    rows = [["route", "program", *_COLUMNS]]
    for (route, program), cells in sorted(_ROWS.items()):
        cells = {"opens": ["yes"]} | cells
        shown = (_shown(name, cells[name]) if name in cells else "" for name in _COLUMNS)
        rows.append([route, program, *shown])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    terminalreporter.section("served: differences of log-probabilities, median and largest")
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        terminalreporter.write_line("  ".join(cells).rstrip())

"""The table of `make serve`: a row for each route and length that was run."""

import pytest

_ROWS: list[list[str]] = []


@pytest.fixture
def record():
    """Adds a row: (route, program with its version, length, numbers by name) -> None."""

    def add(route: str, program: str, length, numbers: dict) -> None:
        shown = (f"{name} {float(value):.2g}" for name, value in numbers.items())
        _ROWS.append([route, program, str(length), ", ".join(shown)])

    return add


def pytest_terminal_summary(terminalreporter):
    if not _ROWS:
        return
    rows = [["route", "program", "tokens", "against our forward pass"], *_ROWS]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    terminalreporter.section("served")
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        terminalreporter.write_line("  ".join(cells).rstrip())

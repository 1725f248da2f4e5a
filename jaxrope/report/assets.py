"""From drawings to files: <svg> elements for the page, and SVG, PNG and CSV beside it."""

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

from jaxrope.report import figures, theme
from jaxrope.report.page import Drawn, Folder
from jaxrope.store import files

LIST = "files.json"  # files of the last page, so that the next one can remove them


def folder_of(out: Path) -> Path:
    """Returns the folder beside a page: report_files for report.html."""
    return out.with_name(f"{out.stem}_files")


def make(folders: Sequence[Folder], beside: str) -> tuple[dict, dict[str, bytes]]:
    """Returns ({(folder, section, figure): Drawn}, {name of a file: its bytes}), whose names begin
    with the numbers of their chapter and section.

    Args:
      folders: of the page.
      beside: name of the folder that the page's links go to.
    """
    drawn, contents = {}, {}
    for f, folder in enumerate(folders):
        for s, section in enumerate(folder.sections):
            for g, figure in enumerate(section.figures):
                stem = _slug(f"{f} {folder.title} {s} {section.stage} {figure.name}")
                while f"{stem}.svg" in contents:
                    stem += "-"
                svg = figures.svg_file(figure.drawing)
                contents[f"{stem}.svg"] = svg.encode()
                contents[f"{stem}.png"] = figures.png_file(figure.drawing)
                contents[f"{stem}.csv"] = _csv(figure.numbers)
                links = [(k.upper(), f"{beside}/{stem}.{k}") for k in ("svg", "png", "csv")]
                drawn[f, s, g] = Drawn(theme.paint(figures.svg_element(svg)), links)
    return drawn, contents


def write(contents: dict[str, bytes], folder: Path) -> None:
    """Writes the files, and removes those of an earlier page that this one does not have."""
    for name, content in contents.items():
        files.write_bytes_atomic(folder / name, content)
    for name in _earlier(folder):
        if name not in contents and Path(name).name == name:
            (folder / name).unlink(missing_ok=True)
    files.write_json_atomic(folder / LIST, sorted(contents))


def _earlier(folder: Path) -> list[str]:
    try:
        names = json.loads((folder / LIST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _csv(numbers) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(numbers)
    return buffer.getvalue().encode()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:100]

"""One self-contained HTML page: no network, light and dark, readable on a phone and on paper.

Only text and markup: figures come in as drawings, which `assets` turns into <svg> elements and into
the files beside the page.
"""

import dataclasses
import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrope.report import theme

LONG = 60  # characters; a table with a longer cell has the class "words"
_NUMBER = re.compile(r"\[?[-+]?\d|inf|nan|None|failed|$")
MOST_NUMBERS = 200  # rows of a figure's numbers that the page itself has; its CSV has all


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes:
      name: of its files, letters and digits and "-" only; one of its section.
      drawing: a matplotlib Figure.
      alt: description in words, for readers who cannot see it.
      caption: a sentence or two.
      numbers: that are drawn; the first row is the header.
      is_broad: whether it spans the whole width, and may be scrolled on a phone.
    """

    name: str
    drawing: Any
    alt: str
    caption: str
    numbers: Sequence[Sequence[Any]]
    is_broad: bool = False


@dataclasses.dataclass(frozen=True)
class Section:
    """The results of one program in one folder.

    Attributes:
      title: of the section.
      tables: (title, cells); the first row of cells is the header.
      figures: drawn from the same numbers.
      command: that produced it, or "".
      config: the resolved config, or {}.
      more: tables like `tables`, collapsed at first.
      is_folded: whether its figures are collapsed at first.
      stage: of a recipe that it belongs to, or "".
      lead: a sentence under the title, or "".
    """

    title: str
    tables: Sequence[tuple[str, list[list[str]]]]
    figures: Sequence[Figure]
    command: str
    config: Mapping[str, Any]
    more: Sequence[tuple[str, list[list[str]]]] = ()
    is_folded: bool = False
    stage: str = ""
    lead: str = ""


@dataclasses.dataclass(frozen=True)
class Folder:
    """The part of the page for one workdir.

    Attributes:
      title: of its part of the page.
      path: of the folder, as the user wrote it.
      facts: (name, value, remark or "") of the numbers at its top.
      sections: in order.
    """

    title: str
    path: str
    facts: Sequence[tuple[str, str, str]]
    sections: Sequence[Section]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A rendered figure.

    Attributes:
      svg: its <svg> element, in the page's colours.
      files: (name of a kind, address beside the page).
    """

    svg: str
    files: Sequence[tuple[str, str]]


def render(
    title: str,
    lead: str,
    summary: list[list[str]],
    folders: Sequence[Folder],
    drawn: Mapping[tuple[int, int, int], Drawn],
) -> str:
    """Returns the page.

    Args:
      title: of the page.
      lead: a line under it.
      summary: cells of the table at the top; "#0 name" links to folder 0.
      folders: in order.
      drawn: (folder, section, figure), by their places -> the rendered figure.
    """
    body = [f"<header><h1>{_text(title)}</h1>", f'<p class="lead">{_text(lead)}</p>']
    body += [_table(summary, "words"), "</header>"]
    body.append(_contents(folders))
    body.append("<main>")
    for f, folder in enumerate(folders):
        body.append(f'<section id="f{f}"><h2>{_text(folder.title)}</h2>')
        body.append(f'<p class="path">{_text(folder.path)}</p>' + _facts(folder.facts))
        body += [_section(section, (f, s), drawn) for s, section in enumerate(folder.sections)]
        body.append("</section>")
    body.append(
        "</main>\n<footer>Every figure lies beside this page as SVG, PNG and CSV. Made by "
        "<code>python -m jaxrope.report</code>.</footer>"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_text(title)}</title>\n<style>{theme.css()}</style>\n</head>\n"
        '<body><div class="frame">\n' + "\n".join(body) + "\n</div></body>\n</html>\n"
    )


def _contents(folders: Sequence[Folder]) -> str:
    lines = []
    for f, folder in enumerate(folders):
        lines.append(f'<li class="folder"><a href="#f{f}">{_text(folder.title)}</a></li>')
        stage = ""
        for s, section in enumerate(folder.sections):
            if not section.stage or section.stage != stage:
                name = section.stage or section.title
                lines.append(f'<li><a href="#f{f}s{s}">{_text(name)}</a></li>')
            stage = section.stage
    return f'<nav aria-label="Contents"><ul>{"".join(lines)}</ul></nav>'


def _facts(facts: Sequence[tuple[str, str, str]]) -> str:
    tiles = [
        f'<div class="card"><dt>{_text(name)}</dt><dd>{_text(value)}'
        + (f"<small>{_text(remark)}</small>" if remark else "")
        + "</dd></div>"
        for name, value, remark in facts
    ]
    return f'<dl class="facts">{"".join(tiles)}</dl>' if len(tiles) > 1 else ""


def _section(section: Section, place: tuple[int, int], drawn) -> str:
    prefix = f"f{place[0]}s{place[1]}"
    stage = f"<span>{_text(section.stage)}</span> " if section.stage else ""
    parts = [f'<h3 id="{prefix}">{stage}{_text(section.title)}</h3>']
    if section.lead:
        parts.append(f"<p>{_text(section.lead)}</p>")
    for title, cells in section.tables:
        parts.append(f'<p class="what">{_text(title)}</p>{_table(cells)}')
    figures = "".join(
        _figure(figure, drawn[(*place, g)], f"{prefix}g{g}-", section)
        for g, figure in enumerate(section.figures)
    )
    if figures and section.is_folded:
        count = len(section.figures)
        figures = f"<details><summary>{count} figures</summary>{_grid(figures)}</details>"
    elif figures:
        figures = _grid(figures)
    else:
        figures = _details("Command and config", _origin(section))
    folded = [_details(title, _table(cells)) for title, cells in section.more]
    return "\n".join([*parts, figures, *folded])


def _grid(figures: str) -> str:
    return f'<div class="figures">{figures}</div>'


def _table(cells: Sequence[Sequence[Any]], kind: str = "numbers") -> str:
    """Returns a table; `kind` "words" becomes a list of cards on a phone."""
    header, rows = cells[0], cells[1:]
    columns = list(zip(*rows, strict=True)) or [()] * len(header)
    wordy = [any(not _NUMBER.match(str(cell)) for cell in column) for column in columns]
    lengthy = [any(len(str(cell)) > LONG for cell in column) for column in columns]
    if any(lengthy):
        kind = "words"
    looks = [
        ' class="text long"' if is_long else ' class="text"' if is_text else ""
        for is_text, is_long in zip(wordy, lengthy, strict=True)
    ]
    names = [_text(cell) for cell in header]
    head = "".join(
        f'<th scope="col"{look}>{name}</th>' for name, look in zip(names, looks, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td{look} data-label="{name}">{_cell(cell)}</td>'
            for name, look, cell in zip(names, looks, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide" tabindex="0"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(cell: Any) -> str:
    place, mark, name = str(cell).partition(" ")
    if mark and place.startswith("#") and place[1:].isdigit():
        return f'<a href="#f{place[1:]}">{_text(name)}</a>'
    text = "" if cell is None else str(cell)
    scored = re.fullmatch(r"(\S+) (\[.*\])(\*?)", text)
    if scored:  # a score above its interval, so that more columns fit
        return f"{_text(scored[1] + scored[3])}<small>{_text(scored[2])}</small>"
    return _text(text).replace(" → ", "\u00a0→\u00a0").replace(" at ", " at\u00a0")


def _figure(figure: Figure, drawn: Drawn, prefix: str, section: Section) -> str:
    # figures share ids; without a prefix the second would use the shapes of the first
    svg = drawn.svg.replace('id="', f'id="{prefix}').replace('href="#', f'href="#{prefix}')
    svg = svg.replace("url(#", f"url(#{prefix}")
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{_text(figure.alt)}"', 1)
    links = " ".join(f'<a href="{_text(to)}">{_text(kind)}</a>' for kind, to in drawn.files)
    inside = (f"<p>Beside this page: {links}</p>" if links else "") + _origin(section)
    if figure.numbers:
        inside += _table(figure.numbers[: MOST_NUMBERS + 1])
    kind = ' class="broad"' if figure.is_broad else ""
    return (
        f'<figure{kind}><div class="drawing">{svg}</div>'
        f"<figcaption>{_text(figure.caption)}</figcaption>"
        + _details("Command, config, numbers", inside)
        + "</figure>"
    )


def _origin(section: Section) -> str:
    parts = f"<pre>{_text(section.command)}</pre>" if section.command else ""
    if section.config:
        parts += f"<pre>{_text(json.dumps(section.config, indent=1, ensure_ascii=False))}</pre>"
    return parts


def _details(title: str, inside: str) -> str:
    return f"<details><summary>{_text(title)}</summary>{inside}</details>" if inside else ""


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)

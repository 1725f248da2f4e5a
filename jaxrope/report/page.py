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
PHONE = 360  # pixels of a table on a phone; a wider one becomes a list of cards there
LETTER, SMALL, ROOM = 6.5, 5.7, 8  # pixels of a letter in a cell, in an interval, beside a cell
BOLD = 1.15  # times as wide are the letters of a first column
NARROW = 3  # columns of a table at most that has room beside another
MOST_NUMBERS = 200  # rows of a figure's numbers that the page itself has; its CSV has all
_NUMBER = re.compile(r"\[?[-+]?\d|inf|nan|None|failed|better|worse|not (measured|decided)|$")
_SCORED = re.compile(r"([^\[]+) (\[.*\])(\*?)")  # a score with its interval


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a section comes from.

    Attributes:
      command: that produced it, or "".
      config: the resolved config, or {}.
      about: versions, files and the model's parameters, or {}.
    """

    command: str = ""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)


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
      origin: the command, the config, and more.
      kind: of the chapter that it belongs to; of the first screen "better", "worse" or "open".
      more: tables like `tables`, collapsed at first.
      is_folded: whether its figures are collapsed at first.
      stage: the workdir, or stage of a recipe, that it comes from, or "".
      lead: a sentence under the title, or "".
      notes: sentences at the end.
    """

    title: str
    tables: Sequence[tuple[str, list[list[str]]]]
    figures: Sequence[Figure]
    origin: Origin
    kind: str = "attention"
    more: Sequence[tuple[str, list[list[str]]]] = ()
    is_folded: bool = False
    stage: str = ""
    lead: str = ""
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Folder:
    """Sections that belong together: those of a workdir, or a chapter of the page.

    Attributes:
      title: of the sections; "" = the first screen.
      path: of the workdir, as the user wrote it, or "".
      sections: in order.
    """

    title: str
    path: str
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


@dataclasses.dataclass(frozen=True)
class Art:
    """What is drawn.

    Attributes:
      figures: (folder, section, figure), by their places -> the rendered figure.
      colours: label of a row -> variable with its colour in all figures.
    """

    figures: Mapping[tuple[int, int, int], Drawn]
    colours: Mapping[str, str] = dataclasses.field(default_factory=dict)


def render(title: str, inventory: list[list[str]], folders: Sequence[Folder], art: Art) -> str:
    """Returns the page.

    Args:
      title: of the page.
      inventory: cells of the table at its end, of what the page is made from.
      folders: the first screen, and chapters in order.
      art: what is drawn.
    """
    origins = _origins(folders)
    body = [f"<header><h1>{_text(title)}</h1></header>", _contents(folders), "<main>"]
    for f, folder in enumerate(folders):
        if not folder.title:
            body += [_first(section, (f, s), art) for s, section in enumerate(folder.sections)]
            continue
        alone = len(folder.sections) == 1  # then its title is the chapter's
        heading = "" if alone else f"<h2>{_text(folder.title)}</h2>"
        body.append(f'<section id="f{f}">{heading}')
        for s, section in enumerate(folder.sections):
            origin = [origin for origin, _ in origins].index(section.origin)
            body.append(_section(section, (f, s), art, origin, "h2" if alone else "h3"))
        body.append("</section>")
    body += [_inventory(inventory, origins), "</main>"]
    body.append(
        "<footer>Every figure lies beside this page as SVG, PNG and CSV. Made by "
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
        if folder.title:
            lines.append(f'<li class="chapter"><a href="#f{f}">{_text(folder.title)}</a></li>')
        for s, section in enumerate(folder.sections if len(folder.sections) > 1 else ()):
            name = ", ".join(filter(None, (section.title, section.stage)))
            lines.append(f'<li><a href="#f{f}s{s}">{_text(name)}</a></li>')
    lines.append('<li class="chapter"><a href="#inventory">Inventory</a></li>')
    return f'<nav aria-label="Contents"><ul>{"".join(lines)}</ul></nav>'


def _first(section: Section, place: tuple[int, int], art: Art) -> str:
    """Returns the first screen: a verdict, and beside each other the numbers and their figure."""
    parts = [f'<section class="first"><p class="verdict {section.kind}">{_text(section.lead)}</p>']
    for title, cells in section.tables:
        parts.append(f'<p class="what">{_text(title)}</p>{_table(cells, art.colours)}')
    parts = [parts[0], f"<div>{''.join(parts[1:])}{_notes(section)}</div>"]
    for g, figure in enumerate(section.figures):
        parts.append(_figure(figure, art.figures[(*place, g)], f"f{place[0]}s{place[1]}g{g}-"))
    return "".join([*parts, "</section>"])


def _notes(section: Section) -> str:
    return "".join(f'<p class="what">{_text(note)}</p>' for note in section.notes)


def _origins(folders: Sequence[Folder]) -> list[tuple[Origin, str]]:
    """Returns what the chapters come from, each once, with the title of its first section."""
    origins: list[tuple[Origin, str]] = []
    for folder in folders:
        for section in folder.sections if folder.title else ():
            if all(section.origin != origin for origin, _ in origins):
                title = f"{section.stage}: {section.title}" if section.stage else section.title
                origins.append((section.origin, title))
    return origins


def _section(section: Section, place: tuple[int, int], art: Art, origin: int, head: str) -> str:
    prefix = f"f{place[0]}s{place[1]}"
    stage = f"<span>{_text(section.stage)}</span> " if section.stage else ""
    parts = [f'<{head} id="{prefix}">{stage}{_text(section.title)}</{head}>']
    if section.lead:
        parts.append(f"<p>{_text(section.lead)}</p>")
    tables = "".join(
        f'<div><p class="what">{_text(title)}</p>{_table(cells, art.colours)}</div>'
        for title, cells in section.tables
    )
    if len(section.tables) > 1 and all(len(c[0]) <= NARROW for _, c in section.tables):
        tables = f'<div class="narrow">{tables}</div>'
    figures = "".join(
        _figure(figure, art.figures[(*place, g)], f"{prefix}g{g}-", origin)
        for g, figure in enumerate(section.figures)
    )
    if figures and section.is_folded:
        count = len(section.figures)
        figures = f"<details><summary>{count} figures</summary>{_grid(figures)}</details>"
    elif tables and len(section.figures) == 1 and not section.figures[0].is_broad:
        tables, figures = f'<div class="beside"><div>{tables}</div>{figures}</div>', ""
    elif figures:
        figures = _grid(figures)
    folded = [_details(title, _table(cells, art.colours)) for title, cells in section.more]
    shown = (figures, tables) if section.kind == "search" else (tables, figures)
    return "\n".join([*parts, *shown, *folded, _notes(section)])


def _grid(figures: str) -> str:
    return f'<div class="figures">{figures}</div>'


def _table(cells: Sequence[Sequence[Any]], colours: Mapping[str, str] | None = None) -> str:
    """Returns a table; one that is too wide for a phone becomes a list of cards there. Where the
    first cell of a row is a name in `colours`, its colour stands before it.
    """
    header, rows = cells[0], cells[1:]
    columns = list(zip(*rows, strict=True)) or [()] * len(header)
    wordy = [any(not _NUMBER.match(str(cell)) for cell in column) for column in columns]
    lengthy = [any(len(str(cell)) > LONG for cell in column) for column in columns]
    kind = "words" if any(lengthy) else "numbers"
    kind += " cards" if any(lengthy) or _pixels(header, columns) > PHONE else ""
    looks = [
        ' class="text long"' if is_long else ' class="text"' if is_text else ""
        for is_text, is_long in zip(wordy, lengthy, strict=True)
    ]
    names = [_text(cell) for cell in header]
    head = "".join(
        f'<th scope="col"{look}>'
        f"{_marked(str(cell).removeprefix('after: '), _broken(name), colours)}</th>"
        for cell, name, look in zip(header, names, looks, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td{look} data-label="{name}">'
            f"{_marked(cell, _cell(cell), None if place else colours)}</td>"
            for place, (name, look, cell) in enumerate(zip(names, looks, row, strict=True))
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide" tabindex="0"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _pixels(header: Sequence[Any], columns: Sequence[Sequence[Any]]) -> float:
    """Returns how wide a table is on a phone, at least: lines break between words."""
    widths = []
    for name, column in zip(map(str, header), columns, strict=True):
        pixels = [LETTER * len(word) for word in name.split()]
        for cell in map(str, column):
            scored = _SCORED.fullmatch(cell)
            words = _together(scored[1] + scored[3] if scored else cell).split(" ")
            pixels += [LETTER * len(word) * (1.0 if widths else BOLD) for word in words]
            pixels += [SMALL * len(scored[2])] if scored else []
        widths.append(ROOM + max(pixels, default=0))
    return sum(widths)


def _broken(text: str) -> str:
    """Returns a heading that may break where a path or a name has a joint."""
    return text.replace("_", "_<wbr>").replace("/", "/<wbr>")


def _together(text: str) -> str:
    """Returns a text that does not break where a reader would not."""
    return text.replace(" → ", "\u00a0→\u00a0").replace(" at ", " at\u00a0")


def _marked(cell: Any, inside: str, colours: Mapping[str, str] | None) -> str:
    """Returns the inside of a cell, after the colour of the row whose name `cell` is or ends in."""
    names = (str(cell), str(cell).rpartition(", ")[2])
    name = next((name for name in names if name in (colours or ())), "")
    if not colours or not name:
        return inside
    word, space, rest = inside.partition(" ")
    return f'<span><i style="background: var(--{colours[name]})"></i>{word}</span>{space}{rest}'


def _cell(cell: Any) -> str:
    text = "" if cell is None else str(cell)
    scored = _SCORED.fullmatch(text)
    if scored:  # a score above its interval, so that more columns fit
        return f"{_text(scored[1] + scored[3])}<small>{_text(scored[2])}</small>"
    return _together(_text(text))


def _figure(figure: Figure, drawn: Drawn, prefix: str, origin: int | None = None) -> str:
    # figures share ids; without a prefix the second would use the shapes of the first
    svg = drawn.svg.replace('id="', f'id="{prefix}').replace('href="#', f'href="#{prefix}')
    svg = svg.replace("url(#", f"url(#{prefix}")
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{_text(figure.alt)}"', 1)
    links = " ".join(f'<a href="{_text(to)}">{_text(kind)}</a>' for kind, to in drawn.files)
    inside = f"<p>Beside this page: {links}</p>" if links else ""
    if origin is not None:
        inside += f'<p><a href="#o{origin}">Command and config</a></p>'
    if figure.numbers:
        inside += _table([list(map(_rounded, row)) for row in figure.numbers[: MOST_NUMBERS + 1]])
    kind = ' class="broad"' if figure.is_broad else ""
    return (
        f'<figure{kind}><div class="drawing">{svg}</div>'
        f"<figcaption>{_text(figure.caption)}</figcaption>"
        + _details("Numbers and files", inside)
        + "</figure>"
    )


def _rounded(value: Any) -> Any:
    """Returns a number as a page shows it; the CSV beside it has all digits."""
    return f"{value:.5g}" if isinstance(value, float) else value


def _inventory(cells: list[list[str]], origins: Sequence[tuple[Origin, str]]) -> str:
    """Returns the end of the page: what it is made from."""
    parts = ['<section id="inventory"><h2>Inventory</h2>', _table(cells)]
    for place, (origin, title) in enumerate(origins):
        inside = f"<pre>{_text(origin.command)}</pre>" if origin.command else ""
        for content in (origin.about, origin.config):
            if content:
                inside += f"<pre>{_text(json.dumps(content, indent=1, ensure_ascii=False))}</pre>"
        name = f"{title}: command, files, versions, parameters, config"
        parts.append(f'<div id="o{place}">{_details(name, inside)}</div>')
    return "\n".join([*parts, "</section>"])


def _details(title: str, inside: str) -> str:
    return f"<details><summary>{_text(title)}</summary>{inside}</details>" if inside else ""


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)

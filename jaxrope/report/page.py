"""One self-contained HTML page: no network, light and dark, readable on a phone and on paper.

Only text and markup: figures come in as finished <svg> elements, see report.py.
"""

import dataclasses
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

CSS = """
:root { color-scheme: light dark; --line: #8885; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 0 auto; padding: 1rem;
  background: #fdfdfc; color: #1b1c1d; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem;
  overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child, .words th, .words td { text-align: left; }
.words td { white-space: normal; vertical-align: top; }
@media (max-width: 40rem) {
  .words thead { display: none; }
  .words tr { display: block; border-bottom: 1px solid var(--line); padding: .4rem 0; }
  .words td { display: block; border: 0; padding: 0; }
  .words td:first-child { font-weight: 600; overflow-wrap: anywhere; }
}
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr));
  gap: 1.5rem; margin: 1rem 0; }
figure { margin: 0; min-width: 0; }
figure svg { width: 100%; height: auto; display: block; }
figcaption { font-size: .85rem; opacity: .8; }
pre { background: var(--soft); padding: .7rem; overflow-x: auto; font-size: .8rem; }
summary { cursor: pointer; }
@media (prefers-color-scheme: dark) { body { background: #16181a; color: #e4e5e6; } }
@media print {
  body { background: none; color: black; max-width: none; font-size: 10pt; }
  figure, table, h2, h3 { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  details:not([open]) { display: none; }
}
"""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes:
      svg: an <svg> element.
      alt: what it shows, in words, for whoever cannot see it.
      caption: what it is, one sentence.
    """

    svg: str
    alt: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Section:
    """What one program left in one folder.

    Attributes:
      title: what it is.
      tables: (title, cells); the first row of cells is the header.
      figures: drawn from the same numbers.
      command: what made it, or "".
      config: the resolved config, or {}.
    """

    title: str
    tables: Sequence[tuple[str, list[list[str]]]]
    figures: Sequence[Figure]
    command: str
    config: Mapping[str, Any]


def render(title: str, summary: list[list[str]], folders: Mapping[str, Sequence[Section]]) -> str:
    """Returns the page.

    Args:
      title: of the page.
      summary: cells of the table at the top.
      folders: folder -> its sections.
    """
    body = [f"<h1>{_text(title)}</h1>", _table(summary, "words")]
    for place, (folder, sections) in enumerate(folders.items()):
        body.append(f'<h2 id="folder{place}">{_text(folder)}</h2>')
        body += [_section(section, f"f{place}s{i}") for i, section in enumerate(sections)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _section(section: Section, prefix: str) -> str:
    parts = [f"<h3>{_text(section.title)}</h3>"]
    for title, cells in section.tables:
        parts.append(f"<p>{_text(title)}</p>{_table(cells)}")
    figures = [_figure(figure, f"{prefix}g{i}-") for i, figure in enumerate(section.figures)]
    if figures:
        parts.append(f'<div class="figures">{"".join(figures)}</div>')
    if section.command:
        parts.append(f"<pre>{_text(section.command)}</pre>")
    if section.config:
        config = _text(json.dumps(section.config, indent=1, ensure_ascii=False))
        parts.append(f"<details><summary>Config</summary><pre>{config}</pre></details>")
    return "\n".join(parts)


def _table(cells: list[list[str]], kind: str = "numbers") -> str:
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in cells[0])
    rows = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in cells[1:]
    )
    return (
        f'<div class="wide" tabindex="0"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _figure(figure: Figure, prefix: str) -> str:
    # two figures have the same ids inside; the second one would use the first one's shapes
    svg = figure.svg.replace('id="', f'id="{prefix}').replace('href="#', f'href="#{prefix}')
    svg = svg.replace("url(#", f"url(#{prefix}")
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{_text(figure.alt)}"', 1)
    return f"<figure>{svg}<figcaption>{_text(figure.caption)}</figcaption></figure>"


def _text(value: str) -> str:
    return html.escape(str(value), quote=True)

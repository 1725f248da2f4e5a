"""How the page looks: colours of both themes, type, layout, and how it prints.

A drawn figure has the light theme's colours of `axes`; on the page each of them is a CSS variable
that has another shade in the dark theme, so that every line has a contrast of 3 at least there too.
"""

import re

from jaxrope.report.axes import FOREGROUND

THEMES = ("light", "dark")
# colour in a figure -> (variable, shade on a light page, shade on a dark page)
SHADES = {
    "#7f7f7f": ("grey", "#6f7276", "#a3a8ad"),
    "#e69f00": ("orange", "#bf8000", "#f2b23d"),
    "#56b4e9": ("sky", "#2d93cf", "#74c7f7"),
    "#0072b2": ("blue", "#0068a6", "#4f8fe8"),
    "#6a5acd": ("indigo", "#6a5acd", "#a99bff"),
    "#d55e00": ("red", "#cf5a00", "#ff8b45"),
    "#3d4a57": ("slate", "#3d4a57", "#dbe3ea"),
    "#cc79a7": ("pink", "#bd6496", "#f0aed2"),
    "#8c6d1f": ("gold", "#8c6d1f", "#cdb35f"),
    "#a8237f": ("magenta", "#a8237f", "#e86cc4"),
    "#008b9a": ("cyan", "#007f8d", "#35c3d4"),
    "#8a4b2a": ("brown", "#8a4b2a", "#c98b68"),
}
# variable -> (on a light page, on a dark page)
SURFACES = {
    "page": ("#f4f5f7", "#111417"),
    "card": ("#ffffff", "#1a1e22"),
    "ink": ("#16191c", "#e9ebed"),
    "soft": ("#585f66", "#a4abb2"),
    "line": ("#dfe2e6", "#31373d"),
    "code": ("#f1f3f5", "#14181b"),
    "link": ("#0a62a8", "#79b8f5"),
}


def paint(svg: str) -> str:
    """Returns a figure's <svg> with the page's colours in the place of its own."""
    for colour, (name, _, _) in SHADES.items():
        svg = svg.replace(colour, f"var(--{name})")
    svg = svg.replace(FOREGROUND, "currentColor")
    return re.sub(r"fill: ?#ffffff", "fill: none", svg)


def fixed(svg: str, theme: int) -> str:
    """Returns a figure's file in the colours of one of THEMES, by its number."""
    for colour, (_, *shades) in SHADES.items():
        svg = svg.replace(colour, shades[theme])
    svg = svg.replace(FOREGROUND, SURFACES["ink"][theme])
    return svg.replace("#ffffff", SURFACES["card"][theme])


def variable(colour: str) -> str:
    """Returns the name of a figure's colour on the page."""
    return SHADES[colour][0]


def css() -> str:
    """Returns the style sheet of the page."""
    return _variables(0) + _dark() + _LAYOUT + _PRINT


def _variables(theme: int) -> str:
    both = {name: shades for name, *shades in SHADES.values()} | SURFACES
    return (
        ":root { "
        + " ".join(f"--{name}: {shades[theme]};" for name, shades in both.items())
        + " }\n"
    )


def _dark() -> str:
    # paper is white whatever the screen is
    return f"@media screen and (prefers-color-scheme: dark) {{ {_variables(1)} }}\n"


_LAYOUT = """
:root { color-scheme: light dark; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
.frame { max-width: 88rem; margin: 0 auto; padding: 1.25rem 1rem 3rem; }
main { min-width: 0; }
h1, h2, h3 { line-height: 1.25; letter-spacing: -.011em; overflow-wrap: anywhere;
  scroll-margin-top: 1rem; }
h1 { font-size: 1.75rem; margin: 0 0 .25rem; }
h2 { font-size: 1.35rem; margin: 1.7rem 0 .25rem; }
h3 { font-size: 1.02rem; margin: 1rem 0 .4rem; }
h2 span, h3 span { font: 600 .78rem/1 ui-monospace, "SF Mono", Menlo, Consolas, monospace;
  letter-spacing: 0;
  color: var(--soft); border: 1px solid var(--line); border-radius: .35rem; padding: .22rem .45rem;
  background: var(--card); vertical-align: .12em; margin-right: .3rem; }
p { margin: .5rem 0; max-width: 48rem; }
a { color: var(--link); text-underline-offset: .15em; }
.what { color: var(--soft); overflow-wrap: anywhere; font-size: .9rem; margin: .75rem 0 .35rem;
  max-width: none; }
nav { margin: 1.25rem 0 0; font-size: .9rem; }
nav ul { list-style: none; margin: 0; padding: 0 0 .3rem; display: flex; gap: .4rem;
  overflow-x: auto; }
nav a { display: block; white-space: nowrap; padding: .2rem .65rem; border: 1px solid var(--line);
  border-radius: 1rem; background: var(--card); color: var(--ink); text-decoration: none; }
nav a:hover { border-color: var(--link); color: var(--link); }
figure, .wide { background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; }
.first { margin: 1rem 0 0; }
.first .drawing { max-width: 34rem; margin: 0 auto; }
.first figure { align-self: start; }
.first > div > .what:first-child { margin-top: 0; }
.verdict { font-size: 1.12rem; line-height: 1.5; max-width: none; margin: 0 0 1rem;
  padding: .75rem 1rem; background: var(--card); border: 1px solid var(--line);
  border-left: .35rem solid var(--grey); border-radius: .6rem; }
.verdict.better { border-left-color: var(--blue); }
.verdict.worse { border-left-color: var(--red); }
td span, th span { white-space: nowrap; }
td i, th i { display: inline-block; width: .62em; height: .62em; border-radius: 50%;
  margin-right: .4em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
  min-width: 100%; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; vertical-align: top; }
tbody tr:last-child td { border-bottom: 0; }
th { font-weight: 600; color: var(--soft); font-size: .82rem; white-space: normal; }
th:first-child, td:first-child { text-align: left; }
td:first-child { font-weight: 600; }
.text, .words th, .words td { text-align: left; white-space: normal; }
.words td { min-width: 6rem; }
td small { display: block; color: var(--soft); font-size: .85em; white-space: nowrap; }
.narrow { display: grid; gap: 0 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.beside { display: grid; gap: 1rem; margin: .5rem 0; align-items: start; }
.beside > div > div:first-child .what { margin-top: 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18.5rem), 1fr));
  gap: 1rem; margin: .75rem 0; align-items: start; }
figure { margin: 0; padding: .6rem .5rem .5rem; min-width: 0; }
figure.broad { grid-column: 1 / -1; }
.drawing { overflow-x: auto; }
figure svg * { stroke-linejoin: round; }
figure svg { width: 100%; height: auto; display: block; }
figure.broad svg { max-width: 60rem; margin: 0 auto; }
figcaption, figure > details { padding: 0 .3rem; }
figcaption { font-size: .86rem; color: var(--soft); margin-top: .35rem; line-height: 1.45; }
details { font-size: .86rem; }
figure details { margin-top: .3rem; }
summary { cursor: pointer; color: var(--link); padding: .15rem 0; }
details[open] > summary { margin-bottom: .3rem; }
pre { background: var(--code); padding: .6rem .7rem; border-radius: .4rem; overflow: auto;
  font: .8rem/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; margin: .35rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; max-height: 24rem; }
details .wide { max-height: 20rem; margin: .35rem 0; }
details table { font-size: .8rem; }
details th, details td { padding: .2rem .4rem; white-space: normal; overflow-wrap: anywhere; }
footer { margin-top: 1.5rem; padding-top: .6rem; border-top: 1px solid var(--line);
  color: var(--soft); font-size: .86rem; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
@media (min-width: 72rem) {
  .frame { padding: 1.5rem 2rem; display: grid; column-gap: 2.5rem;
    grid-template-columns: 13.5rem minmax(0, 1fr); }
  header, main, footer { grid-column: 2; }
  nav { grid-column: 1; grid-row: 1 / span 3; position: sticky; top: 2rem; margin: 0;
    align-self: start; max-height: calc(100vh - 4rem); overflow-y: auto; }
  nav ul { flex-direction: column; gap: 0; }
  nav a { white-space: normal; overflow-wrap: anywhere; border: 0;
    border-left: 2px solid var(--line); border-radius: 0; background: none;
    display: block; padding: .25rem .8rem; color: var(--soft); }
  nav a:hover { border-color: var(--link); }
  nav .chapter a { color: var(--ink); font-weight: 650; }
  .first { display: grid; grid-template-columns: minmax(0, 1.25fr) minmax(0, 1fr); gap: 0 1rem; }
  .verdict { grid-column: 1 / -1; }
  .beside { grid-template-columns: minmax(0, 2fr) minmax(0, 1fr); }
  table { font-size: .86rem; }
  th, td { padding: .3rem .55rem; }
  td small { display: inline; margin-left: .4em; }
  .numbers td, .first td { white-space: normal; }
  .first td small, .beside td small { display: block; }
}
@media (max-width: 44rem) {
  figure { padding: .6rem .55rem .5rem; }
  h1 { font-size: 1.45rem; }
  .frame { padding: 1rem .75rem 2rem; }
  table { font-size: .78rem; }
  .first table { font-size: .74rem; }
  .verdict { font-size: 1rem; line-height: 1.45; }
  th { font-size: .74rem; }
  th, td { padding: .3rem .25rem; white-space: normal; }
  .cards thead { display: none; }
  .cards, .cards tbody, .cards tr, .cards td { display: block; }
  .cards tr { border-bottom: 1px solid var(--line); padding: .5rem .7rem; }
  .cards tr:last-child { border-bottom: 0; }
  .cards td, .cards.words td { border: 0; padding: .08rem 0; min-width: 0; display: flex;
    gap: .4rem; justify-content: flex-end; text-align: right; overflow-wrap: anywhere; }
  .cards td::before { content: attr(data-label); color: var(--soft); font-weight: 400;
    margin-right: auto; text-align: left; flex: 0 0 auto; max-width: 60%; }
  .cards td.long { display: block; text-align: left; padding: .25rem 0; }
  .cards td.long::before { display: block; font-size: .85em; }
  .cards td:empty { display: none; }
  .cards td:first-child { font-weight: 650; text-align: left; justify-content: flex-start;
    align-items: baseline; }
  .cards td:first-child::before { content: none; }
  figure.broad svg { width: 40rem; max-width: none; }
}
"""
_PRINT = """
@media print {
  body { background: none; color: black; font-size: 9.5pt; }
  .frame { display: block; max-width: none; padding: 0; }
  nav { display: none; }
  h2 { margin-top: 1.5rem; }
  .figures { grid-template-columns: 1fr 1fr; gap: .6rem; }
  figure, tr { break-inside: avoid; }
  h2, h3, .what { break-after: avoid; }
  .wide, .drawing, pre { overflow: visible; max-height: none; }
  figure details { display: none; }
  a { color: inherit; text-decoration: none; }
  @page { margin: 14mm; }
}
"""

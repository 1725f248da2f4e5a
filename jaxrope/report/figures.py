"""Every figure of the project: panels put together, as a file or as an element of a page."""

import functools
import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxrope.errors import InputError
from jaxrope.report import axes, curves, maps, panels
from jaxrope.report.axes import FOREGROUND
from jaxrope.report.panels import Row
from jaxrope.store import files

SEARCHED = "searched"  # the name of a search's result that no evaluation has named
MAP = (2.05, 1.5)  # inches, of one of several maps
PANEL = (4.1, 3.0)  # inches; 72 dots an inch make it as wide as a phone, so text stays legible
_RC = {
    "axes.edgecolor": FOREGROUND,
    "axes.formatter.useoffset": False,  # a narrow range has full numbers, not offsets from one
    "axes.labelcolor": FOREGROUND,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "grid.color": FOREGROUND,
    "text.color": FOREGROUND,
    "xtick.color": FOREGROUND,
    "ytick.color": FOREGROUND,
    "font.size": 10,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxrope",  # the same figure is the same file
}


def perplexity_figure(
    rows: Sequence[Row], path: Path | None = None, *, original_len: int | None = None
):
    """Draws perplexity against length, a line for each label. See evaluation_figure."""
    return _panels([lambda ax: panels.draw_perplexity(ax, rows, original_len)], path)


def evaluation_figure(
    rows: Sequence[Row], path: Path | None = None, *, original_len: int | None = None
):
    """Draws all scores of an evaluation against length, a panel each.

    Args:
      rows: of eval.json.
      path: .png or .svg to write; None = only return the figure.
      original_len: tokens the rope was trained on, marked by a line.

    Returns:
      The matplotlib Figure, as every function here.
    """
    return _panels(list(_evaluation_draws(rows, original_len).values()), path)


def maps_figure(rows: Sequence[Row], path: Path | None = None, *, original_len: int | None = None):
    """Draws maps of length and depth, a panel each; None, and no file, if there are none. See
    evaluation_figure.
    """
    drawn = maps.collect(rows, original_len)
    draws = [_map_draw(each, original_len, True, not place) for place, each in enumerate(drawn)]
    return _panels(draws, path) if draws else None


def maps_of_suite(retrieval_maps: Sequence[maps.Map], original_len: int | None):
    """Draws maps of one suite beside each other, named after their rows; a caption says what they
    are of, and what their colours are.
    """
    draws = [_map_draw(each, original_len, False, False) for each in retrieval_maps]
    return _panels(draws, None, MAP if len(draws) > 1 else PANEL)


def evaluation_figures(rows: Sequence[Row], *, original_len: int | None = None) -> dict:
    """Returns what evaluation_figure draws as figures of one panel each, by name."""
    return {n: _panels([draw], None) for n, draw in _evaluation_draws(rows, original_len).items()}


def training_figure(rows: Sequence[Row], path: Path | None = None):
    """Draws the training loss, as it was and smoothed, and the rate; rows of metrics.jsonl."""
    return _panels(_training_draws(rows, panels.TRAINING), path)


def training_figures(rows: Sequence[Row], name: str) -> list:
    """Returns what training_figure draws as figures of one panel each; `name` is of the row of the
    page that the training made."""
    return [_panels([draw], None) for draw in _training_draws(rows, name)]


def search_figure(
    rows: Sequence[Row],
    baselines: Mapping[str, Row],
    path: Path | None = None,
    *,
    factors: Sequence[float],
    descents: Mapping[str, Sequence[Row]],
):
    """Draws a search: fitness by generation, the loss of descents, and the factors of the result
    beside the best baseline, YaRN and NTK. A single generation has no panel, nor have no descents.

    Args:
      rows: a mapping for each generation: "generation", "best" (of all so far), "mean" (of it).
      baselines: name -> {"fitness": ..., "factors": [...]}.
      path: .png or .svg to write; None = only return the figure.
      factors: of the result.
      descents: name -> rows of its steps.
    """
    finite = {n: r for n, r in baselines.items() if r["fitness"] and math.isfinite(r["fitness"])}
    named = panels.beside(baselines, factors) | {SEARCHED: factors}
    draws = []
    if len(rows) > 1:
        draws.append(lambda ax: curves.draw_progress(ax, rows, finite, SEARCHED, "fitness"))
    draws += [lambda ax: curves.draw_descents(ax, descents)] if descents else []
    return _panels([*draws, lambda ax: panels.draw_factors(ax, named)], path)


def cost_figure(points: Sequence[Row], path: Path | None = None):
    """Draws held-out perplexity against the cost of searches; see panels.draw_cost."""
    return _panels([lambda ax: panels.draw_cost(ax, points)], path)


def tradeoff_figure(points: Sequence[Row], path: Path | None = None):
    """Draws needles found against perplexity; see panels.draw_tradeoff."""
    return _panels([lambda ax: panels.draw_tradeoff(ax, points)], path)


def svg_file(figure) -> str:
    """Returns a figure as a file of its own: dark on white, text as text."""
    buffer = io.StringIO()
    with _style():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    # a hundredth of a point cannot be seen, and is half of the file
    return re.sub(r' d="[^"]*"', lambda path: _DIGITS.sub(r"\1", path.group()), text)


def svg_element(svg: str) -> str:
    """Returns the result of `svg_file` as an <svg> element that scales with its column."""
    text = svg[svg.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it would be the whole page's
    text = re.sub(r"font-family: [^;\"]*(; )?", "", text)  # it is the page's
    return re.sub(r"font: (?:(\d{3}) )?([\d.]+px) [^;\"]*", _font, text)


def png_file(figure) -> bytes:
    """Returns a figure as a PNG of 150 dots an inch."""
    buffer = io.BytesIO()
    with _style():
        figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


_DIGITS = re.compile(r"(\.\d\d)\d+")


def _font(match: re.Match) -> str:
    weight = f"; font-weight: {match[1]}" if match[1] else ""
    return f"font-size: {match[2]}{weight}"


def _evaluation_draws(rows, original_len):
    draws = {name: draw for name, (draw, has) in panels.PANELS.items() if has(rows)}
    draws |= panels.task_panels(rows)
    return {
        name: lambda ax, draw=draw: draw(ax, rows, original_len) for name, draw in draws.items()
    }


def _map_draw(each: maps.Map, original_len: int | None, has_words: bool, has_bar: bool):
    return lambda ax: maps.draw(ax, each, original_len, has_words=has_words, has_bar=has_bar)


def _training_draws(rows, name):
    draws = panels.draw_loss, panels.draw_rate
    return [functools.partial(draw, rows=rows, name=name) for draw in draws]


def _matplotlib():
    try:
        import matplotlib
    except ImportError:
        raise InputError(
            "Figures need matplotlib, which is not installed. Run: pip install matplotlib"
        ) from None
    return matplotlib


def _style():
    return _matplotlib().rc_context(_RC)


def one(draw, size: tuple[float, float] = PANEL):
    """Returns a figure of one panel: `draw(ax)`; `size` in inches."""
    return _panels([draw], None, size)


def _panels(draws, path, panel=PANEL):
    """Returns a figure with a panel for each of `draws`, and writes it to `path` if given."""
    _matplotlib()
    from matplotlib.figure import Figure

    with _style(), axes.one_look():
        columns = min(2, len(draws))
        lines = math.ceil(len(draws) / columns)
        size = (panel[0] * columns, panel[1] * lines)
        figure = Figure(figsize=size, layout="constrained")
        places = figure.subplots(lines, columns, squeeze=False).flat
        for draw, ax in itertools.zip_longest(draws, places):
            if draw is None:
                ax.remove()
            else:
                draw(ax)
        if path is not None:
            buffer = io.BytesIO()
            figure.savefig(buffer, dpi=150, format=path.suffix[1:] or "png")
            files.write_bytes_atomic(path, buffer.getvalue())
    return figure

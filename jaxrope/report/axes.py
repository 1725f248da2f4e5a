"""Shared by all panels: styles of lines, their names, ticks and marks on a matplotlib Axes.

Colours are Okabe and Ito's, which people with any colour vision tell apart; each method has the
same colour, marker and dash everywhere, and lines are named at their ends.
"""

import re
import textwrap
from collections.abc import Iterable, Mapping

import numpy as np

# method -> (colour, marker, dash); other labels take the rest, in order of appearance
STYLES = {
    "none": ("#7f7f7f", "o", "-"),
    "pi": ("#e69f00", "s", "-"),
    "ntk": ("#56b4e9", "^", "-"),
    "dynamic_ntk": ("#cc79a7", "P", "-"),
    "yarn": ("#0072b2", "D", "-"),
    "longrope": ("#d55e00", "o", "-"),
    "sliding": ("#009e73", "v", "--"),
    "ramp": ("#9a6fb0", "X", "-"),
}
SPARE = (
    ("#cc79a7", "p", "--"),
    ("#9a6fb0", "d", "-."),
    ("#b8860b", "<", ":"),
    ("#009e73", ">", ":"),
    ("#d55e00", "h", "--"),
)
NAME_WIDTH = 16  # characters of a name beside a line; a longer one is broken
_NAME_INCHES = 0.2  # of a name of one line: 9.5 points of text, and some room
_LINE_INCHES = 0.16  # of each further line
_PUSHES = 1000  # of names that are moved apart
FOREGROUND = "#0a0b0c"  # axes and text; a page makes it currentColor, which follows the theme


def styles(labels: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """Returns {label: (colour, marker, dash)}, which no two labels share before they run out.

    A label that names a method ("base, yarn@su") has that method's style; the first one that names
    none is the subject of the page, and has that of "longrope".
    """
    labels, looks = list(labels), {}
    free = dict(STYLES)
    for label in labels:  # labels that are exactly a method's name come first
        if label in free:
            looks[label] = free.pop(label)
    for label in labels:
        words = [word for word in re.split(r"[^a-z0-9]+", label.lower()) if word in free]
        if label not in looks and words:
            looks[label] = free.pop(words[0])
    subject_look = [free["longrope"]] if "longrope" in free else []
    spare = iter(subject_look + list(SPARE) * (1 + len(labels) // len(SPARE)))
    return {label: looks[label] if label in looks else next(spare) for label in labels}


def smooth(values: np.ndarray, weights: np.ndarray, reach: int = 4) -> np.ndarray:
    """Returns the weighted mean over `reach` bins to either side."""
    if not reach or not len(values):
        return values
    kernel = np.ones(2 * reach + 1)
    total = np.convolve(values * weights, kernel)[reach:-reach]
    return total / np.convolve(weights, kernel)[reach:-reach]


def plain_ticks(ax) -> None:
    """Writes 40 where a logarithmic axis would write 4x10^1; there are two ticks at least, however
    narrow its range is."""
    if ax.get_yscale() != "log":
        return
    from matplotlib.ticker import LogLocator, MaxNLocator

    low, high = ax.get_ylim()
    base = 2 if high / low > 3 and ax.yaxis.get_transform().base == 2 else 10
    least = (1000, (1.0,)), (8, (1.0, 2.0, 5.0)), (1, (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0))
    steps = next(steps for ratio, steps in least if high / low > ratio)
    locator = LogLocator(base=base, subs=(1.0,) if base == 2 else steps)
    if sum(low <= tick <= high for tick in locator.tick_values(low, high)) < 2:
        locator = MaxNLocator(4)
    ax.yaxis.set_major_locator(locator)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_minor_formatter(lambda value, _: "")


def mark_length(ax, original_len: int | None) -> None:
    """Marks the length that a rope was trained on, unless it is None."""
    if not original_len:
        return
    ax.axvline(original_len, color=FOREGROUND, linestyle=":", linewidth=1)
    ax.annotate(
        "trained",
        xy=(original_len, 1.0),
        xycoords=ax.get_xaxis_transform(),
        xytext=(3, 0),
        textcoords="offset points",
        va="top",
        fontsize=9,
    )


def name_ends(ax, ends: dict[str, tuple[float, str]]) -> None:
    """Writes each line's name at its right end, moved apart where they would overlap.

    Args:
      ax: of the panel.
      ends: name -> (value at the right end, colour of the line).
    """
    texts = {name: textwrap.fill(name, NAME_WIDTH, max_lines=3) for name in ends}
    inches = {name: _NAME_INCHES + _LINE_INCHES * text.count("\n") for name, text in texts.items()}
    ax.margins(x=0.04)
    panel = _panel_inches(ax)
    if (needed := sum(inches.values())) > panel:
        width, height = ax.figure.get_size_inches()
        ax.figure.set_size_inches(width, height * needed / panel)
        panel = _panel_inches(ax)
    to_axes = ax.transData + ax.transAxes.inverted()
    right = ax.get_xlim()[1]
    anchors = {name: to_axes.transform((right, value))[1] for name, (value, _) in ends.items()}
    anchors = {name: min(max(place, 0.0), 1.0) for name, place in anchors.items()}
    gaps = {name: size / panel for name, size in inches.items()}
    for name, place in spread(anchors, gaps).items():
        ax.annotate(
            texts[name],
            xy=(1.0, anchors[name]),
            xytext=(1.05, place),
            xycoords="axes fraction",
            va="center",
            annotation_clip=False,
            arrowprops=dict(
                arrowstyle="-", color=ends[name][1], linewidth=1.6, shrinkA=0, relpos=(0, 0.5)
            ),
        )


def _panel_inches(ax) -> float:
    """Returns how high a panel is, as the figure lays it out."""
    ax.figure.draw_without_rendering()
    return ax.get_window_extent().height / ax.figure.dpi


def spread(anchors: Mapping[str, float], heights: Mapping[str, float]) -> dict[str, float]:
    """Returns places near `anchors`, within the panel, where names of these heights (shares of the
    panel's) do not overlap, if there is room for all of them.
    """
    order = sorted(anchors, key=anchors.get)
    places = np.array([anchors[name] for name in order])
    sizes = np.array([heights[name] for name in order])
    gaps = (sizes[:-1] + sizes[1:]) / 2
    for _ in range(_PUSHES):  # neighbours push each other apart, half each
        places = np.clip(places, sizes / 2, 1.0 - sizes / 2)
        push = np.maximum(gaps - np.diff(places), 0) / 2
        places[:-1] -= push
        places[1:] += push
    return dict(zip(order, places.tolist(), strict=True))

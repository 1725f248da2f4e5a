"""Shared by all panels: styles of lines, their names, ticks and marks on a matplotlib Axes.

People with any colour vision tell the colours apart, and there is no green beside the red. A row
of a table has the same colour, marker and dash in all figures of a page, and lines are named at
their ends.
"""

import contextlib
import contextvars
import itertools
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

Look = tuple[str, str, str]  # colour, marker, dash
SUBJECT = ("#d55e00", "o", "-")  # of the first label that is no method
STYLES: dict[str, Look] = {
    "none": ("#7f7f7f", "o", "-"),
    "pi": ("#e69f00", "s", "-"),
    "ntk": ("#56b4e9", "^", "-"),
    "dynamic_ntk": ("#8c6d1f", "P", "-"),
    "yarn": ("#0072b2", "D", "-"),
    "yarn@su": ("#6a5acd", "d", "-"),
    "longrope": SUBJECT,
    "sliding": ("#3d4a57", "v", "--"),
    "ramp": ("#cc79a7", "X", "-"),
}
SPARE: tuple[Look, ...] = (
    ("#a8237f", "p", "-"),
    ("#008b9a", "<", "-"),
    ("#8a4b2a", ">", "-"),
)
DASHES = ("--", "-.", ":")
NAME_WIDTH = 16  # characters of a name beside a line; a longer one is broken
_NAME_INCHES = 0.2  # of a name of one line: 9.5 points of text, and some room
_LINE_INCHES = 0.16  # of each further line
_PUSHES = 1000  # of names that are moved apart
FOREGROUND = "#0a0b0c"  # axes and text; a page makes it currentColor, which follows the theme


_looks: contextvars.ContextVar[dict[str, Look]] = contextvars.ContextVar("looks of a page")


@contextlib.contextmanager
def one_look() -> Iterator[dict[str, Look]]:
    """Within it a label has one look, whatever the figure; yields {label: look} as it grows."""
    if (outer := _looks.get(None)) is not None:
        yield outer
        return
    token = _looks.set({})
    try:
        yield _looks.get()
    finally:
        _looks.reset(token)


def styles(labels: Iterable[str]) -> dict[str, Look]:
    """Returns {label: (colour, marker, dash)}, which no two labels share before they run out.

    A label that names a method ("base, yarn") has that method's look; the first one that names none
    is the subject of the page, and has that of "longrope". See `one_look`.
    """
    labels, looks = list(dict.fromkeys(labels)), _looks.get({})
    for label in labels:  # labels that are exactly a method's name come first
        if label in STYLES and STYLES[label] not in looks.values():
            looks.setdefault(label, STYLES[label])
    for label in labels:
        if label not in looks:
            taken = set(looks.values())
            looks[label] = next((look for look in _candidates(label) if look not in taken), SUBJECT)
    return {label: looks[label] for label in labels}


def _candidates(label: str) -> Iterator[Look]:
    words = [word for word in re.split(r"[^a-z0-9_@]+", label.lower()) if word in STYLES]
    yield from (STYLES[word] for word in words[:1])
    yield SUBJECT
    yield from SPARE
    for dash, (colour, marker, _) in itertools.product(DASHES, (*SPARE, *STYLES.values())):
        yield colour, marker, dash


def styles_of_kinds(kinds: Mapping[str, str]) -> dict[str, Look]:
    """Returns looks of labels that are kinds of a row ("yarn, 6 keys" of "yarn"): they have the
    colour of their row, and differ in their dash.
    """
    looks, shown = styles(kinds.values()), {}
    for label, row in kinds.items():
        colour, marker, dash = looks[row]
        number = sum(of == row for of in shown.values())
        dashes = (dash, *(other for other in ("-", *DASHES) if other != dash))
        shown[label], looks[label] = row, (colour, marker, dashes[number % len(dashes)])
    return {label: looks[label] for label in kinds}


def together(curves: Mapping[str, Any]) -> dict[str, str]:
    """Returns {label: "label = other"} of the first label of each line, with all those that would
    lie on top of it."""
    names: dict[str, list[str]] = {}
    for label, curve in curves.items():
        same = (first for first in names if np.array_equal(curves[first], curve))
        names.setdefault(next(same, label), []).append(label)
    return {label: " = ".join(labels) for label, labels in names.items()}


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

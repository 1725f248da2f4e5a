"""Panels of an analysis of attention; see attention.py for the rows.

L layers, N heads, E bins.
"""

import numpy as np

from jaxrope.report import axes, maps, panels

BROAD = (8.0, 3.7)  # inches, of a map with a number in each cell
INK = "#0b0c0d"  # of a number in a coloured cell, in either theme
HEADS = "#7f7f7f"
MOST_TICKS = 6  # of distances
# name -> (title, unit)
STATISTICS = {
    "entropy": ("Attention entropy", "nats"),
    "normalised_entropy": ("Entropy / ln(keys)", "0 to 1"),
    "non_sink_entropy": ("Entropy without sink", "nats"),
    "entropy_of_mean": ("Entropy of the mean", "nats"),
    "effective_tokens": ("Effective tokens", "tokens"),
    "participation": ("Participation ratio", "tokens"),
    "sink": ("Mass on the first token", "share"),
    "local": ("Mass on the nearest tokens", "share"),
    "needle_mass": ("Mass on the needle", "share"),
    "mean_distance": ("Mean distance", "tokens"),
    "max_p": ("Largest share of one key", "share"),
    "retrieval": ("Retrieval score", "share of copied tokens"),
    "js": ("JS from the trained pattern", "nats"),
    "sink_head": ("Sink on the first token", "share of texts"),
    "previous_token": ("Attention to the token before", "share of attention"),
    "duplicate_token": ("Attention to the same token", "share of attention"),
    "induction": ("Attention to what followed it", "share of attention"),
}
# axis of a curve -> in words
AXES = {
    "distance": "distance, tokens",
    "relative": "distance / length",
    "interpolated": "distance / factor, tokens",
    "key": "position of the key, for the last query",
}


def title_and_unit(name: str) -> tuple[str, str]:
    """Returns (title, unit) of a statistic, such as "entropy" or "entropy at the answer"."""
    statistic, where, place = name.partition(" at ")
    if statistic not in STATISTICS:
        return name, ""
    title, unit = STATISTICS[statistic]
    return f"{title}{where}{place}", unit


def draw_statistic(ax, rows, name, original_len):
    """A statistic against length, a line for each label."""
    by_label = {}
    for row in sorted(rows, key=lambda row: row["length"]):
        value = row["value"]
        low, high = (value if row.get(k) is None else row[k] for k in ("low", "high"))
        by_label.setdefault(row["label"], []).append((row["length"], value, low, high))
    order = dict.fromkeys(row["label"] for row in rows)
    curves = {label: np.array(by_label[label], np.float64).T for label in order}
    values = np.concatenate([y for _, y, *_ in curves.values()])
    if values.min() > 0 and values.max() > 10 * values.min():
        ax.set_yscale("log")
    panels.draw_by_length(ax, curves, original_len)
    title, unit = title_and_unit(name)
    ax.set(title=title, ylabel=unit or name)
    axes.plain_ticks(ax)


def draw_curves(ax, rows):
    """Attention to one key against distance, a line for each label: means over heads."""
    styles, ends = axes.styles([row["label"] for row in rows]), {}
    for row in rows:
        x, mass = _curve(row)
        colour, _, dash = styles[row["label"]]
        ax.plot(x, mass, color=colour, linestyle=dash)
        ends[row["label"]] = (mass[-1], colour)
    _scale(ax, rows[0], f"Mean attention, {rows[0]['length']:,} tokens")
    axes.name_ends(ax, {name: end for name, end in ends.items() if end[0] > 0})


def draw_heads(ax, row):
    """Attention to one key against distance: every head of one setting, and the mean of all."""
    x, mass = _curve(row)
    for head in np.asarray(row["heads"], np.float64):
        ax.plot(x, np.where(head > 0, head, np.nan), color=HEADS, alpha=0.3, linewidth=0.7)
    colour = axes.styles([row["label"]])[row["label"]][0]
    ax.plot(x, mass, color=colour, linewidth=2.2)
    _scale(ax, row, f"{row['label']}, {row['length']:,} tokens")
    axes.name_ends(ax, {"mean": (mass[-1], colour)} if mass[-1] > 0 else {})


def draw_layers(ax, row, same):
    """A value for each layer and head; `same` are the maps that share its colours."""
    from matplotlib import colormaps

    values = np.array(row["values_LN"], np.float64)
    same_values = np.concatenate([np.ravel(np.array(map_LN, np.float64)) for map_LN in same])
    low, high = np.nanmin(same_values), np.nanmax(same_values)
    if low == high:  # such as a score that no head has
        high = low + (abs(low) or 1.0)
    look = {"cmap": colormaps["viridis"], "vmin": low, "vmax": high}
    if low < 0 < high:  # a difference: what has risen and what has fallen
        most = max(-low, high)
        look = {"cmap": colormaps["PuOr_r"], "vmin": -most, "vmax": most}
    image = ax.imshow(values, aspect="auto", interpolation="none", **look)
    ax.grid(False)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.yaxis.get_major_locator().set_params(integer=True)
    title, unit = title_and_unit(row["name"])
    ax.set(title=f"{title}: {row['label']}, {row['length']:,}", xlabel="head", ylabel="layer")
    bar(ax, image, unit)


def draw_needles(ax, rows, trained_len):
    """The share found in each cell of length and depth, and in it the mean attention entropy."""
    from matplotlib.colors import LinearSegmentedColormap

    lengths = sorted({row["length"] for row in rows})
    depths = sorted({row["depth"] for row in rows})
    cells = np.full((len(depths), len(lengths)), np.nan)
    for row in rows:
        cells[depths.index(row["depth"]), lengths.index(row["length"])] = row["score"]
    colours = LinearSegmentedColormap.from_list("retrieval", maps.COLOURS)
    edges = np.arange(len(lengths) + 1), np.arange(len(depths) + 1)
    mesh = ax.pcolormesh(*edges, cells, cmap=colours, vmin=0, vmax=1, edgecolor="none")
    for row in rows:
        if row.get("entropy") is not None:
            place = lengths.index(row["length"]) + 0.5, depths.index(row["depth"]) + 0.5
            ax.text(*place, f"{row['entropy']:.2f}", color=INK, ha="center", va="center", size=9)
    ax.invert_yaxis()
    ax.grid(False)
    ax.set_xticks(np.arange(len(lengths)) + 0.5, [f"{n:,}" for n in lengths])
    ax.set_yticks(np.arange(len(depths)) + 0.5, [f"{depth:.3g}" for depth in depths])
    inside = sum(n <= trained_len for n in lengths) if trained_len else 0
    if inside:
        ax.axvline(inside, color="white", linestyle="--", linewidth=2.2)
    ax.set(title=f"Needle and entropy: {rows[0]['label']}", xlabel="length, tokens", ylabel="depth")
    bar(ax, mesh, "share found", ticks=(0, 0.5, 1))


def draw_predictions(ax, rows):
    """AUROC of each predictor with its interval, against 0.5."""
    names = [title_and_unit(row["name"])[0] for row in rows]
    _dots(ax, names, rows, "auroc")
    ax.axvline(0.5, color=axes.FOREGROUND, linestyle=":", linewidth=1)
    ax.set(title="Predicting a failure", xlabel="AUROC", xlim=(0, 1))


def draw_objectives(ax, rows):
    """Held-out retrieval of each objective's factors, with its interval."""
    _dots(ax, [row["objective"] for row in rows], rows, "score")
    ax.set(title="Held-out retrieval", xlabel="share found", xlim=(-0.03, 1.03))


def size_of(rows) -> tuple[float, float]:
    """Returns inches of a figure with a line for each of `rows`."""
    return 4.1, 1.3 + 0.34 * len(rows)


def bar(ax, drawn, unit, ticks=None):
    """A narrow colour bar of few colours: 256 of them are a third of the page."""
    from matplotlib.ticker import MaxNLocator

    steps, locator = np.linspace(*drawn.get_clim(), 33), ticks or MaxNLocator(5)
    colour_bar = ax.figure.colorbar(
        drawn, ax=ax, ticks=locator, boundaries=steps, aspect=25, pad=0.02
    )
    colour_bar.formatter = lambda value, _: f"{value:g}"  # no power of ten beside the bar
    colour_bar.update_ticks()
    colour_bar.outline.set_visible(False)
    colour_bar.ax.tick_params(length=0)
    colour_bar.set_label(unit)


def _dots(ax, names, rows, key):
    colour = axes.FOREGROUND  # these are no rows of a table of methods
    for place, row in enumerate(rows):
        low, high = (row[key] if row.get(k) is None else row[k] for k in ("low", "high"))
        ax.plot([low, high], [place, place], color=colour, alpha=0.5, linewidth=3)
        ax.plot([row[key]], [place], color=colour, marker="o", markersize=6)
    ax.set_yticks(range(len(rows)), names)
    ax.invert_yaxis()
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(False, axis="y")


def _curve(row):
    """Returns (middles of the bins, masses, NaN where there is none)."""
    edges, mass = np.asarray(row["edges"], np.float64), np.asarray(row["mass"], np.float64)
    middles = (edges[:-1] + edges[1:]) / 2
    return middles, np.where(mass > 0, mass, np.nan)


def _scale(ax, row, title):
    ax.set_yscale("log")
    axes.plain_ticks(ax)  # a power's exponent is too small
    if row["axis"] in ("distance", "interpolated"):
        ax.set_xscale("symlog", base=2, linthresh=1)
        powers = range(int(np.log2(max(row["edges"][-1], 2))) + 1)
        distances = [2**power for power in powers if power % -(-len(powers) // MOST_TICKS) == 0]
        ax.set_xticks(distances, [f"{value:,}" for value in distances])
    ax.set(title=title, xlabel=AXES.get(row["axis"], row["axis"]), ylabel="attention to one key")

"""Panels on a matplotlib Axes, drawn from the rows of result files."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxrope.report import axes, floors, maps

SMOOTHING = 15  # the training loss is a mean over a fifteenth of the run to either side
FAR = 20.0  # percent of perplexity; a point farther off would compress all others

Row = Mapping[str, Any]


def _of_suite(rows, suite):
    """Returns {label: its rows of `suite` by length}, in the order of the table."""
    by_label: dict[str, list[Row]] = {}
    for row in rows:
        if row["suite"] == suite:
            by_label.setdefault(row["label"], []).append(row)
    return {
        label: sorted(label_rows, key=lambda row: row["length"])
        for label, label_rows in by_label.items()
    }


def draw_perplexity(ax, rows, original_len):
    """Perplexity against length, logarithmic where it spans more than a factor of 3."""
    by_label = _of_suite(rows, "perplexity")
    curves = {
        label: _curve(
            label_rows, lambda row: [row["metrics"][k] for k in ("perplexity", "low", "high")]
        )
        for label, label_rows in by_label.items()
    }
    values = [v for x, y, *_ in curves.values() for v in y]
    if values and max(values) > 3 * min(values):
        ax.set_yscale("log")
    draw_by_length(ax, curves, original_len)
    ax.set(title="Perplexity against length", ylabel="perplexity")
    axes.plain_ticks(ax)


def draw_difference(ax, rows, original_len):
    """Paired difference of mean NLL from the baseline against length."""
    by_label = _of_suite([row for row in rows if row.get("difference")], "perplexity")
    curves = {
        label: _curve(
            label_rows, lambda row: [row["difference"][k] for k in ("mean", "low", "high")]
        )
        for label, label_rows in by_label.items()
    }
    baseline = next(iter(by_label.values()))[0]["difference"]["baseline"]
    ax.axhline(0, color=axes.FOREGROUND, linewidth=0.8)
    draw_by_length(ax, curves, original_len)
    ax.set(
        title=f"Loss against {baseline}, same tokens", ylabel="nats per token, below 0 is better"
    )


def draw_passkey(ax, rows, original_len):
    """Share of pass keys found against length."""
    suite_rows = [row for row in rows if row["suite"] == "passkey"]
    _draw_scores(ax, suite_rows, original_len, title="Pass key found", unit="share of trials")


def draw_needle(ax, rows, original_len):
    """Share of needles found against length, a line for each label and number of keys."""
    needles = needle_rows(rows)
    _draw_scores(ax, needles, original_len, title="Needle found", unit="share of trials")


def draw_task(ax, rows, original_len, suite):
    """Mean score of a task that is answered by generation, against length."""
    suite_rows = [row for row in rows if row["suite"] == suite]
    _draw_scores(ax, suite_rows, original_len, title=suite, unit="mean score")


def task_panels(rows) -> dict[str, Callable]:
    """Returns {suite: draws its panel} of the tasks that are answered by generation."""
    suites = dict.fromkeys(row["suite"] for row in rows if next(iter(row["metrics"])) == "score")
    return {
        suite: lambda ax, rows, original_len, suite=suite: draw_task(ax, rows, original_len, suite)
        for suite in suites
    }


def _draw_scores(ax, rows, original_len, *, title, unit):
    """Draws the scores of one suite; labels that are at floor are named in a sentence."""
    low = floors.labels(rows, original_len)
    drawn = [row for row in rows if row["label"] not in low]
    sentence = floors.sentence(rows, original_len)
    if not drawn:
        ax.set(title=title)
        maps.say(ax, sentence)
        return
    by_label: dict[str, list[Row]] = {}
    for row in sorted(drawn, key=lambda row: row["length"]):
        by_label.setdefault(row["label"], []).append(row)

    def interval(row):
        metrics = row["metrics"]
        return [next(iter(metrics.values())), metrics["low"], metrics["high"]]

    order = dict.fromkeys(row["label"] for row in drawn)
    curves = {label: _curve(by_label[label], interval) for label in order}
    draw_by_length(ax, curves, original_len)
    ax.set(title=title, ylabel=unit, ylim=(-0.05, 1.05))
    if sentence:
        maps.write(ax, sentence, (0.02, 0.55))


def needle_rows(rows) -> list[Row]:
    """Returns the rows of suites "needle-K" as those of one suite; where there are several K,
    labels include K, and a model is at floor or not (see floors) for each K separately."""
    needles = [row for row in rows if row["suite"].startswith("needle-")]
    many = len({row["suite"] for row in needles}) > 1

    def label(row):
        return f"{row['label']}, {row['suite'].removeprefix('needle-')} keys"

    def overrides(row):
        model = row.get("weights") or row["label"]
        return {"label": label(row), "weights": f"{model} {row['suite']}"} if many else {}

    return [{**row, "suite": "needle"} | overrides(row) for row in needles]


def _curve(rows, values_fn):
    """Returns arrays (length, value, low, high) of the rows whose numbers are all finite."""
    points = [(row["length"], *values_fn(row)) for row in rows]
    points = [line for line in points if None not in line]
    return np.array(points, np.float64).reshape(-1, 4).T


def draw_by_length(ax, curves, original_len):
    """{label: (lengths, values, low, high)}, with their intervals side by side."""
    styles, ends = axes.styles(curves), {}
    for place, (label, (x, y, low, high)) in enumerate(curves.items()):
        if not len(x):
            continue
        colour, marker, dash = styles[label]
        shifted = x * 1.025 ** (place - (len(curves) - 1) / 2)  # bars side by side
        ax.plot(shifted, y, color=colour, marker=marker, linestyle=dash)
        ax.vlines(shifted, low, high, color=colour, alpha=0.45, linewidth=1.2)
        ends[label] = (y[-1], colour)
    lengths = sorted({length for x, *_ in curves.values() for length in x})
    ax.set_xscale("log", base=2)
    ax.set_xticks(lengths, [f"{int(length):,}" for length in lengths])
    ax.minorticks_off()
    ax.set_xlabel("length, tokens")
    axes.mark_length(ax, original_len)
    axes.name_ends(ax, ends)


def draw_position(ax, rows, original_len):
    """Loss against position at the longest length, smoothed."""
    by_label = _of_suite(rows, "perplexity")
    longest = max(row["length"] for label_rows in by_label.values() for row in label_rows)
    styles, ends = axes.styles(by_label), {}
    for label, label_rows in by_label.items():
        row = label_rows[-1]
        curve = row["items"]["position_nll"]
        if row["length"] != longest or None in curve or not curve:  # no curve: conversations
            continue
        edges = np.array(row["items"]["position_edges"])
        nll = axes.smooth(np.array(curve), np.diff(edges))
        colour, _, dash = styles[label]
        centres = np.sqrt((edges[:-1] + 1) * edges[1:])
        ax.plot(centres, nll, color=colour, linestyle=dash)
        ends[label] = (nll[-1], colour)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda value, _: f"{int(value):,}")
    ax.set(title=f"Loss against position, {longest:,} tokens", ylabel="nats per token (smoothed)")
    ax.set_xlabel("position, tokens")
    axes.mark_length(ax, original_len)
    axes.name_ends(ax, ends)


def draw_loss(ax, rows):
    """Training loss of each step, and its running mean."""
    points = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    steps, losses = np.array(points, np.float64).reshape(-1, 2).T
    smooth = axes.smooth(losses, np.ones(len(losses)), reach=len(losses) // SMOOTHING)
    colour = axes.STYLES["yarn"][0]
    ax.plot(steps, losses, color=colour, alpha=0.3, linewidth=1)
    ax.plot(steps, smooth, color=colour)
    ax.set(title="Training loss", xlabel="step", ylabel="nats per token (running mean)")


def draw_rate(ax, rows):
    """Learning rate by step."""
    points = [(r["step"], r["lr"]) for r in rows if r.get("lr") is not None]
    steps, rates = np.array(points, np.float64).reshape(-1, 2).T
    ax.plot(steps, rates, color=axes.STYLES["longrope"][0])
    ax.set(title="Learning rate", xlabel="step", ylabel="learning rate")
    ax.set_ylim(bottom=0)


def draw_fitness(ax, rows, baselines):
    """Best and mean fitness by generation; baselines are level lines."""
    generations = [row["generation"] for row in rows]
    best, mean = ([row[key] for row in rows] for key in ("best", "mean"))
    colour, ends, styles = axes.STYLES["longrope"][0], {}, axes.styles(baselines)
    ax.plot(generations, mean, color=colour, alpha=0.4, linestyle="--")
    ax.plot(generations, best, color=colour)
    finite = [value for value in mean if value is not None and np.isfinite(value)]
    if finite:
        ends["mean"] = (finite[-1], colour)
    ends["best"] = (best[-1], colour)
    for name, row in baselines.items():
        if row["fitness"] is None or not np.isfinite(row["fitness"]):
            continue
        ax.axhline(row["fitness"], color=styles[name][0], linewidth=1.2)
        ends[name] = (row["fitness"], styles[name][0])
    values = [value for value, _ in ends.values()]
    if max(values) > 1.5 * min(values) > 0:
        ax.set_yscale("log")
    ax.set(title="Search", xlabel="generation", ylabel="fitness, lower is better")
    ax.xaxis.get_major_locator().set_params(integer=True)
    axes.name_ends(ax, ends)
    axes.plain_ticks(ax)


def beside(baselines: Mapping[str, Row], factors) -> dict[str, Any]:
    """Returns {name: factors} of the baselines that are drawn beside a result: the best one, YaRN
    and NTK, but none that has the very factors of the result.

    Args:
      baselines: name -> a row with its "fitness" and "factors".
      factors: of the result; None: there is none.
    """
    scores = {name: row["fitness"] for name, row in baselines.items() if row["fitness"] is not None}
    best = min(scores, key=scores.get, default=None)
    return {
        name: row["factors"]
        for name, row in baselines.items()
        if name in ("yarn", "ntk", best) and not np.array_equal(row["factors"], factors)
    }


def draw_factors(ax, curves):
    """Factors by rotary pair, a line for each name; with factors by layer a fainter one for each.

    Args:
      ax: of the panel.
      curves: name -> factors [R] or [L, R]; R may differ, then a line is stretched over the axis.
        The last one is the subject.
    """
    *others, subject = curves
    styles, ends = axes.styles(["longrope", *others]), {}
    pairs = np.atleast_2d(curves[subject]).shape[1]
    for name, curve in curves.items():
        colour, _, dash = axes.STYLES["longrope"] if name == subject else styles[name]
        rows = np.atleast_2d(curve)
        x = np.linspace(0, pairs - 1, rows.shape[1])
        look = dict(color=colour, linestyle=dash, drawstyle="steps-mid")
        width = 2.2 if name == subject else 1.3
        ax.plot(x, rows.T, alpha=max(1 / len(rows), 0.2), linewidth=width, **look)
        ends[name] = (float(np.median(rows[:, -1])), colour)
    ax.set_yscale("log", base=2)
    ax.set(title="Factors", xlabel="rotary pair, from fast to slow", ylabel="factor λ")
    axes.name_ends(ax, ends)
    axes.plain_ticks(ax)


def draw_cost(ax, points):
    """Held-out perplexity of the best candidate so far against its cost; a line for each method,
    the median of its seeds, with their range.

    Args:
      ax: of the panel.
      points: "method", "seed", "tokens" and "perplexity" of each.
    """
    methods = list(dict.fromkeys(point["method"] for point in points))
    styles, ends = axes.styles(methods), {}
    for method in methods:
        by_cost: dict[int, list[float]] = {}
        for point in points:
            if point["method"] == method:
                by_cost.setdefault(point["tokens"], []).append(point["perplexity"])
        x = sorted(by_cost)
        y = [float(np.median(by_cost[tokens])) for tokens in x]
        colour, marker, dash = styles[method]
        ax.plot(x, y, color=colour, marker=marker, linestyle=dash)
        low, high = ([edge(by_cost[tokens]) for tokens in x] for edge in (min, max))
        ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        ends[method] = (y[-1], colour)
    ax.set_xscale("log")
    ax.set(title="Held-out perplexity against cost", xlabel="forward tokens", ylabel="perplexity")
    axes.name_ends(ax, ends)


def draw_tradeoff(ax, points):
    """Share of needles found against perplexity beside that of YaRN, each with its interval.

    Args:
      ax: of the panel.
      points: "label" (points of one label look alike), "percent" and "share", each (value, low,
        high). Points more than FAR percent off are listed in words.
    """
    styles = axes.styles(dict.fromkeys(point["label"] for point in points))
    far, named = [], set()
    for point in points:
        (x, *x_ends), (y, *y_ends) = point["percent"], point["share"]
        if abs(x) > FAR:
            far.append(f"{point['label']} {x:+.0f}%, {y:.2f}")
            continue
        colour, marker, _ = styles[point["label"]]
        ax.hlines(y, *x_ends, color=colour, alpha=0.45, linewidth=1.2)
        ax.vlines(x, *y_ends, color=colour, alpha=0.45, linewidth=1.2)
        name = "" if point["label"] in named else point["label"]
        ax.plot(x, y, color=colour, marker=marker, markersize=7, linestyle="", label=name or None)
        named.add(point["label"])
    ax.axvline(0, color=axes.FOREGROUND, linewidth=0.8)
    ax.set(title="Needles found against perplexity", ylabel="share of trials")
    ax.set_xlabel("perplexity above YaRN's, %")
    ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    if far:
        low, high = ax.get_ylim()
        ax.set_ylim(low - 0.18 * (high - low), high)
        maps.write(ax, f"Far off: {'; '.join(far)}.", (0.02, 0.14), width=44)


# name -> (draws a panel from rows and the original length, whether the rows suffice for it)
PANELS = {
    "perplexity": (draw_perplexity, lambda rows: any(r["suite"] == "perplexity" for r in rows)),
    "difference": (draw_difference, lambda rows: any(r.get("difference") for r in rows)),
    "position": (draw_position, lambda rows: any(r["suite"] == "perplexity" for r in rows)),
    "passkey": (draw_passkey, lambda rows: any(r["suite"] == "passkey" for r in rows)),
    "needle": (draw_needle, lambda rows: bool(needle_rows(rows))),
}

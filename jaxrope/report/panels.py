"""Panels on a matplotlib Axes, drawn from the rows of result files."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxrope.report import axes, floors, maps, tables

KNOWN = ("none", "pi", "ntk", "dynamic_ntk", "yarn", "llama3", "abf")  # methods without a search
TRAINING = "training"  # the name of a training whose result has none
SMOOTHING = 15  # the training loss is a mean over a fifteenth of the run to either side
FAR = 20.0  # percent of perplexity; a point farther off would compress all others
FAR_RATIO = 1.5  # of the lowest perplexity at the longest length; see `far`

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


def far(rows: Sequence[Row]) -> dict[str, str]:
    """Returns {label: it and its perplexity} of the methods that would compress all others.

    The scale is that of the rows that matter: of what was made, of the model's own sliding window
    and of the methods that are near. A row without a finite number is far too.
    """
    by_label = _of_suite(rows, "perplexity")
    points = {
        label: [row["metrics"]["perplexity"] for row in label_rows]
        for label, label_rows in by_label.items()
    }
    said = {label: f"{label} inf" for label, of in points.items() if None in of}
    finite = {label: of for label, of in points.items() if label not in said}
    longest = max((by_label[label][-1]["length"] for label in finite), default=0)
    ends = [of[-1] for label, of in finite.items() if by_label[label][-1]["length"] == longest]
    matter = [v for label, of in finite.items() if not _is_known(by_label[label]) for v in of]
    limit = max([FAR_RATIO * min(ends, default=0.0), *matter])
    for label, of in finite.items():
        if max(of) > limit:
            said[label] = f"{label} {tables.number(of[-1])}"
            said[label] += f", {tables.number(max(of))} before" if of[-1] <= limit else ""
    return said


def _is_known(label_rows: Sequence[Row]) -> bool:
    return is_method(label_rows[0].get("of", label_rows[0]["label"]))


def say_far(ax, rows, *, numbers: bool = False) -> None:
    """Writes under the axis what is not drawn; with `numbers`, those of the longest length."""
    said = far(rows)
    if said:
        length = max(row["length"] for row in rows if row["suite"] == "perplexity")
        where = f" at {length:,}" if numbers else ""
        say_below(ax, f"not drawn, far off{where}: {', '.join(said.values() if numbers else said)}")


def is_method(label: str) -> bool:
    """Returns whether a label is that of a known method without a search ("pi", "yarn@su")."""
    return label.partition("@")[0] in KNOWN


def _curves(rows, suite, values_fn):
    """Returns ({label: points}, their looks) of the rows of `suite` that are not far off."""
    said = far(rows)
    by_label = {k: of for k, of in _of_suite(rows, suite).items() if k not in said}
    curves = {label: _curve(of, values_fn) for label, of in by_label.items()}
    looks = axes.styles_of_kinds({label: of[0].get("of", label) for label, of in by_label.items()})
    return curves, looks


def draw_perplexity(ax, rows, original_len):
    """Perplexity against length, logarithmic where it spans more than a factor of 3; what lies far
    off is said below. Intervals are in tables: windows differ from each other far more than rows.
    """
    curves, looks = _curves(rows, "perplexity", lambda r: [r["metrics"]["perplexity"]] * 3)
    values = [v for x, y, *_ in curves.values() for v in y]
    if values and max(values) > 3 * min(values):
        ax.set_yscale("log")
    draw_by_length(ax, curves, original_len, looks)
    ax.set(title="Perplexity by length", ylabel="perplexity, lower is better")
    say_far(ax, rows, numbers=True)
    axes.plain_ticks(ax)


def draw_difference(ax, rows, original_len):
    """Paired difference of mean NLL from the baseline against length."""
    compared = list(filter(_is_compared(rows), rows))

    def values(row):
        names = ("mean", "low", "high") if tables.has_interval(row) else ("mean",) * 3
        return [row["difference"][name] for name in names]

    curves, looks = _curves(compared, "perplexity", values)
    baseline = next(row for row in rows if row.get("difference"))["difference"]["baseline"]
    ax.axhline(0, color=axes.FOREGROUND, linewidth=0.8)
    draw_by_length(ax, curves, original_len, looks)
    ax.set(title=f"Loss less that of {baseline}", ylabel="nats per token, below 0 is better")
    say_far(ax, rows)


def _is_compared(rows):
    """Returns row -> whether it is compared with the baseline and not far off."""
    said = far(rows)
    return lambda row: row.get("difference") and row["label"] not in said


def say_below(ax, text: str) -> None:
    """Writes what is not drawn under the axis."""
    if text:
        ax.set_xlabel("\n".join([ax.get_xlabel(), *textwrap.wrap(text, 52)]))


def draw_passkey(ax, rows, original_len):
    """Share of pass keys found against length."""
    suite_rows = [row for row in rows if row["suite"] == "passkey"]
    _draw_scores(ax, suite_rows, original_len, title="Pass keys found", unit="share of trials")


def draw_needle(ax, rows, original_len):
    """Share of needles found against length, a line for each label and number of keys."""
    needles = needle_rows(rows)
    _draw_scores(ax, needles, original_len, title="Needles found", unit="share of trials")


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
    looks = axes.styles_of_kinds({row["label"]: row.get("of", row["label"]) for row in drawn})
    draw_by_length(ax, curves, original_len, looks)
    ax.set(title=title, ylabel=unit, ylim=(-0.05, 1.16))  # room for "trained"
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
        of = row.get("of", row["label"])
        return {"label": label(row), "of": of, "weights": f"{model} {row['suite']}"} if many else {}

    return [{**row, "suite": "needle"} | overrides(row) for row in needles]


def _curve(rows, values_fn):
    """Returns arrays (length, value, low, high) of the rows whose numbers are all finite."""
    points = [(row["length"], *values_fn(row)) for row in rows]
    points = [line for line in points if None not in line]
    return np.array(points, np.float64).reshape(-1, 4).T


def draw_by_length(ax, curves, original_len, looks=None):
    """{label: (lengths, values, low, high)}, with their intervals side by side; see axes.styles."""
    styles, ends = looks or axes.styles(curves), {}
    names = axes.together(curves)
    for place, (label, name) in enumerate(names.items()):
        x, y, low, high = curves[label]
        if not len(x):
            continue
        colour, marker, dash = styles[label]
        shifted = x * 1.025 ** (place - (len(names) - 1) / 2)  # bars side by side
        ax.plot(shifted, y, color=colour, marker=marker, linestyle=dash)
        ax.vlines(shifted, low, high, color=colour, alpha=0.45, linewidth=1.2)
        ends[name] = (y[-1], colour)
    lengths = sorted({length for x, *_ in curves.values() for length in x})
    ax.set_xscale("log", base=2)
    ax.set_xticks(lengths, [f"{int(length):,}" for length in lengths])
    if len(lengths) == 1:
        both = lengths[0], original_len or lengths[0]
        ax.set_xlim(min(both) / 2, max(both) * 2)
    ax.minorticks_off()
    ax.set_xlabel("length, tokens")
    axes.mark_length(ax, original_len)
    axes.name_ends(ax, ends)


def draw_position(ax, rows, original_len):
    """Loss against position at the longest length, smoothed."""
    by_label, said = _of_suite(rows, "perplexity"), far(rows)
    longest = max(row["length"] for label_rows in by_label.values() for row in label_rows)
    curves, kinds = {}, {}
    for label, label_rows in by_label.items():
        row = label_rows[-1]
        curve = row["items"]["position_nll"]
        if row["length"] != longest or None in curve or not curve or label in said:
            continue  # no curve: conversations
        edges = np.array(row["items"]["position_edges"])
        nll = axes.smooth(np.array(curve), np.diff(edges))
        curves[label] = np.stack([np.sqrt((edges[:-1] + 1) * edges[1:]), nll])
        kinds[label] = row.get("of", label)
    styles, ends = axes.styles_of_kinds(kinds), {}
    for label, name in axes.together(curves).items():
        colour, _, dash = styles[label]
        ax.plot(*curves[label], color=colour, linestyle=dash)
        ends[name] = (curves[label][1, -1], colour)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda value, _: f"{int(value):,}")
    ax.set(title=f"Loss by position, {longest:,} tokens", ylabel="nats per token (smoothed)")
    ax.set_xlabel("position, tokens")
    say_far(ax, rows)
    axes.mark_length(ax, original_len)
    axes.name_ends(ax, ends)


def draw_loss(ax, rows, name=TRAINING):
    """Training loss of each step, pale, and its running mean, in the look of the row `name`."""
    points = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    steps, losses = np.array(points, np.float64).reshape(-1, 2).T
    smooth = axes.smooth(losses, np.ones(len(losses)), reach=len(losses) // SMOOTHING)
    colour = axes.styles([name])[name][0]
    ax.plot(steps, losses, color=colour, alpha=0.3, linewidth=1)
    ax.plot(steps, smooth, color=colour)
    ax.set(title="Training loss", xlabel="step", ylabel="nats per token (running mean)")


def draw_rate(ax, rows, name=TRAINING):
    """Learning rate by step."""
    points = [(r["step"], r["lr"]) for r in rows if r.get("lr") is not None]
    steps, rates = np.array(points, np.float64).reshape(-1, 2).T
    ax.plot(steps, rates, color=axes.styles([name])[name][0])
    ax.set(title="Learning rate", xlabel="step", ylabel="learning rate")
    ax.set_ylim(bottom=0)


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
    styles, ends = axes.styles([subject, *others]), {}
    pairs = np.atleast_2d(curves[subject]).shape[1]
    names = axes.together({name: curves[name] for name in (subject, *others)})
    for label in [*(label for label in names if label != subject), subject]:
        colour, _, dash = styles[label]
        rows = np.atleast_2d(curves[label])
        x = np.linspace(0, pairs - 1, rows.shape[1])
        look = dict(color=colour, linestyle=dash, drawstyle="steps-mid")
        width = 2.2 if label == subject else 1.3
        ax.plot(x, rows.T, alpha=max(1 / len(rows), 0.2), linewidth=width, **look)
        ends[names[label]] = (float(np.median(rows[:, -1])), colour)
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
    "difference": (draw_difference, lambda rows: any(map(_is_compared(rows), rows))),
    "position": (draw_position, lambda rows: any(r["suite"] == "perplexity" for r in rows)),
    "passkey": (draw_passkey, lambda rows: any(r["suite"] == "passkey" for r in rows)),
    "needle": (draw_needle, lambda rows: bool(needle_rows(rows))),
}

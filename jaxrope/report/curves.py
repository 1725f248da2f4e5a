"""Panels of the page alone: the progress of searches, and workdirs compared."""

import numpy as np

from jaxrope.report import axes, panels

NEAR = 2.0  # times the best fitness; a baseline farther off would compress the search
DOTS = "#7f7f7f"
DESCENT_SMOOTHING = 6  # that of a descent, whose steps are few and of other text each, over a sixth


def draw_progress(ax, rows, baselines, name, unit, candidates=()):
    """Fitness by generation: every candidate, the best so far, the mean, and the baselines that
    are near.

    Args:
      ax: where.
      rows: "generation", "best" and "mean" of each.
      baselines: name -> a row with its "fitness", a number.
      name: of the row of the page that is the result.
      unit: of a fitness.
      candidates: (generation, fitness) of each.
    """
    colour = axes.styles([name])[name][0]
    generations = [row["generation"] for row in rows]
    best = [row["best"] for row in rows]
    mean = [np.nan if row["mean"] is None else row["mean"] for row in rows]
    if candidates:
        x, y = np.array(candidates, np.float64).T
        ax.plot(x, y, color=DOTS, marker=".", markersize=3, linestyle="", alpha=0.35)
    ax.plot(generations, mean, color=colour, alpha=0.6, linestyle="--", linewidth=1.2)
    ax.plot(generations, best, color=colour, linewidth=2.2)
    ends = {"best": (best[-1], colour)}
    if np.isfinite(mean[-1]):
        ends["mean"] = (mean[-1], colour)
    limit = NEAR * best[-1] if best[-1] > 1 else np.inf  # a share is never far off
    near = {label: row for label, row in baselines.items() if row["fitness"] < limit}
    styles = axes.styles(near)
    for baseline, row in near.items():
        ax.axhline(row["fitness"], color=styles[baseline][0], linewidth=1.2)
        ends[baseline] = (row["fitness"], styles[baseline][0])
    levels = np.array([*best, *mean, *(value for value, _ in ends.values())])
    levels = levels[np.isfinite(levels)]
    low, high = levels.min(), levels.max()
    if low > 0 and high > 1.5 * low:
        ax.set_yscale("log")
        ax.set_ylim(low * (low / high) ** 0.06, high * (high / low) ** 0.06)
    else:  # candidates that are far worse are above the panel
        room = max(high - low, 1e-9) * 0.08
        ax.set_ylim(low - room, high + room)
    ax.set(title="Search", xlabel="generation", ylabel=f"{unit}, lower is better")
    ax.xaxis.get_major_locator().set_params(integer=True)
    if others := ", ".join(name for name in baselines if name not in near):
        panels.say_below(ax, f"not drawn, far off: {others}")
    axes.name_ends(ax, ends)
    axes.plain_ticks(ax)


def draw_descents(ax, descents):
    """Loss of each draw, a dot, and its running mean by step, a line for each descent."""
    styles, ends = axes.styles(descents), {}
    for name, rows in descents.items():
        steps, losses = np.array([(r["step"], r["loss"]) for r in rows], np.float64).T
        draws = [(r["step"], loss) for r in rows for loss in r.get("losses", [r["loss"]])]
        weights = np.array([len(r.get("losses", [0])) for r in rows], np.float64)
        smooth = axes.smooth(losses, weights, reach=len(losses) // DESCENT_SMOOTHING)
        colour = styles[name][0]
        ax.plot(*zip(*draws, strict=True), color=colour, marker="o", linestyle="", alpha=0.4)
        ax.plot(steps, smooth, color=colour, linewidth=2.2)
        ends[name] = (smooth[-1], colour)
    ax.set(title="Descent, other text in every step", xlabel="step", ylabel="loss, running mean")
    ax.xaxis.get_major_locator().set_params(integer=True)
    axes.name_ends(ax, ends)


def draw_losses(ax, runs):
    """Training loss against trained tokens, smoothed, a line for each of {name: rows}."""
    styles, ends = axes.styles(runs), {}
    for name, rows in runs.items():
        losses = np.array([row["loss"] for row in rows], np.float64)
        tokens = np.cumsum([row["tokens"] for row in rows])
        smooth = axes.smooth(losses, np.ones(len(losses)), reach=len(losses) // panels.SMOOTHING)
        ax.plot(tokens, smooth, color=styles[name][0], linestyle=styles[name][2])
        ends[name] = (smooth[-1], styles[name][0])
    ax.set(title="Training loss", xlabel="trained tokens", ylabel="nats per token (running mean)")
    ax.xaxis.set_major_formatter(lambda value, _: _count(value))
    axes.name_ends(ax, ends)


def _count(value: float) -> str:
    return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k" if value else "0"


def draw_searches(ax, runs):
    """Best fitness by generation, a line for each of {name: generations}."""
    styles, ends = axes.styles(runs), {}
    for name, rows in runs.items():
        best = [row["best"] for row in rows]
        colour, marker, dash = styles[name]
        point_marker = marker if len(best) == 1 else ""
        ax.plot(
            [row["generation"] for row in rows],
            best,
            color=colour,
            linestyle=dash,
            marker=point_marker,
        )
        ends[name] = (best[-1], colour)
    ax.set(title="Searches", xlabel="generation", ylabel="best fitness, lower is better")
    ax.xaxis.get_major_locator().set_params(integer=True)
    axes.name_ends(ax, ends)

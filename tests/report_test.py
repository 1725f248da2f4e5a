"""Figures and tables: what is drawn is what the rows say, nothing lost or broken."""

import itertools

import numpy as np
import pytest

from jaxrope import report
from jaxrope.errors import InputError
from jaxrope.report import (
    axes,
    evaluations,
    figures,
    tables,
)
from tests.tiny_report import (
    BASELINES,
    DESCENTS,
    GENERATIONS,
    NEEDLES,
    ROWS,
    STEPS,
    lines_of,
    names_of,
)


def test_perplexity_is_drawn_where_it_was_measured():
    figure = report.perplexity_figure(ROWS, original_len=512)
    drawn = {tuple(np.round(line.get_ydata(), 1)) for line in lines_of(figure)}
    assert {(32.9, 107.1), (32.9, 40.3)} <= drawn
    assert names_of(figure) == {"none", "yarn", "trained"}  # what is not finite has no line
    (ax,) = figure.axes
    assert ax.get_yscale() == "log"  # 32.9 to 107.1 is more than a factor of 3
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["512", "4,096"]


def test_the_difference_figure_names_its_baseline():
    figure = report.difference_figure(ROWS)
    assert "yarn" in figure.axes[0].get_title(loc="left")
    assert names_of(figure) == {"none", "mine & <co>"}


def test_position_is_drawn_for_the_longest_length():
    figure = report.position_figure(ROWS)
    assert "4,096" in figure.axes[0].get_title(loc="left")
    assert len(lines_of(figure)) == 3


def test_an_evaluation_has_a_panel_for_what_it_measured():
    assert len(report.evaluation_figure(ROWS).axes) == 4
    only = [r for r in ROWS if r["suite"] == "passkey"]
    assert len(report.evaluation_figure(only).axes) == 1
    assert len(report.evaluation_figure([*ROWS, *NEEDLES]).axes[:5]) == 5


def test_needles_are_drawn_for_each_number_of_keys():
    figure = report.needle_figure(NEEDLES[:2])
    assert {tuple(line.get_ydata()) for line in lines_of(figure)} == {(0.96, 0.79)}
    assert names_of(figure) == {"yarn"}
    figure = report.needle_figure(NEEDLES)
    assert {tuple(line.get_ydata()) for line in lines_of(figure)} == {(0.96, 0.79), (1.0,)}
    assert names_of(figure) == {"yarn, 6 keys", "yarn, 1 keys"}
    assert figure.axes[0].get_title(loc="left") == "Needle found"
    titles = [title for title, _ in tables.evaluation_tables(NEEDLES)]
    assert titles == [f"Needle-{k}: accuracy [95% interval]" for k in (6, 1)]
    assert evaluations.alt("needle", NEEDLES) == (
        "Share of needles found, with Wilson's 95% interval. At 8,192 tokens: yarn, 6 keys 0.79."
    )


def test_the_search_is_drawn_against_its_baselines():
    found = [1.0, 1.5, 7.0, 9.5]
    figure = report.search_figure(GENERATIONS, BASELINES, factors=found, descents={})
    assert names_of(figure) == {"best", "mean", "pi", "yarn", "result"}
    curves = {tuple(line.get_ydata()) for line in lines_of(figure)}
    assert {(1.0, 1.5, 7.0, 9.5), (60.0, 59.0, 58.0, 57.0, 56.0)} <= curves
    assert figure.axes[1].get_yscale() == "log"


def test_a_baseline_or_generation_that_failed_is_left_out():
    generations = [{"generation": i, "best": 60.0, "mean": None} for i in range(2)]
    failed = BASELINES | {"ntk": {"fitness": None, "factors": [1.0] * 4}}
    figure = report.search_figure(generations, failed, factors=[1.0] * 4, descents={})
    assert names_of(figure) >= {"best", "pi", "yarn"}
    alone = report.search_figure(generations[:1], failed, factors=[1.0] * 4, descents={})
    assert len(alone.axes) == 1  # a line of one point is none


def test_what_a_search_did_not_do_has_no_panel():
    descended = report.search_figure([], BASELINES, factors=[1.0] * 4, descents=DESCENTS)
    assert [ax.get_xlabel() for ax in descended.axes] == [
        "step",
        "rotary pair, from fast to slow",
    ]
    dots, mean = descended.axes[0].get_lines()
    assert dots.get_xydata().tolist() == [[0, 2], [0, 3], [0, 4], [1, 2.5]]
    assert mean.get_xydata().tolist() == [[0, 3.0], [1, 2.5]]
    neither = report.search_figure([], {}, factors=[1.0] * 4, descents={})
    assert names_of(neither) == {"result"}


def test_factors_are_drawn_beside_the_baselines_that_matter_in_their_colours():
    rows = {
        name: {"fitness": fitness, "factors": [1.0, place]}
        for place, (name, fitness) in enumerate(
            dict(none=9.0, pi=8.0, ntk=None, dynamic_ntk=5.0, yarn=6.0, mine=7.0).items(), start=2
        )
    }
    for result, drawn in (
        ([1.0, 1.5], {"ntk", "dynamic_ntk", "yarn"}),
        ([1.0, 5.0], {"ntk", "yarn"}),
    ):
        figure = report.search_figure([], rows, factors=result, descents={})
        assert names_of(figure) == drawn | {"result"}
        colours = [line.get_color() for line in lines_of(figure)]
        named = [axes.STYLES[name][0] for name in ("ntk", "dynamic_ntk", "yarn") if name in drawn]
        assert colours == [*named, axes.STYLES["longrope"][0]]


def test_training_is_drawn_step_by_step():
    figure = report.training_figure([*STEPS, {"step": 40, "eval": {"perplexity/512": 3.0}}])
    pale, smooth = lines_of(figure)[:2]
    assert len(pale.get_ydata()) == 40 and pale.get_alpha() < 1
    assert np.ptp(smooth.get_ydata()) <= np.ptp(pale.get_ydata())


def test_smoothing_keeps_a_constant_and_its_ends():
    values = np.full(20, 3.0)
    np.testing.assert_allclose(axes.smooth(values, np.arange(1.0, 21.0)), values)
    line = np.arange(9.0)
    assert axes.smooth(line, np.ones(9), reach=1).tolist() == [0.5, *range(1, 8), 7.5]


def test_names_at_the_ends_do_not_overlap():
    wanted = {"a": 0.5, "b": 0.5, "c": 0.51, "d": 0.99, "e": 1.0}
    heights = dict.fromkeys(wanted, 0.07) | {"e": 0.14}
    places = axes.spread(wanted, heights)
    order = sorted(places, key=places.get)
    apart = np.diff([places[name] for name in order])
    assert apart[:-1].min() > 0.069 and order[-1] == "e" and apart[-1] > 0.104
    assert min(places.values()) >= 0 and places["e"] + heights["e"] / 2 <= 1.001
    assert places["a"] < 0.5 < places["c"]
    assert axes.spread({"x": 0.3}, {"x": 0.07}) == {"x": 0.3}


@pytest.mark.parametrize("count", [3, 12, 30])
def test_a_figure_has_room_for_all_names(count):
    from matplotlib.text import Text

    def draw(ax):
        ax.plot([0, 1], [0, 1])
        axes.name_ends(ax, {f"a name of two lines {i}": (0.5, "k") for i in range(count)})

    figure = figures.one(draw)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(name) for name in figure.axes[0].texts]  # without its arrow
    boxes.sort(key=lambda box: box.y0)
    assert len(boxes) == count
    assert all(low.y1 <= high.y0 + 2 for low, high in itertools.pairwise(boxes))


def test_each_label_has_a_look_of_its_own():
    labels = ["none", "pi", "ntk", "yarn", "longrope", "sliding", *"abcde"]
    assert len(set(axes.styles(labels).values())) == len(labels)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_figure_is_written(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    report.evaluation_figure(ROWS, path, original_len=512)
    assert path.stat().st_size > 10_000


def test_figures_say_what_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(InputError, match="need matplotlib.*pip install matplotlib"):
        report.passkey_figure(ROWS)


def test_tables_by_hand():
    perplexity, passkey, difference = tables.evaluation_tables(ROWS)
    assert perplexity == (
        "Perplexity [95% interval]",
        [
            ["", "512", "4,096"],
            ["none", "32.90 [30.00, 36.00]", "107.10 [90.00, 126.00]"],
            ["yarn", "32.90 [30.00, 36.00]", "40.30 [34.00, 48.00]"],
            ["mine & <co>", "", "inf [inf, inf]"],
        ],
    )
    assert passkey[0] == "Passkey: accuracy [95% interval]"
    assert difference[1][1:] == [
        ["none", "+0.0000 [+0.0000, +0.0000]", "+0.9800 [+0.9000, +1.0600]*"],
        ["mine & <co>", "", "-0.0200 [-0.0300, -0.0100]*"],
    ]
    assert tables.as_text([("title", [["", "8"], ["long name", "1"]])]) == (
        "title\n           8\nlong name  1"
    )
    assert tables.as_markdown([("a*", [["", "8"], ["x|y", "1*"]])]) == (
        "## a\\*\n\n|  | 8 |\n| --- | --: |\n| x\\|y | 1\\* |\n"
    )

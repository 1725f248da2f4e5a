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
    panels,
    tables,
)
from tests.tiny_report import (
    BASELINES,
    DESCENTS,
    GENERATIONS,
    NEEDLES,
    ROWS,
    STEPS,
    gap,
    lines_of,
    names_of,
    row,
)


def test_perplexity_is_drawn_where_it_was_measured():
    figure = report.perplexity_figure(ROWS, original_len=512)
    drawn = {tuple(np.round(line.get_ydata(), 1)) for line in lines_of(figure)}
    assert (32.9, 40.3) in drawn and (32.9, 107.1) not in drawn
    assert names_of(figure) == {"yarn", "trained"}
    (ax,) = figure.axes  # what would compress all others, and what is not finite, is said
    said = "not drawn, far off at 4,096: mine & <co> inf, none 107.10"
    assert ax.get_xlabel().replace("\n", " ") == f"length, tokens {said}"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["512", "4,096"]


def test_the_difference_figure_names_its_baseline():
    assert "difference" not in figures.evaluation_figures(ROWS)  # all of them are far off
    near = [row("perplexity", "mine", 4096, 39.0, 34.0, 44.0, **gap(-0.02, -0.03, -0.01))]
    figure = figures.evaluation_figures([*ROWS, *near])["difference"]
    assert "yarn" in figure.axes[0].get_title(loc="left") and names_of(figure) == {"mine"}
    assert "far off: mine & <co>, none" in figure.axes[0].get_xlabel()


def test_what_was_made_sets_the_scale_and_far_methods_are_said():
    rows = [row("perplexity", label, 64, score, score, score) for label, score in SCORES.items()]
    assert panels.far(rows) == {"pi": "pi 40.00", "ntk@1.2": "ntk@1.2 36.00"}
    assert "pi" not in panels.far([*rows, row("perplexity", "mine", 64, 50.0, 50.0, 50.0)])
    crossing = [row("perplexity", "pi", 32, 90.0, 90.0, 90.0)]
    assert panels.far([*rows, *crossing])["pi"] == "pi 40.00"
    low = row("perplexity", "dynamic_ntk", 64, 19.0, 19.0, 19.0)
    high = row("perplexity", "dynamic_ntk", 32, 31.0, 31.0, 31.0)
    assert panels.far([*rows, low, high])["dynamic_ntk"] == "dynamic_ntk 19.00, 31.00 before"


SCORES = {"sliding": 18.0, "searched": 20.0, "yarn": 21.0, "ntk@1.2": 36.0, "pi": 40.0}


def test_position_is_drawn_for_the_longest_length():
    figure = figures.evaluation_figures(ROWS)["position"]
    assert "4,096" in figure.axes[0].get_title(loc="left")
    assert len(lines_of(figure)) == 1  # none and what is not finite are far off


def test_an_evaluation_has_a_panel_for_what_it_measured():
    assert len(report.evaluation_figure(ROWS).axes) == 3  # no difference that is near
    only = [r for r in ROWS if r["suite"] == "passkey"]
    assert len(report.evaluation_figure(only).axes) == 1
    near = row("perplexity", "near", 4096, 39.0, 34.0, 44.0, **gap(-0.02, -0.03, -0.01))
    assert len(report.evaluation_figure([*ROWS, near, *NEEDLES]).axes[:5]) == 5


def test_needles_are_drawn_for_each_number_of_keys():
    figure = figures.evaluation_figures(NEEDLES[:2])["needle"]
    assert {tuple(line.get_ydata()) for line in lines_of(figure)} == {(0.96, 0.79)}
    assert names_of(figure) == {"yarn"}
    figure = figures.evaluation_figures(NEEDLES)["needle"]
    assert {tuple(line.get_ydata()) for line in lines_of(figure)} == {(0.96, 0.79), (1.0,)}
    assert names_of(figure) == {"yarn, 6 keys", "yarn, 1 keys"}
    assert figure.axes[0].get_title(loc="left") == "Needles found"
    titles = [title for title, _ in tables.evaluation_tables(NEEDLES)]
    assert titles == [f"Needle-{k}: accuracy [95% interval]" for k in (6, 1)]
    assert evaluations.alt("needle", NEEDLES) == (
        "Share of needles found, with Wilson's 95% interval. At 8,192 tokens: yarn, 6 keys 0.79."
    )


def test_the_search_is_drawn_against_its_baselines():
    found = [1.0, 1.5, 7.0, 9.5]
    figure = report.search_figure(GENERATIONS, BASELINES, factors=found, descents={})
    assert names_of(figure) == {"best", "mean", "pi", "yarn", "searched"}
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
    assert names_of(neither) == {"searched"}


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
        assert names_of(figure) == drawn | {"searched"}
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
    labels = ["none", "pi", "ntk", "yarn", "yarn@su", "longrope", "sliding", *"abcde"]
    assert len(set(axes.styles(labels).values())) == len(labels)
    colours = [colour for colour, *_ in axes.styles([*labels[:7], "a", "b", "c"]).values()]
    assert len(set(colours)) == len(colours)


def test_a_label_keeps_its_look_on_a_page():
    with axes.one_look() as looks:
        first = axes.styles(["searched", "yarn"])
        assert axes.styles(["tuned", "yarn", "searched"]) == first | {"tuned": axes.SPARE[0]}
        with axes.one_look():  # of a figure of the page
            assert axes.styles(["tuned"]) == {"tuned": axes.SPARE[0]}
    assert list(looks) == ["yarn", "searched", "tuned"]
    assert axes.styles(["tuned"]) == {"tuned": axes.SUBJECT}


def test_kinds_of_a_row_have_its_colour():
    looks = axes.styles_of_kinds({"yarn, a": "yarn", "yarn, b": "yarn", "mine, a": "mine"})
    assert looks["yarn, a"][0] == looks["yarn, b"][0] == axes.STYLES["yarn"][0]
    assert looks["yarn, a"][2] != looks["yarn, b"][2] and looks["mine, a"] == axes.SUBJECT


def test_lines_on_top_of_each_other_are_one_with_both_names():
    curves = {"a": [1.0, 2.0], "b": [1.0, 2.0], "c": [1.0, 3.0]}
    assert axes.together(curves) == {"a": "a = b", "c": "c"}
    figure = figures.one(lambda ax: panels.draw_factors(ax, curves))
    assert names_of(figure) == {"a = b", "c"} and len(lines_of(figure)) == 2
    same = [row("passkey", label, n, 1.0, 0.8, 1.0) for label in ("yarn", "pi") for n in (8, 16)]
    assert names_of(figures.evaluation_figures(same)["passkey"]) == {"yarn = pi"}


@pytest.mark.parametrize("count", [4, 5])
def test_few_windows_have_no_interval_and_no_star(count):
    items = {"window_nll": [3.0] * count}
    one = row("perplexity", "mine", 64, 33.0, 30.0, 36.0, **gap(-0.02, -0.03, -0.01))
    (title, score), (about, difference) = tables.evaluation_tables([one | {"items": items}])
    assert score[2] == difference[2] == ["windows", str(count)]
    if count < 5:
        assert (score[1][1], difference[1][1]) == ("33.00", "-0.0200")
        assert "no interval" in title and "no interval" in about and "*" not in about
    else:
        assert (score[1][1], difference[1][1][-1]) == ("33.00 [30.00, 36.00]", "*")
        assert "[95% interval]" in title and "excludes 0" in about


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_figure_is_written(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    report.evaluation_figure(ROWS, path, original_len=512)
    assert path.stat().st_size > 10_000


def test_figures_say_what_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(InputError, match="need matplotlib.*pip install matplotlib"):
        report.evaluation_figure(ROWS)


def test_perplexity_by_position_is_that_of_octaves_beyond_the_original_length():
    items = {"position_edges": [0, 1, 2, 3, 4, 8], "position_nll": [4.0, 3.0, 2.0, 1.0, 0.5]}
    rows = [row("perplexity", label, 8, 3.0, 2.0, 4.0, items=items) for label in ("none", "pi")]
    shorter = row("perplexity", "none", 4, 3.0, 2.0, 4.0)
    *_, (title, cells) = tables.evaluation_tables([shorter, *rows], original_len=2)
    assert title == "Perplexity by position in 8 tokens"
    numbers = [f"{np.exp(nll):.2f}" for nll in (3.5, 1.5, 0.5)]
    assert cells == [["", "0 to 1", "2 to 3", "4 to 7"], ["none", *numbers], ["pi", *numbers]]
    inside = tables.evaluation_tables(rows, original_len=8)
    assert not any("position" in title for title, _ in inside)


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

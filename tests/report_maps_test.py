"""Maps of length and depth, curves of tasks, costs, and what is at floor inside its own window."""

import dataclasses
import json
import math

import numpy as np
import pytest
from matplotlib.colors import to_hex

from jaxrope import report
from jaxrope.evaluate import statistics, summary
from jaxrope.evaluate.ruler import metrics
from jaxrope.evaluate.scoring import Result
from jaxrope.report import collect, evaluations, figures, floors, maps, panels, tables


def row(suite, label, length, scores, depths=None, **more):
    """A row of eval.json with Wilson's interval, as a task has it."""
    low, high = statistics.wilson_interval(sum(scores), len(scores))
    depths = depths or [i / len(scores) for i in range(len(scores))]
    return {
        "suite": suite,
        "label": label,
        "length": length,
        "metrics": {"score": sum(scores) / len(scores), "low": low, "high": high},
        "items": {
            "depth": depths or [i / len(scores) for i in range(len(scores))],
            "score": scores,
        },
        "tokens": 1000,
        "seconds": 2.0,
        "chance": 0.0,
        "columns": ["depth"],
    } | more


GOOD, POOR, NONE = [1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]
ROWS = [
    row("niah", "none", 512, GOOD),
    row("niah", "none", 2048, NONE),
    row("niah", "yarn", 512, GOOD),
    row("niah", "yarn", 2048, POOR),
    row("kv", "none", 512, NONE, columns=[]),
    row("kv", "none", 2048, NONE, columns=[]),
]


def test_a_map_has_the_mean_score_of_each_cell():
    none, yarn = maps.collect(ROWS[:4], 512)
    assert (none.title, yarn.title) == ("niah, none: depth", "niah, yarn: depth")
    assert yarn.lengths == [512, 2048] and yarn.names == ["0", "0.25", "0.5", "0.75"]
    np.testing.assert_array_equal(yarn.cells, [[1, 1], [1, 0], [1, 0], [1, 0]])
    np.testing.assert_array_equal(none.cells, [[1, 0]] * 4)


def test_many_depths_share_ten_cells_and_an_empty_cell_is_empty():
    depths = [(i + 0.5) / 24 for i in range(24)]
    scores = [1] * 12 + [0] * 12
    (shown,) = maps.collect([row("niah", "none", 512, scores, depths)], 512)
    assert shown.names[0] == "0.05" and shown.names[-1] == "0.95" and len(shown.names) == 10
    assert shown.cells[:, 0].tolist() == [1.0] * 5 + [0.0] * 5
    few = row("niah", "none", 2048, [1, 0], [0.0, 1.0])  # 1 belongs to the last cell
    (shown,) = maps.collect([row("niah", "none", 512, scores, depths), few], 512)
    assert (shown.cells[0, 1], shown.cells[9, 1]) == (1.0, 0.0)
    assert all(math.isnan(value) for value in shown.cells[1:9, 1])


def test_a_column_of_names_has_a_cell_for_each():
    items = {"task": ["b", "a", "b", None], "score": [1, 0, 0, 1]}
    (shown,) = maps.collect([row("niah", "none", 512, GOOD, items=items, columns=["task"])], 512)
    assert shown.names == ["a", "b"] and shown.cells[:, 0].tolist() == [0.0, 0.5]


def test_a_teacher_forced_suite_has_its_map_of_what_was_found():
    items = {"depth": [0.25, 0.75], "found": [True, False]}
    (shown,) = maps.collect([row("passkey", "none", 512, GOOD, items=items)], 512)
    assert shown.cells[:, 0].tolist() == [1.0, 0.0]


def test_the_colours_are_no_red_and_green_and_a_line_stands_at_the_trained_length(tmp_path):
    figure = report.maps_figure(ROWS, tmp_path / "maps.svg", original_len=512)
    drawn, yarn = (ax for ax in figure.axes if ax.get_title(loc="left").startswith("niah"))
    mesh = yarn.collections[0]
    assert mesh.get_clim() == (0, 1)
    colours = [to_hex(mesh.cmap(value)).upper() for value in (0.0, 0.5, 1.0)]
    assert colours[0] == "#E08214" and colours[2] == "#5FA8DC"  # orange and blue
    assert len([ax for ax in figure.axes if ax.get_ylabel() == "share found"]) == 1  # one bar
    (line,) = yarn.get_lines()
    assert line.get_xdata()[0] == 1 and line.get_color() == maps.LINE  # between 512 and 2,048
    top, bottom = yarn.get_ylim()[::-1]
    assert top < bottom  # depth 0 is at the top
    assert [tick.get_text() for tick in yarn.get_xticklabels()] == ["512", "2,048"]
    assert (tmp_path / "maps.svg").read_text().startswith("<?xml")


def test_nothing_to_map_is_no_file(tmp_path):
    assert report.maps_figure(ROWS[4:], tmp_path / "maps.png", original_len=512) is None
    assert not (tmp_path / "maps.png").exists()


def texts_of(ax):
    return [text.get_text().replace("\n", " ") for text in ax.texts]


def test_what_is_at_floor_inside_its_window_is_said_and_not_drawn():
    wanted = (
        "At floor inside the model's own window of 512 tokens, not above chance (0), and not "
        "drawn: none 0.00 [0.00, 0.49] at 512."
    )
    assert floors.sentence(ROWS[4:], 512) == wanted
    assert floors.labels(ROWS[:4], 512) == []  # at floor beyond it only
    assert floors.sentence(ROWS[4:], 256) == floors.sentence(ROWS[4:], None) == ""  # not measured
    (title, _), *_ = tables.evaluation_tables(ROWS[4:], original_len=512)
    assert title == f"Kv: score [95% interval]. {wanted}"
    kv = figures.evaluation_figures(ROWS, original_len=512)["kv"].axes[0]
    assert texts_of(kv) == [wanted] and not kv.get_lines()
    shown = [figure.name for figure in evaluations.charts(ROWS, 512)]
    assert "kv" not in shown and len(shown) > 1  # a page says it above the table
    low = [row("niah", "none", 512, NONE), row("niah", "none", 2048, NONE), *ROWS[2:4]]
    said, yarn = maps.collect(low, 512)
    assert said.sentence == floors.sentence(low, 512) and yarn.title == "niah, yarn: depth"
    figure = report.maps_figure(low, original_len=512)
    assert said.sentence in [text for ax in figure.axes for text in texts_of(ax)]
    curves = figures.evaluation_figures(low, original_len=512)["niah"].axes[0]
    assert [tuple(line.get_ydata()) for line in curves.get_lines()[:1]] == [(1.0, 0.25)]
    assert said.sentence in texts_of(curves)


@pytest.mark.parametrize(("chance", "is_low"), [(0.0, False), (0.04, False), (0.05, True)])
def test_floor_is_what_the_lower_end_of_the_interval_does_not_clear(chance, is_low):
    rows = [row("kv", "none", 512, POOR, chance=chance)]  # 0.25 [0.0456, 0.6994]
    assert bool(floors.labels(rows, 512)) == is_low


def test_rows_of_one_model_are_judged_together():
    """Factors that fail inside the window where the model's own do not are no inability of it."""
    none, pi = row("kv", "none", 512, GOOD, weights="a"), row("kv", "pi", 512, NONE, weights="a")
    assert floors.labels([none, pi], 512) == []
    other = row("kv", "other", 512, NONE, weights="b")
    assert floors.labels([none, pi, other], 512) == ["other"]
    assert floors.labels([none | {"metrics": pi["metrics"]}, pi], 512) == ["none", "pi"]


def test_the_window_is_that_of_the_rows_own_model():
    rows = [row("kv", "short", 1024, NONE, original_len=512, weights="a")]
    rows += [row("kv", "long", 1024, NONE, original_len=2048, weights="b")]
    assert floors.labels(rows, 512) == ["long"]
    assert "window of 2,048 tokens" in floors.sentence(rows, 512)


def test_needles_of_each_number_are_judged_by_themselves():
    rows = [row("needle-1", "none", 512, GOOD, weights="a")]
    rows += [row("needle-6", "none", 512, NONE, weights="a")]
    assert floors.labels(panels.needle_rows(rows), 512) == ["none, 6 keys"]


def test_chance_is_told():
    rows = [row("niah", "none", 512, POOR, chance=0.216)]
    assert "not above chance (0.22)" in floors.sentence(rows, 512)


def test_one_length_above_chance_inside_the_window_is_no_floor():
    rows = [row("kv", "none", 256, GOOD), row("kv", "none", 512, NONE)]
    assert floors.labels(rows, 512) == []


def test_rows_of_older_files_have_neither_map_nor_floor():
    old = {k: v for k, v in ROWS[4].items() if k not in ("chance", "columns")}
    assert floors.labels([old], 512) == [] and maps.collect([old], 512) == []


def test_every_task_has_a_curve():
    drawn = figures.evaluation_figures(ROWS, original_len=512)
    assert list(drawn) == ["niah", "kv"]
    shown = evaluations.charts(ROWS, 512)
    assert [figure.name for figure in shown] == ["niah", "map of niah: depth"]
    none, yarn = shown[1].drawing.axes  # beside each other, in colours that the caption names
    assert none.get_title(loc="left") == "none" and yarn.get_title(loc="left") == "yarn"
    assert shown[1].numbers[1] == ["none", 512, "0", 1.0]
    lines = {tuple(line.get_ydata()) for line in drawn["niah"].axes[0].get_lines()}
    assert {(1.0, 0.0), (1.0, 0.25)} <= lines
    assert len(report.evaluation_figure(ROWS, original_len=512).axes) == 2


def test_costs_are_tokens_and_tokens_per_second_of_each_suite():
    title, cells = tables.cost_table([*ROWS, row("kv", "yarn", 512, GOOD, tokens=9, seconds=0.5)])
    assert title == "Cost: tokens read and written, and tokens per second"
    assert cells == [
        ["", "niah", "kv"],
        ["none", "2,000, 500/s", "2,000, 500/s"],
        ["yarn", "2,000, 500/s", "9, 18/s"],
    ]


def test_a_page_has_the_table_of_ruler(tmp_path):
    rows = [row("ruler/vt", "none", 512, GOOD), row("ruler/vt", "none", 1024, POOR)]
    content = {"rows": rows, "model": {"original_len": 512, "source": "a"}, "command": ""}
    found = {"none": metrics.summary({"ruler/vt": {512: 1.0, 1024: 0.25}})}
    content |= {"config": {}, "ruler": json.loads(json.dumps(found))}
    (tmp_path / "eval.json").write_text(json.dumps(content))
    (section,) = collect.collect(tmp_path).folder.sections
    title, cells = section.tables[1]
    assert title.startswith("RULER: mean score") and cells[1][:4] == [
        "none",
        "100.0",
        "25.0",
        "512",
    ]


def test_captions_and_alts_name_the_task():
    assert evaluations.alt("niah", ROWS) == (
        "niah: mean score with its 95% interval. At 2,048 tokens: none 0.00, yarn 0.25."
    )
    assert evaluations.alt("map of niah: depth", ROWS) == (
        "Map of niah: depth down, length across, mean score from 0 (orange) to 1 (blue); "
        "dashed after the trained lengths."
    )


def test_ruler_has_its_own_table():
    made = Result(
        suite="ruler/vt",
        label="none",
        length=4096,
        metrics={"score": 0.9, "low": 0.8, "high": 1.0},
        items={},
        nll_WT=None,
        fingerprint="",
        tokens=1,
        seconds=1.0,
    )
    longer = dataclasses.replace(made, length=8192, metrics={"score": 0.6, "low": 0, "high": 1})
    found = summary.of_ruler([made, longer, dataclasses.replace(made, suite="kv")])
    assert found["none"]["mean"] == {4096: 90.0, 8192: 60.0}
    title, cells = tables.ruler_table(found)
    assert title.startswith("RULER: mean score, per cent")
    assert cells[0][1:] == ["4,096", "8,192", "effective length", "wAvg inc", "wAvg dec"]
    # weights 1/3 and 2/3
    assert cells[1] == ["none", "90.0", "60.0", "4,096", "70.0", "80.0"]
    assert summary.of_ruler([dataclasses.replace(made, suite="kv")]) == {}

"""Figures, tables and the page: what is drawn is what the rows say, nothing lost or broken."""

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from jaxrope import report, rope
from jaxrope.errors import InputError
from jaxrope.report import __main__ as program
from jaxrope.report import (
    assets,
    axes,
    collect,
    comparison,
    evaluations,
    figures,
    page,
    ropes,
    tables,
    theme,
)


def row(suite, label, length, score, low, high, **more):
    name = suite if suite == "perplexity" else "accuracy"
    return {
        "suite": suite,
        "label": label,
        "length": length,
        "metrics": {name: score, "low": low, "high": high},
        "items": {"position_edges": [0, 1, 2, 4, 8], "position_nll": [4.0, 3.5, 3.0, 2.5]},
        "tokens": 1000,
        "seconds": 2.0,
    } | more


def gap(mean, low, high):
    return {"difference": {"baseline": "yarn", "mean": mean, "low": low, "high": high}}


ROWS = [
    row("perplexity", "none", 512, 32.9, 30.0, 36.0, **gap(0.0, 0.0, 0.0)),
    row("perplexity", "none", 4096, 107.1, 90.0, 126.0, **gap(0.98, 0.9, 1.06)),
    row("perplexity", "yarn", 512, 32.9, 30.0, 36.0),
    row("perplexity", "yarn", 4096, 40.3, 34.0, 48.0),
    row("perplexity", "mine & <co>", 4096, None, None, None, **gap(-0.02, -0.03, -0.01)),
    row("passkey", "none", 512, 1.0, 0.76, 1.0),
    row("passkey", "yarn", 512, 1.0, 0.76, 1.0),
]
NEEDLES = [
    row("needle-6", "yarn", 500, 0.96, 0.8, 0.99),
    row("needle-6", "yarn", 8192, 0.79, 0.6, 0.9),
    row("needle-1", "yarn", 500, 1.0, 0.86, 1.0),
]
GENERATIONS = [{"generation": i, "best": 60.0 - i, "mean": 80.0 - i} for i in range(5)]
BASELINES = {
    "pi": {"fitness": 97.0, "factors": [8.0] * 4},
    "yarn": {"fitness": 60.0, "factors": [1.0, 2.0, 8.0, 8.0]},
}
LABELS = ["none", "yarn", "mine & <co>"]
STEPS = [{"step": i, "loss": 4 - i / 100, "lr": 1e-5, "tokens": 64} for i in range(1, 41)]


def lines_of(figure):
    return [line for ax in figure.axes for line in ax.get_lines()]


def names_of(figure):
    return {text.get_text().strip() for ax in figure.axes for text in ax.texts}


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
    figure = report.search_figure(GENERATIONS, BASELINES, factors=[1.0, 1.5, 7.0, 9.5])
    assert names_of(figure) == {"best", "mean", "pi", "yarn"}
    curves = {tuple(line.get_ydata()) for line in lines_of(figure)}
    assert {(1.0, 1.5, 7.0, 9.5), (60.0, 59.0, 58.0, 57.0, 56.0)} <= curves
    assert figure.axes[1].get_yscale() == "log"


def test_a_baseline_or_generation_that_failed_is_left_out():
    generations = [{"generation": 0, "best": 60.0, "mean": None}]
    failed = BASELINES | {"ntk": {"fitness": None, "factors": [1.0] * 4}}
    figure = report.search_figure(generations, failed, factors=[1.0] * 4)
    assert names_of(figure) >= {"best", "pi", "yarn"}


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
    places = axes.spread(wanted, gap=0.07)
    order = sorted(places.values())
    assert np.diff(order).min() > 0.069 and 0 <= order[0] and order[-1] <= 1.001
    assert places["a"] < 0.5 < places["c"]
    assert axes.spread({"x": 0.3}) == {"x": 0.3}


def test_each_label_has_a_look_of_its_own():
    labels = ["none", "pi", "ntk", "yarn", "longrope", "sliding", *"abcde"]
    assert len(set(axes.styles(labels).values())) == len(labels)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_figure_is_written(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    report.evaluation_figure(ROWS, path, original_len=512)
    assert path.stat().st_size > 10_000


def test_an_svg_follows_the_theme_and_its_column():
    made = figures.svg_file(report.passkey_figure(ROWS))
    svg = theme.paint(figures.svg_element(made))
    root = ElementTree.fromstring(svg)
    assert "width" not in root.attrib and "height" not in root.attrib and "viewBox" in root.attrib
    assert "currentColor" in svg and axes.FOREGROUND not in svg
    assert "#ffffff" not in svg  # no white ground on a dark page
    assert "var(--blue)" in svg and "font-family" not in svg
    assert "#ffffff" in made and axes.FOREGROUND in made and "<text" in made  # for itself
    assert made == figures.svg_file(report.passkey_figure(ROWS))


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


@pytest.fixture
def workdirs(tmp_path):
    return write_workdirs(tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a page of both workdirs, which tests only read."""
    folder = tmp_path_factory.mktemp("written")
    workdirs = write_workdirs(folder)
    (workdirs[0] / "command.txt").write_text("python search.py --config=a.py\n")
    program.write(workdirs, folder / "report.html")
    return folder


def write_workdirs(folder):
    """A search and a training in one folder, an evaluation in another."""
    first, second = folder / "first", folder / "second"
    first.mkdir()
    second.mkdir()
    best = {"max_len": 4096, "factors": [1.0, 2.0], "start_tokens": 4, "attention_factor": 1.15}
    baselines = [
        {"baseline": "yarn", "attention_factor": a, "fitness": f, "factors": [1.0, 8.0]}
        for a, f in ((1.2, 61.0), (1.15, 60.0))
    ]
    result = {
        "config": {"seed": 0},
        "unit": "perplexity",
        "best": best,
        "generations": GENERATIONS,
        "baselines": baselines,
        "forward_tokens": 123_456,
        "seconds": 90.0,
    }
    (first / "result.json").write_text(json.dumps(result))
    scores = {"step": 40, "eval": {"perplexity/512": 33.3}}
    lines = [json.dumps(line) + "\n" for line in [*STEPS, scores]]
    (first / "metrics.jsonl").write_text("".join(lines))
    (first / "config.json").write_text(json.dumps({"train": {"seq_len": 512}}))
    content = {
        "command": "python -m jaxrope.evaluate --config.a='<b>'",
        "config": {"seed": 1},
        "model": {"original_len": 512, "source": "models/base"},
        "rows": ROWS,
    }
    (second / "eval.json").write_text(json.dumps(content))
    return [first, second]


class Checker(HTMLParser):
    """Collects what a page has, and sees to it that every element is closed."""

    VOID = {"meta", "br", "hr", "img", "link", "input"}

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.tags, self.loads, self.links = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        found = [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset")]
        if tag == "a":
            self.links += found
        else:
            self.loads += found
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_by_itself(written):
    html = (written / "report.html").read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids)), "two figures would share shapes"
    assert all(load.startswith(("#", "data:image")) for load in checker.loads), "nothing is fetched"
    used = set(re.findall(r"url\(#([^)]+)\)", html))
    used |= {load[1:] for load in checker.loads if load.startswith("#")}
    assert used <= set(checker.ids)
    assert all((written / link).is_file() for link in checker.links if link[0] != "#")
    assert checker.tags.count("figure") == 2 + 2 + 4 == html.count('role="img" aria-label="')
    assert "<b>" not in html and "&lt;b&gt;" in html and "mine &amp; &lt;co&gt;" in html
    assert "prefers-color-scheme: dark" in html and "@media print" in html
    assert 'name="viewport"' in html and "<script" not in html
    assert "#e69f00" not in html and "DejaVu" not in html  # colours and type are the page's


def test_every_figure_lies_beside_the_page_with_its_numbers(written):
    made = sorted(path.name for path in (written / "report_files").iterdir())
    assert {Path(name).suffix for name in made} == {".svg", ".png", ".csv", ".json"}
    assert len(made) == 3 * 8 + 1
    (csv,) = (written / "report_files").glob("2-second-*-perplexity.csv")
    assert csv.read_text().splitlines()[:3] == [
        "label,length,perplexity,low,high",
        "none,512,32.9,30.0,36.0",
        "none,4096,107.1,90.0,126.0",
    ]
    (factors,) = (written / "report_files").glob("1-first-*-factors.csv")
    assert factors.read_text() == "rotary pair,yarn,searched\n0,1.0,1.0\n1,8.0,2.0\n"
    (png,) = (written / "report_files").glob("*-rate.png")
    assert png.read_bytes().startswith(b"\x89PNG")
    (svg,) = (written / "report_files").glob("*-rate.svg")
    assert ElementTree.parse(svg).getroot().get("width") == "316.8pt"


def test_every_figure_has_the_command_and_the_config_behind_it(written):
    html = (written / "report.html").read_text(encoding="utf-8")
    figures_of = [part.partition("</figure>")[0] for part in html.split("<figure")[1:]]
    assert [("search.py" in one, "jaxrope.evaluate" in one) for one in figures_of] == (
        [(True, False)] * 4 + [(False, True)] * 4
    )
    assert all("<pre>{" in one and "<table" in one for one in figures_of)


def test_files_that_are_no_longer_made_are_removed_and_others_stay(tmp_path):
    folder = tmp_path / "report_files"
    assets.write({"a.svg": b"1", "b.svg": b"2"}, folder)
    (folder / "mine.txt").write_text("kept")
    assets.write({"b.svg": b"3"}, folder)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found.keys() == {"b.svg", "files.json", "mine.txt"} and found["b.svg"] == b"3"
    (folder / "files.json").write_text('["../page.html", "mine.txt", 3]')
    (tmp_path / "page.html").write_text("kept")
    assets.write({}, folder)
    assert (tmp_path / "page.html").exists() and not (folder / "mine.txt").exists()


def test_the_summary_comes_first_and_says_what_was_found(workdirs):
    first, second = (collect.collect(folder).lines for folder in workdirs)
    search, training = first
    assert search["What"] == "search" and search["Window"] == "to 4,096"
    assert search["Perplexity"] == "56.00 (yarn 60.00) of the search"
    assert search["Cost"] == "1m30s, 123,456 forward tokens"
    assert training["What"] == "training, loss 3.990 → 3.600"
    assert (training["Window"], training["Cost"]) == ("rows of 512", "40 steps, 2,560 tokens")
    assert [line["What"] for line in second] == [f"evaluation, {n}" for n in LABELS]
    none, yarn, mine = second
    assert none["Window"] == "512 → 4,096" and none["Model"] == "base"
    assert (none["Perplexity"], mine["Perplexity"]) == ("107.10 at 4,096", "inf at 4,096")
    assert (yarn["Pass key"], mine["Pass key"]) == ("1.00 at 512", "")
    assert none["Cost"] == "14s, 7,000 forward tokens" and yarn["Cost"] == ""


def test_every_figure_says_in_words_what_it_shows(workdirs):
    folders = [collect.collect(folder).folder for folder in workdirs]
    alts = [one.alt for folder in folders for part in folder.sections for one in part.figures]
    assert any("best 56.00 after 5" in alt for alt in alts)
    assert any("At 4,096 tokens: none 107.10, yarn 40.30" in alt for alt in alts)
    assert any("from 3.990 to 3.600 in 40 steps" in alt for alt in alts)
    assert all(len(alt) > 30 for alt in alts)


def test_two_figures_on_a_page_keep_their_own_shapes():
    figure = page.Figure("n", None, "", "", [])
    drawn = page.Drawn('<svg><path id="m"/><use href="#m"/><g clip-path="url(#m)"/></svg>', [])
    section = page.Section("t", [], [figure, figure], "", {})
    folder = page.Folder("x", "x", [], [section])
    html = page.render("t", "", [["a"]], [folder], {(0, 0, 0): drawn, (0, 0, 1): drawn})
    assert 'id="f0s0g0-m"' in html and 'href="#f0s0g1-m"' in html and "url(#f0s0g1-m)" in html


def test_a_score_stands_above_its_interval_and_a_workdir_is_a_link():
    assert page._cell("-0.02 [-0.03, -0.01]*") == "-0.02*<small>[-0.03, -0.01]</small>"
    assert page._cell("#1 <run>") == '<a href="#f1">&lt;run&gt;</a>'
    assert page._cell("37.26 at 8,192") == "37.26 at\u00a08,192"
    assert page._cell(None) == ""


def test_what_cannot_be_shown_is_refused(tmp_path, workdirs):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        collect.collect(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has none of result.json, .*, nor has a folder in it"):
        collect.collect(tmp_path / "empty")
    for text in ("{}", "[]", "{", '{"rows": []}'):
        (workdirs[1] / "eval.json").write_text(text)
        with pytest.raises(InputError, match="eval.json is not what its program writes"):
            collect.collect(workdirs[1])
    (workdirs[0] / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(InputError, match="metrics.jsonl is not what its program writes"):
        collect.collect(workdirs[0])


def run_program(*argv):
    from jaxrope import cli

    argv = list(map(str, argv))
    cli.arguments(program.add_arguments, program.run, doc=program.__doc__, argv=argv)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--ouf=x", "a"], "Unknown flag '--ouf'. Did you mean '--out'"),
        (["a", "--out=eval.json"], "--out=eval.json: must end in .html"),
        (["a"], "a: no such folder"),
        ([], "the following arguments are required: WORKDIR"),
        (["a", "--published=yarm"], "Unknown rope preset 'yarm'"),
        (["a", "--published=no/rope.json"], "--published=no/rope.json: no such file"),
    ],
)
def test_wrong_arguments_are_one_line_and_leave_nothing(tmp_path, monkeypatch, capsys, argv, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run_program(*argv)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line and list(tmp_path.iterdir()) == []


def test_the_program_writes_the_page_or_nothing(workdirs, tmp_path, capsys):
    out = tmp_path / "made" / "page.html"
    (workdirs[0] / "metrics.jsonl").unlink()
    run_program(workdirs[0], f"--out={out}")
    assert out.is_file() and "page.html and page_files" in capsys.readouterr().out
    before = out.read_bytes()
    (workdirs[1] / "eval.json").write_text("{")
    for other in (out, tmp_path / "other.html"):
        with pytest.raises(SystemExit):
            run_program(*workdirs, f"--out={other}")
    assert out.read_bytes() == before and not list(tmp_path.glob("other*"))


@pytest.mark.parametrize("theme_", [0, 1], ids=["light", "dark"])
def test_every_colour_stands_out_on_its_card(theme_):
    card = theme.SURFACES["card"][theme_]
    for colour, (name, *shades) in theme.SHADES.items():
        assert contrast(shades[theme_], card) >= 3, name
        assert colour in {c for c, *_ in [*axes.STYLES.values(), *axes.SPARE]}
    for name, least in (("ink", 7), ("soft", 4.5), ("link", 4.5)):
        for under in ("card", "page", "code"):
            shades = theme.SURFACES[name][theme_], theme.SURFACES[under][theme_]
            assert contrast(*shades) >= least, (name, under)


def contrast(one: str, other: str) -> float:
    """WCAG 2's ratio of two colours "#rrggbb"."""

    def luminance(colour):
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
        return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.fixture
def recipe(tmp_path, workdirs):
    """A recipe of four stages, one of them not run; two searches and an evaluation."""
    folder = tmp_path / "run"
    folder.mkdir()
    first, second = workdirs
    (first / "metrics.jsonl").unlink()
    (first / "config.json").unlink()
    for name in ("search_b", "search_a"):
        shutil.copytree(first, folder / name)
    shutil.copytree(second, folder / "compare")
    content = json.loads((second / "eval.json").read_text())
    content["command"] = "python train.py --config=r.py --workdir=run"
    (folder / "compare" / "eval.json").write_text(json.dumps(content))
    done = {"seconds": 3600.0, "forward_tokens": 1000, "trained_tokens": 0}
    stages = [
        {"name": "search_b", "kind": "search", "uses": [], **done},
        {"name": "search_a", "kind": "search", "uses": ["search_b"], **done},
        {"name": "tuned", "kind": "train", "uses": []},
        {"name": "compare", "kind": "evaluate", "uses": ["search_a"], **done},
    ]
    told = {"format": "jaxrope.recipe/1", "stages": stages}
    (folder / "recipe.json").write_text(json.dumps(told))
    return folder


def test_a_recipe_is_one_line_and_expands_into_its_stages(recipe):
    found = collect.collect(recipe)
    stages = [section.stage for section in found.folder.sections]
    assert stages == ["compare", "search_a", "search_b"]  # the result first, and what it is of
    first, *others = found.lines
    assert first["What"] == "recipe of 3 of 4 stages, none" and len(others) == 2
    assert first["Cost"] == "3h00m, 3,000 forward tokens"
    assert first["Perplexity"] == "107.10 at 4,096" and others[0]["What"] == "yarn"
    facts = {name: (value, remark) for name, value, remark in found.folder.facts}
    assert facts["Window"][0] == "512 → 4,096"
    assert facts["Perplexity"] == ("107.10", "at 4,096; yarn 40.30; mine & <co> inf")
    commands = [section.command for section in found.folder.sections]
    assert commands[1:] == [
        f"python train.py --config=r.py --workdir=run --config.stages={name}"
        for name in ("search_a", "search_b")
    ]


def test_a_folder_of_workdirs_expands_too(tmp_path, workdirs):
    found = collect.collect(tmp_path)
    assert [section.stage for section in found.folder.sections] == ["first", "first", "second"]
    assert found.lines[0]["What"] == "first: search"


def test_a_recipe_that_is_broken_is_refused(recipe):
    (recipe / "recipe.json").write_text('{"stages": [1]}')
    with pytest.raises(InputError, match="recipe.json is not what its program writes"):
        collect.collect(recipe)


def candidate(generation, fitness):
    return {"generation": generation, "factors": [1.0, fitness], "start_tokens": 2} | {
        "fitness": fitness,
        "seconds": 30.0,
    }


def test_a_search_that_is_not_finished_is_shown_from_its_journal(tmp_path):
    folder = tmp_path / "running"
    folder.mkdir()
    lines = [
        {"format": "jaxrope.journal/1", "target_len": 4096, "original_len": 512},
        {"baseline": "pi", "fitness": 90.0, "factors": [8.0, 8.0], "attention_factor": 1.0},
        {"descent": "pi", "step": 0, "loss": 4.5, "seconds": 1.0},
        {"descent": "pi", "step": 1, "loss": 4.25, "seconds": 1.0},
        candidate(0, 60.0),
        candidate(0, 70.0),
        candidate(1, 50.0),
        candidate(1, None),
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "journal.jsonl").write_text(text + '{"generation": 2, "fit')  # torn
    found = collect.collect(folder)
    assert found.lines[0]["What"] == "search, not finished"
    assert found.lines[0]["Perplexity"] == "fitness 50.00 so far"
    assert found.lines[0]["Cost"] == "2m02s so far"
    (section,) = found.folder.sections
    progress, descent, factors = section.figures
    assert progress.numbers[1:] == [[0, 60.0, 65.0], [1, 50.0, 50.0]]
    assert [0.0, 0.0, 1.0] in [list(line.get_xdata()) for line in lines_of(progress.drawing)]
    assert "pi 4.250" in descent.alt
    assert factors.numbers == [["rotary pair", "pi", "best so far"], [0, 8.0, 1.0], [1, 8.0, 50.0]]
    (folder / "journal.jsonl").write_text('{"no": "header"}\n')
    with pytest.raises(InputError, match="journal.jsonl is not .* says no target_len"):
        collect.collect(folder)


def test_a_rope_is_shown_beside_the_methods_by_their_formulas(tmp_path, workdirs):
    geometry = dict(head_dim=8, theta=10_000.0, original_len=512)
    buckets = [
        dict(max_len=n, factors=f, start_tokens=0, attention_factor=1.0)
        for n, f in ((1024, [1.0, 1.0, 1.5, 2.0]), (4096, [1.0, 2.0, 7.0, 8.0]))
    ]
    path = workdirs[1] / "rope.json"
    rope.save(path, rope.make("longrope", **geometry, buckets=buckets), {})
    figure = collect.collect(workdirs[1]).folder.sections[0].figures[0]
    header, *rows = figure.numbers
    assert header == ["rotary pair", "pi", "ntk", "yarn", "to 1,024", "to 4,096"]
    found = dict(zip(header, zip(*rows, strict=True), strict=True))
    assert found["to 4,096"] == (1.0, 2.0, 7.0, 8.0) and found["pi"] == (8.0,) * 4
    np.testing.assert_allclose(found["ntk"], 8.0 ** (np.arange(4) / 3))
    assert found["yarn"][0] == 1.0 and found["yarn"][-1] == 8.0
    beside = ropes.published([str(path), "2048k_la2_256k"])
    assert list(beside) == ["second", "published 2048k_la2_256k"]
    figure = collect.collect(workdirs[0], beside).folder.sections[0].figures[-1]
    assert figure.numbers[0][2:4] == ["second", "published 2048k_la2_256k"]
    assert len(figure.numbers) == 1 + 64


def test_workdirs_are_compared_on_common_axes(workdirs, recipe, tmp_path):
    both = [collect.collect(folder) for folder in (workdirs[0], recipe)]
    found = comparison.folder(["first", "run"], [one.part for one in both])
    assert [section.title for section in found.sections] == ["Factors", "Searches"]
    factors, searches = (section.figures[0] for section in found.sections)
    assert factors.numbers[0] == ["rotary pair", "first", "run"]
    assert names_of(searches.drawing) == {"first", "run/search_a", "run/search_b"}

    other = json.loads((workdirs[1] / "eval.json").read_text())
    other["rows"][3]["metrics"]["perplexity"] = 38.5
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "eval.json").write_text(json.dumps(other))
    both = [collect.collect(folder) for folder in (workdirs[1], tmp_path / "third")]
    (section,) = comparison.folder(["a", "b"], [one.part for one in both]).sections
    rows = section.figures[0].numbers[1:]
    assert ["yarn, a", 4096, 40.3, 34.0, 48.0] in rows and ["yarn, b", 4096, 38.5, 34, 48] in rows
    assert len(rows) == 5 + 1  # what both have measured is shown once
    assert section.title == "Evaluations"
    other["rows"][3]["fingerprint"] = "of another text"
    (tmp_path / "third" / "eval.json").write_text(json.dumps(other))
    both[1] = collect.collect(tmp_path / "third")
    (section,) = comparison.folder(["a", "b"], [one.part for one in both]).sections
    assert section.title == "Evaluations, not all of them of the same text"


def test_nothing_in_common_is_not_compared(workdirs):
    parts = [collect.collect(folder).part for folder in workdirs]
    assert comparison.folder(["a", "b"], parts) is None


def test_older_evaluations_have_maps_too():
    items = {"depth": [0.1, 0.9], "found": [True, False], "key": [1, 2]}
    (one,) = evaluations.complete([row("passkey", "none", 512, 0.5, 0.1, 0.9, items=items)])
    assert one["columns"] == ["depth"]
    names = [figure.name for figure in evaluations.charts([one], 512)]
    assert names == ["passkey", "map of passkey, none: depth"]


def test_many_tasks_are_one_table():
    rows = [
        {**row(f"task{i}", "none", 512, 0.0, 0.0, 0.4), "chance": 0.0, "columns": []}
        for i in range(5)
    ]
    for i, one in enumerate(rows):
        low = i / 10
        one["metrics"] = {"score": low + 0.1, "low": low, "high": low + 0.2}
    ((title, cells),) = evaluations._tables(rows, 512)
    assert "◦ at floor" in title and len(cells) == 6
    assert cells[1] == ["task0, none ◦", "0.10 [0.00, 0.20]"]
    assert cells[2] == ["task1, none", "0.20 [0.10, 0.30]"]

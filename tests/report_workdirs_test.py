"""From workdirs to sections and lines: what programs wrote is told, and nothing that is broken."""

import json
import shutil

import numpy as np
import pytest
import report_attention_test

from jaxrope import rope, search
from jaxrope.errors import InputError
from jaxrope.report import (
    collect,
    comparison,
    document,
    evaluations,
    names,
    page,
    ropes,
)
from tests import search_config
from tests.tiny_report import (
    LABELS,
    lines_of,
    names_of,
    row,
    write_workdirs,
)


@pytest.fixture
def workdirs(tmp_path):
    return write_workdirs(tmp_path)


def test_the_inventory_says_what_there_is(workdirs):
    first, second = (collect.collect(folder).lines for folder in workdirs)
    search, training = first
    assert search["What"] == "search" and search["Window"] == "to 4,096"
    assert search["Cost"] == "1m30s, 123,456 forward tokens"
    assert training["What"] == "training, loss 3.990 → 3.600"
    assert (training["Window"], training["Cost"]) == ("rows of 512", "40 steps, 2,560 tokens")
    (evaluation,) = second
    assert evaluation["What"] == f"evaluation of {', '.join(LABELS)}"
    assert evaluation["Window"] == "512 → 4,096" and evaluation["Model"] == "base"
    assert evaluation["Cost"] == "14s, 7,000 forward tokens"
    found = [collect.collect(folder) for folder in workdirs]
    assert document._inventory(found)[0] == ["Workdir", "What", "Window", "Cost"]  # one model
    found[0].lines[0]["Model"] = "another"
    assert document._inventory(found)[0] == ["Workdir", *collect.COLUMNS]


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
    section = page.Section("t", [], [figure, figure], page.Origin())
    art = page.Art({(0, 0, 0): drawn, (0, 0, 1): drawn})
    html = page.render("t", [["a"]], [page.Folder("x", "x", [section])], art)
    assert 'id="f0s0g0-m"' in html and 'href="#f0s0g1-m"' in html and "url(#f0s0g1-m)" in html


def test_a_score_stands_above_its_interval_and_a_row_has_its_colour():
    assert page._cell("-0.02 [-0.03, -0.01]*") == "-0.02*<small>[-0.03, -0.01]</small>"
    assert page._cell("better, -2.0% [-3.0, -1.0]").startswith("better, -2.0%<small>")
    marked = page._table(
        [["", "8"], ["yarn", "1"], ["niah, yarn", "2"], ["ntk", "3"]], {"yarn": "blue"}
    )
    assert marked.count("var(--blue)") == 2
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
        with pytest.raises(InputError, match="eval.json(: | is damaged| is not what)"):
            collect.collect(workdirs[1])
    huge = json.dumps({"step": 1, "loss": 10**400, "lr": 1.0, "perplexity": 1.0})
    for line in ('{"step": 1}', huge):
        (workdirs[0] / "metrics.jsonl").write_text(f"{line}\n")
        with pytest.raises(InputError, match="metrics.jsonl is not what its program writes"):
            collect.collect(workdirs[0])


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
    # the result first, and what it is of
    assert stages == ["compare", "compare", "search_a", "search_b"]
    first, *others = found.lines
    assert first["What"] == "recipe of 3 of 4 stages" and len(others) == 3
    assert first["Cost"] == "3h00m, 3,000 forward tokens" and first["Window"] == "512 → 4,096"
    commands = [section.origin.command for section in found.folder.sections]
    assert commands[2:] == [
        f"python train.py --config=r.py --workdir=run --config.stages={name}"
        for name in ("search_a", "search_b")
    ]


def test_an_analysis_is_told_by_the_evaluation_of_its_own_model(recipe):
    """Not by the last stage, which may be another model's."""
    told = json.loads((recipe / "recipe.json").read_text())
    told["stages"].append({"name": "other", "kind": "evaluate", "uses": [], "seconds": 1.0})
    (recipe / "recipe.json").write_text(json.dumps(told))
    content = json.loads((recipe / "compare" / "eval.json").read_text())
    content["model"] = {"source": "models/other", "original_len": 64}
    for one in content["rows"]:
        one["length"] //= 8
    shutil.copytree(recipe / "compare", recipe / "other")
    (recipe / "other" / "eval.json").write_text(json.dumps(content))
    told = [line["What"] for line in collect.collect(recipe).lines]
    assert told[1].startswith("other: evaluation")
    attention = report_attention_test.content() | {"evaluation": "compare"}
    (recipe / "attention.json").write_text(json.dumps(attention))
    found = collect.collect(recipe)
    assert found.lines[0]["Window"] == "512 → 4,096"
    assert found.part.original_len == attention["model"]["original_len"]
    stages = dict.fromkeys(section.stage for section in found.folder.sections)
    assert list(stages) == ["", "compare", "search_b", "search_a", "other"]


def test_a_folder_of_workdirs_expands_too(tmp_path, workdirs):
    found = collect.collect(tmp_path)
    stages = [section.stage for section in found.folder.sections]
    assert stages == ["first", "first", "second", "second"]
    assert found.lines[0]["What"] == "first: search"


def test_a_recipe_that_is_broken_is_refused(recipe):
    (recipe / "recipe.json").write_text('{"stages": [1]}')
    with pytest.raises(InputError, match="recipe.json is not what its program writes"):
        collect.collect(recipe)


def test_a_search_is_told_by_its_verdict_then_by_fresh_text(workdirs):
    section, _ = collect.collect(workdirs[0]).folder.sections
    assert section.lead == "Better than every baseline."
    (fresh, judged), (short, at_short), (text, compared) = [*section.tables, *section.more]
    assert fresh.endswith("; searched is evolution; sliding: its own 512 tokens")
    assert fresh.startswith("On 8 fresh samples") and text.startswith("On the text of the search")
    assert judged == [
        ["", "attention factor", "perplexity", "loss less that of yarn"],
        ["searched", "1.1500", "56.0000", "-0.0690 [-0.0800, -0.0600]*"],
        ["yarn", "1.1500", "60.0000", ""],
        ["pi", "1.1500", "failed", ""],
        ["sliding", "", "57.4000", "-0.0440"],
    ]
    assert short == "At 512 tokens, with the same factors"
    assert at_short[1:] == [
        ["searched", "33.1000", "+0.1000"],
        ["none", "30.0000", ""],
    ]
    assert compared[1:] == [["yarn", "1.1500", "60.0000"]]  # with its best attention factor


def test_a_search_without_a_baseline_or_better_than_none_says_so(workdirs):
    path = workdirs[0] / "result.json"
    content = json.loads(path.read_text())
    verdict = content["verdict"] | {"best_baseline": None, "interval": None, "fresh": False}
    content |= {"verdict": verdict, "judged": content["judged"][:1], "baselines": []}
    content["beside"] = []
    path.write_text(json.dumps(content | {"generations": []}))
    found = collect.collect(workdirs[0])
    section, _ = found.folder.sections
    title, judged = section.tables[0]
    assert title == "On 8 samples of the search; searched is evolution"
    assert judged[1:] == [["searched", "1.1500", "56.0000"]]
    assert [figure.name for figure in section.figures] == ["factors"]
    path.write_text(json.dumps(content | {"original_len": 4096}))  # a recovery: tables alone
    section, _ = collect.collect(workdirs[0]).folder.sections
    assert section.figures == [] and section.tables[0][1] == judged


def candidate(generation, fitness):
    return {"generation": generation, "factors": [1.0, fitness], "start_tokens": 2} | {
        "fitness": fitness,
        "seconds": 30.0 + generation,
        "attention_factor": 1.1,
    }


def test_a_search_that_is_not_finished_is_shown_from_its_journal(tmp_path):
    folder = tmp_path / "running"
    folder.mkdir()
    lines = [
        {"format": "jaxrope.journal/1", "target_len": 4096, "original_len": 512},
        {"baseline": "pi", "fitness": 90.0, "factors": [8.0, 8.0], "attention_factor": 1.0},
        {"baseline": "ntk", "fitness": None, "factors": [8.0, 8.0], "attention_factor": 1.0},
        {"ramp": "1 3", "fitness": 65.0, "factors": [1.0, 8.0], "seconds": 2.5}
        | {"attention_factor": 1.0, "start_tokens": 0},
        {"descent": "pi", "step": 0, "loss": 4.5, "seconds": 1.0},
        {"descent": "pi", "step": 1, "loss": 4.25, "seconds": 1.5},
        candidate(0, 60.0),
        candidate(0, 70.0),
        candidate(1, 50.0),
        candidate(1, None),
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "journal.jsonl").write_text(text + '{"generation": 2, "fit')  # torn
    found = collect.collect(folder)
    assert found.lines[0]["What"] == "search, not finished"
    assert found.lines[0]["Cost"] == "1m06s so far"  # a batch counts once
    (section,) = found.folder.sections
    factors, progress, descent = section.figures
    assert progress.numbers[1:] == [[0, 60.0, 65.0], [1, 50.0, 50.0]]
    assert section.tables[0][1][1:] == [
        ["pi", "1.0000", "90.0000"],
        ["best so far, evolution", "1.1000", "50.0000"],
    ]
    assert [0.0, 0.0, 1.0] in [list(line.get_xdata()) for line in lines_of(progress.drawing)]
    assert "pi, descended 4.250" in descent.alt
    assert factors.numbers == [["rotary pair", "pi", "searched"], [0, 8.0, 1.0], [1, 8.0, 50.0]]
    early = "".join(json.dumps(line) + "\n" for line in lines[:4])
    judged = {"judged": "ramp", "fitness": 66.0, "attention_factor": 1.0, "seconds": 3.0}
    (folder / "journal.jsonl").write_text(early + json.dumps(judged) + "\n")
    (section,) = collect.collect(folder).folder.sections
    fresh, on_text = section.tables
    assert fresh == (
        "Judged so far",
        [["", "attention factor", "fitness"], ["ramp", "1.0000", "66.0000"]],
    )
    assert on_text[1][-1] == ["best so far, ramp", "1.0000", "65.0000"]
    assert [figure.name for figure in section.figures] == ["factors"]
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:1]))
    (section,) = collect.collect(folder).folder.sections
    assert not section.figures and len(section.tables[0][1]) == 1  # nothing is measured yet
    (folder / "journal.jsonl").write_text('{"no": "header"}\n')
    with pytest.raises(InputError, match="journal.jsonl is not .* has no target_len"):
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
    lengths = ["training, to 1,024", "training, to 4,096"]
    assert header == ["rotary pair", "pi", "ntk", "yarn", *lengths]
    found = dict(zip(header, zip(*rows, strict=True), strict=True))
    assert found[lengths[1]] == (1.0, 2.0, 7.0, 8.0) and found["pi"] == (8.0,) * 4
    np.testing.assert_allclose(found["ntk"], 8.0 ** (np.arange(4) / 3))
    assert found["yarn"][0] == 1.0 and found["yarn"][-1] == 8.0
    beside = ropes.published([str(path), "2048k_la2_256k"])
    assert list(beside) == ["second", "published 2048k_la2_256k"]
    figure = collect.collect(workdirs[0], beside).folder.sections[0].figures[0]
    assert figure.numbers[0][2:4] == ["second", "published 2048k_la2_256k"]
    assert len(figure.numbers) == 1 + 64


def test_workdirs_are_compared_on_common_axes(workdirs, recipe, tmp_path):
    called = names.read([workdirs[0], recipe])
    both = [collect.collect(folder, {}, called) for folder in (workdirs[0], recipe)]
    (searches,) = comparison.sections(["first", "run"], [one.part for one in both])
    assert searches.kind == "search"  # their factors are the same
    made = {f"searched, {tmp_path.name}/first", "searched, run/search_a", "searched, run/search_b"}
    drawn = {"".join(name.split()) for name in names_of(searches.figures[0].drawing)}
    assert drawn == {name.replace(" ", "") for name in made}
    content = json.loads((recipe / "search_a" / "result.json").read_text())
    content["best"]["factors"] = [1.0, 3.0]
    (recipe / "search_a" / "result.json").write_text(json.dumps(content))
    both[1] = collect.collect(recipe, {}, called)
    factors, _ = comparison.sections(["first", "run"], [one.part for one in both])
    assert factors.figures[0].numbers[0][2] == "searched, run/search_a"

    other = json.loads((workdirs[1] / "eval.json").read_text())
    other["rows"][3]["metrics"]["perplexity"] = 38.5
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "eval.json").write_text(json.dumps(other))
    both = [collect.collect(folder) for folder in (workdirs[1], tmp_path / "third")]
    (section,) = comparison.sections(["a", "b"], [one.part for one in both])
    rows = section.figures[0].numbers[1:]
    assert ["yarn, a", 4096, 40.3, 34.0, 48.0] in rows and ["yarn, b", 4096, 38.5, 34, 48] in rows
    assert len(rows) == 5 + 1  # what both have measured is shown once
    assert section.title == "Side by side"
    other["rows"][3]["fingerprint"] = "of another text"
    (tmp_path / "third" / "eval.json").write_text(json.dumps(other))
    both[1] = collect.collect(tmp_path / "third")
    (section,) = comparison.sections(["a", "b"], [one.part for one in both])
    assert section.title == "Side by side, not all of them of the same text"


def test_nothing_in_common_is_not_compared(workdirs):
    parts = [collect.collect(folder).part for folder in workdirs]
    assert comparison.sections(["a", "b"], parts) == []


def test_older_evaluations_have_maps_too():
    items = {"depth": [0.1, 0.9], "found": [True, False], "key": [1, 2]}
    (one,) = evaluations.complete([row("passkey", "none", 512, 0.5, 0.1, 0.9, items=items)])
    assert one["columns"] == ["depth"]
    names = [figure.name for figure in evaluations.charts([one], 512)]
    assert names == ["map of passkey: depth"]


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


def test_what_a_search_writes_can_be_read(tmp_path):
    config = search_config.tiny_default(tmp_path)
    config.search.method = "hybrid"
    search.search(config, tmp_path / "run")
    journal, result = (tmp_path / "run" / n for n in ("journal.jsonl", "result.json"))
    found = collect.collect(tmp_path / "run")
    (section,) = found.folder.sections
    assert section.lead == json.loads(result.read_text())["verdict"]["sentence"]
    assert [figure.name for figure in section.figures] == ["factors", "progress", "descent"]
    seconds = found.lines[0]["Cost"].partition(",")[0]
    result.unlink()  # as it was before its end
    running = collect.collect(tmp_path / "run")
    assert running.lines[0]["Cost"] == f"{seconds} so far"
    (section,) = running.folder.sections
    assert [figure.name for figure in section.figures] == ["factors", "progress", "descent"]
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:2]))
    assert collect.collect(tmp_path / "run").lines[0]["What"] == "search, not finished"

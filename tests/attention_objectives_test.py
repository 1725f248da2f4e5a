"""The benchmark of objectives of attention: equal cost, what its tables say, and that it runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import attention_objectives as benchmark
from benchmarks.verdict import PERPLEXITY, Scored
from jaxrope import report
from jaxrope.errors import InputError
from jaxrope.report import attention, collect
from tests import tiny_twin

ROOT = Path(__file__).resolve().parent.parent
NOISE_WT = np.random.default_rng(0).normal(scale=0.01, size=(8, 5))
ASKED = 4096, "needle-6"


def pool_of(seeds=1, **changed):
    """A pool in which every rope has 3.0 nats and finds the first 20 of 40, but `changed`: label
    with _ for blanks -> (nats, found)."""
    labels = [*benchmark.BESIDE, *(benchmark.label(*key) for key in benchmark.keys(seeds))]
    pool = {}
    for name in labels:
        nats, found = changed.get(name.replace(", ", "_").replace(" ", "_"), (3.0, 20))
        nll_WT = nats + NOISE_WT * (name != "yarn")
        pool[PERPLEXITY, name, 4096] = Scored({"perplexity": np.exp(nats)}, "a", nll_WT)
        share = dict(accuracy=found / 40, low=found / 40 - 0.1, high=found / 40 + 0.1)
        trials = tuple(i < found for i in range(40))
        pool["needle-6", name, 4096] = Scored(share, "b", None, trials)
    return pool


@pytest.mark.parametrize("base_len, breed, samples", [(512, 10, 2), (64, 4, 1)])
def test_every_search_costs_the_same(base_len, breed, samples):
    """Candidates times the tokens of a text, or of a text and its twin."""
    args = SimpleNamespace(keys=6, offset=0, seeds=2)
    spent = dict(breed=breed, samples=samples)
    found = benchmark._searches(args, spent, base_len)
    assert [name for name, _, _ in found[:2]] == ["perplexity_0", "needle_0"] and len(found) == 10
    tokens = set()
    for _, kind, pairs in found:
        changes = dict(pairs)
        objective = changes["search.objective"]
        twin = base_len if objective["name"] in benchmark.ATTENTION else 0
        candidates = breed * changes["search.algorithm.iterations"]
        read = changes["target_len"] + twin
        tokens.add(candidates * objective["num_samples"] * read)
        assert kind == "search" and changes["target_len"] == 8 * base_len
    assert tokens == {9 * breed * samples * 8 * base_len}
    assert [dict(pairs)["seed"] for *_, pairs in found] == [0] * 5 + [1] * 5


def test_more_needles_are_told_pair_by_pair():
    better = dict.fromkeys(benchmark.ATTENTION, (3.0, 32))
    table = benchmark.retrieval(pool_of(**better), *ASKED, 1)
    assert table.sentence.startswith("What was to be expected (searches by attention find more")
    assert "holds: the closest pair is" in table.sentence and len(table.judged) == 9
    assert {one.verdict for one in table.judged} == {"holds"}
    assert table.cells[0] == ["", "verdict"] and table.cells[1][0] == table.judged[0].told
    better["pattern"] = (3.0, 10)
    table = benchmark.retrieval(pool_of(**better), *ASKED, 1)
    assert "does not hold: pattern finds 10 of 40 and perplexity 20" in table.sentence
    assert "6 of 9 pairs are as it says" in table.sentence
    table = benchmark.retrieval(pool_of(2, **better, entropy_shift_seed_1=(3.0, 23)), *ASKED, 2)
    open_ = "not decided: entropy_shift, seed 1 finds 23 of 40 and perplexity, seed 1 20"
    assert open_ in table.sentence and len(table.judged) == 18


def test_perplexity_is_compared_with_its_own_seed():
    lower = pool_of(2, perplexity=(2.9, 20), perplexity_seed_1=(3.1, 20))
    verdicts = [one.verdict for one in benchmark.perplexity(lower, *ASKED, 2).judged]
    assert verdicts == ["holds"] * 5 + ["does not hold"] * 5


def result(tokens, unit="pattern JS"):
    return {
        "evaluations": 80,
        "forward_tokens": tokens,
        "seconds": 90.0,
        "unit": unit,
        "generations": [{"best": 0.5}, {"best": 0.25}, {"best": 0.125}],
    }


def test_what_was_read_is_told():
    table = benchmark.cost({"a": result(1000), "b": result(1000, "perplexity")})
    assert table.cells[1] == ["a", "80", "1,000", "1.5", "pattern JS", "0.5", "0.125"]
    assert table.sentence == "Every search has read 1,000 tokens in forward passes."
    table = benchmark.cost({"a": result(1000), "b": result(1250)})
    assert table.sentence.endswith("1,000 to 1,250 tokens in forward passes, 25.0% apart.")


def test_points_have_both_intervals():
    pool = pool_of(2, ntk=(3.5, 0), pattern_seed_1=(3.1, 30))
    ntk, yarn, *others = benchmark.points(pool, *ASKED, 2)
    assert ntk["label"] == "ntk" and ntk["percent"][0] == pytest.approx(64.9, abs=1)
    assert yarn["percent"] == (0, 0, 0) and yarn["share"] == (0.5, 0.4, 0.6)
    assert [one["label"] for one in others] == [*benchmark.TEXT, *benchmark.ATTENTION] * 2
    value, low, high = others[8]["percent"]
    assert low < value < high and value == pytest.approx(10.5, abs=0.6)
    figure = report.tradeoff_figure([ntk, yarn, *others])
    (ax,) = figure.axes
    (said,) = ax.texts
    assert said.get_text() == "Far off: ntk +65%, 0.00."
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["yarn", *benchmark.TEXT, *benchmark.ATTENTION]  # each once, of two seeds
    dots = [line for line in ax.get_lines() if line.get_marker() not in ("", "None", None)]
    assert len(dots) == 11
    x, y = dots[-2].get_data()
    assert x[0] == pytest.approx(value) and y[0] == 0.75


def test_the_page_has_what_each_search_finds(tmp_path):
    pool = pool_of(pattern=(3.0, 30))
    results = {"needle": result(1000), "pattern": result(1250)}
    rows = benchmark.found_by(pool, results, *ASKED)
    assert rows[1] == {"objective": "pattern", "forward_tokens": 1250} | {
        "score": 0.75,
        "low": 0.65,
        "high": 0.85,
    }
    content = {"format": attention.FORMAT, "model": {"source": "a", "original_len": 512}}
    (section,) = attention.sections(attention.read(content | {"objectives": rows}))
    (_, cells), *_ = section.tables
    assert cells[2] == ["pattern", "1,250", "0.75", "[0.650, 0.850]"]


def command(workdir, *more):
    environment = os.environ | {"XLA_FLAGS": ""}  # one device: the tiny batches divide by it
    argv = [sys.executable, "-m", "benchmarks.attention_objectives", f"--workdir={workdir}"]
    done = subprocess.run(
        [*argv, "--quick", *more],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1500,
        env=environment,
    )
    return done.stdout + done.stderr, done.returncode


def test_without_a_seed_nothing_is_searched():
    with pytest.raises(InputError, match="--seeds must be 1 or more, got 0"):
        benchmark.run(SimpleNamespace(seeds=0))


@pytest.mark.slow
def test_it_runs_and_goes_on_with_another_seed(tmp_path):
    texts, base, workdir = tmp_path / "texts", tmp_path / "base", tmp_path / "run"
    tiny_twin.write_texts(texts, words=2500)
    tiny_twin.make_base(texts, base, original_len=512)
    settings = (
        f"--model={base}",
        f"--train={texts}/train-*.txt",
        f"--held_out={texts}/held-out*.txt",
        "--tokenizer=bytes",
        "--offset=0",
        "--keys=1",
    )
    printed, code = command(workdir, *settings)
    assert code == 0, printed
    content = json.loads((workdir / "attention_objectives.json").read_text())
    names = ["Scores", "Needles", "Perplexity", "Cost"]
    assert [table["name"] for table in content["tables"]] == names
    read = {
        path.parent.name: json.loads(path.read_text())["forward_tokens"]
        for path in workdir.glob("*_0/result.json")
    }
    bred = 36 * 4096
    assert bred == 32 * (4096 + 512) and len(read) == 5
    assert all(bred <= tokens < 1.4 * bred for tokens in read.values())  # judging comes on top
    assert (workdir / "attention_objectives.png").stat().st_size > 10_000
    found = collect.collect(workdir)
    titles = [section.title for section in found.folder.sections]
    assert "Attention as an objective" in titles and len(titles) == 9
    printed, code = command(workdir, *settings, "--seeds=2")
    assert code == 0 and printed.count("finished before") == 8, printed
    assert "entropy_shift, seed 1" in (workdir / "attention_objectives.md").read_text()

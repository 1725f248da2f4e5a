"""The paper's experiments: verdicts on hand-made numbers, refusals, and the whole program once."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxrope import experiment, explain, llama
from jaxrope.analysis import heads
from jaxrope.errors import InputError
from jaxrope.evaluation import scoring
from jaxrope.explain import claims, findings, measuring, numbers, parts, plan, subjects
from jaxrope.explain.findings import FAILS, HOLDS, OPEN, Measured
from jaxrope.report import attention
from tests import tiny_eval, tiny_explain

ROOT = Path(__file__).resolve().parent.parent
NAN = math.nan


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("explain") / "material"
    tiny_explain.prepare(path)
    return path


# verdicts


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.3, HOLDS),
        (-0.3, -0.1, FAILS),
        (-0.1, 0.3, OPEN),
        (0.0, 0.3, OPEN),  # the interval must exclude 0
        (-0.3, 0.0, OPEN),
        (NAN, NAN, OPEN),
    ],
)
def test_a_verdict_is_that_of_the_whole_interval(low, high, verdict):
    assert findings.judge(Measured("a", (low + high) / 2, low, high)) == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 0.2, OPEN), (0.3, 0.4, HOLDS), (-0.4, -0.3, FAILS), (-0.2, -0.1, OPEN)],
)
def test_a_difference_too_small_to_count_decides_nothing(low, high, verdict):
    one = Measured("a", (low + high) / 2, low, high, least=0.25)
    assert findings.judge(one) == verdict


def test_what_counts_goes_by_the_unit():
    how = dict(num_samples=100, seed=0)
    for unit, verdict in (("", HOLDS), ("nats", OPEN), ("nats a token", OPEN)):
        values = [0.0005, 0.0006]
        assert findings.judge(findings.mean_of("m", values, unit=unit, **how)) == verdict
        gap = findings.difference_of_means("d", values, [0.0, 0.0], unit=unit, **how)
        assert findings.judge(gap) == verdict


@pytest.mark.parametrize(
    ("intervals", "verdict"),
    [
        (((1, 2), (3, 4)), HOLDS),
        (((1, 2), (-1, 4)), OPEN),
        (((1, 2), (-4, -1)), FAILS),
        (((-1, 1), (-4, -1)), FAILS),
        ((), OPEN),
    ],
)
def test_a_claim_about_several_settings(intervals, verdict):
    measured = [Measured("x", (low + high) / 2, low, high) for low, high in intervals]
    found = findings.finding("name", "claim", measured, "Remark.")
    assert found.verdict == verdict
    plain = found.plain()
    assert plain["holds"] is {HOLDS: True, FAILS: False, OPEN: None}[verdict]
    assert found.evidence.startswith("Not decided: ") == (verdict == OPEN)
    assert found.evidence.endswith("Remark.") and json.dumps(plain, allow_nan=False)


def test_evidence_has_the_interval_and_the_unit():
    one = Measured("gap", 0.25, 0.125, 0.5, "nats")
    assert findings.said(one) == "gap +0.25 nats [+0.125, +0.5]"
    assert findings.said(one._replace(low=NAN)) == "gap +0.25 nats, without an interval"
    assert findings.said(one._replace(value=NAN)) == "gap: not defined"
    assert findings.above(one, 0.5)[1:4] == (-0.25, -0.375, 0.0)


def test_intervals_are_of_means_and_of_their_difference():
    how = dict(num_samples=2000, seed=0)
    values = np.array([1.0, 2.0, 3.0, 6.0])
    one = findings.mean_of("m", values, **how)
    assert one.value == 3.0 and 1.0 < one.low < 2.0 and 4.0 < one.high < 6.0
    both = findings.difference_of_means("d", values, [1.0, 1.0], **how)
    assert both.value == 2.0
    assert both.low == pytest.approx(one.low - 1, abs=0.3)
    assert findings.difference_of_means("d", [1, 1], [1, 1], **how)[1:4] == (0, 0, 0)


def study(name="", **changes):
    """A study of a model of two layers and four heads for 8 tokens."""
    config = experiment.load(str(ROOT / "configs" / "base.py"))
    with config.unlocked():
        config.model = dict(source="checkpoint", path=f"models/{name or 'large'}", shape="")
        config.eval.bootstrap_samples = 300
        section = config.analysis
        section.settings = section.second_settings = ("none", "pi", "yarn")
        section.perplexity, section.patterns, section.needles = (1.0, 2.0), (0.5, 2.0), (1.0, 2.0)
        section.longer_setting = "pi"
        section.depths = 2
        section.update(changes)
    shape = llama.LlamaConfig(**(tiny_eval.SHAPE | dict(original_len=8, max_len=8)))
    labels = ("base", "none", "pi", "yarn", "twin")
    subjects = [plan.Subject(label, f"{{{label}}}", "", 8, "none", True) for label in labels]
    subjects.append(plan.Subject("pi, trained longer", "{longer}", "", 32, "pi", True))
    return plan.Study(name, config, shape, (), tuple(subjects))


def steep(slope, length, texts=4, noise=0.0):
    """Patterns e^(-slope d), [W, L, N, S], a little different in every text."""
    slopes = slope * (1 + 0.01 * np.arange(texts)) + noise * (-1.0) ** np.arange(texts)
    curve = np.exp(-slopes[:, None] * np.arange(length))
    return np.broadcast_to(curve[:, None, None], (texts, 2, 4, length)).astype(np.float32)


def found(slopes=None, *, answers=None, nll=None, name="", **changes):
    """What was measured, made up: slopes {label: slope}, answers {label: rows}, nll {label: one
    number for each window at 8 and 16 tokens}."""
    slopes = slopes or {}
    texts = {}
    for label, slope in slopes.items():
        slope, noise = slope if isinstance(slope, tuple) else (slope, 0.0)
        arrays = {}
        for length in (4, 16):
            arrays |= {
                f"{k}-{length}": steep(slope, length, noise=noise) for k in ("whole", "rest")
            }
            arrays[f"last-{length}"] = steep(slope, length).mean(0)
        statistics = {"entropy": np.full((4, 2, 4), slope).tolist()}
        texts[label] = ({"lengths": {"4": statistics, "16": statistics}}, arrays)
    told = {}
    for label, rows in (answers or {}).items():
        told[label] = {"items": rows}, {"curves": np.ones((len(rows), 2, 4, 4), np.float32)}
    rows = [
        {"suite": "perplexity", "label": label, "length": n, "items": {"window_nll": values}}
        for label, values in (nll or {}).items()
        for n in (8, 16)
    ]
    return numbers.Found(study(name, **changes), texts, told, {}, rows, None)


def item(length, trial, right, entropy, **more):
    row = {"task": "passkey", "length": length, "depth": trial / 8, "trial": trial, "found": right}
    row |= {"entropy": entropy, "normalised_entropy": entropy / math.log(length)}
    row |= {
        "entropy_of_mean": entropy + 1,
        "non_sink_entropy": entropy,
        "needle_mass": 0.5 / entropy,
    }
    return row | more


def trials(right_fn, entropy_fn, lengths=(8, 16), count=8):
    return [item(n, i, right_fn(n, i), entropy_fn(n, i)) for n in lengths for i in range(count)]


@pytest.mark.parametrize(
    ("pi", "yarn", "verdict"),
    [(0.3, 0.9, HOLDS), (0.9, 0.3, FAILS), (0.5, 0.5, OPEN), ((0.8, 0.3), 0.8, OPEN)],
)
def test_yarn_keeps_the_patterns_and_pi_does_not(pi, yarn, verdict):
    """The base has slope 1: what is nearer to it has kept the pattern."""
    if isinstance(pi, tuple):  # in half of the texts PI is nearer, in half it is not
        made = found({"base": 1.0, "none": 1.0, "pi": pi, "yarn": yarn})
    else:
        made = found({"base": 1.0, "none": 1.0, "pi": pi, "yarn": yarn})
    assert claims.kept_within(made).verdict == verdict


@pytest.mark.parametrize(
    ("plain", "pi", "verdict"), [(0.1, 0.9, HOLDS), (0.9, 0.1, FAILS), (0.5, 0.5, OPEN)]
)
def test_extensions_are_nearer_to_the_model_trained_longer(plain, pi, verdict):
    made = found({"base": plain, "none": 1.0, "pi": pi, "yarn": 0.95, "twin": 1.0})
    result = claims.nearer_to_native(made)
    of_pi = dict((part.what, verdict) for part, verdict in result.parts)
    assert of_pi["JS of base less pi at 16"] == verdict
    assert result.verdict == (FAILS if verdict == FAILS else verdict)


def test_patterns_beyond_are_compared_by_relative_distance():
    """A slope of a quarter at four times the length is the same pattern there."""
    slopes = {"base": 1.0, "none": 1.0, "pi": 0.25, "yarn": 0.26, "twin": 1.0}
    result = claims.kept_beyond(found(slopes))
    assert result.verdict == HOLDS
    value = next(part.value for part, _ in result.parts if "pi" in part.what)
    js = numbers.against_base(found(slopes), "base", 16, "relative")
    assert value == pytest.approx(js.mean(), rel=0.05) and value > 0.05  # that of pi is nearly 0


@pytest.mark.parametrize(("pi", "verdict"), [(2.0, HOLDS), (4.0, FAILS), (None, OPEN)])
def test_perplexity_is_compared_window_by_window(pi, verdict):
    none = [3.0, 3.2, 3.4, 3.8]
    own = [3.1, 3.1, 3.5, 3.7] if pi is None else [x - 3 + pi for x in none]
    made = found({}, nll={"none": none, "pi": own, "yarn": [x - 1 for x in none]})
    assert claims.perplexity(made).verdict == verdict


def inside(n, i):
    return n == 8


@pytest.mark.parametrize(
    ("entropy_fn", "verdict", "given_length"),
    [
        (lambda n, i: 1 + (i % 2 == 0) + i / 100, HOLDS, HOLDS),
        (lambda n, i: 3 - (i % 2 == 0) + i / 100, FAILS, FAILS),
        (lambda n, i: 1 + i / 100 * (-1) ** (i // 2), OPEN, OPEN),
    ],
)
def test_uncertainty_goes_with_errors(entropy_fn, verdict, given_length):
    rows = trials(lambda n, i: i % 2 == 1, entropy_fn, count=16)
    base = trials(lambda n, i: True, lambda n, i: 1.0)
    made = found(answers={"base": base, "pi": rows})
    predicted = numbers.predictions(made, ["pi"])
    first, second = claims.uncertainty(made, predicted)
    assert (first.verdict, second.verdict) == (verdict, given_length)
    assert "16 of 32 answers are wrong" in first.evidence


def test_length_alone_is_no_uncertainty():
    """Entropy that the length alone drives predicts errors, but not at equal length."""
    rows = trials(lambda n, i: n == 8 or i == 4, lambda n, i: math.log(n) + (i % 3) / 1e4, count=16)
    base = trials(lambda n, i: True, lambda n, i: 1.0)
    made = found(answers={"base": base, "pi": rows})
    first, second = claims.uncertainty(made, numbers.predictions(made, ["pi"]))
    assert first.verdict == HOLDS and second.verdict != HOLDS
    (within, said), _ = second.parts
    assert "at equal length" in within.what and said == OPEN and abs(within.value) < 0.2


def test_at_floor_nothing_is_said_of_errors():
    rows = trials(lambda n, i: False, lambda n, i: 1 + i)
    made = found(answers={"base": rows, "pi": rows})
    (one,) = claims.uncertainty(made, numbers.predictions(made, ["pi"]))
    assert numbers.is_at_floor(made) and one.verdict == OPEN and claims.AT_FLOOR in one.evidence


@pytest.mark.parametrize(("gain", "verdict"), [(-0.5, HOLDS), (0.5, FAILS), (None, OPEN)])
def test_longer_training_is_compared_needle_by_needle_beyond_the_window(gain, verdict):
    def short_fn(n, i):
        return 5.0 + i

    def long_fn(n, i):
        if n == 8:
            return 99.0  # inside the window does not count
        return 5.0 + i + ((-1) ** i * 0.5 if gain is None else gain)

    right = trials(inside, short_fn)
    made = found(
        answers={
            "base": trials(lambda n, i: True, short_fn),
            "pi": right,
            "pi, trained longer": trials(lambda n, i: True, long_fn),
        }
    )
    certain, retrieves = claims.longer_training(made)
    assert certain.verdict == verdict
    assert retrieves.verdict == HOLDS  # from none to all beyond the window


def test_larger_model_is_helped_more():
    def model(name, right, pi_nll):
        nll = {"none": [4.0, 4.1, 4.2, 4.3], "pi": [x + pi_nll for x in (4.0, 4.1, 4.2, 4.3)]}
        answers = {
            "base": trials(lambda n, i: True, lambda n, i: 1.0),
            "none": trials(inside, lambda n, i: 1.0),
            "pi": trials(right, lambda n, i: 1.0),
        }
        return found(answers=answers, nll=nll, name=name)

    large, small = model("", lambda n, i: True, -1.0), model("small", inside, -0.1)
    retrieval, perplexity = claims.larger_helped(large, small)
    assert (retrieval.verdict, perplexity.verdict) == (HOLDS, HOLDS)
    retrieval, perplexity = claims.larger_helped(small, large)
    assert (retrieval.verdict, perplexity.verdict) == (FAILS, FAILS)
    same, _ = claims.larger_helped(large, large)
    assert same.verdict == OPEN
    floor = found(answers={}, nll=dict.fromkeys(("none", "pi"), [1.0, 2.0]), name="small")
    retrieval, _ = claims.larger_helped(large, floor)
    assert retrieval.verdict == OPEN and "small cannot retrieve" in retrieval.evidence


def test_table_1_compares_half_with_the_base_and_twice_with_the_twin():
    made = found({"base": 1.0, "none": 1.0, "pi": 0.5, "twin": 0.5})
    rows = {(r["label"], r["length"]): r for r in numbers.table1(made)}
    assert rows["none", 4]["js"] == 0 and rows["pi", 4]["js"] > 0.01
    assert rows["pi", 16]["js"] == 0 and rows["none", 16]["js"] > 0.01
    assert rows["pi", 4]["reference"] == "base at 4" and rows["pi", 16]["reference"] == "twin at 16"
    assert ("base", 4) not in rows and ("twin", 16) not in rows
    assert rows["pi", 4]["samples"] == 4 * 2 * 4  # texts, layers, heads
    p, q = (x / x.sum() for x in (np.exp(-np.arange(4.0)), np.exp(-np.arange(4.0) / 2)))
    m = (p + q) / 2
    wanted = (np.sum(p * np.log(p / m)) + np.sum(q * np.log(q / m))) / 2
    assert rows["pi", 4]["js"] == pytest.approx(wanted, rel=0.05)
    assert rows["pi", 4]["root_js"] == pytest.approx(math.sqrt(wanted), rel=0.05)


def test_what_is_masked_is_what_retrieves(folder, monkeypatch):
    """Of a model that answers with one head: masking it costs all, masking others nothing."""
    made = plan.make(tiny_explain.get_config(str(folder)))[0]
    made.config.analysis.unlock()
    made.config.analysis.heads.update(sizes=(1, 2), draws=2)
    loaded = subjects.load(made, made.subjects[0], folder)
    asked = {
        (task, n): [
            subjects.Question(np.arange(n, dtype=np.int32) % 250, (n - 1,), (3, 4), 0.0, i)
            for i in range(2)
        ]
        for task in plan.TASKS
        for n in (512,)
    }
    material = measuring.Material(made, np.zeros((2, 64), np.int32), asked, None)
    scores = np.zeros((4, 2, 4))
    scores[:, 1, 2], scores[:, 0, 3] = 0.9, 0.5
    right = heads.Retrieval(scores, scores, np.ones(4))
    monkeypatch.setattr(heads, "retrieval", lambda *_, **how: how["tick"](2048) or right)

    def score(model, rows, **_):
        alive = np.any(np.asarray(model.params["layers"]["o_LNHD"])[1, 2])
        assert rows.shape == (4, 513)
        return None, np.full((4, 512), alive)

    monkeypatch.setattr(scoring, "score", score)
    ticks = []
    told, _ = measuring.read_heads(loaded, material, ticks.append)
    assert told["retrieval_heads"] == [(1, 2), (0, 3)] and told["accuracy"] == 1
    first, second = told["causal"]
    assert first["heads"] == ((1, 2),) and (first["top"], first["random"]) == (0.0, 1.0)
    assert second["heads"] == ((1, 2), (0, 3)) and second["effect"] == 1.0
    assert set(told["maps"]) == {"retrieval", "needle_mass", "sink_head", *heads.PATTERNS}
    assert sum(ticks) == 2048 + 2 * (64 + 64)
    made = dataclasses.replace(found({}), heads={"base": told})
    (one,) = claims.retrieval_heads(made)
    assert one.verdict == HOLDS and "2 of 8 heads are retrieval heads" in one.evidence
    assert [part.what for part, _ in one.parts] == [
        "share lost by masking the best 2 beyond as many others"
    ]
    told["causal"][0] |= {"effect": -0.5, "low": -0.6, "high": -0.4}  # of one head: told, no more
    (one,) = claims.retrieval_heads(dataclasses.replace(made, heads={"base": told}))
    assert one.verdict == HOLDS and "Of fewer: share lost by masking the best 1" in one.evidence
    told["causal"][1] |= {"effect": -0.5, "low": -0.6, "high": -0.4}
    (one,) = claims.retrieval_heads(dataclasses.replace(made, heads={"base": told}))
    assert one.verdict == FAILS


# what is refused


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("settings", ("none", "pii"), "Unknown analysis.settings 'pii'. Did you mean 'pi'"),
        ("settings", ("pi",), "analysis.settings must have 'none'"),
        ("settings", ("none", "pi", "pi"), "each setting once"),
        ("factor", 1.5, "analysis.factor must be 2 or more"),
        ("theta_times", 0.5, "analysis.theta_times must be 1 or more"),
        ("patterns", (1.0, 2.0), "analysis.patterns must have 0.5, where settings are compared"),
        ("perplexity", (1.0,), "analysis.perplexity must have 2"),
        ("needles", (1.0, 4.0), "analysis.needles must be at most analysis.factor, 2"),
        ("patterns", (0.5, 2.0, 0.123), "whole numbers of tokens"),
        ("sequences", 1, "analysis.sequences must be 2 or more, got 1"),
        ("queries", 0, "analysis.queries must be 1 or more"),
        ("depths", 0, "analysis.depths must be 1 or more"),
        ("trials", 3, "analysis.trials must be a multiple of analysis.depths, 2"),
        ("longer", 3, "train.batch_size must be a multiple of 3"),
        ("longer", 4, "analysis.longer must be at most analysis.factor"),
        ("tasks", ("passkeys",), "Unknown analysis.tasks 'passkeys'"),
        ("second", ("model.path",), "analysis.second must hold pairs"),
        ("second", (("model.pth", "x"),), "Unknown key 'model.pth' in analysis.second"),
        ("second", (("model.path", "nowhere"),), "nowhere"),
        ("sequences", 20, "data.eval_files"),
    ],
)
def test_wrong_keys_are_refused_before_any_work(folder, tmp_path, key, value, told):
    config = tiny_explain.get_config(str(folder))
    config.analysis[key] = value
    with pytest.raises(InputError) as raised:
        explain.run(config, tmp_path / "run", False)
    assert told in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [("sizes", (5,), "from 1 to 4, half of the model's heads"), ("draws", 0, "draws must be 1")],
)
def test_wrong_numbers_of_heads_are_refused(folder, tmp_path, key, value, told):
    config = tiny_explain.get_config(str(folder))
    config.analysis.heads[key] = value
    with pytest.raises(InputError, match=told):
        explain.run(config, tmp_path / "run", False)


def test_a_model_from_scratch_is_refused(folder, tmp_path):
    config = tiny_explain.get_config(str(folder))
    config.model = dict(source="scratch", **tiny_eval.SHAPE)
    with pytest.raises(InputError, match="model.source must be 'checkpoint': a pre-trained model"):
        explain.run(config, tmp_path / "run", False)


def test_stages_have_equal_tokens_and_their_ropes(folder):
    first, second = plan.make(tiny_explain.get_config(str(folder)))
    stages = {name: (kind, dict(pairs)) for name, kind, pairs in first.stages}
    assert list(stages) == [
        *("search", "none", "pi", "abf", "searched", "twin", "longer"),
        *("perplexity", "haystack"),
    ]
    sizes = {
        name: (pairs["train.seq_len"], pairs["train.batch_size"])
        for name, (kind, pairs) in stages.items()
        if kind == "train"
    }
    assert {length * rows for length, rows in sizes.values()} == {16 * 512}
    assert sizes["pi"] == (512, 16) and sizes["twin"] == sizes["longer"] == (1024, 8)
    assert stages["pi"][1]["rope"] == dict(method="pi", factor=2.0)
    assert stages["abf"][1]["rope"] == dict(method="abf", new_theta=1_000_000.0)
    assert stages["longer"][1]["rope"] == stages["abf"][1]["rope"]
    assert stages["twin"][1]["rope"] == dict(method="none")
    assert stages["searched"][1]["rope"] == dict(method="file", path="{search}/rope.json")
    labels = [label for label, _, _ in stages["perplexity"][1]["eval.checkpoints"]]
    assert labels[:4] == ["none", "pi", "abf", "searched"] and "pi, untrained" in labels
    assert [name for name, _, _ in second.stages] == [
        "second_none",
        "second_pi",
        "second_twin",
        "second_perplexity",
    ]
    assert second.shape.original_len == 128 and second.lengths((0.5, 2.0)) == [64, 256]


def test_the_config_of_the_paper_is_the_papers(shared, books_6m, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = experiment.load(str(ROOT / "configs" / "attention_paper.py"))
    if not Path(config.model.path).exists():
        pytest.skip("needs ../shared beside the working folder")
    first, second = plan.make(config)
    assert first.lengths(config.analysis.perplexity) == [256, 512, 1024, 2048, 4096, 8192]
    assert (config.analysis.factor, config.analysis.theta_times) == (16.0, 100.0)
    assert config.analysis.sequences == 10 and second.title == "stdlib-2m"


# the whole program


def command(folder, workdir, *more):
    argv = [sys.executable, "-m", "jaxrope.analysis", f"--workdir={workdir}", *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return subprocess.run(
        [*argv, f"--config={ROOT}/tests/tiny_explain.py:{folder}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The workdir of a run of the command that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    done = command(folder, workdir)
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir


@pytest.mark.slow
def test_the_dry_run_says_what_it_costs(folder, tmp_path):
    done = command(folder, tmp_path / "none", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "measured: 153,216 forward tokens at most" in done.stdout
    assert "search for 1,024" in done.stdout and not (tmp_path / "none").exists()


@pytest.mark.slow
def test_the_program_leaves_the_papers_figures_and_findings(whole):
    made = {path.name for path in (whole / "figures").iterdir()}
    for name in (
        "fig1_ppl_vs_length",
        "fig2_pattern_base_256",
        "fig2_pattern_base_1024",
        "fig2_pattern_pi_1024",
        "fig2_pattern_searched_1024",
        "fig2_patterns_1024",
        "fig4_needle_heatmap_with_entropy_pi-passkey",
        "fig4_needle_heatmap_with_entropy_abf-trained-longer-needle",
        "fig4ef_trainlen_entropy-at-the-answer",
    ):
        assert {f"{name}.png", f"{name}.csv"} <= made
    assert {"table1_js.csv", "table1_js.md"} <= made
    told = json.loads((whole / "findings.json").read_text())
    names = [one["name"] for one in told["findings"]]
    assert names[:4] == [
        "perplexity-beyond",
        "patterns-kept-within",
        "patterns-kept",
        "nearer-to-native",
    ]
    # a random model neither retrieves nor attends to anything: nothing may be concluded from it
    assert len(names) == 11 and {one["verdict"] for one in told["findings"]} == {OPEN}
    text = (whole / "findings.md").read_text()
    assert "stand in for it" in text and all(one["claim"] in text for one in told["findings"])


@pytest.mark.slow
def test_the_page_reads_what_the_program_wrote(whole):
    content = json.loads((whole / "attention.json").read_text())
    found = attention.read(content)
    assert found.original_len == 512 and found.trained_lens["twin"] == 1024
    titles = [one.title for one in attention.sections(found)]
    assert titles[:4] == [
        "Findings",
        "Attention: uncertainty",
        "Attention: patterns",
        "Attention: heads",
    ]
    assert content["command"].startswith("python -m jaxrope.analysis --workdir=")
    second = attention.read(json.loads((whole / "second" / "attention.json").read_text()))
    assert second.original_len == 128
    by_place = {(r["label"], r["length"], r["name"]): r for r in content["statistics"]}
    row = by_place["pi", 1024, "entropy"]
    assert row["low"] <= row["value"] <= row["high"] < math.log(1024)


@pytest.mark.slow
def test_a_finished_program_does_nothing_again(whole, folder, monkeypatch):
    before = {path: path.read_bytes() for path in whole.rglob("*.json")}
    record = (whole / "record.jsonl").read_text()
    monkeypatch.setattr(parts, "_make", lambda *_: pytest.fail("measured again"))
    config = tiny_explain.get_config(str(folder))
    assert explain.run(config, whole, False) == 0
    same = {path for path in before if path.read_bytes() == before[path]}
    changed = {path.name for path in before.keys() - same}
    assert changed <= {"attention.json", "findings.json"}  # the command in them
    assert (whole / "record.jsonl").read_text() == record


@pytest.mark.slow
def test_a_measurement_that_is_not_there_is_made_and_is_the_same(whole, folder):
    path = whole / "measured" / "answers-pi.json"
    before, lines = json.loads(path.read_text()), (whole / "record.jsonl").read_text()
    path.unlink()
    assert explain.run(tiny_explain.get_config(str(folder)), whole, False) == 0
    after = json.loads(path.read_text())
    assert after["told"] == before["told"] and after["digest"] == before["digest"]
    more = (whole / "record.jsonl").read_text()[len(lines) :].splitlines()
    assert [json.loads(line)["part"] for line in more] == ["answers-pi"]


def test_a_measurement_of_other_settings_is_none(tmp_path, monkeypatch):
    """Its digest has the settings and what its stage was made with."""
    made = study()
    part = parts.Part("texts", made, made.subjects[2])
    (tmp_path / "pi").mkdir()
    said = {"kind": "train", "config": {"train.steps": 2}, "made_from": {}, "finished": True}
    (tmp_path / "pi" / "stage.json").write_text(json.dumps(said | {"seconds": 1.0}))
    first = parts.digest(part, tmp_path)
    (tmp_path / "pi" / "stage.json").write_text(json.dumps(said | {"seconds": 2.0}))
    assert parts.digest(part, tmp_path) == first
    other = dataclasses.replace(part, study=study(queries=9))
    assert parts.digest(other, tmp_path) != first
    said["config"] = {"train.steps": 3}
    (tmp_path / "pi" / "stage.json").write_text(json.dumps(said))
    assert parts.digest(part, tmp_path) != first

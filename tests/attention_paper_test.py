"""The paper's experiments: what is masked, refusals, and the whole program once."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxrope import analyse
from jaxrope.analyse import claims, measuring, parts, plan, subjects
from jaxrope.analyse.findings import FAILS, HOLDS, OPEN
from jaxrope.analysis import heads
from jaxrope.errors import InputError
from jaxrope.evaluate import scoring
from jaxrope.report import attention
from jaxrope.shell import experiment
from tests import tiny_eval, tiny_explain
from tests.tiny_study import found, study

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("explain") / "material"
    tiny_explain.prepare(path)
    return path


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
        analyse.run(config, tmp_path / "run", False)
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
        analyse.run(config, tmp_path / "run", False)


def test_a_model_from_scratch_is_refused(folder, tmp_path):
    config = tiny_explain.get_config(str(folder))
    config.model = dict(source="scratch", **tiny_eval.SHAPE)
    with pytest.raises(InputError, match="model.source must be 'checkpoint': a pre-trained model"):
        analyse.run(config, tmp_path / "run", False)


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
    assert analyse.run(config, whole, False) == 0
    same = {path for path in before if path.read_bytes() == before[path]}
    changed = {path.name for path in before.keys() - same}
    assert changed <= {"attention.json", "findings.json"}  # the command in them
    assert (whole / "record.jsonl").read_text() == record


@pytest.mark.slow
def test_a_measurement_that_is_not_there_is_made_and_is_the_same(whole, folder):
    path = whole / "measured" / "answers-pi.json"
    before, lines = json.loads(path.read_text()), (whole / "record.jsonl").read_text()
    path.unlink()
    assert analyse.run(tiny_explain.get_config(str(folder)), whole, False) == 0
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

"""The paper's experiments: what is masked, refusals, and the whole program once."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrope import analyse, decoder, schema
from jaxrope.analyse import claims, measuring, parts, plan, subjects
from jaxrope.analyse.findings import FAILS, HOLDS, OPEN
from jaxrope.analysis import heads
from jaxrope.errors import InputError
from jaxrope.evaluate import scoring
from jaxrope.report import attention
from jaxrope.shell import experiment
from jaxrope.store import checkpoint
from tests import processes, tiny_eval, tiny_explain, tiny_run
from tests.scaled_models_test import OWN
from tests.search_config import write_model
from tests.tiny_study import found

ROOT = Path(__file__).resolve().parent.parent


def read(folder, **changes):
    """Returns the config of the tiny experiments, with keys of its section `analysis` changed."""
    config = schema.read(tiny_explain.get_config(str(folder)))
    return schema.replace(config, {f"analysis.{key}": value for key, value in changes.items()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("explain") / "material"
    tiny_explain.prepare(path)
    return path


def test_what_is_masked_is_what_retrieves(folder, monkeypatch):
    """Of a model that answers with one head: masking it costs all, masking others nothing."""
    config = read(folder, **{"heads.sizes": (1, 2), "heads.draws": 2})
    made = plan.make(config)[0]
    loaded = subjects.load(made, made.subjects[0], folder)
    asked = {
        (task, n): [
            subjects.Question(np.arange(n, dtype=np.int32) % 250, (n - 1,), (3, 4), 0.0, i)
            for i in range(2)
        ]
        for task in config.analysis.tasks
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
    ("key", "value", "message"),
    [
        ("settings", ("none", "pii"), "Unknown analysis.settings[1] 'pii'. Did you mean 'pi'"),
        ("settings", ("pi",), "analysis.settings must have none"),
        (
            "settings",
            ("none", "pi", "pi"),
            "analysis.settings must be a tuple that lists nothing t",
        ),
        ("patterns", (1.0, 2.0), "analysis.patterns must have 0.5"),
        ("needles", (1.0, 4.0), "analysis.needles must be at most analysis.factor, 2"),
        ("patterns", (0.5, 2.0, 0.123), "whole numbers of tokens"),
        ("trials", 3, "analysis.trials must be a multiple of analysis.depths, 2"),
        ("longer", 4, "analysis.longer must be at most analysis.factor"),
        ("heads.sizes", (5,), "from 1 to 4, half of the model's heads"),
        ("second", ("model.path",), "analysis.second[0] must be like"),
        ("second", (("model.pth", "x"),), "analysis.second: Unknown key 'model.pth'"),
        ("second", (("analysis.trials", 0),), "analysis.second: analysis.trials must be a whole"),
        ("second", (("model.path", "nowhere"),), "nowhere"),
        ("sequences", 20, "data.eval_files"),
    ],
)
def test_wrong_keys_are_refused_before_any_work(folder, tmp_path, key, value, message):
    with pytest.raises(InputError) as raised:
        analyse.prepare(read(folder, **{key: value}), tmp_path / "run")
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.batch_size", 15, "train.batch_size must be a multiple of 2, the rows of the twin"),
        ("model", tiny_run.MODEL, "model.source must be 'checkpoint': a pre-trained model"),
        ("search.start_tokens", (-3,), "search.start_tokens[0] must be a whole number"),
        ("search.highest", 1.5, None),
    ],
)
def test_what_the_stages_refuse_is_refused_before_any_of_them(
    folder, tmp_path, key, value, message
):
    if message is None:  # and this is what is not refused
        analyse.prepare(schema.replace(read(folder), {key: value}), tmp_path / "run")
        return
    with pytest.raises(InputError) as raised:
        analyse.prepare(schema.replace(read(folder), {key: value}), tmp_path / "run")
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_stages_have_equal_tokens_and_their_ropes(folder):
    first, second = plan.make(read(folder))
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


def scaled(folder, tmp_path, own):
    """The config of a model whose own scaling reaches 64 tokens from 16."""
    write_model(tmp_path / "scaled", rope_scaling=OWN[own], max_position_embeddings=64)
    changes = dict(settings=("none", "pi", "yarn", "abf"), tasks=(), second=(), haystack=False)
    config = read(folder, longer_setting="", **changes)
    return schema.replace(config, {"model.path": str(tmp_path / "scaled")})


@pytest.mark.parametrize("own", [name for name in OWN if name != "longrope"])
def test_a_scaled_model_is_analysed_from_what_it_reaches(folder, tmp_path, own):
    prepared = analyse.prepare(scaled(folder, tmp_path, own), tmp_path / "run")
    made = prepared.studies[0]
    start = decoder.own_base(made.shape)
    assert made.trained_len == start.length == 64 and made.shape.original_len == 16
    assert made.lengths((0.5, 2.0)) == [32, 128]
    stages = {name: dict(pairs) for name, _, pairs in made.stages}
    assert (stages["pi"]["train.seq_len"], stages["twin"]["train.seq_len"]) == (64, 128)
    assert stages["pi"]["target_len"] == 128 and stages["none"]["rope"] == {"method": "model"}
    assert stages["perplexity"]["eval.lengths"] == (32, 64, 128)
    [bucket] = stages["pi"]["rope"]["buckets"]
    np.testing.assert_allclose(bucket["factors"], 2 * np.array(start.factors), rtol=1e-12)
    assert (bucket["max_len"], bucket["attention_factor"]) == (128, start.attention_factor)
    [bucket] = stages["abf"]["rope"]["buckets"]
    slower = 100 ** (np.arange(4) / 4)  # theta_times, pair by pair
    np.testing.assert_allclose(bucket["factors"], slower * np.array(start.factors), rtol=1e-9)


def test_a_table_of_factors_has_an_end(folder, tmp_path):
    with pytest.raises(InputError, match="own factors end at 64 tokens, .* measured at 128"):
        analyse.prepare(scaled(folder, tmp_path, "longrope"), tmp_path / "run")


def test_the_config_of_the_paper_is_the_papers(shared, books_6m, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = experiment.read(str(ROOT / "configs" / "attention_paper.py"))
    if not Path(config.model.path).exists():
        pytest.skip("needs ../shared beside the working folder")
    first, second = plan.make(config)
    assert first.lengths(config.analysis.perplexity) == [256, 512, 1024, 2048, 4096, 8192]
    assert (config.analysis.factor, config.analysis.theta_times) == (16.0, 100.0)
    assert config.analysis.sequences == 10 and second.title == "stdlib-3m"


def command(folder, workdir, *more):
    argv = [sys.executable, "-m", "jaxrope.analyse", f"--workdir={workdir}", *more]
    return subprocess.run(
        [*argv, f"--config={ROOT}/tests/tiny_explain.py:{folder}"],
        cwd=ROOT,
        env=processes.environment(),
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
    done = command(folder, tmp_path / "none", "--dry_run", "--no_timing")
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
    assert content["command"].startswith("python -m jaxrope.analyse --workdir=")
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
    assert analyse.run(read(folder), whole) == 0
    same = {path for path in before if path.read_bytes() == before[path]}
    changed = {path.name for path in before.keys() - same}
    assert changed <= {"attention.json", "findings.json"}  # the command in them
    assert (whole / "record.jsonl").read_text() == record


@pytest.mark.slow
def test_a_measurement_that_is_not_there_is_made_and_is_the_same(whole, folder):
    path = whole / "measured" / "answers-pi.json"
    before, lines = json.loads(path.read_text()), (whole / "record.jsonl").read_text()
    path.unlink()
    done = command(folder, whole)  # compiled as the first time
    assert done.returncode == 0, done.stderr
    after = json.loads(path.read_text())
    assert after["record"] == before["record"] and after["identity"] == before["identity"]
    more = (whole / "record.jsonl").read_text()[len(lines) :].splitlines()
    assert [json.loads(line)["part"] for line in more] == ["answers-pi"]


@pytest.fixture
def store(folder, tmp_path):
    """Returns what makes the store of a folder in which one measurement is written."""
    work = shutil.copytree(folder, tmp_path / "material")
    measured = {"x": np.arange(3.0)}

    def make(**changes):
        study = plan.make(read(work, **changes))[0]
        texts = np.ones((2, 64), np.int32)
        questions = {("passkey", 512): [subjects.Question(texts[0], (63,), (3, 4), 0.0, 0)]}
        materials = {"": measuring.Material(study, texts, questions, None)}
        lines = []
        made = parts.Store(tmp_path, materials, lines.append)
        return made, parts.Part("texts", study, study.subjects[0]), lines

    first, part, _ = make()
    assert first.read(part) is None
    first.write(part, {"value": 1.5}, measured, seconds=1.0, tokens=5)
    return work, make


def test_a_measurement_is_read_back_where_nothing_has_changed(store):
    _, make = store
    # what other measurements read, and what only makes subjects, changes nothing here
    for changes in ({}, {"trials": 4}, {"heads.draws": 3}, {"twin_steps": 3}):
        again, part, lines = make(**changes)
        record, arrays = again.read(part)
        assert record == {"value": 1.5} and arrays["x"].tolist() == [0, 1, 2] and not lines


def test_a_measurement_of_other_settings_or_weights_is_made_again(store):
    """Once it was told as it was, with other weights under the same name."""
    work, make = store
    again, part, lines = make(queries=9)
    assert again.read(part) is None and "another analysis.queries (8, now 9)" in lines[0]
    shutil.rmtree(work / "first" / "checkpoints")
    shape = decoder.DecoderConfig(**(tiny_eval.SHAPE | dict(original_len=512, max_len=512)))
    params = decoder.init_params(shape, jax.random.key(9), dtype="float32")
    checkpoint.save_params(work / "first", 0, params, {"data_fingerprint": "", "source": "x"})
    again, part, lines = make()
    assert (
        again.read(part) is None and "texts-base is measured again, with another the w" in lines[0]
    )


@pytest.mark.parametrize("name", ["texts-base.json", "texts-base.npz"])
def test_a_damaged_measurement_is_told_and_made_again(store, tmp_path, name):
    _, make = store
    path = tmp_path / "measured" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    again, part, lines = make()
    assert again.read(part) is None
    (line,) = lines
    assert line.startswith("texts-base is measured again: ") and name in line and "damaged" in line

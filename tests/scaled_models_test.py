"""Checkpoints that are scaled already: how far each reaches, and what is made on top of them."""

import json
import math
import re

import numpy as np
import pytest
from hf_models import CASES

from jaxrope import decoder, evaluate, report, rope, schema, search, setup
from jaxrope.convert import config as hf_config
from jaxrope.convert import exporting, pretrained
from jaxrope.errors import InputError
from jaxrope.evaluate import plan as evaluation
from jaxrope.evaluate import rows
from jaxrope.report import evaluations
from jaxrope.search import cost, genome, problem
from jaxrope.train import plan as training
from tests.search_config import tiny, write_model

LLAMA = CASES["llama"]
SHORT, LONG = [0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6], [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 3.8, 4.0]
LLAMA3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0)
LONGROPE = dict(type="longrope", short_factor=SHORT, long_factor=LONG)
YARN = dict(type="yarn", factor=4.0)
PRE = "original_max_position_embeddings"
# max_position_embeddings, scaling, further keys -> original, longest, base length, a note
CHECKPOINTS = {
    "qwen2.5's card": (
        128,
        YARN | {PRE: 128},
        {},
        128,
        512,
        512,
        "the length before YaRN: .* = 512",
    ),
    "qwen3's card": (160, YARN | {PRE: 128}, {}, 128, 512, 512, "the factor counts"),
    "yarn, said at the top": (512, YARN, {PRE: 128}, 128, 512, 512, ""),
    "yarn, no original": (128, YARN, {}, 128, 512, 512, "the length before YaRN"),
    "yarn, claims more": (1024, YARN | {PRE: 128}, {}, 128, 1024, 512, "the factor counts"),
    "finetuned yarn": (512, YARN | {PRE: 128, "finetuned": True}, {}, 128, 512, 512, ""),
    "deepseek-coder": (512, dict(type="linear", factor=4.0), {}, 128, 512, 512, "reaches; if it"),
    "vicuna-16k": (
        128,
        dict(type="linear", factor=4.0),
        {"max_sequence_length": 512},
        *(128, 512, 512),
        "is the length before the linear scaling by 4: another key says 512",
    ),
    "linear, a claim of nonsense": (
        512,
        dict(type="linear", factor=4.0),
        {"model_max_length": 1e30},
        *(128, 512, 512),
        "reaches; if it",
    ),
    "linear, original": (128, dict(type="linear", factor=4.0), {PRE: 128}, 128, 512, 512, ""),
    "linear by 1": (128, dict(type="linear", factor=1.0), {}, 128, 128, 128, ""),
    "dynamic": (128, dict(type="dynamic", factor=4.0), {}, 128, 128, 128, "plain frequencies"),
    "llama 3.1": (256, LLAMA3 | {PRE: 128}, {}, 128, 256, 256, ""),
    "llama3, not yet": (128, LLAMA3 | {PRE: 128}, {}, 128, 512, 512, "before llama3's scaling"),
    "longrope": (512, LONGROPE, {PRE: 128}, 128, 512, 512, ""),
    "longrope, original is longest": (
        128,
        LONGROPE,
        {PRE: 128},
        128,
        128,
        128,
        "long_factor is",
    ),
    "longrope by factor": (128, LONGROPE | {"factor": 4.0}, {PRE: 128}, 128, 512, 512, ""),
    "plain": (128, dict(rope_type="default", mrope_section=[4, 2, 2]), {}, 128, 128, 128, ""),
}


def hf(folder, max_len, section, spelling="rope_scaling", **keys):
    """(DecoderConfig, notes) of a Llama with a scaling, in either spelling."""
    config = LLAMA | {"max_position_embeddings": max_len} | keys
    if spelling == "rope_parameters":
        section = section | {"rope_theta": config.pop("rope_theta")}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | {spelling: section}))
    return hf_config.read(folder)


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_how_far_it_reaches(tmp_path, name, spelling):
    max_len, section, keys, original, longest, length, note = CHECKPOINTS[name]
    config, notes = hf(tmp_path, max_len, section, spelling, **keys)
    assert (config.original_len, config.max_len) == (original, longest)
    assert decoder.own_base(config).length == length
    assert len(notes) == bool(note), notes
    assert not note or re.search(note, notes[0])


@pytest.mark.parametrize("name", [n for n in CHECKPOINTS if "factor" not in n and n != "plain"])
def test_frequencies_are_those_of_transformers(tmp_path, name):
    """At one token, and at the longest that the model reaches."""
    pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    max_len, section, keys, _, longest, *_ = CHECKPOINTS[name]
    config, _ = hf(tmp_path, max_len, section, **keys)
    keys = LLAMA | {"max_position_embeddings": max_len} | keys
    theirs = transformers.LlamaConfig(**keys, rope_scaling=dict(section))
    make = ROPE_INIT_FUNCTIONS[theirs.rope_parameters["rope_type"]]
    for seq_len in (1, longest):
        inv_freq, scale = make(theirs, "cpu", seq_len=seq_len)
        bucket = decoder.own_rope(config).bucket(seq_len)
        found = rope.base_inv_freq(config.theta, config.rotary_dim) / np.array(bucket.factors)
        np.testing.assert_allclose(found, inv_freq.numpy(), rtol=3e-6)
        assert bucket.attention_factor == pytest.approx(scale, rel=1e-9)


USUAL = 0.1 * math.log(4) + 1  # YaRN's own attention factor at 4
VLLM = {  # keys -> the attention factor of vLLM's YaRNScalingRotaryEmbedding
    "DeepSeek-R1-0528-Qwen3-8B": (dict(attn_factor=0.8782488562869419), 1.0),
    "attn_factor": (dict(attn_factor=1.5), 1.5 * USUAL),
    "with mscales": (
        dict(attn_factor=0.5, mscale=0.7, mscale_all_dim=1.3),
        0.5 * (0.07 * math.log(4) + 1) / (0.13 * math.log(4) + 1),
    ),
    "not applied": (dict(apply_yarn_scaling=False), 1.0),
    "not applied, a number": (dict(apply_yarn_scaling=False, attn_factor=1.2), 1.2),
    "applied": (dict(apply_yarn_scaling=True, extrapolation_factor=1.0), USUAL),
    "both, the same": (dict(attn_factor=1.5, attention_factor=1.5 * USUAL), 1.5 * USUAL),
}


@pytest.mark.parametrize("name", VLLM)
def test_vllms_keys(tmp_path, name):
    keys, expected = VLLM[name]
    config, notes = hf(tmp_path, 512, YARN | {PRE: 128} | keys)
    assert decoder.own_base(config).attention_factor == pytest.approx(expected, rel=1e-12)
    assert any("as vLLM reads attn_factor" in note for note in notes) == (name != "applied")


def test_vllms_keys_refused(tmp_path):
    with pytest.raises(InputError, match="attn_factor and attention_factor disagree"):
        hf(tmp_path, 512, YARN | {PRE: 128, "attn_factor": 1.5, "attention_factor": 1.0})
    with pytest.raises(InputError, match="extrapolation_factor must be 1"):
        hf(tmp_path, 512, YARN | {PRE: 128, "extrapolation_factor": 0.5})


OWN = {  # scalings of the tiny model, whose heads have four pairs: all reach 64 tokens
    "linear": dict(type="linear", factor=4.0),
    "yarn": dict(type="yarn", factor=4.0, beta_fast=3.0, original_max_position_embeddings=16),
    "llama3": LLAMA3 | dict(original_max_position_embeddings=16),
    "longrope": dict(
        type="longrope",
        short_factor=[1.0] * 4,
        long_factor=[0.95, 1.5, 2.5, 4.0],
        original_max_position_embeddings=16,
    ),
}


def extended(folder, own, target_len=128):
    """The config of a search, of a model that serves 64 tokens by a scaling of its own."""
    config = tiny(folder)
    place = folder / "scaled"
    if not place.exists():
        write_model(place, rope_scaling=OWN[own], max_position_embeddings=64)
    config.model.path, config.target_len = str(place), target_len
    return config


@pytest.mark.parametrize("own", OWN)
def test_a_search_starts_from_the_own_scaling(tmp_path, own):
    made = search.prepare(extended(tmp_path, own))
    start = decoder.own_base(made.model)
    known = {baseline.name: baseline.bucket for baseline in made.baselines}
    assert list(known) == ["none", "pi", "ntk", "dynamic_ntk", "yarn"]
    assert start.length == made.trained_len == 64
    assert known["none"].factors == start.factors and not start.is_plain
    np.testing.assert_allclose(known["pi"].factors, 2 * np.array(start.factors), rtol=1e-12)
    grown = np.array(start.factors) * 2 ** (np.arange(4) / 3)
    np.testing.assert_allclose(known["ntk"].factors, grown, rtol=1e-12)
    assert known["pi"].attention_factor == start.attention_factor
    number = start.attention_factor * (0.1 * math.log(2) + 1)
    assert known["yarn"].attention_factor == pytest.approx(number, rel=1e-12)
    # the space: 1 to 1.25 * 2 times what is there
    assert (made.space.multiplier, made.space.highest) == (start.factors, 250)
    genomes = dict(
        zip([s.name for s in problem.seeds(made)], problem.seed_genomes(made), strict=True)
    )
    assert genomes["none"][:4].tolist() == [100] * 4 and genomes["pi"][:4].tolist() == [200] * 4
    decoded = genome.decode(made.space, genomes["pi"])
    np.testing.assert_allclose(decoded.factors, known["pi"].factors, rtol=1e-12)
    su = start.attention_factor * math.sqrt(1 + math.log(2) / math.log(64))
    assert made.attention_factor == pytest.approx(su, rel=1e-12)
    assert any("is the base: methods are made on top" in note for note in made.notes)


def test_su_of_longrope_is_that_of_the_whole_length(tmp_path):
    made = search.prepare(extended(tmp_path, "longrope"))
    whole = math.sqrt(1 + math.log(128 / 16) / math.log(16))
    assert made.attention_factor == pytest.approx(whole, rel=1e-12)
    config = extended(tmp_path, "longrope")
    config.search.attention_factor = 1.07
    assert search.prepare(config).attention_factor == 1.07


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("target_len", [40, 64])
def test_what_it_serves_already_is_refused(tmp_path, own, target_len):
    message = rf"target_len must exceed what the model reaches .*: 64, got {target_len}"
    with pytest.raises(InputError, match=message):
        search.prepare(extended(tmp_path, own, target_len))


def test_dynamic_starts_from_the_plain_model(tmp_path):
    config = extended(tmp_path, "linear")
    own = dict(type="dynamic", factor=4.0)
    write_model(tmp_path / "dynamic", rope_scaling=own, max_position_embeddings=16)
    config.model.path = str(tmp_path / "dynamic")
    made = search.prepare(config)
    known = {baseline.name: baseline.bucket for baseline in made.baselines}
    assert made.space.multiplier == () and made.trained_len == 16
    np.testing.assert_allclose(known["pi"].factors, 8.0, rtol=1e-12)
    assert known["none"].factors == decoder.own_rope(made.model).bucket(128).factors


def test_critical_pairs_count_the_turns_of_the_scaled_frequencies(tmp_path):
    config = extended(tmp_path, "linear")
    config.search.form, config.search.algorithm.bound = "critical", 2.0
    made = search.prepare(config)
    # linear 4 at 64 tokens turns as the plain model does at 16
    plain = tiny(tmp_path)
    plain.target_len, plain.search = 32, config.search
    assert made.space.critical_pairs == search.prepare(plain).space.critical_pairs
    seeds = {seed.name: seed.bucket.factors for seed in problem.seeds(made)}
    pair = made.space.critical_pairs[0]
    expected = 4 * rope.ntk_rcd(2.0, pair, 4)
    np.testing.assert_allclose(seeds[f"critical_{pair}"], expected, rtol=1e-12)


@pytest.mark.parametrize("own", ["linear", "longrope"])
def test_result_is_absolute_and_can_be_searched_on(tmp_path, own):
    """rope.json and the export divide theta's plain frequencies by all factors; a second search
    multiplies them.
    """
    config = extended(tmp_path, own)
    search.search(config, tmp_path / "first")
    found = rope.load(tmp_path / "first" / "rope.json")
    start = decoder.own_base(setup.model_config(config))
    provenance = rope.provenance(tmp_path / "first" / "rope.json")["base"]
    assert provenance["length"] == 64 and provenance["factors"] == list(start.factors)
    total = np.array(start.factors) * np.array(provenance["on_top"])
    np.testing.assert_allclose(found.bucket(128).factors, total, rtol=1e-12)
    assert (found.original_len, found.max_len) == (16, 128)
    model = pretrained.load(config.model.path, dtype=None)
    model = pretrained.with_rope(model, tmp_path / "first" / "rope.json")
    exporting.export_folder(model, tmp_path / "hf")
    section = json.loads((tmp_path / "hf" / "config.json").read_text())["rope_parameters"]
    assert section["long_factor"] == list(found.bucket(128).factors)
    again = extended(tmp_path, own, 160)
    again.rope = dict(method="file", path=str(tmp_path / "first" / "rope.json"))
    again.search.multiply = True
    second = search.prepare(again)
    assert second.space.multiplier == found.bucket(128).factors and second.trained_len == 128
    exported = extended(tmp_path, own, 160)
    exported.model.path, exported.data.tokenizer = str(tmp_path / "hf"), "bytes"
    third = search.prepare(exported)  # opened by config.json alone it is the base
    assert third.space.multiplier == found.bucket(128).factors and third.trained_len == 128


@pytest.mark.parametrize("own", OWN)
def test_evaluation_rows_stand_on_it(tmp_path, own):
    config = setup.model_config(extended(tmp_path, own))
    start = decoder.own_base(config)
    for seq_len, factor in ((32, 1.0), (64, 1.0), (128, 2.0), (256, 4.0)):
        found = rows.method_row("pi", config, rope_len=0).rope_fn(seq_len)
        np.testing.assert_allclose(found.factors_R, factor * np.array(start.factors), rtol=1e-6)
    su = rows.method_row("yarn@su", config, rope_len=256).rope_fn(64)
    expected = start.attention_factor * math.sqrt(1 + math.log(4) / math.log(64))
    assert float(su.attention_factor) == pytest.approx(expected, rel=1e-6)
    number = rows.method_row("ntk@1.2", config, rope_len=256).rope_fn(64)
    assert float(number.attention_factor) == pytest.approx(1.2, rel=1e-6)
    assert rows.method_row("sliding", config, rope_len=0).window == 64


def test_an_evaluation_counts_lengths_from_what_it_reaches(tmp_path):
    """In the tables that it writes, and in the line and the marks of a page."""
    config = extended(tmp_path, "yarn")
    config.data.eval_files = config.data.train_files
    config.eval.suites, config.eval.lengths, config.eval.num_windows = ("perplexity",), (64, 128), 1
    evaluate.evaluate(config, tmp_path / "run")
    content = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert (content["model"]["original_len"], content["model"]["trained_len"]) == (16, 64)
    assert evaluations.lines(content)[0]["Window"] == "64 → 128"
    page = tmp_path / "page.html"
    report.write([tmp_path / "run"], page)
    assert "64 → 128" in page.read_text() and "16 → 128" not in page.read_text()
    del content["model"]["trained_len"]  # as older evaluations
    assert evaluations.lines(content)[0]["Window"] == "16 → 128"


@pytest.mark.parametrize("own", OWN)
def test_short_rows_of_a_training_have_the_own_scaling(tmp_path, own):
    """LongRoPE2's short rows: pieces of at most what the model served, with its own rope."""
    config = extended(tmp_path, own)
    config.train.seq_len, config.data.short_share = 128, 0.5
    config.rope = dict(method="pi", factor=8.0)
    config.eval.suites = ()
    made = training.prepare(config)
    both = training.rope_argument(made.program, made.rope_fn(128))
    start = decoder.own_base(made.model)
    np.testing.assert_allclose(both.factors_R[1], start.factors, rtol=1e-6)
    assert any("states the whole rope: it takes the place" in line for line in made.remarks)


def windowed(folder, window="model"):
    """A Mistral whose window, 8 tokens, is shorter than the target."""
    config = tiny(folder)
    kept = dict(model_type="mistral", sliding_window=8)
    if not (folder / "mistral").exists():
        write_model(folder / "mistral", **kept)
    config.model.path, config.model.sliding_window = str(folder / "mistral"), window
    config.train.seq_len, config.eval.suites = 64, ("perplexity",)
    config.eval.lengths, config.data.eval_files = (16, 64), config.data.train_files
    config.eval.num_windows = 1
    return config


def test_a_window_shorter_than_the_target(tmp_path):
    note = "a sliding window of 8 tokens in all layers: no query sees beyond it"
    config = windowed(tmp_path)
    assert note in cost.dry_run(config, timing=False)
    assert any(note in line for line in training.prepare(config).remarks)
    assert any(note in line for line in evaluation.prepare(config).notes)
    config.target_len = 8  # what every query sees
    assert setup.window_notes(schema.read(config), setup.model_config(config)) == []
    config = windowed(tmp_path, "none")
    made = search.prepare(config)
    assert made.model.sliding_window is None
    assert not any("sliding window" in line for line in made.notes)
    assert training.prepare(config).outcome.config.sliding_window is None
    assert setup.model_config(windowed(tmp_path, 64)).sliding_window == 64
    config = tiny(tmp_path)
    config.model.sliding_window = 8
    with pytest.raises(InputError, match="model.sliding_window must be 'model' or 'none'"):
        setup.model_config(config)


def test_what_is_not_extended_is_said(tmp_path):
    config = windowed(tmp_path, "none")
    assert any("config.rope extends nothing" in line for line in training.prepare(config).remarks)
    assert any(
        "none: not extended; the model serves 16" in n for n in evaluation.prepare(config).notes
    )
    config.rope = dict(method="pi", factor=4.0)
    config.eval.label = "pi"
    assert not any("extends nothing" in line for line in training.prepare(config).remarks)
    assert evaluation.prepare(config).notes == ()

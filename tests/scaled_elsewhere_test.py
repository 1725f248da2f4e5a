"""Scaled checkpoints for other programs, in generation, and as people have them."""

import numpy as np
import pytest
from hf_models import write

from configs import base
from jaxrope import decoder, schema, setup
from jaxrope.convert import config as hf_config
from jaxrope.convert import pretrained, rope_export
from jaxrope.convert.rope_formats import read
from jaxrope.evaluate import rows
from jaxrope.generate.__main__ import main as generate
from jaxrope.search import baselines
from tests.rope_samples import needs, written
from tests.scaled_models_test import CHECKPOINTS, LLAMA, LONGROPE, PRE, SHORT, USUAL, YARN
from tests.search_config import tiny, write_model


@pytest.mark.parametrize("form", ["hf-llama", "vllm", "gguf", "jaxrope"])
def test_yarn_of_a_model_card_for_other_programs(tmp_path, form):
    needs(form)
    write(tmp_path / "in", LLAMA | {"rope_scaling": YARN | {PRE: 128}})
    written(tmp_path / "in", tmp_path / "out", form)
    again = read(tmp_path / "out")
    own = pretrained.load(tmp_path / "in").rope_fn.bucket(512)
    found = again.rope_fn.bucket(512)
    np.testing.assert_allclose(found.factors, own.factors, rtol=1e-7)
    assert found.attention_factor == pytest.approx(own.attention_factor, rel=1e-7)
    assert again.longest == 512
    if form == "vllm":
        text = (tmp_path / "out").read_text()
        assert '"rope_type": "yarn"' in text and '"factor": 4.0' in text
        assert '"max_position_embeddings": 512' in text


@pytest.mark.parametrize("form", ["hf-llama", "hf-phi3", "vllm", "gguf", "jaxrope"])
@pytest.mark.parametrize("name", ["deepseek-coder", "llama 3.1", "longrope by factor", "minicpm4"])
def test_other_scalings_for_other_programs(tmp_path, name, form):
    """What is written is absolute: it means the same frequencies, up to the same length."""
    needs(form)
    minicpm4 = (128, LONGROPE | {"long_factor": SHORT}, {PRE: 128}, 128, 128)
    max_len, section, keys, original, longest, *_ = CHECKPOINTS.get(name, minicpm4)
    keys = keys | dict(max_position_embeddings=max_len, rope_scaling=section)
    write(tmp_path / "in", LLAMA | keys)
    own = read(tmp_path / "in")
    written(tmp_path / "in", tmp_path / "out", form)
    again = read(tmp_path / "out")
    assert (again.longest, again.rope_fn.original_len) == (longest, original)
    assert rope_export.difference(again.rope_fn, own.rope_fn) < 3e-7


@pytest.mark.parametrize("changes", [{}, dict(attention_factor=1.3)])
def test_yarn_in_gguf(tmp_path, changes):
    """llama.cpp multiplies attn_factor with YaRN's own attention factor."""
    gguf = pytest.importorskip("gguf", reason="needs the package gguf")
    write(tmp_path / "in", LLAMA | {"rope_scaling": YARN | {PRE: 128} | changes})
    written(tmp_path / "in", tmp_path / "out", "gguf")
    fields = gguf.GGUFReader(tmp_path / "out").fields
    values = {name.partition("llama.")[2]: field.contents() for name, field in fields.items()}
    assert values["rope.scaling.type"] == "yarn" and values["rope.scaling.factor"] == 4.0
    assert values["rope.scaling.original_context_length"] == 128
    assert values["context_length"] == 512
    multiple = values.get("rope.scaling.attn_factor", 1.0)
    assert multiple * USUAL == pytest.approx(changes.get("attention_factor", USUAL), rel=1e-6)


def test_generation_reads_what_the_scaling_reaches(tmp_path, capsys):
    write_model(tmp_path / "m", rope_scaling=YARN | {PRE: 16}, max_position_embeddings=16)
    args = [f"--checkpoint={tmp_path / 'm'}", "--tokenizer=bytes", "--dry_run"]
    generate([*args, "--prompt=" + "a" * 50, "--max_new_tokens=10"])
    assert "texts of up to 61 tokens" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        generate([*args, "--prompt=" + "a" * 60, "--max_new_tokens=10"])
    assert "reads 64" in capsys.readouterr().err
    write_model(tmp_path / "d", rope_scaling=dict(type="dynamic", factor=2.0))
    args[0] = f"--checkpoint={tmp_path / 'd'}"
    generate([*args, "--prompt=" + "a" * 60, "--max_new_tokens=10", "--policy=fixed"])
    assert "far beyond the 16 that the model was trained on" in capsys.readouterr().out


def case(shared, number):
    return next(iter((shared / "cases").glob(f"{number}_*")))


def test_case_01_qwen25_yarn_recipe(shared, tmp_path, capsys):
    folder = case(shared, "01")
    model = pretrained.load(folder, weights=False)
    assert model.config.max_len == 512
    text = "the " * 130
    generate([f"--checkpoint={folder}", f"--prompt={text}", "--max_new_tokens=9", "--dry_run"])
    capsys.readouterr()
    for form in ("vllm", "gguf"):
        needs(form)
        written(folder, tmp_path / form, form)
        assert read(tmp_path / form).rope_fn.constants["factor"] == 4.0


def test_case_03_linear_model_searched_again(shared, tmp_path):
    config = tiny(tmp_path)
    config.model.path, config.target_len = str(case(shared, "03")), 1024
    model = setup.model_config(config)
    known = baselines.make(schema.read(config), model, decoder.own_rope(model), 512)
    factors = {baseline.name: baseline.bucket.factors for baseline in known}
    np.testing.assert_allclose(factors["pi"], 8.0, rtol=1e-12)
    assert min(factors["yarn"]) >= 4.0 and max(factors["yarn"]) == pytest.approx(8.0)
    row = rows.method_row("pi", model, rope_len=0)
    np.testing.assert_allclose(row.rope_fn(1024).factors_R, 8.0, rtol=1e-6)


def test_case_14_mistral_window_shorter_than_target(shared):
    config, _ = hf_config.read(case(shared, "14"))
    asked = base.get_config()
    asked.model.path, asked.target_len = str(case(shared, "14")), 2048
    assert "a sliding window of 128 tokens" in setup.window_notes(schema.read(asked), config)[0]

"""Folders as they come: read where the meaning is plain, with a note, else refused with a name."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
import tiny_tokenizers
from hf_models import CASES, random_tensors, write
from safetensors.numpy import save_file

from jaxrope.convert import exporting, importing, pretrained
from jaxrope.data import load_tokenizer
from jaxrope.errors import InputError

LLAMA = CASES["llama"]
PREFIXES = (
    "_orig_mod.",
    "module.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "base_model.model.",
    "base_model.model._orig_mod.",
    "language_model.",
    "module.language_model.",
    "pretrained_model.",
)


def rewrite(folder, rename, more=None, config=LLAMA, dtype=np.float32):
    """Writes a model whose tensors have other names; returns the tensors by their plain names."""
    tensors = write(folder, config, dtype=dtype)
    save_file({rename(k): v for k, v in tensors.items()} | (more or {}), folder / "m.safetensors")
    (folder / "m.safetensors").replace(folder / "model.safetensors")
    return tensors


def assert_read(folder, plain, count):
    loaded = pretrained.load(folder)
    np.testing.assert_equal(loaded.params, pretrained.load(plain).params)
    assert any(note.startswith(f"{count} tensors have other names") for note in loaded.notes)
    return loaded.notes


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_wraps_a_model_is_no_part_of_a_name(tmp_path, prefix):
    write(tmp_path / "plain", LLAMA)
    tensors = rewrite(tmp_path / "odd", lambda name: prefix + name)
    notes = assert_read(tmp_path / "odd", tmp_path / "plain", len(tensors))
    assert any(f"'{prefix}lm_head.weight' is read as lm_head.weight" in note for note in notes)


@pytest.mark.parametrize(
    "old, new",
    [
        ("model.", "model.language_model."),
        ("model.", "model.language_model.model."),
        ("model.", "model._orig_mod."),
        ("self_attn.", "_orig_mod.self_attn."),
        ("self_attn.", "_fsdp_wrapped_module._checkpoint_wrapped_module.self_attn."),
        ("model.", "model.model."),
    ],
)
def test_what_wraps_a_part_of_a_model(tmp_path, old, new):
    write(tmp_path / "plain", LLAMA)
    tensors = rewrite(tmp_path / "odd", lambda name: name.replace(old, new, 1))
    assert_read(tmp_path / "odd", tmp_path / "plain", sum(old in name for name in tensors))


def test_a_model_that_was_saved_without_its_head(tmp_path):
    tied = CASES["llama tied with biases"]
    write(tmp_path / "plain", tied)
    tensors = rewrite(tmp_path / "odd", lambda name: name.removeprefix("model."), config=tied)
    assert_read(tmp_path / "odd", tmp_path / "plain", len(tensors))


def test_two_tensors_with_one_plain_name_are_refused(tmp_path):
    extra = {"module.lm_head.weight": np.zeros((96, 32), np.float32)}
    rewrite(tmp_path, lambda name: name, extra)
    message = "'lm_head.weight' and 'module.lm_head.weight' are both lm_head.weight"
    with pytest.raises(InputError, match=message):
        pretrained.load(tmp_path)


@pytest.mark.parametrize("name", ["v_head.summary.weight", "score.weight", "module.v_head.weight"])
def test_a_value_or_reward_head_is_passed_over(tmp_path, name):
    write(tmp_path / "plain", LLAMA)
    rewrite(tmp_path / "odd", lambda name: name, {name: np.ones((1, 32), np.float32)})
    loaded = pretrained.load(tmp_path / "odd")
    np.testing.assert_equal(loaded.params, pretrained.load(tmp_path / "plain").params)
    assert any("a value or reward head, which is passed over" in note for note in loaded.notes)


def test_names_that_mean_nothing_are_shown(tmp_path):
    rewrite(tmp_path, lambda name: f"encoder.{name}")
    message = r"none of its 21 tensors is part of a layer .* it has encoder.lm_head.weight, enc"
    with pytest.raises(InputError, match=message):
        pretrained.load(tmp_path)
    rewrite(tmp_path, lambda name: name.replace("q_proj", "query"))
    message = (
        r"2 tensors are missing .*0.self_attn.q_proj.* unlike it there are .*attn.query.weight"
    )
    with pytest.raises(InputError, match=message):
        pretrained.load(tmp_path)
    lora = {"model.layers.0.self_attn.q_proj.lora_A.weight": np.ones((2, 32), np.float32)}
    rewrite(tmp_path, lambda name: name, lora)
    with pytest.raises(
        InputError, match=r"1 tensors belong to no part .*lora_A.* merge_and_unload"
    ):
        pretrained.load(tmp_path)


def test_float64_is_read_as_float32(tmp_path):
    tensors = write(tmp_path, LLAMA, dtype=np.float64)
    for dtype in (None, "float32", "bfloat16"):
        embed = pretrained.load(tmp_path, dtype=dtype).params["embed_VD"]
        expected = tensors["model.embed_tokens.weight"].astype(np.float32)
        expected = expected.astype(ml_dtypes.bfloat16) if dtype == "bfloat16" else expected
        assert embed.dtype == expected.dtype and np.array_equal(embed, expected)
    loaded = pretrained.load(tmp_path)
    assert loaded.config.stored_dtype == "float32"
    assert any("21 tensors are float64; they are read as float32" in n for n in loaded.notes)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32])
def test_quantised_weights_are_refused_with_the_remedy(tmp_path, dtype):
    q = "model.layers.0.self_attn.q_proj.weight"
    rewrite(tmp_path, lambda name: name, {q: random_tensors(LLAMA)[q].astype(dtype)})
    with pytest.raises(InputError, match=rf"'{q}' has dtype .*model.dequantize\(\)"):
        pretrained.load(tmp_path)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8"])
def test_a_quantised_config_is_refused_with_the_remedy(tmp_path, method):
    write(tmp_path, LLAMA | {"quantization_config": {"quant_method": method}})
    with pytest.raises(InputError, match=rf"quantised \({method}\), .*without quantisation"):
        pretrained.load(tmp_path)


def test_an_index_may_list_rotary_buffers_that_are_nowhere(tmp_path):
    tensors = write(tmp_path, LLAMA)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
    for name in ("model.rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.inv_freq"):
        weight_map[name] = "model-00001-of-00001.safetensors"
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert pretrained.load(tmp_path).config.num_layers == 2
    index.write_text(
        json.dumps({"weight_map": weight_map | {"model.more": "model-00001-of-00001.safetensors"}})
    )
    with pytest.raises(InputError, match="tensor 'model.more' is not in model-00001"):
        pretrained.load(tmp_path)


def test_tokens_without_a_row_are_a_note_at_import(tmp_path):
    write(tmp_path / "in", LLAMA | dict(vocab_size=319, bos_token_id=0, eos_token_id=1))
    tiny_tokenizers.write(tmp_path / "in", tokenizer_config={})
    notes = importing.import_folder(tmp_path / "in", tmp_path / "work")
    assert any("1 tokens of tokenizer.json, the highest 319, have no row" in n for n in notes)
    spec = tiny_tokenizers.bpe()
    text = spec.decode([319])
    tokenizer = load_tokenizer(tmp_path / "work", vocab_size=319)
    with pytest.raises(InputError, match="a text holds the token .* id 319"):
        tokenizer.encode(f"{text}{text}".strip() or text)


def convert(folder, place):
    """Imports and exports a folder; returns (notes, the exported config.json)."""
    notes = importing.import_folder(folder, place / "work")
    exporting.export_folder(pretrained.load(place / "work", dtype=None), place / "out")
    return notes, json.loads((place / "out" / "config.json").read_text())


@pytest.mark.parametrize(
    "name, note",
    [
        ("07_pad_beyond_vocab", "have no row in the embedding"),
        ("09_index_lists_inv_freq", ""),
        ("16_no_max_position_embeddings", "max_sequence_length is taken"),
        ("19_orig_mod_prefix", "_orig_mod."),
    ],
)
def test_the_cases_are_read(shared, tmp_path, name, note):
    notes, config = convert(shared / "cases" / name, tmp_path)
    assert note in " ".join(notes)
    assert config["max_position_embeddings"] == pretrained.read_config(tmp_path / "work").max_len


def test_a_pad_outside_the_vocabulary_is_kept(shared, tmp_path):
    shutil.copytree(shared / "cases" / "07_pad_beyond_vocab", tmp_path / "in")
    before = json.loads((tmp_path / "in" / "config.json").read_text())
    _, after = convert(tmp_path / "in", tmp_path)
    assert after["pad_token_id"] == before.get("pad_token_id")

"""A rope alone between programs: what comes back, what each will do, and what is refused."""

import dataclasses
import itertools
import json
import math
import os
import shlex

import hf_families
import numpy as np
import pytest
from hf_models import CASES, write

from jaxrope import decoder, rope
from jaxrope.convert import config as hf_config
from jaxrope.convert import exporting, pretrained, rope_export
from jaxrope.convert.rope_formats import FORMATS, Settings, convert, read
from jaxrope.errors import InputError
from tests.rope_samples import (
    GEOMETRIES,
    LONG,
    SHORT,
    into_gguf,
    needs,
    rope_of,
    rows,
    run,
    same,
    saved,
    written,
)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("first,second", [*itertools.product(FORMATS, FORMATS)])
def test_every_pair_of_formats_gives_the_rope_back(tmp_path, first, second, name):
    needs(first, second)
    rope_fn = rope_of(name)
    convert(saved(tmp_path, rope_fn), tmp_path / "a", Settings(first))
    convert(tmp_path / "a", tmp_path / "b", Settings(second))
    same(read(tmp_path / "b").rope_fn, rope_fn)  # to the last bit: the factors have two decimals


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("law", ("su", 1.0))
def test_attention_factors(tmp_path, form, law):
    needs(form)
    rope_fn = rope_of(buckets=rows(32, 256, attention=(math.sqrt(1.6), "su")))
    if law == 1.0:
        rope_fn = rope_of(buckets=rows(32, 256, attention=(1.0, 1.0)))
    convert(saved(tmp_path, rope_fn), tmp_path / "out", Settings(form))
    expected = math.sqrt(1 + math.log(8) / math.log(32)) if law == "su" else 1.0
    for length in (32, 33):
        assert read(tmp_path / "out").rope_fn.bucket(length).attention_factor == pytest.approx(
            expected, rel=1e-12
        )


@pytest.mark.parametrize("form", FORMATS)
def test_partial_rotation(tmp_path, form):
    needs(form)
    rope_fn = rope_of(head_dim=20, rotary_dim=16)
    path = saved(tmp_path, rope_fn)
    if form == "hf-llama":
        message = "a Llama turns all 20 dims of a head, this rope 16 of them. Use --format=hf-phi3"
        with pytest.raises(InputError, match=message):
            convert(path, tmp_path / "out", Settings(form))
        return
    convert(path, tmp_path / "out", Settings(form))
    same(read(tmp_path / "out").rope_fn, rope_fn)


def test_what_vllm_reads(tmp_path):
    """Its own rule: the two mscales, whatever attention_factor says."""
    buckets = rows(32, 256, attention=(1.1, 1.4))
    convert(saved(tmp_path, rope_of(buckets=buckets)), tmp_path / "out", Settings("vllm"))
    flag, value, length = shlex.split((tmp_path / "out").read_text())
    content = json.loads(value)
    assert (
        length == "--max-model-len=256"
        and flag == "--hf-overrides"
        and content["rope_parameters"] == content["rope_scaling"]
    )
    section = content["rope_parameters"]
    assert (section["short_factor"], section["long_factor"]) == (SHORT, LONG)
    assert (section["short_mscale"], section["long_mscale"]) == (1.1, 1.4)
    assert section["rope_type"] == "longrope" and section["rope_theta"] == 1e4
    assert content["max_position_embeddings"] == 256
    assert section["original_max_position_embeddings"] == 32
    assert "attention_factor" not in section
    same(read(tmp_path / "out").rope_fn, rope_of(buckets=buckets))


@pytest.mark.parametrize("form,config", (("hf-llama", "LlamaConfig"), ("hf-phi3", "Phi3Config")))
def test_what_transformers_reads(tmp_path, form, config):
    pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope_fn = rope_of("two")
    convert(saved(tmp_path, rope_fn), tmp_path / "out", Settings(form))
    keys = json.loads((tmp_path / "out").read_text())
    heads = dict(hidden_size=32, num_attention_heads=2, num_key_value_heads=2)
    theirs = getattr(transformers, config)(**(keys | heads))
    for length in (64, 65, 512):
        inv_freq, scale = ROPE_INIT_FUNCTIONS["longrope"](theirs, "cpu", length)
        expected = rope_fn.geometry.base_inv_freq / (SHORT if length <= 64 else LONG)
        np.testing.assert_allclose(inv_freq.numpy(), expected, rtol=1e-6)
        assert scale == 1.3


def test_phi35_moe_has_two_mscales(tmp_path):
    config = dict(model_type="phimoe", hidden_size=64, num_attention_heads=4, rope_theta=1e4)
    config |= dict(max_position_embeddings=131072, original_max_position_embeddings=4096)
    scale = math.sqrt(1 + math.log(64) / math.log(2048))
    assert scale == pytest.approx(1.243163121016122, rel=1e-14)
    section = dict(type="longrope", short_factor=SHORT, long_factor=LONG)
    section |= dict(short_mscale=scale, long_mscale=scale, original_max_position_embeddings=4096)
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_scaling": section}))
    found = read(tmp_path).rope_fn
    assert [b.attention_factor for b in found.buckets] == [scale, scale]
    section |= dict(long_mscale=1.3)
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_scaling": section}))
    message = r"llama.cpp cannot express this rope: differing attention factors \(1.24316, 1.3\)"
    needs("gguf")
    with pytest.raises(InputError, match=message):
        into_gguf(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


SAID = {
    "hf-llama": (
        "transformers takes `short_factor` while the longest sequence of a batch has at most 32",
        "keys cached on the short side are not rotated anew",
        "`long_factor` as soon as `--max-model-len` exceeds 32, for short prompts as well",
        "opens at 32 tokens unless it is told: vllm serve FOLDER --max-model-len=256",
        "SGLang, as read in its source, takes `long_factor` for a whole batch once one sequence",
        "llama.cpp's converter drops the factors of this architecture",
    ),
    "hf-phi3": (
        "its Phi-3 then computes the whole cache anew",
        "llama.cpp takes one set for a context, by its allocated size (`-c`)",
        "transformers 4 refuses this config",
    ),
    "vllm": ("vLLM takes one set for good", "vllm serve MODEL"),
    "jaxrope": ("each sequence takes the factors of its own length, up to 32, 256 tokens",),
}
UNSAID = {
    "hf-llama": "computes the whole cache anew",
    "hf-phi3": "drops the factors",
    "vllm": "llama.cpp",
    "jaxrope": "vLLM",
}


@pytest.mark.parametrize("form", FORMATS)
def test_what_each_program_will_do(tmp_path, form):
    needs(form)
    told = " ".join(convert(saved(tmp_path, rope_of()), tmp_path / "out", Settings(form)))
    for words in SAID[form]:
        assert words in told
    assert UNSAID[form] not in told


def test_one_set_of_factors_cannot_be_chosen_wrongly(tmp_path):
    path = saved(tmp_path, rope_of(buckets=rows(256, attention=("su", "su"))))
    told = convert(path, tmp_path / "out", Settings("hf-phi3"))
    assert "The factors are the same at every length" in told[0] and len(told) == 4
    assert convert(path, tmp_path / "again", Settings("jaxrope")) == [
        "jaxrope: one set of factors for sequences of up to 256 tokens."
    ]


REFUSED = {
    "three buckets": (rows(32, 64, 256), r"3 length buckets \(up to 32, 64, 256\)"),
    "another border": (rows(64, 256), "the border between the buckets, 64, would become"),
    "start tokens": (rows(32, 256, start_tokens=4), "start_tokens 4: the first positions"),
    "attention": (rows(32, 256, attention=(1.0, 1.2)), r"differing attention factors \(1, 1.2\)"),
}
READERS = {"hf-llama": "Hugging Face", "hf-phi3": "Hugging Face", "gguf": "llama.cpp"}


@pytest.mark.parametrize("form", (*READERS, "vllm"))
@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_silently_wrong(tmp_path, name, form):
    needs(form)
    buckets, message = REFUSED[name]
    path = saved(tmp_path, rope_of(buckets=buckets))
    if (name, form) == ("attention", "vllm"):
        return  # it has one for each set: test_what_vllm_reads
    reader = READERS.get(form, "vLLM")
    with pytest.raises(InputError, match=f"^{reader} cannot express this rope: {message}"):
        written(path, tmp_path / "out", form)
    assert not (tmp_path / "out").exists()
    told = written(path, tmp_path / "out", form, allow_lossy=True)
    assert any(line.startswith("note: lost: ") for line in told)
    assert read(tmp_path / "out").rope_fn.bucket(256).factors == tuple(LONG)


def test_factors_of_each_layer(tmp_path):
    layered = [row | dict(factors=[row["factors"], LONG]) for row in rows(32, 256)]
    path = saved(tmp_path, rope_of(buckets=layered))
    for form in ("hf-llama", "hf-phi3", "gguf", "vllm"):
        needs(form)
        with pytest.raises(InputError, match="factors of each layer's own cannot be written"):
            written(path, tmp_path / "out", form, allow_lossy=True)
    convert(path, tmp_path / "out", Settings("jaxrope"))
    same(read(tmp_path / "out").rope_fn, rope_of(buckets=layered))
    write(tmp_path / "in", CASES["llama"])
    model = pretrained.with_rope(pretrained.load(tmp_path / "in"), path)
    with pytest.raises(InputError, match="all of them give one set to every layer"):
        exporting.export_folder(model, tmp_path / "hf")


@pytest.mark.parametrize("name", ["gemma3", "olmo3", "ministral3", "smollm3", "stablelm", "gemma2"])
def test_a_folder_has_the_rope_of_its_import(tmp_path, name):
    """Of full layers, with the family's own values for what config.json leaves out."""
    model_type, differing = hf_families.CASES[name]
    keys = dict(model_type=model_type, vocab_size=96, hidden_size=64, intermediate_size=48)
    keys |= dict(num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=2)
    keys |= {"rope_parameters": hf_families.rope_parameters(model_type, "yarn", 16)}
    scaled = keys | differing | dict(head_dim=16, num_hidden_layers=4)
    for config in (
        keys | dict(rope_parameters=None, rms_norm_eps=1e-6),
        scaled | dict(rms_norm_eps=1e-6),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        model, notes = hf_config.read(tmp_path)
        found = read(tmp_path)
        assert found.rope_fn.geometry == decoder.own_rope(model).geometry
        assert found.longest == model.max_len
        assert rope_export.difference(found.rope_fn, decoder.own_rope(model)) == 0
        assert {note for note in notes if "max_position" in note} <= set(found.notes)


def write_seeing(folder):
    """Writes the config.json of a Qwen3.5 with its vision part, quantised."""
    text = dict(model_type="qwen3_5_text", vocab_size=96, hidden_size=64, intermediate_size=48)
    text |= dict(num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=32)
    text |= dict(max_position_embeddings=32, rms_norm_eps=1e-6)
    section = dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5)
    text |= dict(rope_parameters=section | dict(mrope_section=[4, 2, 2], mrope_interleaved=True))
    values = dict(model_type="qwen3_5", text_config=text, vision_config=dict(depth=27))
    values |= dict(quantization_config=dict(quant_method="fp8"))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))


def test_a_line_for_a_model_with_a_vision_part(tmp_path):
    """Under text_config, without the sections of pictures, which vLLM keeps."""
    write_seeing(tmp_path / "seeing")
    yarn = dict(factor=4.0, beta_fast=20.0, beta_slow=0.5, attention_factor=1.2)
    geometry = dict(head_dim=32, rotary_dim=16, theta=1e4, original_len=32)
    rope_fn = rope.make("yarn", **geometry, **yarn)
    settings = Settings("vllm", model=tmp_path / "seeing")
    said = convert(saved(tmp_path, rope_fn), tmp_path / "out", settings)
    assert said[-1].startswith("Serve the model so: xargs -a ")
    flag, value, length = shlex.split((tmp_path / "out").read_text())
    assert (flag, length) == ("--hf-overrides", "--max-model-len=128")
    section = dict(rope_type="yarn", rope_theta=1e4, partial_rotary_factor=0.5, truncate=True)
    section |= yarn | dict(original_max_position_embeddings=32)
    text = dict(max_position_embeddings=128, head_dim=32, rope_parameters=section)
    assert json.loads(value) == {"text_config": text}
    found = read(tmp_path / "out").rope_fn
    assert found.geometry == rope_fn.geometry and rope_export.difference(found, rope_fn) == 0


@pytest.mark.parametrize("name", ["qwen3_moe", "gemma3", "stablelm", "gemma2"])
def test_the_config_of_a_model_with_another_rope(tmp_path, name):
    """Only the rope of full layers differs; one for all layers is refused where some slide."""
    model_type, differing = hf_families.CASES[name]
    keys = dict(model_type=model_type, vocab_size=96, hidden_size=64, intermediate_size=48)
    keys |= dict(num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    keys |= dict(max_position_embeddings=32, rms_norm_eps=1e-6, transformers_version="4.9")
    keys |= {"rope_parameters": hf_families.rope_parameters(model_type, "plain", 16)}
    (tmp_path / "config.json").write_text(json.dumps(keys | differing))
    before = hf_config.read(tmp_path)[0]
    rope_fn = rope.make("yarn", **before.geometry, factor=4.0, beta_fast=4.0, beta_slow=0.5)
    settings = Settings("hf", overwrite=True, model=tmp_path)
    arguments = saved(tmp_path, rope_fn), tmp_path / "config.json", settings
    if name == "gemma2":
        with pytest.raises(InputError, match="those that slide would be rescaled too"):
            convert(*arguments)
        return
    convert(*arguments)
    after = hf_config.read(tmp_path)[0]
    assert rope_export.difference(decoder.own_rope(after), rope_fn) == 0
    own = dict(rope=before.rope, max_len=32, sliding_theta=before.sliding_theta)
    assert dataclasses.replace(after, **own) == before
    assert json.loads((tmp_path / "config.json").read_text())["transformers_version"] == "4.9"


@pytest.mark.parametrize("factor", [2.0, 4.0])
def test_a_scaling_that_grows_has_one_length_elsewhere(tmp_path, factor):
    """In vLLM and llama.cpp: the factors of the longest text, factor * original."""
    rope_fn = rope.make("dynamic_ntk", head_dim=16, theta=1e4, original_len=32, factor=factor)
    path = tmp_path / "config.json"
    config = dict(model_type="llama", head_dim=16, max_position_embeddings=32)
    scaling = dict(rope_type="dynamic", factor=factor, rope_theta=1e4)
    path.write_text(json.dumps(config | dict(rope_parameters=scaling)))
    said = " ".join(convert(path, tmp_path / "hf", Settings("hf-llama")))
    assert "vLLM 0.32 does not extend by it: beyond 32 tokens" in said
    longest = int(factor * 32)
    for source in (path, tmp_path / "hf"):
        for form, name in (("vllm", "vLLM"), ("gguf", "llama.cpp")):
            needs(form)
            target = tmp_path / form
            with pytest.raises(InputError, match=f"{name} cannot express this rope: method 'dyn"):
                written(source, target, form)
            written(source, target, form, allow_lossy=True)
            long, expected = (fn.bucket(longest) for fn in (read(target).rope_fn, rope_fn))
            np.testing.assert_allclose(long.factors, expected.factors, rtol=1e-6)


def test_lengths_of_factors(tmp_path):
    convert(saved(tmp_path, rope_of()), tmp_path / "out", Settings("hf-llama"))
    content = json.loads((tmp_path / "out").read_text())
    content["rope_scaling"]["long_factor"] = content["rope_parameters"]["long_factor"] = LONG[:7]
    (tmp_path / "out").write_text(json.dumps(content))
    with pytest.raises(InputError, match="long_factor must hold 8 numbers, half the dims"):
        read(tmp_path / "out")


MISTAKES = {
    "no file": (("IN", "out", "--format=vllm"), "there is no such file. Name a rope.json"),
    "format": (("rope.json", "out", "--format=ggu"), "Unknown --format 'ggu'. Known: hf, hf-llama"),
    "no format": (("rope.json", "out"), "arguments are required: --format"),
    "gguf": (
        ("rope.json", "out", "--format=gguf"),
        "no program loads a GGUF of a rope alone. Put it into a model's file",
    ),
    "taken": (("rope.json", "rope.json", "--format=vllm"), "exists. Name another, or pass"),
    "folder": (("rope.json", ".", "--format=vllm"), "is a folder. Name a file in it"),
    "no folder": (("rope.json", "a/b", "--format=vllm"), "there is no such folder. Make it"),
    "no model": (("rope.json", "out", "--format=hf"), "name its folder, --model=HF_DIR"),
    "model of none": (
        ("rope.json", "out", "--format=hf-phi3", "--model=seeing"),
        "--model is for --format=hf and vllm, got hf-phi3",
    ),
    "another model": (
        ("other.json", "out", "--format=hf", "--model=seeing"),
        "has theta 10000.0, the rope 500000.0. Name the model that it was",
    ),
    "factors beside vision": (
        ("rope.json", "out", "--format=vllm", "--model=seeing"),
        "vLLM scales the rope as YaRN alone, got longrope. Search in its form",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    dims = dict(head_dim=32, rotary_dim=16)
    os.rename(saved(tmp_path / "other", rope_of("two", **dims)), tmp_path / "other.json")
    saved(tmp_path, rope_of(**dims))
    write_seeing(tmp_path / "seeing")
    arguments, message = MISTAKES[name]
    code, out, err = run(capsys, "rope", *arguments)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_command_line(tmp_path, capsys):
    path = saved(tmp_path, rope_of())
    code, out, err = run(capsys, "rope", path, tmp_path / "out", "--format=hf-llama")
    assert (code, err) == (0, "")
    assert out.startswith("transformers takes") and out.endswith(f"wrote {tmp_path / 'out'}\n")
    path = saved(tmp_path, rope_of(buckets=rows(64, 256)))
    lossy = ("rope", path, tmp_path / "out", "--format=vllm", "--overwrite", "--allow_lossy")
    code, _, err = run(capsys, *lossy)
    assert code == 0 and err.startswith("note: lost: the border between the buckets")


def test_what_was_written_is_read_again(tmp_path, monkeypatch):
    real = rope_export.HfRope.keys

    def wrong(self, config):
        return real(dataclasses.replace(self, theta=self.theta * 1.001), config)

    monkeypatch.setattr(rope_export.HfRope, "keys", wrong)
    with pytest.raises(RuntimeError, match="does not mean the rope it was written for"):
        convert(saved(tmp_path, rope_of()), tmp_path / "out", Settings("hf-llama"))
    assert not (tmp_path / "out").exists()


# The layout of a whole model

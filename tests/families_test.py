"""Every family against transformers' own class: logits, packed rows, caches, exports."""

import dataclasses
import functools
import json

import generate_chat_test
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrope import decoder, generate, rope
from jaxrope.convert import config as hf_config
from jaxrope.convert import exporting, families, importing, pretrained, rope_export, rope_formats
from jaxrope.errors import InputError
from tests import hf_families
from tests.hf_families import CASES, SCALINGS

TOLERANCE = 2e-4  # of the largest logit
LENGTHS = (
    24,
    33,
    100,
)  # below the original length of 32, one beyond, far beyond it and the windows
SETTINGS = decoder.ForwardSettings(attention_block=32)
forward = jax.jit(functools.partial(decoder.logits, settings=SETTINGS), static_argnums=0)


@pytest.fixture(scope="module")
def torch():
    pytest.importorskip("transformers", reason="needs transformers (Python 3.11)")
    module = pytest.importorskip("torch", reason="needs torch (Python 3.11)")
    module.set_num_threads(1)
    return module


def tokens_of(length, seed=7):
    return np.random.default_rng(seed).integers(0, hf_families.VOCAB, length)


def our_logits(model, tokens, *, rope_len=None):
    padded = np.pad(tokens, (0, max(LENGTHS) - len(tokens)))
    rope_of_length = model.rope_fn(rope_len or len(tokens))
    logits = forward(model.config, model.params, jnp.asarray(padded)[None], rope_of_length)
    return np.asarray(logits)[0, : len(tokens)]


def their_logits(torch, model, tokens):
    with torch.no_grad():
        return model(torch.as_tensor(np.asarray(tokens))[None]).logits[0].float().numpy()


def assert_equal(ours, theirs):
    assert np.ptp(theirs) > 1  # a model whose logits say something
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * np.abs(theirs).max())


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("case", CASES)
def test_logits(torch, tmp_path, case, scaling):
    if scaling == "longrope" and case in hf_families.ONE_ROPE:
        pytest.skip("full and sliding layers share factors that change with the length: refused")
    theirs = hf_families.write(torch, tmp_path, case, scaling)
    ours = pretrained.load(tmp_path)
    for length in LENGTHS:
        tokens = tokens_of(length)
        assert_equal(our_logits(ours, tokens), their_logits(torch, theirs, tokens))


@pytest.mark.parametrize("case", [case for case in CASES if case in hf_families.ONE_ROPE])
def test_factors_that_change_with_the_length_are_not_for_sliding_layers(torch, tmp_path, case):
    hf_families.write(torch, tmp_path, case, "longrope")
    with pytest.raises(InputError, match="full and sliding layers is not supported"):
        pretrained.load(tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_documents_of_a_row_equal_themselves_alone(torch, tmp_path, case):
    hf_families.write(torch, tmp_path, case)
    model = pretrained.load(tmp_path)
    parts = [tokens_of(n, seed=n) for n in (40, 30, 30)]
    positions = np.concatenate([np.arange(len(part)) for part in parts])
    segments = np.repeat(np.arange(3), [len(part) for part in parts])
    packed = forward(
        model.config,
        model.params,
        jnp.asarray(np.concatenate(parts))[None],
        model.rope_fn(100),
        positions_BT=jnp.asarray(positions, jnp.int32)[None],
        segment_ids_BT=jnp.asarray(segments, jnp.int32)[None],
    )
    for number, part in enumerate(parts):
        alone = our_logits(model, part, rope_len=100)
        np.testing.assert_allclose(
            packed[0, segments == number], alone, rtol=0, atol=1e-5 * np.abs(alone).max()
        )


@pytest.mark.parametrize("case", CASES)
def test_greedy_text(torch, tmp_path, case):
    """Caches: prompts read in chunks and 40 tokens, as transformers generates them; a chat too."""
    theirs = hf_families.write_speaker(torch, tmp_path, case)
    chat = hf_families.our_chat(tmp_path)
    ids, answer = hf_families.their_chat(torch, tmp_path, theirs)
    assert chat.prompts == [ids] and len(set(answer)) > 3
    model = dataclasses.replace(chat.model, params=pretrained.load(tmp_path).params)
    prompts = [tokens_of(n).tolist() for n in (70, 9)]
    *new, ours = generate.generate(model, [*prompts, ids], chat.options)
    assert ours == answer
    for prompt, continuation in zip(prompts, new, strict=True):
        logits = their_logits(torch, theirs, prompt + continuation)[len(prompt) - 1 : -1]
        best = np.sort(logits, axis=-1)[:, -2:]
        clear = best[:, 1] - best[:, 0] > 1e-3
        assert clear.mean() > 0.8
        np.testing.assert_array_equal(
            np.argmax(logits, axis=-1)[clear], np.array(continuation)[clear]
        )


def test_every_family_has_a_chat():
    """Those of no case here are in generate_chat_test.py."""
    of_cases = {model_type for model_type, _ in CASES.values()}
    assert of_cases | {"llama", "mistral", "qwen2", "phi3"} == set(families.FAMILIES)
    assert {"llama", "mistral", "qwen2", "phi3"} <= set(generate_chat_test.FAMILIES)


@pytest.mark.parametrize("case", CASES)
def test_import_export_import_is_bit_equal(torch, tmp_path, case):
    theirs = hf_families.write(torch, tmp_path / "in", case, "yarn")
    importing.import_folder(tmp_path / "in", tmp_path / "work")
    exporting.export_folder(pretrained.load(tmp_path / "work", dtype=None), tmp_path / "out")
    first, again = (pretrained.load(tmp_path / name, dtype=None) for name in ("in", "out"))
    unlike = {f.name for f in dataclasses.fields(first.config)}
    unlike = {n for n in unlike if getattr(first.config, n) != getattr(again.config, n)}
    assert unlike <= {"rope", "sliding_rope"}  # the attention factor is spelled out
    assert rope_export.difference(first.rope_fn, again.rope_fn) == 0
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    import transformers

    reopened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = tokens_of(100)
    np.testing.assert_array_equal(
        their_logits(torch, reopened.eval(), tokens), their_logits(torch, theirs, tokens)
    )


EXTENDED = [case for case in CASES if case not in hf_families.ONE_ROPE]


@pytest.mark.parametrize("case", EXTENDED)
def test_an_extended_model_opens_in_transformers(torch, tmp_path, case):
    """Two sets of factors for the full layers; those that slide stay as they are."""
    hf_families.write(torch, tmp_path / "in", case)
    model = pretrained.load(tmp_path / "in")
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, original_len=32))
    shape = dict(head_dim=model.config.head_dim, rotary_dim=model.config.rotary_dim)
    shape |= dict(theta=model.config.theta, original_len=32)
    pairs = model.config.rotary_dim // 2
    rows = [
        dict(max_len=n, factors=list(f[:pairs]), start_tokens=0, attention_factor=1.2)
        for n, f in ((32, hf_families.SHORT), (128, hf_families.LONG))
    ]
    model = dataclasses.replace(model, rope_fn=rope.make("longrope", **shape, buckets=rows))
    exporting.export_folder(model, tmp_path / "out")
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    for length in LENGTHS:
        tokens = tokens_of(length)
        assert_equal(our_logits(model, tokens), their_logits(torch, theirs, tokens))


def test_one_rope_for_all_layers_is_not_extended(torch, tmp_path):
    hf_families.write(torch, tmp_path / "in", "gemma2")
    model = pretrained.load(tmp_path / "in")
    shape = dict(head_dim=16, theta=model.config.theta, original_len=128)
    model = dataclasses.replace(model, rope_fn=rope.make("pi", **shape, factor=4.0))
    with pytest.raises(InputError, match="those that slide would be rescaled too"):
        exporting.export_folder(model, tmp_path / "out")


def test_the_text_part_of_a_model_with_vision(torch, tmp_path):
    """config.json with text_config, as google/gemma-3-4b-it has it: few keys, the rest defaults."""
    import transformers

    text = dict(
        hidden_size=2560,
        intermediate_size=10240,
        model_type="gemma3_text",
        num_hidden_layers=34,
        rope_scaling=dict(factor=8.0, rope_type="linear"),
        sliding_window=1024,
    )
    values = dict(model_type="gemma3", eos_token_id=[1, 106], text_config=text, vision_config={})
    (tmp_path / "config.json").write_text(json.dumps(values))
    config, notes = hf_config.read(tmp_path)
    theirs = transformers.Gemma3TextConfig(**text)
    assert [name == "full" for name in config.layers] == [
        name == "full_attention" for name in theirs.layer_types
    ]
    assert config.rope == {"method": "pi", "factor": 8.0} and config.theta == 1e6
    assert (config.sliding_theta, config.sliding_rope) == (1e4, {"method": "none"})
    sizes = theirs.vocab_size, theirs.num_attention_heads, theirs.head_dim
    assert sizes == (config.vocab_size, config.num_heads, config.head_dim)
    assert any("text part of a gemma3" in note for note in notes)
    assert any("no max_position_embeddings; 131072 is taken" in note for note in notes)


@pytest.mark.parametrize("case", ["qwen3_5", "qwen3_5_moe"])
def test_factors_go_into_a_folder_with_a_vision_part(torch, tmp_path, case):
    """Into its config.json, and nothing else of it changes: its class computes what we do."""
    import transformers

    hf_families.write_seeing(torch, tmp_path / "in", case)
    target = tmp_path / "in" / "config.json"
    geometry = dict(head_dim=16, rotary_dim=8, theta=1e4, original_len=32)
    rope_fn = rope.make("yarn", **geometry, factor=4.0, beta_fast=4.0, beta_slow=0.5)
    rope.save(tmp_path / "rope.json", rope_fn, {}, max_len=128)
    how = rope_formats.Settings("hf", overwrite=True, model=tmp_path / "in")
    before = json.loads(target.read_text())
    said = rope_formats.convert(tmp_path / "rope.json", target, how)
    assert said[-1] == f"Put it in the place of {target}"
    after = json.loads(target.read_text())
    section = after["text_config"].pop("rope_parameters")
    assert section == after["text_config"].pop("rope_scaling")
    assert section["mrope_section"] == [2, 1, 1] and section["mrope_interleaved"]
    changed = {"rope_theta", "max_position_embeddings", "original_max_position_embeddings"}
    for values in (before, after):
        values["text_config"] = {
            k: v for k, v in values["text_config"].items() if k not in {*changed, "rope_parameters"}
        }
    assert before == after
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "in").eval()
    ours = pretrained.load(tmp_path / "in")
    assert ours.config.max_len == 128 and rope_export.difference(ours.rope_fn, rope_fn) == 0
    tokens = 9 + tokens_of(100) % 80  # none stands for a picture
    assert_equal(our_logits(ours, tokens), their_logits(torch, theirs, tokens))

"""A Llama exported as Phi-3, whose code in transformers switches between factors."""

import dataclasses
import json

import numpy as np
import pytest
from hf_models import CASES, write
from parity_test import (
    TOLERANCE,
    give_our_phases,
    load_torch,
    our_logits,
    tokens_of,
    torch_logits,
)

from jaxrope.convert import exporting, pretrained
from jaxrope.errors import InputError
from tests.rope_samples import SHORT, rope_of, rows, run

AS_PHI3 = exporting.Settings(arch="phi3")


PLAIN = CASES["llama"] | dict(hidden_size=64)  # head_dim 16 = 64 / 4, as Phi-3 needs it


def exported(tmp_path, config, settings=AS_PHI3, buckets=None):
    write(tmp_path / "in", config)
    model = pretrained.load(tmp_path / "in")
    rope_fn = rope_of(buckets=buckets or rows(32, 128))
    model = dataclasses.replace(model, rope_fn=rope_fn)
    exporting.export_folder(model, tmp_path / "out", settings)
    return model


@pytest.mark.parametrize("tied", (False, True))
def test_a_llama_as_phi3(tmp_path, tied):
    """transformers itself changes over: the same logits below, at and above the original length."""
    ours = exported(tmp_path, PLAIN | dict(tie_word_embeddings=tied))
    torch, theirs = load_torch(tmp_path / "out")
    assert type(theirs).__name__ == "Phi3ForCausalLM"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["original_max_position_embeddings"] == 32
    assert config["rope_scaling"]["short_factor"] == SHORT
    for length in (24, 32, 33, 100):
        tokens = tokens_of(PLAIN, length)
        expected = torch_logits(torch, theirs, tokens)
        assert np.ptp(expected) > 2
        np.testing.assert_allclose(our_logits(ours, tokens), expected, rtol=0, atol=TOLERANCE)
        phases = theirs.model.rotary_emb.forward
        give_our_phases(torch, theirs, ours.rope_fn, length)  # theirs are 6e-6 off at 100 tokens
        expected = torch_logits(torch, theirs, tokens)
        np.testing.assert_allclose(our_logits(ours, tokens), expected, rtol=0, atol=2e-5)
        theirs.model.rotary_emb.forward = phases
    again = pretrained.load(tmp_path / "out")
    np.testing.assert_equal(again.params, ours.params)
    assert again.config.family == "phi3"


def test_transformers_generates_across_the_original_length(tmp_path):
    ours = exported(tmp_path, PLAIN)
    torch, theirs = load_torch(tmp_path / "out")
    tokens = tokens_of(PLAIN, 28)
    with torch.no_grad():
        found = theirs.generate(
            torch.as_tensor(tokens)[None], max_new_tokens=12, do_sample=False, eos_token_id=None
        )
    expected = list(tokens)
    for _ in range(12):
        expected.append(int(our_logits(ours, np.asarray(expected))[-1].argmax()))
    assert found[0].tolist() == [int(token) for token in expected]


OBSTACLES = {
    "biases": ("phi3", PLAIN | dict(attention_bias=True), "a Phi-3 .* no biases, this model has"),
    "head_dim": ("phi3", CASES["llama"], "needs head_dim = .* = 8, got 16"),
    "window": ("llama", CASES["phi3"], "a Llama has no sliding window, this model has one of 40"),
    "partial": ("llama", CASES["phi3 partial"], "a Llama turns all 16 dims of a head, this .* 12"),
    "some biases": ("llama", CASES["qwen2"], "a Llama has a bias on q, k, v and o, or on none"),
    "unknown": ("phi", PLAIN, "Unknown --arch 'phi'. Did you mean 'phi3'"),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_a_layout_that_cannot_say_the_model(tmp_path, capsys, name):
    arch, config, message = OBSTACLES[name]
    write(tmp_path / "in", config)
    with pytest.raises(InputError, match=message):
        exporting.check_arch(arch, pretrained.read_config(tmp_path / "in"))
    code, _, err = run(capsys, "export", tmp_path / "in", tmp_path / "out", f"--arch={arch}")
    assert code == 2 and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_the_layout_is_the_models_own_by_default(tmp_path):
    exported(tmp_path, PLAIN, exporting.Settings())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]

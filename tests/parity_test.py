"""The same logits as torch + transformers, and as an independent forward pass in numpy.

transformers' own phases are float32 products: 2e-4 off at position 4,096. Beyond a few thousand
tokens it is therefore given our cos and sin.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hf_models import CASES, write

from jaxrope import llama, pretrained

TOLERANCE = 2e-4


LENGTHS = (24, 32, 33, 100)  # below the original length of 32, at it, one beyond, and far beyond
SETTINGS = llama.ForwardSettings(attention="blockwise", attention_block=32)
forward = jax.jit(functools.partial(llama.logits, settings=SETTINGS), static_argnums=0)


def our_logits(model, tokens, *, longest=100):
    """Logits [T, vocabulary] with the rope of this length.

    Padded on the right, where causality hides it: a model is compiled once for all lengths.
    """
    padded = np.pad(tokens, (0, longest - len(tokens)))
    result = forward(
        model.config, model.params, jnp.asarray(padded)[None], model.rope_fn(len(tokens))
    )
    return np.asarray(result)[0, : len(tokens)]


def tokens_of(config, length):
    return np.random.default_rng(7).integers(0, config["vocab_size"], length)


@pytest.mark.parametrize("name", CASES)
def test_oracle(tmp_path, name):
    tensors = write(tmp_path, CASES[name])
    model = pretrained.load(tmp_path)
    for length in LENGTHS:
        tokens = tokens_of(CASES[name], length)
        expected = oracle.logits(CASES[name], tensors, tokens)
        assert np.ptp(expected) > 2  # a model whose logits say something
        np.testing.assert_allclose(our_logits(model, tokens), expected, rtol=0, atol=TOLERANCE)


def load_torch(folder):
    torch = pytest.importorskip("torch", reason="needs torch (Python 3.11)")
    transformers = pytest.importorskip("transformers", reason="needs transformers (Python 3.11)")
    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return torch, model.eval()


def torch_logits(torch, model, tokens):
    with torch.no_grad():
        return model(torch.as_tensor(tokens)[None]).logits[0].numpy()


@pytest.mark.parametrize("name", CASES)
def test_torch(tmp_path, name):
    write(tmp_path, CASES[name])
    torch, model = load_torch(tmp_path)
    ours = pretrained.load(tmp_path)
    for length in LENGTHS:
        tokens = tokens_of(CASES[name], length)
        np.testing.assert_allclose(
            our_logits(ours, tokens), torch_logits(torch, model, tokens), rtol=0, atol=TOLERANCE
        )

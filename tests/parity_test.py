"""The same logits as torch + transformers, and as an independent forward pass in numpy.

transformers' own phases are float32 products: 2e-4 off at position 4,096. Beyond a few thousand
tokens it is therefore given our cos and sin.
"""

import dataclasses
import functools
import json

import export_perplexity
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hf_models import CASES, write
from safetensors import safe_open

from jaxrope import data, decoder, rope
from jaxrope.convert import exporting, importing, pretrained

TOLERANCE = 2e-4
GEOMETRY = dict(head_dim=64, theta=10_000.0, original_len=512)  # of books-6m


LENGTHS = (24, 32, 33, 100)  # below the original length of 32, at it, one beyond, and far beyond
SETTINGS = decoder.ForwardSettings(attention="blockwise", attention_block=32)
forward = jax.jit(functools.partial(decoder.logits, settings=SETTINGS), static_argnums=0)


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


ROPES = {
    "pi": dict(factor=4.0),
    "ntk": dict(factor=4.0),
    "yarn": dict(factor=4.0, beta_fast=4.0, beta_slow=0.5),
    "llama3": dict(factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0),
    "longrope": dict(factors=[1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 4.0], attention_factor=1.4),
}


@pytest.mark.parametrize("method", ROPES)
@pytest.mark.parametrize("name", ("llama", "phi3"))
def test_torch_reads_an_export(tmp_path, name, method):
    write(tmp_path / "in", CASES[name])
    model = pretrained.load(tmp_path / "in")
    limit = {"max_len": 128} if method == "longrope" else {}
    shape = dict(head_dim=16, theta=model.config.theta, original_len=32)
    rope_fn = rope.make(method, **shape, **ROPES[method], **limit)
    model = dataclasses.replace(model, rope_fn=rope_fn)
    exporting.export_folder(model, tmp_path / "out")
    torch, theirs = load_torch(tmp_path / "out")
    for length in LENGTHS:
        tokens = tokens_of(CASES[name], length)
        expected = torch_logits(torch, theirs, tokens)
        np.testing.assert_allclose(our_logits(model, tokens), expected, rtol=0, atol=TOLERANCE)


def give_our_phases(torch, theirs, rope_fn, length):
    """Puts our cos and sin in place of transformers'."""
    positions = jnp.arange(length, dtype=jnp.int32)[None]
    cos, sin = (np.asarray(x) for x in rope.cos_sin(rope_fn(length), positions))
    both = tuple(torch.as_tensor(np.concatenate([x, x], axis=-1)) for x in (cos, sin))
    theirs.model.rotary_emb.forward = lambda *args, **kwargs: both


def book_tokens(shared, folder, length):
    path = sorted((shared / "books" / "val").glob("*.txt"))[0]
    tokenizer = data.load_tokenizer(folder)
    ids = tokenizer.encode(path.read_text(encoding="utf-8")[40_000 : 40_000 + 8 * length])
    return np.concatenate([[tokenizer.bos_id], ids])[:length].astype(np.int32)


@pytest.mark.parametrize("length", (512, 2048, pytest.param(5000, marks=pytest.mark.slow)))
def test_books_6m(tmp_path, shared, books_6m, length, capsys):
    """A real model, exported with two sets of factors: short up to 512 tokens, long beyond."""
    model = pretrained.load(books_6m)
    ramp = np.linspace(0, 1, 32) ** 2
    rows = [
        dict(max_len=limit, factors=list(1 + most * ramp), start_tokens=0, attention_factor=1.15)
        for limit, most in ((512, 0.2), (8192, 12.0))
    ]
    rope_fn = rope.make("longrope", head_dim=64, theta=1e4, original_len=512, buckets=rows)
    model = dataclasses.replace(model, rope_fn=rope_fn)
    exporting.export_folder(model, tmp_path / "out")
    torch, theirs = load_torch(tmp_path / "out")
    tokens = book_tokens(shared, books_6m, length)
    ours = our_logits(model, tokens, longest=length)
    without = np.abs(torch_logits(torch, theirs, tokens) - ours).max()
    give_our_phases(torch, theirs, rope_fn, length)
    given = np.abs(torch_logits(torch, theirs, tokens) - ours).max()
    with capsys.disabled():
        print(f"\n{length} tokens: logits differ by {without:.1e}; given our phases, {given:.1e}")
    assert given < TOLERANCE
    assert length > 2048 or without < 10 * TOLERANCE


def test_books_6m_as_it_is(shared, books_6m):
    """Within what it was trained for, and with no help."""
    torch, theirs = load_torch(books_6m)
    model = pretrained.load(books_6m)
    tokens = book_tokens(shared, books_6m, 512)
    ours = our_logits(model, tokens, longest=512)
    np.testing.assert_allclose(ours, torch_logits(torch, theirs, tokens), rtol=0, atol=TOLERANCE)
    with safe_open(books_6m / "model.safetensors", framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    expected = oracle.logits(json.loads((books_6m / "config.json").read_text()), tensors, tokens)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE)


def test_tokenizer_ids_after_an_export(tmp_path, shared, books_6m):
    transformers = pytest.importorskip("transformers", reason="needs transformers (Python 3.11)")
    importing.import_folder(books_6m, tmp_path / "work")
    exporting.export_folder(pretrained.load(tmp_path / "work", dtype=None), tmp_path / "out")
    text = sorted((shared / "books" / "val").glob("*.txt"))[0].read_text(encoding="utf-8")[:20_000]
    before, after, ours = (
        transformers.AutoTokenizer.from_pretrained(books_6m)(text)["input_ids"],
        transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(text)["input_ids"],
        data.load_tokenizer(tmp_path / "out").encode(text).tolist(),
    )
    assert before == after and after[-1000:] == ours[-1000:]


def test_perplexity_of_an_export(tmp_path, shared, books_6m):
    """Four digits of perplexity, inside the original window and four times beyond it."""
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    base = pretrained.load(books_6m)
    yarn = rope.make("yarn", **GEOMETRY, factor=4.0, beta_fast=32, beta_slow=1).bucket(2048)
    bucket = dict(max_len=2048, factors=yarn.factors, start_tokens=0, attention_factor="su")
    longer = rope.make("longrope", **GEOMETRY, buckets=[bucket])
    extended = tmp_path / "rope.json"
    rope.save(extended, longer, {})
    exporting.export_folder(pretrained.with_rope(base, extended), tmp_path / "hf")
    text = sorted((shared / "books" / "val").glob("*.txt"))[0]
    found = list(export_perplexity.compare(tmp_path / "hf", tmp_path / "hf", text, (512, 2048)))
    for length, ours, theirs in found:
        assert export_perplexity.agree(ours, theirs), (length, ours, theirs)
    assert found[1][1] < 60  # extended it reads on; the base alone is above 80 there

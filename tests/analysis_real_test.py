"""Statistics of real attention against weights that are whole, in float64: the queries and keys of
trained models that read a text, under every mask, in blocks, and round a ring of eight devices.
"""

import dataclasses
import functools

import dense_attention as dense
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrope import decoder, rope
from jaxrope.analysis import frequencies, heads, measuring, streaming
from jaxrope.analysis.streaming import Options
from jaxrope.attention import masks
from jaxrope.convert import pretrained
from jaxrope.data import tokenizer
from jaxrope.mesh import sharding
from tests.analysis_mesh_test import in_parts
from tests.processes import ROOT

LENGTH = 160
SETTINGS = decoder.ForwardSettings()
SHIPPED = ROOT / "jaxrope" / "models" / "stdlib-3m"


@dataclasses.dataclass
class Reading:
    """A model, the tokens [1, T] of a text, the rope it reads them with, and what it then sees:
    queries and keys of all layers, rotated and not, [L, T, N, H]."""

    model: object
    tokens: np.ndarray
    rope: object
    q: np.ndarray
    k: np.ndarray
    seen: decoder.Seen


def reading(model, text, factor, attention_factor):
    config = model.config
    r = rope.make(
        "yarn",
        factor=factor,
        beta_fast=32.0,
        beta_slow=1.0,
        attention_factor=attention_factor,
        head_dim=config.head_dim,
        rotary_dim=config.rotary_dim,
        theta=config.theta,
        original_len=config.original_len,
    )(LENGTH)
    encode = tokenizer.load_tokenizer(model.tokenizer_dir).encode
    tokens = np.array(encode(text)[:LENGTH], np.int32)[None]
    assert tokens.shape == (1, LENGTH)

    def probe_fn(seen):
        return *(rope.rotate(x, *seen.turn) for x in (seen.q_BTNH, seen.k_BTKH)), seen

    run = jax.jit(functools.partial(decoder.probe, probe_fn=probe_fn), static_argnums=0)
    q, k, seen = run(config, model.params, tokens, r)[1]
    return Reading(model, tokens, r, np.asarray(q)[:, 0], np.asarray(k)[:, 0], seen)


@pytest.fixture(scope="module")
def of_books(shared, books_6m):
    """books-6m, which has two query heads for each kv head, and the middle of a novel that it was
    not trained on."""
    text = sorted((shared / "books" / "val").glob("*.txt"))[0].read_text(encoding="utf-8")
    return reading(pretrained.load(books_6m), text[40_000:44_000], 4.0, 1.1)


@pytest.fixture(scope="module")
def of_code():
    """The shipped model, and a piece of this file."""
    with open(__file__, encoding="utf-8") as file:
        return reading(pretrained.load(SHIPPED), file.read(), 2.0, 1.05)


def packed(**how):
    return masks.self_mask(*dense.ids((70, 1, 89)), **how)


MASKS = {
    "causal": functools.partial(dense.causal, LENGTH),
    "window": functools.partial(dense.causal, LENGTH, window=33),
    "packed": packed,
    "packed, window": functools.partial(packed, window=20),
    "both ways": functools.partial(dense.causal, LENGTH, causal=False),
    "both ways, packed": functools.partial(packed, causal=False),
    "across": functools.partial(dense.across, 90, LENGTH),
}
SLOW = ("window", "packed, window", "both ways")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in MASKS]
)
def test_every_mask_on_attention_of_books(of_books, name):
    """Layers are rows of a batch."""
    mask, options = MASKS[name](), Options(block=64, local=32)
    q, k = of_books.q[:, : mask.q_positions_BT.shape[1]], of_books.k
    sets = dense.needles(len(q), LENGTH)

    @jax.jit
    def run(q, k, mask, sets):
        return streaming.statistics(q, k, mask, options, sets_BSZ=sets)

    found = run(q, k, jax.tree.map(jnp.asarray, mask), sets)
    wanted = dense.statistics(q, k, mask, local=32, bins=9, sets=sets)
    dense.assert_same(found, wanted)
    assert q.shape[2] == 2 * k.shape[2] and np.ptp(wanted["entropy"]) > 2
    assert wanted["max_p"].max() > 0.9 and wanted["lse"].max() > 20  # logits that heads have


def check_measured(found, reading, sets, queries=slice(None)):
    assert len(found) == reading.model.config.num_layers
    for ours, q, k in zip(found, reading.q, reading.k, strict=True):
        wanted = dense.statistics(
            q[None], k[None], dense.causal(LENGTH), local=32, bins=9, sets=sets
        )
        # eight devices round the forward pass of queries and keys otherwise than one
        dense.assert_same(ours, {name: x[:, queries] for name, x in wanted.items()}, 3e-5)


def check_model(reading, options, settings=SETTINGS, params=None):
    """Every layer, head and query, and some queries alone."""
    model, few, sets = reading.model, np.array([[159, 0, 80]]), dense.needles(1, LENGTH)
    for queries in (None, few):
        found = measuring.measure(
            model.config,
            model.params if params is None else params,
            reading.tokens,
            reading.rope,
            inputs=measuring.Inputs(sets_BTZ=sets, queries_BM=queries),
            options=options,
            settings=settings,
        )
        check_measured(found, reading, sets, slice(None) if queries is None else few[0])


def test_every_layer_of_the_shipped_model(of_code):
    check_model(of_code, Options(block=64, local=32))


@pytest.mark.slow
def test_every_layer_of_books(of_books):
    check_model(of_books, Options(block=64, local=32))


@pytest.mark.slow
def test_every_layer_of_the_shipped_model_on_eight_devices(of_code):
    mesh = sharding.make_mesh(dict(data=1, fsdp=1, context=8, tensor=1))
    settings = decoder.ForwardSettings(attention="ring", attention_block=16, mesh=mesh)
    where = decoder.param_shardings(of_code.model.config, mesh)
    params = sharding.put(of_code.model.params, where)
    check_model(of_code, Options(block=16, local=32), settings, params)


@pytest.mark.parametrize("name", ["packed", pytest.param("both ways", marks=pytest.mark.slow)])
def test_a_ring_of_eight_devices_on_attention_of_books(of_books, name):
    """The same queries and keys as on one device, whose forward pass rounds otherwise."""
    mask, options = MASKS[name](), Options(block=16, local=32, spread="ring")

    def local(q, k, mask, index):
        return streaming.statistics(q, k, mask, options, index_BS=index)

    found = in_parts(local, mask, of_books.q, of_books.k, context=8)
    dense.assert_same(found, dense.statistics(of_books.q, of_books.k, mask, local=32, bins=9))


def test_the_same_by_pairs_and_for_sinks(of_books):
    """The entropy that is split over pairs is the one of the statistics; so is the sink's mass."""
    layers = jax.tree.map(lambda x: x[:, 0], of_books.seen._replace(index=None))
    mask = dense.causal(LENGTH)

    @jax.jit
    def run(seen, r, mask):
        terms = frequencies.entropy_terms(seen.q_BTNH, seen.k_BTKH, r, mask, block=64)
        return terms, heads.first_masses(seen._replace(mask=mask), first=4, block=64)

    whole = jax.tree.map(jnp.asarray, mask)
    terms, masses = run(layers._replace(mask=None), of_books.rope, whole)
    wanted = dense.statistics(of_books.q, of_books.k, mask, local=32, bins=9)
    np.testing.assert_allclose(terms.entropy_BTN, wanted["entropy"], rtol=0, atol=1e-5)
    parts = terms.lse_BTN - terms.expected_BTNQ.sum(-1)
    np.testing.assert_allclose(parts, wanted["entropy"], rtol=0, atol=3e-5)
    np.testing.assert_allclose(terms.lse_BTN, wanted["lse"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(masses[..., 0], wanted["sink"].sum(1), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(masses.sum(-1), wanted["first"].sum(1), rtol=1e-5, atol=1e-4)
    # slopes in temperature: -variance of the logits
    logits = dense.logits_of(of_books.q, of_books.k)
    p, _ = dense.softmax(logits, dense.seen_by(mask, len(logits))[0])
    mean = (p * logits).sum(-1, keepdims=True)
    variance = (p * (logits - mean) ** 2).sum(-1)
    np.testing.assert_allclose(terms.temperature_BTN, -variance, rtol=1e-4, atol=1e-5)

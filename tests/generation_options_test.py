"""Options of a generation: what is drawn from, sizes, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrope import generate
from jaxrope.errors import InputError
from jaxrope.generate import Options, sampling
from jaxrope.generate import state as states
from jaxrope.generate.options import Sampling
from tests.generation_test import DYNAMIC, make_model, options, prompt


@pytest.fixture(scope="module")
def model(tiny_config):
    return make_model(tiny_config)


def numpy_candidates(logits, temperature, top_k, top_p):
    """Returns {id: probability} by the definitions."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[: top_k or None]
    weights = np.exp(np.asarray([logits[i] for i in order], float) / temperature)
    probs, kept, total = weights / weights.sum(), [], 0.0
    for i, p in zip(order, probs, strict=True):
        if total >= top_p:
            break
        kept, total = [*kept, (i, p)], total + p
    return {i: p / total for i, p in kept}


@pytest.mark.parametrize(
    "how", [(1.0, 0, 1.0), (0.7, 5, 1.0), (1.3, 0, 0.8), (2.0, 7, 0.6), (1.0, 0, 1e-6), (1, 99, 1)]
)
def test_top_k_and_top_p(how):
    logits = np.random.default_rng(4).normal(size=30).astype(np.float32) * 2
    logits[[3, 8]] = logits.max() + 0.1  # equal ones
    expected = numpy_candidates(logits, *how)
    kept, ids = sampling.candidates(jnp.asarray(logits)[None], Sampling(*how))
    assert {int(i) for i, x in zip(ids[0], kept[0], strict=True) if x > -np.inf} == set(expected)
    probs = jax.nn.softmax(kept[0])
    for i, p in zip(ids[0], probs, strict=True):
        assert np.isclose(p, expected.get(int(i), 0), rtol=1e-4)
    count = 4000
    keys = np.random.default_rng(0).integers(0, 2**32, (count, 2), dtype=np.uint32)
    rows, lengths = jnp.broadcast_to(jnp.asarray(logits), (count, 30)), np.arange(count)
    # one row at every length, and every row at one length
    for streams, places in ((np.tile(keys[:1], (count, 1)), lengths), (keys, 0 * lengths)):
        drawn = sampling.draw(rows, jnp.asarray(streams), jnp.asarray(places), Sampling(*how))
        shares = np.bincount(np.asarray(drawn), minlength=30) / count
        for i in range(30):
            p = expected.get(i, 0)
            assert abs(shares[i] - p) <= 5 * np.sqrt(p * (1 - p) / count)


def test_sizes_of_chunks_and_caches():
    assert states.pieces(5, 64, 16) == [(0, 16)]
    assert states.pieces(64, 64, 16) == [(0, 64)]
    assert states.pieces(65, 64, 16) == [(0, 64), (64, 16)]
    assert states.pieces(161, 64, 16) == [(0, 64), (64, 64), (128, 64)]
    assert states.pieces(90, 96, 32) == [(0, 96)]
    found = {states.capacity(n, 64, 16) for n in range(1, 1025)}
    strides = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16]
    assert sorted(found) == [16, 32, *(64 * n for n in strides)]
    for n in range(1, 700, 7):
        start, size = states.pieces(n, 64, 16)[-1]
        assert start + size <= states.capacity(n, 64, 16)
        assert start < n <= start + size


@pytest.mark.parametrize(
    "change, message",
    [
        (
            dict(max_new_tokens=0),
            "generate.max_new_tokens must be a whole number of tokens, 1 or more, got 0",
        ),
        (dict(temperature=-1.0), "generate.temperature must be a number at least 0, got -1"),
        (dict(temperature=float("nan")), "generate.temperature must be a number at least 0"),
        (dict(top_k=-3), "generate.top_k must be a whole number of tokens, 0 or more, got -3"),
        (dict(top_p=0.0), "generate.top_p must be a number above 0 and at most 1"),
        (dict(top_p=1.5), "generate.top_p must be a number above 0 and at most 1"),
        (dict(policy="recompile"), "Unknown generate.policy 'recompile'. Did you mean 'recompute'"),
        (dict(seed=-1), "generate.seed must be a whole number, 0 or more"),
    ],
)
def test_messages_of_options(change, message):
    with pytest.raises(InputError, match=message):
        Options(**dict(max_new_tokens=4) | change)


@pytest.mark.parametrize(
    "prompts, how, message",
    [
        ([], {}, "there is no prompt"),
        ([[1], []], {}, "prompt 2 has no tokens. Begin it with bos"),
        ([[1, 264]], {}, "prompt 1 has the token 264, the model's ids end at 263"),
        ([[-1]], {}, "prompt 1 has the token -1"),
        ([[1] * 89], {}, "prompt 1 has 89 tokens, with max_new_tokens 8 97; the rope ends at 96"),
        ([[1]], dict(chunk=40), r"generate.chunk must be a multiple of 16 .* Nearest: 32 or 48"),
    ],
)
def test_what_cannot_end_is_refused_before_it_begins(model, prompts, how, message):
    with pytest.raises(InputError, match=message):
        generate.stream(model, prompts, options(**how))
    with pytest.raises(InputError, match=message):
        generate.warm_up(model, prompts, options(**how))


def test_a_formula_cannot_be_recomputed(tiny_config):
    model = make_model(tiny_config, DYNAMIC)
    message = "generate.policy 'recompute' needs a rope with length buckets: .*'dynamic_ntk'"
    with pytest.raises(InputError, match=message):
        generate.stream(model, [prompt(20)], options(8))

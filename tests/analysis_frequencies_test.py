"""The terms of each rotary pair: against dense float64 sums, central differences, and autodiff of a
dense entropy in the factors.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrope import decoder, rope
from jaxrope.analysis import frequencies
from jaxrope.attention import masks

FACTORS = np.array([1.0, 1.7, 4.0])
CASES = {
    "whole": dict(),
    "partial, gqa": dict(head_dim=9, kv_heads=2),
    "window": dict(window=5),
    "packed": dict(segments=(7, 1, 12)),
    "bidirectional": dict(causal=False),
    "start tokens": dict(start_tokens=4, attention_factor=1.3),
    "other theta": dict(theta=30.0, attention_factor=0.7),
    "cross": dict(causal=False, queries=(3, 19, 8)),
    "some queries": dict(queries=(2, 11, 19)),
}


class Case:
    """Queries and keys of 20 tokens, two sequences, four heads, in float64."""

    def __init__(
        self, head_dim=6, kv_heads=4, window=None, segments=(20,), causal=True, queries=(), **of
    ):
        rng = np.random.default_rng(0)
        positions = np.concatenate([np.arange(n) for n in segments])
        ids = np.repeat(np.arange(len(segments)), segments)
        chosen = np.array(queries or range(20))
        self.q = rng.normal(size=(2, len(chosen), 4, head_dim)) * 1.5
        self.k = rng.normal(size=(2, 20, kv_heads, head_dim)) * 1.5 + 0.5
        self.positions, self.chosen = positions, chosen
        of = dict(theta=100.0) | of
        self.r = rope.build(FACTORS, **of)
        rows = [np.stack([x] * 2).astype(np.int32) for x in (positions[chosen], positions)]
        segment_rows = [np.stack([x] * 2).astype(np.int32) for x in (ids[chosen], ids)]
        self.mask = masks.Mask(
            *(jnp.asarray(x) for x in (*rows, *segment_rows)), causal=causal, window=window
        )
        self.seen = np.asarray(masks.allowed(self.mask))[:, None]

    def terms(self, factors=FACTORS, gains=1.0):
        """s_f by the formula of relative positions, [B, N, T, S, Q], in float64 numpy."""
        start, scale = int(self.r.start_tokens), self.q.shape[-1] ** -0.5
        k = np.repeat(self.k, 4 // self.k.shape[2], axis=2)
        inv_freq = self.r.theta ** (-np.arange(3) / 3)

        def angle(positions):
            freq = np.where(positions[:, None] < start, inv_freq, inv_freq / factors)
            return positions[:, None] * freq

        def size(positions):
            return np.where(positions < start, 1.0, float(self.r.attention_factor))

        mine, theirs = self.positions[self.chosen], self.positions
        delta = (angle(mine)[:, None] - angle(theirs)[None])[None, None]
        sizes = (size(mine)[:, None] * size(theirs)[None])[None, None, :, :, None]

        def pairs(one, two):
            return np.einsum("btnr,bsnr->bntsr", one, two)

        q1, q2, q_rest = np.split(self.q, (3, 6), axis=-1)
        k1, k2, k_rest = np.split(k, (3, 6), axis=-1)
        same, crossed = pairs(q1, k1) + pairs(q2, k2), pairs(q1, k2) - pairs(q2, k1)
        found = (same * np.cos(delta) + crossed * np.sin(delta)) * sizes
        if q_rest.shape[-1]:
            rest = np.einsum("btnr,bsnr->bnts", q_rest, k_rest)[..., None]
            found = np.concatenate([found, rest], axis=-1)
        return found * scale * gains

    def weights(self, logits):
        logits = np.where(self.seen, logits, -np.inf)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True)

    def entropy(self, logits):
        weights = self.weights(logits)
        return -np.sum(weights * np.log(np.where(weights > 0, weights, 1)), axis=-1)


@jax.jit
def in_blocks_of_8(*args):
    """Both results; a block that does not divide the tokens."""
    fns = frequencies.entropy_terms, frequencies.logit_rows
    return tuple(fn(*args, block=8) for fn in fns)


def dense_logits(case, r):
    """Logits [B, N, T, S] of rotated queries and keys; differentiable in the factors."""
    places = case.mask.q_positions_BT, case.mask.kv_positions_BS
    turns = (rope.cos_sin(r, ids) for ids in places)
    q, k = (rope.rotate(jnp.asarray(x), *t) for x, t in zip((case.q, case.k), turns, strict=True))
    k = jnp.repeat(k, 4 // k.shape[2], axis=2)
    return jnp.einsum("btnh,bsnh->bnts", q, k) * case.q.shape[-1] ** -0.5


def swapped(x_BNT):
    return np.moveaxis(x_BNT, 1, 2)


@pytest.fixture(scope="module", params=CASES, ids=str)
def found(request):
    """(case, its terms in float64, what was found)."""
    case = Case(**CASES[request.param])
    with jax.enable_x64(True):
        entropy, rows = in_blocks_of_8(case.q, case.k, case.r, case.mask)
        assert entropy.lse_BTN.dtype == jnp.float64
        return case, case.terms(), jax.tree.map(np.asarray, (entropy, rows))


# the rotation itself is float32
ROUGH = dict(rtol=1e-5, atol=1e-5)


def test_logits_are_the_sum_of_their_terms(found):
    case, terms, _ = found
    with jax.enable_x64(True):
        np.testing.assert_allclose(terms.sum(-1), dense_logits(case, case.r), **ROUGH)


def test_the_entropy_is_split_over_pairs(found):
    case, terms, (entropy, _) = found
    weights = case.weights(terms.sum(-1))
    np.testing.assert_allclose(entropy.entropy_BTN, swapped(case.entropy(terms.sum(-1))), **ROUGH)
    expected = np.einsum("bnts,bntsq->btnq", weights, terms)
    np.testing.assert_allclose(entropy.expected_BTNQ, expected, **ROUGH)
    parts = entropy.lse_BTN - entropy.expected_BTNQ.sum(-1)
    np.testing.assert_allclose(entropy.entropy_BTN, parts, rtol=1e-9, atol=1e-9)
    lse = np.log(np.sum(np.exp(terms.sum(-1)) * case.seen, axis=-1))
    np.testing.assert_allclose(entropy.lse_BTN, swapped(lse), **ROUGH)


def test_slopes_are_those_of_central_differences(found):
    case, terms, (entropy, _) = found
    step = 1e-4

    def slope(logits_fn):
        up, down = (case.entropy(logits_fn(x)) for x in (step, -step))
        return swapped(up - down) / (2 * step)

    temperature = slope(lambda x: terms.sum(-1) * (1 + x))
    np.testing.assert_allclose(entropy.temperature_BTN, temperature, rtol=1e-4, atol=1e-5)
    for term in range(terms.shape[-1]):
        unit = np.eye(terms.shape[-1])[term]
        gain = slope(lambda x, unit=unit: case.terms(gains=1 + x * unit).sum(-1))
        np.testing.assert_allclose(entropy.gain_BTNQ[..., term], gain, rtol=1e-4, atol=1e-5)
    for pair in range(3):
        unit = np.eye(3)[pair]
        factor = slope(lambda x, unit=unit: case.terms(FACTORS + x * unit).sum(-1))
        np.testing.assert_allclose(entropy.factor_BTNR[..., pair], factor, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(
        entropy.gain_BTNQ.sum(-1), entropy.temperature_BTN, rtol=1e-6, atol=1e-9
    )


def test_slopes_in_the_factors_are_those_of_autodiff(found):
    case, _, (entropy, _) = found

    def mean_entropy(factors):
        r = dataclasses.replace(case.r, factors_R=factors)
        logits = dense_logits(case, r)
        log_p = jax.nn.log_softmax(jnp.where(case.seen, logits, -1e30), axis=-1)
        return -jnp.mean(jnp.sum(jnp.exp(log_p) * log_p * case.seen, axis=-1))

    with jax.enable_x64(True):
        slope = jax.jit(jax.grad(mean_entropy))(jnp.asarray(case.r.factors_R))
    wanted = entropy.factor_BTNR.mean((0, 1, 2))
    np.testing.assert_allclose(slope, wanted, rtol=1e-4, atol=1e-6)
    assert np.max(np.abs(wanted)) > 1e-3


def test_what_pairs_are_used_for(found):
    case, terms, (_, rows) = found
    found_usage = frequencies.usage(rows)
    seen = np.broadcast_to(case.seen, terms.shape[:-1])
    distance = case.positions[case.chosen][:, None] - case.positions
    for head in range(4):
        values = terms[:, head][seen[:, head]]  # pairs of tokens, terms
        distances = np.broadcast_to(distance, seen[:, head].shape)[seen[:, head]]
        variance = values.var(axis=0)
        np.testing.assert_allclose(found_usage.variance[head], variance, rtol=1e-5)
        np.testing.assert_allclose(found_usage.share[head], variance / variance.sum(), rtol=1e-5)
        for term in range(terms.shape[-1]):
            wanted = np.corrcoef(values[:, term], distances)[0, 1]
            assert found_usage.correlation[head, term] == pytest.approx(wanted, abs=1e-5)


def test_a_query_that_sees_one_key_has_no_slope():
    case = Case()
    args = jnp.float32(case.q), jnp.float32(case.k), case.r, case.mask
    entropy = in_blocks_of_8(*args)[0]
    for slopes in (entropy.temperature_BTN, entropy.gain_BTNQ, entropy.factor_BTNR):
        assert np.max(np.abs(slopes[:, 0])) < 1e-5 < np.max(np.abs(slopes[:, 1:]))
    assert np.max(np.abs(entropy.entropy_BTN[:, 0])) < 1e-5


@pytest.mark.parametrize("block", [3, 512])
def test_float32_in_any_blocks(block):
    case = Case(head_dim=9, kv_heads=1)
    args = jnp.float32(case.q), jnp.float32(case.k), case.r, case.mask
    entropy = jax.jit(frequencies.entropy_terms, static_argnames="block")(*args, block=block)
    assert entropy.lse_BTN.dtype == jnp.float32
    terms = case.terms()
    np.testing.assert_allclose(
        entropy.entropy_BTN, swapped(case.entropy(terms.sum(-1))), atol=1e-5, rtol=1e-5
    )
    rows = jax.jit(frequencies.logit_rows, static_argnames="block")(*args, block=block)
    values = terms[:, 1][np.broadcast_to(case.seen, terms.shape[:-1])[:, 1]]
    np.testing.assert_allclose(frequencies.usage(rows).variance[1], values.var(0), rtol=1e-4)


def test_a_large_mean_does_not_hide_the_variance():
    case = Case()
    case.k = case.k * 0.01 + 30
    args = (
        jnp.float32(case.q),
        jnp.float32(case.k),
        rope.build(FACTORS * 1e6, theta=100.0),
        case.mask,
    )
    case.r = args[2]
    terms = case.terms(FACTORS * 1e6)
    values = terms[:, 2][np.broadcast_to(case.seen, terms.shape[:-1])[:, 2]]
    found_usage = frequencies.usage(in_blocks_of_8(*args)[1])
    np.testing.assert_allclose(found_usage.variance[2], values.var(0), rtol=2e-3)


def test_norms_bound_the_terms():
    case = Case(head_dim=9)
    norms = [np.asarray(frequencies.norms(jnp.asarray(x), 3)) for x in (case.q, case.k)]
    for x, found_norms in zip((case.q, case.k), norms, strict=True):
        wanted = np.sqrt(x[..., :3] ** 2 + x[..., 3:6] ** 2).mean((0, 1))
        np.testing.assert_allclose(found_norms, wanted, rtol=1e-5)
    assert norms[0].shape == (4, 3)


def test_every_layer_through_the_probe(tiny_config, tiny_params):
    """Slopes of the whole model's mean entropy if each layer's q and k stay as they are."""
    r = rope.build(np.array([1.0, 2.0, 4.0, 8.0]), theta=10_000.0, attention_factor=1.1)
    tokens = np.random.default_rng(0).integers(0, 264, (1, 24)).astype(np.int32)

    def probe_fn(seen):
        return frequencies.entropy_terms(seen.q_BTNH, seen.k_BTKH, r, seen.mask, block=16), seen

    run = jax.jit(lambda: decoder.probe(tiny_config, tiny_params, tokens, r, probe_fn=probe_fn))
    terms, seen = run()[1]
    assert terms.factor_BTNR.shape == (2, 1, 24, 4, 4)
    q = np.asarray(rope.rotate(seen.q_BTNH[1], *(x[1] for x in seen.turn)), np.float64)
    k = np.asarray(rope.rotate(seen.k_BTKH[1], *(x[1] for x in seen.turn)), np.float64)
    logits = np.einsum("btnh,bsnh->bnts", q, np.repeat(k, 2, axis=2)) / np.sqrt(8)
    logits = np.where(np.tril(np.ones((24, 24), bool)), logits, -np.inf)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    wanted = -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=-1)
    np.testing.assert_allclose(terms.entropy_BTN[1], swapped(wanted), atol=1e-5)

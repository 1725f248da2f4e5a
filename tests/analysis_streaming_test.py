"""Streaming statistics against weights that are whole, in float64 numpy: every mask, heads of all
kinds, any cut into blocks, any order of merging. analysis_real_test.py has real models.
"""

import dataclasses
import functools
import math

import dense_attention as dense
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrope import decoder, rope
from jaxrope.analysis import divergence, measuring, streaming
from jaxrope.analysis.streaming import Options
from jaxrope.attention import masks
from jaxrope.errors import InputError

CASES = {  # mask, heads, kv heads, options
    "causal": (dense.causal, 4, 2, Options(block=16, local=5)),
    "one block": (dense.causal, 4, 4, Options(block=512, local=1, bins=4)),
    "window": (functools.partial(dense.causal, window=7), 4, 1, Options(block=16, local=3)),
    "wider window": (functools.partial(dense.causal, window=20), 2, 2, Options(block=7, local=9)),
    "packed": (dense.packed, 4, 2, Options(block=16, local=5, scale=0.7)),
    "packed, window": (functools.partial(dense.packed, window=5), 2, 1, Options(block=10)),
    "blind": (dense.blind, 4, 2, Options(block=9, local=5, bins=0)),
    "both ways": (functools.partial(dense.packed, causal=False), 4, 2, Options(block=16, local=4)),
    "some queries": (dense.some_queries, 4, 2, Options(block=16, local=8)),
    "across": (dense.across, 4, 2, Options(block=13, local=6)),
}


def compiled(fn, *operands):
    """Half the time to compile."""
    return jax.jit(fn).lower(*operands).compile({"xla_backend_optimization_level": 0})(*operands)


def measured(q, k, mask, options, sets=None):
    def run(q, k, mask, sets):
        return streaming.statistics(q, k, mask, options, sets_BSZ=sets)

    return compiled(run, q, k, jax.tree.map(jnp.asarray, mask), sets)


SLOW = ("one block", "wider window", "packed, window", "blind")  # what the others have, otherwise


def cases(names, slow):
    """Parameters of which some are marked as slow."""
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in names]


@pytest.mark.parametrize("name", cases(CASES, SLOW))
def test_equals_the_definition(name):
    make_mask, heads, kv_heads, options = CASES[name]
    mask = make_mask()
    q, k = dense.inputs(mask, heads, kv_heads)
    sets = dense.needles(2, 48)
    wanted = (
        dense.statistics(
            q,
            k,
            mask,
            local=options.local,
            bins=7 if options.bins is None else options.bins,
            sets=sets,
            scale=options.scale,
        )
        if options.bins != 0
        else without_bins(q, k, mask, options, sets)
    )
    dense.assert_same(measured(q, k, mask, options, sets), wanted)
    assert np.ptp(wanted["entropy"]) > 0.5  # attention that says something


def without_bins(q, k, mask, options, sets):
    found = dense.statistics(q, k, mask, local=options.local, bins=1, sets=sets)
    return found | {name: found[name][..., :0] for name in ("bin_mass", "bin_pairs")}


def test_one_visible_key_has_no_uncertainty():
    """Exactly: in the first row of a causal mask, in documents of one token, behind a window of
    one; for logits of any size.
    """
    mask = masks.self_mask(*dense.ids((1, 1, 46), (1, 1, 46)), window=1)
    q, k = dense.inputs(mask, 4, 2, loud=50.0)
    found = measured(q, k, mask, Options(block=16))
    for name, value in (("entropy", 0), ("max_p", 1), ("participation", 1), ("mean_distance", 0)):
        assert np.all(np.asarray(getattr(found, name)) == value), name
    assert np.all(np.asarray(found.visible) == 1)
    assert np.all(np.asarray(found.top_key) == np.arange(48)[None, :, None])


def test_equal_logits_are_as_uncertain_as_can_be():
    mask = dense.causal()
    q, k = dense.inputs(mask, 4, 2, loud=0.0)
    found = measured(q, k, mask, Options(block=16))
    visible = np.arange(1, 49)
    np.testing.assert_allclose(found.entropy[0, :, 0], np.log(visible), atol=1e-6)
    np.testing.assert_allclose(found.participation[0, :, 0], visible, rtol=1e-6)
    tokens = streaming.effective_tokens(found.entropy)
    np.testing.assert_allclose(tokens[0, :, 0], visible, rtol=1e-5)
    normalised = streaming.normalised_entropy(found.entropy, found.visible)
    assert np.all(np.asarray(normalised[:, 0]) == 0)
    np.testing.assert_allclose(normalised[:, 1:], 1, atol=1e-6)
    assert np.all(np.asarray(found.top_key) == 0)  # of equal keys the first


def test_bfloat16_is_summed_in_float32():
    """The same as float32 arithmetic on the same rounded numbers."""
    mask = dense.causal(200)
    q, k = dense.inputs(mask, 2, 1)
    q, k = jnp.asarray(q, jnp.bfloat16), jnp.asarray(k, jnp.bfloat16)
    found = measured(q, k, mask, Options(block=32))
    assert found.entropy.dtype == jnp.float32
    rounded = (np.asarray(x, np.float32) for x in (q, k))
    dense.assert_same(found, dense.statistics(*rounded, mask, local=64, bins=9))


def test_a_sink_hides_nothing():
    """One logit 60 nats above the others: what is left without it keeps its precision."""
    mask = dense.causal()
    q, k = dense.inputs(mask, 2, 2)
    q[..., 0], k[..., 0] = 1.0, 0.0
    k[:, 0, :, 0] = 60 * 8**0.5
    found = measured(q, k, mask, Options(block=16))
    wanted = dense.statistics(q, k, mask, local=64, bins=7)
    assert np.asarray(found.sink).min() > 0.9999 and wanted["non_sink_entropy"].max() > 2
    dense.assert_same(found, wanted)


@pytest.mark.parametrize("loud", [1.0, 6.0])
def test_rows_of_131072_keys_are_as_exact(loud):
    """256 merges of a state, and sums over as many keys: almost even attention, and sharp one."""
    keys = np.arange(131_072, dtype=np.int32)[None]
    mask = masks.Mask(keys[:, [131_071, 65_537, 300]], keys)
    q, k = dense.inputs(mask, 2, 1, batch=1, loud=loud)
    sets = np.zeros((1, 131_072, 1), bool)
    sets[:, 1000:90_000] = True
    found = measured(q, k, mask, Options(block=512), sets)
    wanted = dense.statistics(q, k, mask, local=64, bins=18, sets=sets)
    dense.assert_same(found, wanted)
    assert wanted["entropy"].max() > (11 if loud == 1.0 else 3) and wanted["set_mass"].max() > 0.5


def test_what_is_no_number_is_not_taken_for_nothing():
    mask = dense.causal(16)
    q, k = dense.inputs(mask, 2, 2)
    q[0, 5] = np.nan
    entropy = np.asarray(measured(q, k, mask, Options(block=8)).entropy)
    assert np.isnan(entropy[0, 5]).all() and np.isfinite(np.delete(entropy[0], 5, 0)).all()


@functools.partial(jax.jit, static_argnums=4)
def part_of(q, k, index, mask, options):
    keys = streaming.keys_of(k, index, jnp.ones((*k.shape[:2], 1), bool))
    return streaming.update(streaming.empty(q, keys, options), q, keys, mask, options)


def test_states_merge_in_any_order():
    """Keys dealt out at random to five parts; any tree of merges gives the statistics of all."""
    rng, options = np.random.default_rng(5), Options(block=8, local=5, bins=7, scale=0.3)
    mask = dense.packed()
    q, k = dense.inputs(mask, 4, 2)
    wanted = dense.statistics(
        q, k, mask, local=5, bins=7, scale=0.3, sets=np.ones((2, 48, 1), bool)
    )
    merge, finish = jax.jit(streaming.merge), jax.jit(streaming.finish)
    for _ in range(4):
        order = rng.permutation(45)  # nine keys in each part, so that all have one shape
        states = []
        for own in [np.sort(part) for part in np.split(order, 5)] + [np.arange(45, 48)]:
            own = np.concatenate([own, np.full(9 - len(own), 47)])  # filled up with the last one
            segments = mask.kv_segment_ids_BS[:, own].copy()
            segments[:, len(np.unique(own)) :] = -9  # which nobody sees
            part = dataclasses.replace(
                mask, kv_positions_BS=mask.kv_positions_BS[:, own], kv_segment_ids_BS=segments
            )
            states.append(part_of(q, k[:, own], jnp.int32(own)[None], part, options))
        while len(states) > 1:
            one, other = (states.pop(rng.integers(len(states))) for _ in range(2))
            states.append(merge(one, other))
        dense.assert_same(finish(states[0]), wanted)


def test_nothing_merged_with_something_is_that():
    mask, options = dense.packed(), Options(block=16, bins=7, scale=0.3)
    q, k = dense.inputs(mask, 4, 2)
    state = part_of(q, k, jnp.arange(48)[None], mask, options)
    nothing = streaming.empty(jnp.asarray(q), streaming.keys_of(jnp.asarray(k)), options)
    nothing = nothing._replace(sets=jnp.zeros_like(state.sets))
    for pair in ((state, nothing), (nothing, state)):
        for ours, theirs in zip(
            *map(jax.tree.leaves, (streaming.merge(*pair), state)), strict=True
        ):
            assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("factor, attention_factor", [(1.0, 1.0), (4.0, 1.2), (2.0, 0.7)])
def test_kl_equals_the_definition(factor, attention_factor):
    mask = dense.packed()
    q, k = dense.inputs(mask, 4, 2)
    ropes = [
        rope.build(np.full(4, f), theta=100.0, attention_factor=a)
        for f, a in ((1.0, 1.0), (factor, attention_factor))
    ]

    def run(q, k, mask, ropes):
        turns = [rope.cos_sin(r, mask.q_positions_BT) for r in ropes]
        both = ((turn, turn) for turn in turns)
        return divergence.kl_between(q, k, *both, mask, Options(block=16))

    found = compiled(run, q, k, jax.tree.map(jnp.asarray, mask), ropes)
    seen, _ = dense.seen_by(mask, 2)
    p, other = (dense.softmax(turned_logits(q, k, mask, r), seen)[0] for r in ropes)
    for ours, (a, b) in ((found.kl, (p, other)), (found.reverse_kl, (other, p))):
        safe = np.where(a > 0, a, 1), np.where(a > 0, b, 1)
        np.testing.assert_allclose(ours, (a * np.log(safe[0] / safe[1])).sum(-1), atol=1e-5)
    np.testing.assert_allclose(found.entropy, dense.entropy_of(p), atol=1e-5)
    np.testing.assert_allclose(found.second_entropy, dense.entropy_of(other), atol=1e-5)
    if factor == 1.0:
        assert np.all(np.asarray(found.kl) == 0)  # exactly
    else:
        assert np.asarray(found.kl).max() > 0.1


def turned_logits(q, k, mask, r):
    """Logits after rotating by hand, float64."""
    inv_freq = rope.base_inv_freq(r.theta, 8) / np.asarray(r.factors_R, np.float64)
    angle = np.asarray(mask.q_positions_BT)[:, :, None, None] * inv_freq

    def turn(x):
        one, two = np.split(np.asarray(x, np.float64), 2, axis=-1)
        c, s = np.cos(angle), np.sin(angle)
        return float(r.attention_factor) * np.concatenate(
            [one * c - two * s, two * c + one * s], -1
        )

    return dense.logits_of(turn(q), turn(k))


def test_packed_documents_are_measured_apart(tiny_model):
    """Behind `measure`: documents of one row have the statistics they have alone."""
    config, params = tiny_model
    lengths, tokens = (12, 12), np.random.default_rng(2).integers(0, 264, (1, 24))
    positions, segments = dense.ids(lengths)
    inputs = measuring.Inputs(positions, segments)
    options, r = Options(block=8, bins=5), decoder.own_rope(config)(24)
    whole = measuring.measure(config, params, tokens, r, inputs=inputs, options=options)
    start = 0
    for n in lengths:
        own = slice(start, start + n)
        apart = measuring.measure(config, params, tokens[:, own], r, options=options)
        for ours, theirs in zip(whole, apart, strict=True):
            wanted = theirs._replace(top_key=theirs.top_key + start)._asdict()
            dense.assert_same(
                ours._replace(**{k: x[:, own] for k, x in ours._asdict().items()}), wanted
            )
        start += n


def test_memory_is_linear_in_length(tiny_model):
    """What a compiled program takes for twice the tokens is at most 2.1 times as much; and a few
    queries take what the forward pass takes.
    """
    config, params = tiny_model
    r, options = decoder.own_rope(config)(64), Options(block=64, bins=14)

    def peak(length, **inputs):
        tokens = np.zeros((1, length), np.int32)
        settings = decoder.ForwardSettings(attention_block=64, mlp_chunk=256)
        rows = measuring.lay_out(tokens, measuring.Inputs(**inputs), config, settings)
        lowered = measuring.of_layers.lower(
            params, r, rows, config=config, options=options, settings=settings
        )
        found = lowered.compile().memory_analysis()
        return found.temp_size_in_bytes + found.output_size_in_bytes

    four, eight = peak(4096), peak(8192)
    assert four < eight < 2.1 * four
    assert eight < 8192**2 * 4 / 8  # an eighth of one head's weights
    assert peak(8192, queries_BM=np.array([[8191]])) < eight / 2


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(block=0), "analysis.block must be a whole number of tokens, 1 or more, got 0."),
        (dict(local=2.5), "analysis.local must be a whole number of tokens, 1 or more, got 2.5."),
        (dict(bins=-1), "analysis.bins must be a whole number of distances, 0 or more, got -1."),
        (dict(spread="rings"), "Unknown analysis.spread 'rings'. Did you mean 'ring'?"),
    ],
)
def test_option_messages(change, message):
    with pytest.raises(InputError) as caught:
        Options(**change)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "tokens, inputs, message",
    [
        (
            [[1.5]],
            {},
            r"analysis.tokens must be whole numbers \[rows, length\], got float64 \[1, 1",
        ),
        ([[1, 264]], {}, "analysis.tokens must be from 0 to 263, got 1 to 264. Use the model's"),
        (
            [[1, 2]],
            dict(positions_BT=[[0]]),
            r"analysis.positions_BT must be as the tokens, \[1, 2",
        ),
        (
            [[1, 2]],
            dict(sets_BTZ=np.ones((1, 2))),
            r"analysis.sets must be \[1, 2\] and one more a",
        ),
        ([[1, 2]], dict(queries_BM=[1]), r"analysis.queries must be whole numbers \[1, number\]"),
        ([[1, 2]], dict(queries_BM=[[2]]), "analysis.queries must be places from 0 to 1, got 2 to"),
    ],
)
def test_messages(tiny_model, tokens, inputs, message):
    config, params = tiny_model
    with pytest.raises(InputError, match=message):
        measuring.measure(config, params, np.array(tokens), None, inputs=measuring.Inputs(**inputs))


def test_other_messages():
    mask = dense.causal()
    q, k = (jnp.asarray(x) for x in dense.inputs(mask, 4, 2))
    with pytest.raises(ValueError, match=r"sets_BSZ must be \[2, 48, Z\], got \(2, 48\)."):
        streaming.statistics(q, k, mask, Options(), sets_BSZ=jnp.ones((2, 48), bool))
    with pytest.raises(ValueError, match="must agree in B, and N must be a multiple of K."):
        streaming.statistics(q[:, :, :3], k, mask, Options())


def test_bins_of_distance():
    for keys, bins in ((1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (131_072, 18), (131_073, 19)):
        assert streaming.num_bins(keys) == bins
        edges = streaming.bin_edges(bins)
        assert edges[-2] <= keys - 1 < edges[-1] and len(edges) == bins + 1
    assert streaming.bin_edges(5) == [0, 1, 2, 4, 8, 16]
    assert math.log2(streaming.bin_edges(18)[-1]) == 17
    assert streaming.edges(32) == [0, 1, 2, 4, 8, 16, 32]
    assert streaming.edges(24) == [0, 1, 2, 4, 8, 16, 24]

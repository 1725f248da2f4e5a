"""The model's invariants; its numbers are held against other people's code in parity_test.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrope import decoder, rope
from jaxrope.decoder import DecoderConfig, ForwardSettings, losses
from jaxrope.errors import InputError

logits = jax.jit(decoder.logits, static_argnums=0, static_argnames="settings")
PI4 = dict(head_dim=8, theta=10_000.0, original_len=64, factor=4.0)


def tokens(config, length=24, batch=2):
    return jax.random.randint(jax.random.key(1), (batch, length), 0, config.vocab_size)


def test_causal_by_gradient(tiny_model):
    """The output at position t depends on the tokens up to t, and on each of them."""
    config, params = tiny_model
    ids, r = tokens(config, 12, 1), decoder.own_rope(config)(12)

    @jax.jit
    @jax.grad
    def slope_of(embedded, t):
        table = jnp.concatenate([params["embed_VD"], embedded])
        wide = dataclasses.replace(config, vocab_size=config.vocab_size + 12)
        own = jnp.arange(config.vocab_size, config.vocab_size + 12)[None]
        return decoder.hidden(wide, params | {"embed_VD": table}, own, r)[0, t].sum()

    for t in (0, 5, 11):
        slope = slope_of(params["embed_VD"][ids[0]], t)
        assert np.array_equal(np.abs(slope).max(-1) > 0, np.arange(12) <= t)


def test_packed_equals_apart(tiny_model):
    config, params = tiny_model
    ids, lengths = tokens(config, 21, 1), [7, 1, 13]
    r = rope.make("pi", **PI4)(21)
    positions = np.concatenate([np.arange(n) for n in lengths])[None]
    segments = np.repeat(np.arange(3), lengths)[None]
    whole = decoder.logits(
        config,
        params,
        ids,
        r,
        positions_BT=jnp.int32(positions),
        segment_ids_BT=jnp.int32(segments),
    )
    start = 0
    for n in lengths:
        apart = logits(config, params, ids[:, start : start + n], r)
        assert np.allclose(whole[:, start : start + n], apart, atol=1e-5)
        start += n


@pytest.mark.parametrize(
    "backend, remat, mlp_chunk",
    [
        ("reference", "full", 0),
        ("blockwise", "none", 7),  # 24 tokens: the last chunk is filled up
        ("blockwise", "full", 24),
        ("blockwise", "minimal", 0),
        ("blockwise", "save_attention", 8),
        ("blockwise", "offload", 0),
    ],
)
def test_settings_do_not_change_the_gradient(tiny_model, backend, remat, mlp_chunk):
    config, params = tiny_model
    ids, r = tokens(config), rope.make("pi", **PI4)(24)

    def loss(params, settings):
        x = decoder.hidden(config, params, ids, r, settings=settings)
        head = decoder.head_DV(config, params)
        weights = jnp.full(ids[:, 1:].shape, 1 / ids[:, 1:].size)
        return losses.nll_sum(x[:, :-1], head, losses.Targets(ids[:, 1:], weights), chunk=8)

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    expected = gradient(params, ForwardSettings(attention="reference", remat="none"))
    ours = gradient(params, ForwardSettings(backend, 8, "float32", remat, mlp_chunk=mlp_chunk))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert np.allclose(a, b, atol=1e-6)


def test_a_candidate_is_data(tiny_model):
    """One compilation serves every factor vector, start-token count and attention factor."""
    config, params = tiny_model
    ids, traces = tokens(config), []

    @jax.jit
    def run(r):
        traces.append(1)
        return decoder.logits(config, params, ids, r)

    ropes = [
        rope.build(np.full(4, f), theta=10_000.0, start_tokens=s, attention_factor=a)
        for f, s, a in ((1, 0, 1), (4, 0, 1), (4, 6, 1), (4, 6, 1.2))
    ]
    apart = [run(r) for r in ropes]
    assert len(traces) == 1
    assert all(np.abs(a - b).max() > 1e-5 for a, b in zip(apart, apart[1:], strict=False))
    together = jax.vmap(lambda r: logits(config, params, ids, r))(rope.stack(ropes))
    assert np.allclose(together, np.stack(apart), atol=1e-5)
    one = rope.build(np.ones(4), theta=10_000.0)
    assert np.array_equal(apart[0], run(one))


def test_rope_per_layer_and_per_sequence(tiny_model):
    config, params = tiny_model
    ids = tokens(config)
    ropes = [rope.make("pi", **PI4 | dict(factor=f))(24) for f in (1.0, 3.0)]
    same = logits(config, params, ids, rope.stack([ropes[1]] * 2, per_layer=True))
    assert np.allclose(same, logits(config, params, ids, ropes[1]), atol=1e-6)
    layers = logits(config, params, ids, rope.stack(ropes, per_layer=True))
    assert all(np.abs(layers - logits(config, params, ids, r)).max() > 1e-5 for r in ropes)
    swapped = rope.stack(ropes[::-1], per_layer=True)
    candidates = rope.stack([rope.stack(ropes, per_layer=True), swapped])
    assert candidates.per_layer  # of each candidate, inside the vmap
    both = jax.vmap(lambda r: logits(config, params, ids, r))(candidates)
    assert np.allclose(both[0], layers, atol=1e-6)
    assert np.allclose(both[1], logits(config, params, ids, swapped), atol=1e-6)
    assert np.abs(both[0] - both[1]).max() > 1e-5
    rows = logits(config, params, ids, rope.stack(ropes))
    for row, r in enumerate(ropes):
        alone = logits(config, params, ids[row : row + 1], r)
        assert np.allclose(rows[row : row + 1], alone, atol=1e-5)


def test_a_rope_for_another_model_is_refused(tiny_model):
    """rotate would turn fewer dims, and nothing would say so."""
    config, params = tiny_model
    tokens = np.zeros((1, 4), np.int32)
    layers = [rope.build(np.ones(4), theta=1e4)] * 3
    for r in (rope.build(np.ones(2), theta=1e4), rope.stack(layers, per_layer=True)):
        with pytest.raises(
            InputError, match=r"must have 4 factors \(rotary_dim / 2\) for each of 2"
        ):
            decoder.hidden(config, params, tokens, r)


def test_module_and_function_agree(tiny_model):
    config, params = tiny_model
    model = decoder.merge(config, params)
    r = decoder.own_rope(config)(24)
    assert np.array_equal(
        jax.jit(lambda m, t: m(t, r))(model, tokens(config)),
        jax.jit(lambda p, t: decoder.logits(config, p, t, r))(params, tokens(config)),
    )


def test_bfloat16_is_near(tiny_model):
    config, params = tiny_model
    ids, r = tokens(config), decoder.own_rope(config)(24)
    exact = logits(config, params, ids, r)
    near = logits(config, params, ids, r, settings=ForwardSettings(compute_dtype="bfloat16"))
    assert near.dtype == jnp.float32
    assert 0 < np.abs(near - exact).max() < 0.02 * np.abs(exact).max() + 0.01


def test_seven_billion_at_two_million_tokens():
    """Shapes of Llama-2-7B at 2,097,152 tokens, without the memory."""
    config = DecoderConfig(
        vocab_size=32_000,
        num_layers=32,
        embed_dim=4096,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        mlp_dim=11_008,
        norm_eps=1e-5,
        theta=10_000.0,
        original_len=4096,
        max_len=4096,
        rotary_dim=128,
        tie_embeddings=False,
    )
    assert decoder.num_params(config) == 6_738_415_616  # the model card's 6.74 B
    params = decoder.abstract_params(config, "bfloat16")
    ids = jax.ShapeDtypeStruct((1, 2_097_152), jnp.int32)
    r = rope.preset("llama2-7b-2048k-ft256k")(2_097_152)
    settings = ForwardSettings(compute_dtype="bfloat16", attention_block=2048)
    x = jax.eval_shape(lambda p, t: decoder.hidden(config, p, t, r, settings=settings), params, ids)
    assert x.shape == (1, 2_097_152, 4096) and x.dtype == jnp.bfloat16
    axes = decoder.logical_axes(config)
    assert axes["layers"]["o_LNHD"] == ("layers", "heads", "head_dim", "embed")
    assert jax.tree.structure(params) == jax.tree.structure(
        axes, is_leaf=lambda a: isinstance(a, tuple)
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(num_kv_heads=3), "model.num_heads must be a multiple of model.num_kv_heads"),
        (dict(family="gpt"), "Unknown model.family 'gpt'"),
        (dict(rotary_dim=7), "model.rotary_dim must be even"),
        (dict(norm_eps=0.0), "model.norm_eps must be a number above 0 and below 1, got 0.0"),
        (
            dict(vocab_size=2.5),
            "model.vocab_size must be a whole number from 1 to",
        ),
        (
            dict(sliding_window=0),
            "model.sliding_window must be a whole number of tokens, 1",
        ),
        (dict(original_len=1), "model.original_len must be a whole number of tokens from 2 to"),
        (dict(bos_id=264), "model.bos_id must be below model.vocab_size 264"),
    ],
)
def test_config_messages(tiny_config, change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(tiny_config, **change)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(attention="flush"), "Unknown forward.attention 'flush'. Did you mean 'flash'"),
        (dict(attention="auto"), "Unknown forward.attention 'auto'"),
        (dict(attention_kernel="ring"), "Unknown forward.attention_kernel 'ring'"),
        (dict(compute_dtype="bf16"), "Unknown forward.compute_dtype 'bf16'"),
        (dict(remat="fulll"), "Unknown forward.remat 'fulll'. Did you mean 'full'"),
        (
            dict(attention_block=0),
            "forward.attention_block must be a whole number of tokens, 1",
        ),
        (dict(ulysses=0), "forward.ulysses must be a whole number of devices, 1 or more, got 0"),
        (
            dict(mlp_chunk=-1),
            "forward.mlp_chunk must be a whole number of tokens, 0",
        ),
    ],
)
def test_settings_messages(change, message):
    with pytest.raises(InputError, match=message):
        ForwardSettings(**change)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_memory_of_a_gradient_is_linear_in_length(tiny_model, remat):
    """Neither weights nor masks of all pairs of tokens are kept between layers."""
    config, params = tiny_model
    settings = ForwardSettings(attention="blockwise", attention_block=64, remat=remat)
    r = decoder.own_rope(config)(8)

    def allotted(length):
        def loss(params, ids_BT):
            return decoder.hidden(config, params, ids_BT, r, settings=settings).sum()

        ids_BT = jax.ShapeDtypeStruct((1, length), jnp.int32)
        compiled = jax.jit(jax.grad(loss)).lower(params, ids_BT).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert allotted(4096) < 3 * allotted(2048)  # it was 3.9 times as much

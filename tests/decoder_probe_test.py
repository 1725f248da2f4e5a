"""What `decoder.probe` shows of each layer, against a dense forward pass in float64 numpy and the
projections of torch; and that looking changes nothing.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_models import CASES, write

from jaxrope import decoder, rope
from jaxrope.attention import masks
from jaxrope.convert import pretrained
from jaxrope.mesh import sharding

PACKED = (9, 1, 14)


def seen_by(config, params, tokens, r, **how):
    """Returns (x_BTD, Seen stacked over layers), compiled."""
    arrays = {name: how.pop(name) for name in list(how) if not isinstance(how[name], SETTINGS)}

    @jax.jit
    def run(params, tokens, r, arrays):
        return decoder.probe(config, params, tokens, r, probe_fn=lambda seen: seen, **arrays, **how)

    return run(params, tokens, r, arrays)


SETTINGS = decoder.ForwardSettings


def packed_row(config):
    rng = np.random.default_rng(2)
    positions = np.concatenate([np.arange(n) for n in PACKED])[None].astype(np.int32)
    segments = np.repeat(np.arange(len(PACKED)), PACKED)[None].astype(np.int32)
    tokens = rng.integers(0, config.vocab_size, positions.shape).astype(np.int32)
    return tokens, dict(positions_BT=positions, segment_ids_BT=segments)


def loud(params):
    """Random weights ten times as large: attention that is far from even."""
    return jax.tree.map(lambda x: 10 * x if x.ndim > 2 else x, params)


def by_hand(config, params, tokens_T, r, positions_T, segments_T):
    """Yields (q_TNH, k_TKH, v_TKH) of every layer, in float64 numpy."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    inv_freq = rope.base_inv_freq(r.theta, config.rotary_dim) / np.asarray(r.factors_R, np.float64)
    angle = positions_T[:, None, None] * inv_freq
    factor = float(r.attention_factor)

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * scale

    def turn(x):
        one, two = np.split(x, 2, axis=-1)
        c, s = factor * np.cos(angle), factor * np.sin(angle)
        return np.concatenate([one * c - two * s, two * c + one * s], axis=-1)

    seen = (segments_T[:, None] == segments_T) & (positions_T[:, None] >= positions_T)
    x = p["embed_VD"][tokens_T]
    for i in range(config.num_layers):
        w = {name: leaf[i] for name, leaf in p["layers"].items()}
        y = norm(x, w["attn_norm_LD"])
        q, k, v = (np.einsum("td,dnh->tnh", y, w[f"{n}_LD{m}H"]) for n, m in ("qN", "kK", "vK"))
        yield q, k, v
        keys, values = (np.repeat(a, config.num_heads // config.num_kv_heads, 1) for a in (k, v))
        logits = np.einsum("tnh,snh->nts", turn(q), turn(keys)) / np.sqrt(config.head_dim)
        weights = np.exp(np.where(seen, logits, -np.inf))
        weights /= weights.sum(-1, keepdims=True)
        x = x + np.einsum("nts,snh,nhd->td", weights, values, w["o_LNHD"])
        y = norm(x, w["mlp_norm_LD"])
        gate = y @ w["gate_LDF"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w["up_LDF"])) @ w["down_LFD"]


@pytest.mark.parametrize("remat, block", [("none", 512), ("full", 8)])
def test_hidden_states_are_those_of_hidden_to_the_bit(tiny_config, tiny_params, remat, block):
    r, settings = decoder.own_rope(tiny_config)(24), SETTINGS(attention_block=block, remat=remat)
    tokens, places = packed_row(tiny_config)
    hidden = jax.jit(decoder.hidden, static_argnums=0, static_argnames="settings")
    for more in (places, {}):
        expected = hidden(tiny_config, tiny_params, tokens, r, settings=settings, **more)
        found, _ = seen_by(tiny_config, tiny_params, tokens, r, settings=settings, **more)
        assert np.array_equal(found, expected) and np.ptp(expected) > 1


@pytest.mark.parametrize("factor, attention_factor", [(1.0, 1.0), (3.0, 1.3)])
def test_queries_and_keys_are_those_of_a_dense_pass(
    tiny_config, tiny_params, factor, attention_factor
):
    params = loud(tiny_params)
    r = rope.build(np.full(4, factor), theta=500.0, attention_factor=attention_factor)
    tokens, places = packed_row(tiny_config)
    _, seen = seen_by(tiny_config, params, tokens, r, **places)
    assert list(seen.index) == [0, 1]
    ids = places["positions_BT"][0], places["segment_ids_BT"][0]
    for i, expected in enumerate(by_hand(tiny_config, params, tokens[0], r, *ids)):
        for ours, theirs in zip((seen.q_BTNH, seen.k_BTKH, seen.v_BTKH), expected, strict=True):
            np.testing.assert_allclose(ours[i, 0], theirs, atol=2e-4)
        for ours, theirs in zip(
            seen.turn, rope.cos_sin(r, jnp.asarray(places["positions_BT"])), strict=True
        ):
            assert np.array_equal(ours[i], theirs)
        mask = jax.tree.map(lambda leaf, i=i: leaf[i], seen.mask)
        causal = masks.self_mask(*(jnp.asarray(x) for x in places.values()))
        assert np.array_equal(masks.allowed(mask), masks.allowed(causal))


def test_each_layer_sees_its_own_rope_and_the_window(tiny_config, tiny_params):
    ropes = [rope.build(np.full(4, f), theta=10_000.0, attention_factor=f) for f in (1.0, 2.0)]
    config = dataclasses.replace(tiny_config, sliding_window=5)
    tokens = np.arange(12)[None]
    _, seen = seen_by(config, tiny_params, tokens, rope.stack(ropes, per_layer=True))
    for i, r in enumerate(ropes):
        assert np.array_equal(seen.turn[0][i], rope.cos_sin(r, jnp.arange(12)[None])[0])
    assert seen.mask.window == 5 and seen.mask.causal


def test_queries_and_keys_are_those_of_torch(tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch (Python 3.11)")
    transformers = pytest.importorskip("transformers", reason="needs transformers (Python 3.11)")
    write(tmp_path, CASES["llama yarn"])
    ours = pretrained.load(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens, caught = np.random.default_rng(7).integers(0, 96, (1, 24)), {}
    for i, layer in enumerate(theirs.model.layers):
        for name in ("q", "k", "v"):
            linear = getattr(layer.self_attn, f"{name}_proj")
            linear.register_forward_hook(
                lambda _, __, out, key=(name, i): caught.__setitem__(key, out.detach().numpy())
            )
    with torch.no_grad():
        theirs(torch.as_tensor(tokens))
    _, seen = seen_by(ours.config, ours.params, tokens.astype(np.int32), ours.rope_fn(24))
    for name, found in (("q", seen.q_BTNH), ("k", seen.k_BTKH), ("v", seen.v_BTKH)):
        for i in range(ours.config.num_layers):
            expected = caught[name, i].reshape(found[i].shape)
            np.testing.assert_allclose(found[i], expected, atol=2e-5)


def test_on_a_mesh_each_device_sees_its_part(tiny_config, tiny_params):
    mesh = sharding.make_mesh(dict(data=1, fsdp=2, context=2, tensor=2))
    settings = SETTINGS(attention="ring", attention_block=4, mesh=mesh)
    tokens = np.random.default_rng(1).integers(0, 264, (2, 16)).astype(np.int32)
    r = decoder.own_rope(tiny_config)(16)
    order = decoder.token_order(settings, 16)
    positions = np.broadcast_to(np.arange(16, dtype=np.int32), (2, 16))

    def local(params, tokens, positions):
        def probe_fn(seen):
            return seen.q_BTNH, seen.k_BTKH

        return decoder.probe(
            tiny_config,
            params,
            tokens,
            r,
            positions_BT=positions,
            settings=settings,
            probe_fn=probe_fn,
        )

    part = jax.sharding.PartitionSpec
    rows = sharding.row_sharding(mesh).spec
    specs = jax.tree.map(lambda where: where.spec, decoder.param_shardings(tiny_config, mesh))
    stacked = part(None, *rows, "tensor")
    run = jax.jit(
        jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(specs, rows, rows),
            out_specs=(rows, (stacked, stacked)),
            check_vma=False,
        )
    )
    x, found = run(tiny_params, tokens[:, order], positions[:, order])
    expected_x, seen = seen_by(tiny_config, tiny_params, tokens, r)
    np.testing.assert_allclose(x, expected_x[:, order], atol=2e-5)
    for ours, theirs in zip(found, (seen.q_BTNH, seen.k_BTKH), strict=True):
        np.testing.assert_allclose(ours, theirs[:, :, order], atol=2e-5)

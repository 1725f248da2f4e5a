"""The forward pass, of whole arrays or, inside a shard_map, of one device's. It branches on the
description of the decoder (config.py), never on a family.

On a mesh each layer gathers its weights over the devices that share the model dim, in the compute
dtype and inside what the remat policy recomputes; heads and the MLP may be cut over `tensor`, and
attention (jaxrope.attention) sees to the rest of the sequence.

Letters: B batch, T length, N heads, K kv heads, H head dim, D model dim, F mlp dim, V vocabulary, L
layers.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxrope import attention, rope
from jaxrope.attention import masks
from jaxrope.decoder import adapters, delta, experts, layers, losses, norms, stack
from jaxrope.decoder.config import KINDS, DecoderConfig, sliding_rope
from jaxrope.decoder.settings import DTYPES, LAYER_INPUT, REMAT, ForwardSettings
from jaxrope.errors import InputError
from jaxrope.mesh import collectives, sharding

Cache = attention.Cache | delta.State  # of the layers of a kind


def hidden(
    config: DecoderConfig,
    params: dict,
    tokens_BT: jax.Array,
    r: rope.Rope,
    *,
    positions_BT: jax.Array | None = None,
    segment_ids_BT: jax.Array | None = None,
    settings: ForwardSettings = ForwardSettings(),  # noqa: B008 (frozen)
) -> jax.Array:
    """Returns x_BTD after the final norm, times logit_scale, in the compute dtype.

    Args:
      config, params: the model, with or without adapters (adapters.py).
      tokens_BT: ids below vocab_size; JAX clamps others silently, so loaders check them.
      r: the rope of the layers that are extended; leaves with a leading batch axis choose per
        sequence, `per_layer` ones per layer.
      positions_BT: int32, 0, 1, 2, ... in each document; None: a row is one.
      segment_ids_BT: int32, the documents of a packed row, one behind another; None: one document.
      settings: how it is run. On a mesh all arrays are this device's.
    """
    placed = positions_BT, segment_ids_BT, None
    return _through_layers(config, params, tokens_BT, r, placed, settings)[0]


def hidden_and_imbalance(
    config: DecoderConfig, params: dict, tokens_BT: jax.Array, r: rope.Rope, counted_BT, **kwargs
) -> tuple[jax.Array, jax.Array]:
    """Returns (x_BTD of `hidden`, experts.imbalance over the tokens of counted_BT, bool, of all
    devices); the same on each.

    Args:
      config: has experts.
      params, tokens_BT, r, kwargs: as for `hidden`, all of them.
    """
    placed = kwargs["positions_BT"], kwargs["segment_ids_BT"], counted_BT
    settings = kwargs["settings"]
    x_BTD, outputs = _through_layers(config, params, tokens_BT, r, placed, settings)
    counts_E, probs_E = (jnp.sum(load_LE, axis=0) for load_LE in outputs["load"])
    sums = counts_E, probs_E, jnp.sum(counted_BT, dtype=counts_E.dtype)
    sums = collectives.sum_over(sums, settings.mesh, "data", "fsdp", "context")
    return x_BTD, experts.imbalance(config, *sums)


class Seen(NamedTuple):
    """The inputs of a layer's attention; on a mesh this device's part.

    Attributes:
      index: of the layer, int32.
      q_BTNH, k_BTKH, v_BTKH: as projected and normed, q and k not yet rotated; in the compute
        dtype. q is scaled such that logits are H^-0.5 q k.
      turn: (cos_BTR, sin_BTR) of the layer's rope with its attention factor, for `rope.rotate`.
      mask: which key a query may see.
    """

    index: jax.Array
    q_BTNH: jax.Array
    k_BTKH: jax.Array
    v_BTKH: jax.Array
    turn: tuple[jax.Array, jax.Array]
    mask: masks.Mask


def probe(
    config: DecoderConfig,
    params: dict,
    tokens_BT: jax.Array,
    r: rope.Rope,
    *,
    probe_fn: Callable[[Seen], Any],
    positions_BT: jax.Array | None = None,
    segment_ids_BT: jax.Array | None = None,
    settings: ForwardSettings = ForwardSettings(),  # noqa: B008 (frozen)
) -> tuple[jax.Array, Any]:
    """Returns (x_BTD of `hidden`, the results of `probe_fn` in all layers that attend, stacked: [L,
    ...]).

    Args:
      config, params, tokens_BT, r, positions_BT, segment_ids_BT, settings: as for `hidden`.
      probe_fn: reads the queries and keys of a layer and returns a pytree of arrays; on a mesh it
        runs inside the same shard_map. Attention does not depend on it.

    Raises:
      InputError: see `check_probe`.
    """
    check_probe(config)
    placed = positions_BT, segment_ids_BT, None
    x_BTD, outputs = _through_layers(config, params, tokens_BT, r, placed, settings, probe_fn)
    return x_BTD, outputs["probed"]


def check_probe(config: DecoderConfig) -> None:
    """Refuses a model whose attention does not follow from its queries and keys alone.

    Raises:
      InputError: it caps logits.
    """
    if config.attention_cap is not None:
        raise InputError(
            f"The model caps attention logits at {config.attention_cap:g} (model_type "
            f"{config.family}): statistics of attention are not defined for that here. Analyse "
            "another model, or search with the perplexity objective."
        )


def _through_layers(config, params, tokens_BT, r, placed, settings, probe_fn=None):
    """Returns (x_BTD after the final norm, {"probed": the results of `probe_fn` in layers that
    attend, "load": experts.load}); `placed`: positions, segment ids, which tokens are counted.
    """
    _check_rope(config, r)
    positions_BT, segment_ids_BT, counted_BT = placed
    if positions_BT is None:
        if sharding.ways(settings.mesh, "context") > 1:
            raise ValueError("decoder.hidden: on a mesh with context > 1 positions_BT is needed.")
        positions_BT = jnp.broadcast_to(
            jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape
        )
    x_BTD = _embedded(config, params, tokens_BT, settings)
    turns = _turns(config, r, positions_BT)
    if config.num_delta_layers:
        document_ZS = delta.documents(config, settings, tokens_BT.shape, segment_ids_BT)

    def layer(kind, x_BTD, scanned):
        x_BTD = checkpoint_name(x_BTD, LAYER_INPUT)
        (weights, layer_rope, index), own = scanned
        weights, probed = adapters.in_layer(weights | own), None
        turn = _turn_of_layer(kind, turns, layer_rope, positions_BT)
        ids = positions_BT, segment_ids_BT
        mask = masks.self_mask(*ids, window=config.window(kind), ordered=True)

        def attend(q_BTNH, k_BTKH, v_BTKH):
            nonlocal probed
            q_BTNH = _scaled_queries(config, q_BTNH, positions_BT)
            if probe_fn is not None:
                shown = _no_turn(config, positions_BT) if turn is None else turn
                probed = probe_fn(Seen(index, q_BTNH, k_BTKH, v_BTKH, shown, mask))
            turned = _rotated(q_BTNH, turn), _rotated(k_BTKH, turn)
            how = dict(mask=mask, settings=_attention_settings(config, settings))
            return attention.attend(settings.attention, *turned, v_BTKH, **how)

        def recur(weights, y_BTD):
            return delta.mixed(config, settings, document_ZS, weights, y_BTD)

        mix_fn = recur if kind == "delta" else attend
        x_BTD, probs_BTE = layers.layer(config, settings, weights, x_BTD, mix_fn)
        load = None if counted_BT is None else experts.load(config, probs_BTE, counted_BT)
        return x_BTD, {"load": load} | ({} if kind == "delta" else {"probed": probed})

    def layer_of(kind):
        return REMAT[settings.remat](functools.partial(layer, kind))

    indices = None if probe_fn is None else jnp.arange(config.num_layers, dtype=jnp.int32)
    weights, some = layers.by_layers(config, params["layers"])
    scanned = weights, r if r.per_layer else None, indices
    x_BTD, outputs = stack.scan(layer_of, x_BTD, scanned, config.kinds, some)
    return _final(config, params, x_BTD, settings), outputs


def _check_rope(config: DecoderConfig, r: rope.Rope) -> None:
    """Refuses a rope for another model; `rope.rotate` would turn as many dims as it has."""
    pairs, layers = r.factors_R.shape[-1], r.factors_R.shape[0] if r.per_layer else None
    if 2 * pairs != config.rotary_dim or layers not in (None, config.num_layers):
        raise InputError(
            f"The rope must have {config.rotary_dim // 2} factors (rotary_dim / 2) for each of "
            f"{config.num_layers} layers or for all, got the shape {r.factors_R.shape}. It is for "
            "another model."
        )


def hidden_cached(
    config: DecoderConfig,
    params: dict,
    tokens_BT: jax.Array,
    r: rope.Rope,
    caches: Mapping[str, Cache],
    place: attention.Place,
    settings: ForwardSettings,
) -> tuple[jax.Array, dict[str, Cache]]:
    """Returns (x_BTD of `hidden`, the caches with the keys and values of these tokens, or with the
    states after them).

    The tokens see what the caches hold of the tokens before them; with the same rope that is what
    `hidden` computes of the whole sequence.

    Args:
      config, params, tokens_BT, r: as for `hidden`.
      caches: of `empty_caches`; rotated with this rope, else the result is not that of any
        sequence.
      place: which tokens these are, and where in the caches they go.
      settings: compute_dtype, attention_block, mlp_chunk and mesh are used.
    """
    _check_rope(config, r)
    x_BTD = _embedded(config, params, tokens_BT, settings)
    turns = _turns(config, r, place.positions_BT)
    how = dict(settings=_attention_settings(config, settings))

    def layer(kind, carry, scanned):
        x_BTD, caches = carry
        (index, weights, layer_rope), own = scanned
        turn = _turn_of_layer(kind, turns, layer_rope, place.positions_BT)

        def attend(q_BTNH, k_BTKH, v_BTKH):
            nonlocal caches
            q_BTNH = _rotated(_scaled_queries(config, q_BTNH, place.positions_BT), turn)
            k_BTKH = _rotated(k_BTKH, turn)
            cache = attention.write(caches[kind], index, k_BTKH, v_BTKH, place, settings.mesh)
            caches = dict(caches) | {kind: cache}
            window = config.window(kind)
            return attention.attend_cached(q_BTNH, cache, index, place, window=window, **how)

        def recur(weights, y_BTD):
            nonlocal caches
            cached = caches[kind], index, place
            out_BTNH, cache = delta.mixed_cached(config, settings, *cached, weights, y_BTD)
            caches = dict(caches) | {kind: cache}
            return out_BTNH

        mix_fn = recur if kind == "delta" else attend
        x_BTD, _ = layers.layer(config, settings, weights | own, x_BTD, mix_fn)
        return (x_BTD, caches), {}

    def layer_of(kind):
        return functools.partial(layer, kind)

    weights, some = layers.by_layers(config, params["layers"])
    scanned = (_index_in_kind(config), weights, r if r.per_layer else None)
    carry = x_BTD, dict(caches)
    (x_BTD, caches), _ = stack.scan(layer_of, carry, scanned, config.kinds, some)
    return _final(config, params, x_BTD, settings), caches


def empty_caches(
    config: DecoderConfig, settings: ForwardSettings, *, batch: int, slots: int, chunk: int
) -> dict[str, Cache]:
    """Returns a cache for the layers of each kind, whole: of keys and values [L, B, S, K, H], or of
    the states of delta layers [L, B, ...].

    Args:
      config, settings: the model.
      batch: rows.
      slots: tokens of a row; layers with a window have what their window needs.
      chunk: the most tokens that are handed in together.
    """
    dtype = DTYPES[settings.compute_dtype]

    def cache(kind):
        if kind == "delta":
            return delta.empty(config, dtype, config.kinds.count(kind), batch)
        window = config.window(kind)
        most = slots if window is None else min(slots, attention.ring_slots(window, chunk))
        shape = (config.kinds.count(kind), batch, most, config.num_kv_heads, config.head_dim)
        return attention.Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    return {kind: cache(kind) for kind in dict.fromkeys(config.kinds)}


def _index_in_kind(config: DecoderConfig) -> jax.Array:
    """Returns, for each layer, how many layers of its kind come before it, int32 [L]."""
    counts = [config.kinds[:layer].count(kind) for layer, kind in enumerate(config.kinds)]
    return jnp.array(counts, jnp.int32)


def next_logits(
    config: DecoderConfig, params: dict, x_BD: jax.Array, settings: ForwardSettings
) -> jax.Array:
    """Returns logits_BV, float32 or wider, of one hidden state for each row; on a mesh all words,
    on every device that has the row.
    """
    mesh = settings.mesh
    head = collectives.gather({"head_DV": head_DV(config, params)}, x_BD.dtype, mesh)["head_DV"]
    wide = jnp.promote_types(x_BD.dtype, jnp.float32)
    logits_BV = losses.capped(layers.dot("BD,DV->BV", x_BD, head).astype(wide), config.logit_cap)
    if logits_BV.shape[-1] == config.vocab_size:
        return logits_BV
    return jax.lax.all_gather(logits_BV, collectives.TENSOR, axis=1, tiled=True)


def head_DV(config: DecoderConfig, params: dict) -> jax.Array:
    """Returns the matrix that makes logits of the hidden states; on a mesh this device's part."""
    return params["embed_VD"].T if config.tie_embeddings else adapters.head_DV(params)


def logits(
    config: DecoderConfig, params: dict, tokens_BT: jax.Array, r: rope.Rope, **kwargs
) -> jax.Array:
    """Returns logits_BTV, float32 or wider, of the whole sequence, on one device; see `hidden`. For
    long sequences take `losses.nll_sum`.
    """
    x_BTD = hidden(config, params, tokens_BT, r, **kwargs)
    logits_BTV = layers.dot("BTD,DV->BTV", x_BTD, head_DV(config, params))
    wide = jnp.promote_types(x_BTD.dtype, jnp.float32)
    return losses.capped(logits_BTV.astype(wide), config.logit_cap)


def _embedded(config, params, tokens_BT, settings):
    dtype, table_VD = DTYPES[settings.compute_dtype], params["embed_VD"]
    x_BTD = collectives.look_up(
        table_VD, tokens_BT, dtype, settings.mesh, vocab_size=config.vocab_size
    )
    return x_BTD * jnp.asarray(config.embed_scale, dtype) if config.embed_scale != 1 else x_BTD


def _final(config, params, x_BTD, settings):
    names = [name for name in ("final_norm_D", "final_norm_bias_D") if name in params]
    norm = layers.whole(params, names, x_BTD.dtype, settings.mesh)
    x_BTD = norms.normed(config, norm, "final_norm_D", x_BTD)
    return (
        x_BTD * jnp.asarray(config.logit_scale, x_BTD.dtype) if config.logit_scale != 1 else x_BTD
    )


def _turns(config, r, positions_BT) -> dict:
    """Returns the rotation of each rope that layers share; None: every layer has its own, or none
    turns.
    """
    scaled = None if r.per_layer else rope.cos_sin(r, positions_BT)
    turns = {"scaled": scaled, "none": None}
    if "sliding" in config.layers:
        at_any_length = sliding_rope(config)(config.max_len)
        turns["sliding"] = rope.cos_sin(at_any_length, positions_BT)
    return turns


def _turn_of_layer(kind, turns, layer_rope, positions_BT):
    """Returns (cos_BTR, sin_BTR), or None for a layer without a rope."""
    name = KINDS[kind].rope
    if name == "scaled" and layer_rope is not None:
        return rope.cos_sin(layer_rope, positions_BT)
    return turns[name]


def _no_turn(config, positions_BT):
    ones = jnp.ones((*positions_BT.shape, config.rotary_dim // 2), jnp.float32)
    return ones, jnp.zeros_like(ones)


def _rotated(x_BTNH, turn):
    return x_BTNH if turn is None else rope.rotate(x_BTNH, *turn)


def _attention_settings(config, settings):
    return dataclasses.replace(settings.of_attention, cap=config.attention_cap)


def _scaled_queries(config, q_BTNH, positions_BT):
    """Returns the queries, such that logits are head_dim^-0.5 q k whatever the model's scale."""
    scale = config.attention_scale
    factor = 1.0 if scale is None else scale * config.head_dim**0.5
    if factor == 1 and not config.query_growth:
        return q_BTNH
    wide = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    times_BT = (positions_BT // (config.query_growth_len or 1)).astype(wide)
    factor_BT = factor * (1 + config.query_growth * jnp.log1p(times_BT))
    return (q_BTNH.astype(wide) * factor_BT[..., None, None]).astype(q_BTNH.dtype)

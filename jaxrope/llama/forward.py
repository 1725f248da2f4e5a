"""The forward pass, of whole arrays or, inside a shard_map, of one device's.

On a mesh each layer gathers its weights over the devices that share the model dim, in the compute
dtype and inside what the remat policy recomputes; heads and the MLP may be cut over `tensor`, and
attention (jaxrope.attention) sees to the rest of the sequence.

Letters: B batch, T length, N heads, K kv heads, H head dim, D model dim, F mlp dim, V vocabulary, L
layers.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxrope import attention, rope
from jaxrope.attention import masks
from jaxrope.errors import InputError
from jaxrope.llama import adapters, chunked
from jaxrope.llama.config import LlamaConfig
from jaxrope.llama.settings import DTYPES, LAYER_INPUT, REMAT, ForwardSettings
from jaxrope.mesh import collectives, sharding


def hidden(
    config: LlamaConfig,
    params: dict,
    tokens_BT: jax.Array,
    r: rope.Rope,
    *,
    positions_BT: jax.Array | None = None,
    segment_ids_BT: jax.Array | None = None,
    settings: ForwardSettings = ForwardSettings(),  # noqa: B008 (frozen)
) -> jax.Array:
    """Returns x_BTD after the final norm, in the compute dtype.

    Args:
      config, params: the model, with or without adapters (adapters.py).
      tokens_BT: ids below vocab_size; JAX clamps others silently, so loaders check them.
      r: the rope; leaves with a leading batch axis choose per sequence, `per_layer` ones per layer.
      positions_BT: int32, restarting with each document; None: 0, 1, 2, ...
      segment_ids_BT: int32, the documents of a packed row; None: one document.
      settings: how it is run. On a mesh all arrays are this device's.
    """
    placed = positions_BT, segment_ids_BT
    return _through_layers(config, params, tokens_BT, r, placed, settings)[0]


class Seen(NamedTuple):
    """The inputs of a layer's attention; on a mesh this device's part.

    Attributes:
      index: of the layer, int32.
      q_BTNH, k_BTKH, v_BTKH: as projected, q and k not yet rotated; in the compute dtype.
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
    config: LlamaConfig,
    params: dict,
    tokens_BT: jax.Array,
    r: rope.Rope,
    *,
    probe_fn: Callable[[Seen], Any],
    positions_BT: jax.Array | None = None,
    segment_ids_BT: jax.Array | None = None,
    settings: ForwardSettings = ForwardSettings(),  # noqa: B008 (frozen)
) -> tuple[jax.Array, Any]:
    """Returns (x_BTD of `hidden`, the results of `probe_fn` in all layers, stacked: [L, ...]).

    Args:
      config, params, tokens_BT, r, positions_BT, segment_ids_BT, settings: as for `hidden`.
      probe_fn: reads the queries and keys of a layer and returns a pytree of arrays; on a mesh it
        runs inside the same shard_map. Attention does not depend on it.
    """
    placed = positions_BT, segment_ids_BT
    return _through_layers(config, params, tokens_BT, r, placed, settings, probe_fn)


def _through_layers(config, params, tokens_BT, r, placed, settings, probe_fn=None):
    """Returns (x_BTD after the final norm, the results of `probe_fn` or None); `placed`: positions
    and segment ids, or None.
    """
    _check_rope(config, r)
    positions_BT, segment_ids_BT = placed
    natural = positions_BT is None and segment_ids_BT is None
    if positions_BT is None:
        if sharding.ways(settings.mesh, "context") > 1:
            raise ValueError("llama.hidden: on a mesh with context > 1 positions_BT is needed.")
        positions_BT = jnp.broadcast_to(
            jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape
        )
    mask = masks.self_mask(
        positions_BT, segment_ids_BT, window=config.sliding_window, natural=natural
    )
    dtype = DTYPES[settings.compute_dtype]
    x_BTD = collectives.look_up(
        params["embed_VD"], tokens_BT, dtype, settings.mesh, vocab_size=config.vocab_size
    )
    shared = None if r.per_layer else rope.cos_sin(r, positions_BT)

    def layer(x_BTD, scanned):
        x_BTD = checkpoint_name(x_BTD, LAYER_INPUT)
        weights, layer_rope, index = scanned
        weights, probed = adapters.in_layer(weights), None
        turn = shared if layer_rope is None else rope.cos_sin(layer_rope, positions_BT)

        def attend(q_BTNH, k_BTKH, v_BTKH):
            nonlocal probed
            if probe_fn is not None:
                probed = probe_fn(Seen(index, q_BTNH, k_BTKH, v_BTKH, turn, mask))
            how = dict(mask=mask, settings=settings.of_attention)
            turned = rope.rotate(q_BTNH, *turn), rope.rotate(k_BTKH, *turn)
            return attention.attend(settings.attention, *turned, v_BTKH, **how)

        x_BTD = x_BTD + _attention(config, settings, weights, x_BTD, attend)
        return x_BTD + _mlp(config, settings, weights, x_BTD), probed

    indices = None if probe_fn is None else jnp.arange(config.num_layers, dtype=jnp.int32)
    scanned = params["layers"], r if r.per_layer else None, indices
    x_BTD, probed = jax.lax.scan(REMAT[settings.remat](layer), x_BTD, scanned)
    norm = _whole(params, ("final_norm_D",), dtype, settings.mesh)
    return _rms_norm(x_BTD, norm["final_norm_D"], config.norm_eps), probed


def _check_rope(config: LlamaConfig, r: rope.Rope) -> None:
    """Refuses a rope for another model; `rope.rotate` would turn as many dims as it has."""
    pairs, layers = r.factors_R.shape[-1], r.factors_R.shape[0] if r.per_layer else None
    if 2 * pairs != config.rotary_dim or layers not in (None, config.num_layers):
        raise InputError(
            f"The rope must have {config.rotary_dim // 2} factors (rotary_dim / 2) for each of "
            f"{config.num_layers} layers or for all, got the shape {r.factors_R.shape}. It is for "
            "another model."
        )


def hidden_cached(
    config: LlamaConfig,
    params: dict,
    tokens_BT: jax.Array,
    r: rope.Rope,
    cache: attention.Cache,
    place: attention.Place,
    settings: ForwardSettings,
) -> tuple[jax.Array, attention.Cache]:
    """Returns (x_BTD after the final norm, the cache with the keys and values of these tokens).

    The tokens see what the cache holds of the tokens before them; with the same rope that is what
    `hidden` computes of the whole sequence.

    Args:
      config, params, tokens_BT, r: as for `hidden`.
      cache: of all layers; rotated with this rope, else the result is not that of any sequence.
      place: which tokens these are, and where in the cache they go.
      settings: compute_dtype, attention_block, mlp_chunk and mesh are used.
    """
    _check_rope(config, r)
    dtype, mesh = DTYPES[settings.compute_dtype], settings.mesh
    x_BTD = collectives.look_up(
        params["embed_VD"], tokens_BT, dtype, mesh, vocab_size=config.vocab_size
    )
    shared = None if r.per_layer else rope.cos_sin(r, place.positions_BT)

    def layer(carry, scanned):
        x_BTD, cache = carry
        index, weights, layer_rope = scanned
        turn = shared if layer_rope is None else rope.cos_sin(layer_rope, place.positions_BT)

        def attend(q_BTNH, k_BTKH, v_BTKH):
            nonlocal cache
            q_BTNH, k_BTKH = rope.rotate(q_BTNH, *turn), rope.rotate(k_BTKH, *turn)
            cache = attention.write(cache, index, k_BTKH, v_BTKH, place, mesh)
            how = dict(window=config.sliding_window, settings=settings.of_attention)
            return attention.attend_cached(q_BTNH, cache, index, place, **how)

        x_BTD = x_BTD + _attention(config, settings, weights, x_BTD, attend)
        return (x_BTD + _mlp(config, settings, weights, x_BTD), cache), None

    indices = jnp.arange(config.num_layers, dtype=jnp.int32)
    scanned = (indices, params["layers"], r if r.per_layer else None)
    (x_BTD, cache), _ = jax.lax.scan(layer, (x_BTD, cache), scanned)
    norm = _whole(params, ("final_norm_D",), dtype, mesh)
    return _rms_norm(x_BTD, norm["final_norm_D"], config.norm_eps), cache


def next_logits(
    config: LlamaConfig, params: dict, x_BD: jax.Array, settings: ForwardSettings
) -> jax.Array:
    """Returns logits_BV, float32 or wider, of one hidden state for each row; on a mesh all words,
    on every device that has the row.
    """
    mesh = settings.mesh
    head = collectives.gather({"head_DV": head_DV(config, params)}, x_BD.dtype, mesh)["head_DV"]
    wide = jnp.promote_types(x_BD.dtype, jnp.float32)
    logits_BV = _dot("BD,DV->BV", x_BD, head).astype(wide)
    if logits_BV.shape[-1] == config.vocab_size:
        return logits_BV
    return jax.lax.all_gather(logits_BV, collectives.TENSOR, axis=1, tiled=True)


def head_DV(config: LlamaConfig, params: dict) -> jax.Array:
    """Returns the matrix that makes logits of the hidden states; on a mesh this device's part."""
    return params["embed_VD"].T if config.tie_embeddings else adapters.head_DV(params)


def logits(
    config: LlamaConfig, params: dict, tokens_BT: jax.Array, r: rope.Rope, **kwargs
) -> jax.Array:
    """Returns logits_BTV, float32 or wider, of the whole sequence, on one device; see `hidden`. For
    long sequences take `losses.token_nll`.
    """
    x_BTD = hidden(config, params, tokens_BT, r, **kwargs)
    return _dot("BTD,DV->BTV", x_BTD, head_DV(config, params)).astype(
        jnp.promote_types(x_BTD.dtype, jnp.float32)
    )


def _attention(config, settings, weights, x_BTD, attend_fn):
    """Attention of a layer; `attend_fn` takes q, k and v, rotates and attends."""
    names = [name for name in weights if name in _ATTENTION]
    weights = _whole(weights, names, x_BTD.dtype, settings.mesh)
    y_BTD = _rms_norm(x_BTD, weights["attn_norm_LD"], config.norm_eps)
    q_BTNH = _dot("BTD,DNH->BTNH", y_BTD, weights["q_LDNH"])
    k_BTKH = _dot("BTD,DKH->BTKH", y_BTD, weights["k_LDKH"])
    v_BTKH = _dot("BTD,DKH->BTKH", y_BTD, weights["v_LDKH"])
    if config.qkv_bias:
        q_BTNH, k_BTKH, v_BTKH = (
            _add_bias(x, weights[name])
            for x, name in ((q_BTNH, "q_bias_LNH"), (k_BTKH, "k_bias_LKH"), (v_BTKH, "v_bias_LKH"))
        )
    out_BTNH = attend_fn(q_BTNH, k_BTKH, v_BTKH)
    out_BTD = _dot("BTNH,NHD->BTD", out_BTNH, weights["o_LNHD"])
    out_BTD = collectives.sum_over_tensor(out_BTD, settings.mesh)
    return _add_bias(out_BTD, weights["o_bias_LD"]) if config.out_bias else out_BTD


def _mlp(config, settings, weights, x_BTD):
    """The MLP; on a mesh with tensor > 1 each device has a part of F, and the sums are added up."""
    mlp = {name: weights[name] for name in weights if name in _MLP}
    fn = functools.partial(_gated, config.norm_eps)
    chunk = settings.mlp_chunk // x_BTD.shape[0]
    if settings.mlp_chunk and chunk < x_BTD.shape[1]:
        down_BTD = chunked.over_chunks(
            fn, x_BTD, None, mlp, chunk=max(chunk, 1), mesh=settings.mesh
        )
    else:
        down_BTD = fn(x_BTD, None, collectives.gather(mlp, x_BTD.dtype, settings.mesh))
    down_BTD = collectives.sum_over_tensor(down_BTD, settings.mesh)
    if not config.mlp_bias:
        return down_BTD
    bias = _whole(weights, ("down_bias_LD",), x_BTD.dtype, settings.mesh)
    return _add_bias(down_BTD, bias["down_bias_LD"])


def _gated(norm_eps, x_BTD, _, weights):
    """SwiGLU (arXiv 2002.05202) of the normed x, without the last bias."""
    y_BTD = _rms_norm(x_BTD, weights["mlp_norm_LD"], norm_eps)
    gate_BTF = _dot("BTD,DF->BTF", y_BTD, weights["gate_LDF"])
    up_BTF = _dot("BTD,DF->BTF", y_BTD, weights["up_LDF"])
    if "gate_bias_LF" in weights:
        gate_BTF = _add_bias(gate_BTF, weights["gate_bias_LF"])
        up_BTF = _add_bias(up_BTF, weights["up_bias_LF"])
    return _dot("BTF,FD->BTD", jax.nn.silu(gate_BTF) * up_BTF, weights["down_LFD"])


_ATTENTION = ("attn_norm_LD", "q_LDNH", "k_LDKH", "v_LDKH", "o_LNHD") + (
    "q_bias_LNH",
    "k_bias_LKH",
    "v_bias_LKH",
    "o_bias_LD",
)
_MLP = ("mlp_norm_LD", "gate_LDF", "up_LDF", "down_LFD", "gate_bias_LF", "up_bias_LF")


def _whole(weights, names, dtype, mesh):
    return collectives.gather({name: weights[name] for name in names}, dtype, mesh)


def _rms_norm(x_BTD, scale_D, eps):
    """RMSNorm (arXiv 1910.07467), in float32 or wider."""
    wide = x_BTD.astype(jnp.promote_types(x_BTD.dtype, jnp.float32))
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return wide.astype(x_BTD.dtype) * scale_D.astype(x_BTD.dtype)[None, None]


def _dot(letters, x, weight):
    return _product(letters, x, weight.astype(x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(letters, x, weight):
    """Returns the product; its gradient for the weight is computed in the order that transposes the
    smaller operand: XLA's CPU backend copies it (a tenth of a training step).
    """
    # HIGHEST: the default of a TPU rounds float32 operands to bfloat16
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(letters, x, weight, precision=precision)


def _product_fwd(letters, x, weight):
    return _product(letters, x, weight), (x, weight)


def _product_bwd(letters, residuals, dy):
    x, weight = residuals
    ins, outs = letters.split("->")
    xs, ws = ins.split(",")
    dx = _product(f"{outs},{ws}->{xs}", dy, weight)
    if x.size > dy.size:
        return dx, _product(f"{outs},{xs}->{ws}", dy, x)
    return dx, _product(f"{xs},{outs}->{ws}", x, dy)


_product.defvjp(_product_fwd, _product_bwd)


def _add_bias(x, bias):
    return x + jnp.expand_dims(bias, (0, 1)).astype(x.dtype)

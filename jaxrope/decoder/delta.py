"""Gated DeltaNet (arXiv 2412.06464) as Qwen3-Next and Qwen3.5 have it, in place of attention.

A head's state is a matrix that maps keys to values. Each token lets it decay, corrects by the rate
`beta` what it gives for the token's key towards the token's value, and reads it with its query:

    S = exp(decay) S;  S = S + k (beta (v - S^T k))^T;  out = S^T q

Queries, keys and values come out of a short causal convolution of each channel; what is read is
normed, and multiplied by a gate. There is no rope: a delta layer knows of positions by its order.

A row is computed in chunks: within one, corrections are a triangular system (arXiv 2412.06464,
section 3.3), from one to the next a scan carries the state, and the backward pass computes each
chunk again, so that memory is linear in length. A chunk of one token is the step above. The state,
norms, decays and rates are float32 or wider, as transformers keeps them.

Documents of a row do not see each other: the state and the convolution begin anew with each. On a
mesh heads are cut over `tensor`; tokens of a row are on one device (`check_mesh`).

Letters: B batch, T length, C chunk, K heads of queries and keys, N heads of values, N // K of them
for each of those, H dims of a head, D model dim, W tokens of the convolution, L layers.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxrope.attention import Place
from jaxrope.decoder import layers
from jaxrope.decoder.config import DecoderConfig
from jaxrope.errors import InputError
from jaxrope.mesh import sharding

CHUNK = 64  # tokens, as transformers has it
_EPS = 1e-6  # of the norm of queries and keys
_QKV = (("q", "K"), ("k", "K"), ("v", "N"))  # what is convolved, and the letter of its heads


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What a row has left behind; of a cache, in front the layers.

    Attributes:
      memory_BNHH: keys to values, float32 or wider.
      q_BWKH, k_BWKH, v_BWNH: the last W - 1 tokens before the convolution, in the compute dtype.
    """

    memory_BNHH: jax.Array
    q_BWKH: jax.Array
    k_BWKH: jax.Array
    v_BWNH: jax.Array


def empty(config: DecoderConfig, dtype, *lead: int) -> State:
    """Returns the state before the first token, its arrays [*lead, ...]."""
    keys = config.delta_conv - 1, config.delta_key_heads, config.delta_key_dim
    values = config.delta_conv - 1, config.delta_value_heads, config.delta_value_dim
    memory = config.delta_value_heads, config.delta_key_dim, config.delta_value_dim
    wide = jnp.promote_types(dtype, jnp.float32)
    of_conv = (jnp.zeros((*lead, *shape), dtype) for shape in (keys, keys, values))
    return State(jnp.zeros((*lead, *memory), wide), *of_conv)


def check_mesh(config: DecoderConfig, mesh) -> None:
    """Refuses a mesh that spreads the tokens of a row.

    Raises:
      InputError: it does, and the model has delta layers.
    """
    context = sharding.ways(mesh, "context")
    if context > 1 and any(config.delta_layers):
        raise InputError(
            f"mesh.context must be 1 for a model with delta layers (model_type {config.family}): "
            f"their recurrence runs over the tokens of one device, got {context}. Use fsdp, tensor "
            "or data."
        )


def documents(shape: tuple[int, int], segment_ids_BT: jax.Array | None) -> jax.Array:
    """Returns which document each token is of, counted in each row: int32_BT from 0 on."""
    if segment_ids_BT is None:
        return jnp.zeros(shape, jnp.int32)
    begins_BT = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
    return jnp.pad(jnp.cumsum(begins_BT, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))


def mixed(
    config: DecoderConfig,
    document_BT: jax.Array,
    weights: dict,
    y_BTD: jax.Array,
    before: State | None = None,
    valid_BT: jax.Array | None = None,
) -> tuple[jax.Array, State]:
    """Returns (what a layer reads of each token, normed and gated, out_BTNH; the state after them);
    on a mesh of this device's heads.

    Args:
      config: of the model.
      document_BT: of `documents`; the state before is of document 0.
      weights: of one layer, whole in D.
      y_BTD: normed.
      before: the state before the first token; None: an empty one.
      valid_BT: bool, the first tokens of a row; the others leave no trace. None: all.
    """
    wide = jnp.promote_types(y_BTD.dtype, jnp.float32)
    q, k, v, z = (
        layers.dot(f"BTD,D{heads}H->BT{heads}H", y_BTD, weights[f"delta_{name}_LD{heads}H"])
        for name, heads in (*_QKV, ("z", "N"))
    )
    if before is None:
        width = config.delta_conv - 1
        none = (jnp.zeros((x.shape[0], width, *x.shape[2:]), x.dtype) for x in (q, k, v))
        memory = jnp.zeros((len(v), v.shape[2], q.shape[3], v.shape[3]), wide)
        before = State(memory, *none)
    last = before.q_BWKH, before.k_BWKH, before.v_BWNH
    rows = [jnp.concatenate(pair, axis=1) for pair in zip(last, (q, k, v), strict=True)]
    convs = (weights[f"delta_{name}_conv_LW{heads}H"] for name, heads in _QKV)
    q, k, v = (_convolved(*pair, document_BT) for pair in zip(rows, convs, strict=True))
    rate_BTN = jax.nn.sigmoid(
        layers.dot("BTD,DN->BTN", y_BTD, weights["delta_beta_LDN"]).astype(wide)
    )
    decay_BTN = layers.dot("BTD,DN->BTN", y_BTD, weights["delta_decay_LDN"]).astype(wide)
    decay_BTN = jax.nn.softplus(decay_BTN + _row(weights["delta_decay_bias_LN"], wide))
    decay_BTN = -jnp.exp(_row(weights["delta_scale_bias_LN"], wide)) * decay_BTN
    if valid_BT is not None:
        rate_BTN, decay_BTN = (x * valid_BT[..., None] for x in (rate_BTN, decay_BTN))
    read_BTNH, memory = rule((q, k, v), (decay_BTN, rate_BTN), document_BT, before.memory_BNHH)
    out_BTNH = _gated(config, read_BTNH.astype(y_BTD.dtype), z, weights["delta_norm_LH"])
    return out_BTNH, State(memory, *(_last(row, document_BT, valid_BT) for row in rows))


def mixed_cached(
    config: DecoderConfig,
    cache: State,
    layer: jax.Array,
    place: Place,
    weights: dict,
    y_BTD: jax.Array,
) -> tuple[jax.Array, State]:
    """Returns (out_BTNH of `mixed`, the cache with the state after these tokens).

    Args:
      config, weights, y_BTD: as for `mixed`.
      cache: states of all delta layers [L, B, ...]; those of rows that begin are passed over.
      layer: int32, among delta layers.
      place: which tokens these are.
    """
    rows = y_BTD.shape[0]

    def read(cached):
        of_layer = jax.lax.dynamic_index_in_dim(cached, layer, keepdims=False)
        old = jax.lax.dynamic_slice_in_dim(of_layer, place.row, rows)
        begins = jnp.expand_dims(place.positions_BT[:, 0] == 0, tuple(range(1, old.ndim)))
        return jnp.where(begins & place.valid_BT[:, 0].reshape(begins.shape), 0, old)

    def write(cached, new):
        at = (layer, place.row, *(0,) * (new.ndim - 1))
        return jax.lax.dynamic_update_slice(cached, new[None].astype(cached.dtype), at)

    document_BT = documents(y_BTD.shape[:2], None)
    before = jax.tree.map(read, cache)
    out_BTNH, after = mixed(config, document_BT, weights, y_BTD, before, place.valid_BT)
    return out_BTNH, jax.tree.map(write, cache, after)


def rule(
    qkv: tuple[jax.Array, jax.Array, jax.Array],
    gates: tuple[jax.Array, jax.Array],
    document_BT: jax.Array,
    memory_BNHH: jax.Array,
    *,
    chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array]:
    """Returns (what each query reads, out_BTNH; the state after the last token), in the dtype of
    the state.

    Args:
      qkv: q_BTKH, k_BTKH, v_BTNH as convolved, q and k not yet normed.
      gates: decay_BTN, of the logarithm and at most 0, and rate_BTN from 0 to 1, in the dtype of
        the state.
      document_BT: int32, never less than that of the token before; 0: the state is of it.
      memory_BNHH: the state before the first token.
      chunk: tokens that are computed together; what is returned does not depend on it.
    """
    (batch, length), chunk = document_BT.shape, min(chunk, document_BT.shape[1])
    pad = -length % chunk

    def cut(x_BT, mode="constant"):
        x_BT = jnp.pad(x_BT, ((0, 0), (0, pad)) + ((0, 0),) * (x_BT.ndim - 2), mode=mode)
        return x_BT.reshape(batch, -1, chunk, *x_BT.shape[2:]).swapaxes(0, 1)

    parts = (*map(cut, (*qkv, *gates)), cut(document_BT, "edge"))
    start = memory_BNHH, jnp.zeros(batch, jnp.int32)
    in_chunk = jax.checkpoint(_in_chunk, prevent_cse=False)
    (memory_BNHH, _), out = jax.lax.scan(in_chunk, start, parts)
    return out.swapaxes(0, 1).reshape(batch, -1, *out.shape[3:])[:, :length], memory_BNHH


def _in_chunk(carry, part):
    memory_BNHH, document_B = carry
    q_BCKH, k_BCKH, v_BCNH, decay_BCN, rate_BCN, document_BC = part
    dtype, per_key = memory_BNHH.dtype, v_BCNH.shape[2] // k_BCKH.shape[2]
    q, k = (
        jnp.repeat(_normed(x.astype(dtype)), per_key, axis=2).swapaxes(1, 2)
        for x in (q_BCKH, k_BCKH)
    )
    q, v = q * q.shape[-1] ** -0.5, v_BCNH.astype(dtype).swapaxes(1, 2)
    decay, rate = decay_BCN.swapaxes(1, 2), rate_BCN.swapaxes(1, 2)[..., None]
    goes_on_BC = document_BC == document_B[:, None]
    since_state = jnp.exp(jnp.cumsum(decay, axis=-1)) * goes_on_BC[:, None]
    sees_BCX = jnp.tril(document_BC[:, :, None] == document_BC[:, None, :])[:, None]
    # summed from each key on: a difference of two sums would round what is small beside them
    later = jnp.tril(jnp.broadcast_to(decay[..., None], (*decay.shape, decay.shape[-1])), -1)
    between = jnp.exp(jnp.where(sees_BCX, jnp.cumsum(later, axis=-2), -jnp.inf))

    system = _dot("BNCH,BNXH->BNCX", rate * k, k) * between
    wanted = jnp.concatenate([rate * v, rate * k * since_state[..., None]], axis=-1)
    solved = jax.scipy.linalg.solve_triangular(system, wanted, lower=True, unit_diagonal=True)
    values, keys = jnp.split(solved, [v.shape[-1]], axis=-1)
    change = values - _dot("BNCH,BNHJ->BNCJ", keys, memory_BNHH)
    out = _dot("BNCH,BNHJ->BNCJ", q * since_state[..., None], memory_BNHH)
    out += _dot("BNCX,BNXJ->BNCJ", _dot("BNCH,BNXH->BNCX", q, k) * between, change)
    memory_BNHH = memory_BNHH * since_state[..., -1][..., None, None]
    memory_BNHH += _dot("BNCH,BNCJ->BNHJ", k * between[..., -1, :, None], change)
    return (memory_BNHH, document_BC[:, -1]), out.swapaxes(1, 2)


def _normed(x):
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + _EPS)


def _dot(letters, x, y):
    # HIGHEST: the default of a TPU rounds float32 operands to bfloat16
    return jnp.einsum(letters, x, y, precision=jax.lax.Precision.HIGHEST)


def _convolved(row_BSH, weight_WH, document_BT):
    """Returns the causal convolution of each channel; the row has W - 1 tokens of the state before
    its own.
    """
    width, length = weight_WH.shape[0], document_BT.shape[1]
    wide = jnp.promote_types(row_BSH.dtype, jnp.float32)
    document_BS = jnp.pad(document_BT, ((0, 0), (width - 1, 0)))

    def term(lag):
        same_BT = document_BS[:, lag : lag + length] == document_BT
        x = row_BSH[:, lag : lag + length].astype(wide) * _row(weight_WH[lag], wide)
        return jnp.where(same_BT[..., None, None], x, 0)

    return jax.nn.silu(sum(term(lag) for lag in range(width)).astype(row_BSH.dtype))


def _last(row_BSH, document_BT, valid_BT):
    """Returns the last W - 1 tokens of the rows that count, zeros for those of other documents."""
    width = row_BSH.shape[1] - document_BT.shape[1]
    count_B = jnp.full(len(row_BSH), document_BT.shape[1])
    count_B = count_B if valid_BT is None else jnp.sum(valid_BT, axis=1)
    at_BW = count_B[:, None] + jnp.arange(width)[None]
    last = jnp.take_along_axis(row_BSH, at_BW[..., None, None], axis=1)
    document_BS = jnp.pad(document_BT, ((0, 0), (width, 0)))
    of_BW = jnp.take_along_axis(document_BS, at_BW, axis=1)
    return jnp.where((of_BW == of_BW[:, -1:])[..., None, None], last, 0)


def _gated(config, x_BTNH, z_BTNH, scale_H):
    """RMSNorm of each head, times the gate."""
    wide = jnp.promote_types(x_BTNH.dtype, jnp.float32)
    power = jnp.mean(jnp.square(x_BTNH.astype(wide)), axis=-1, keepdims=True)
    normed = (x_BTNH.astype(wide) * jax.lax.rsqrt(power + config.norm_eps)).astype(x_BTNH.dtype)
    scaled = normed * jnp.expand_dims(scale_H, (0, 1, 2)).astype(x_BTNH.dtype)
    return (scaled * jax.nn.silu(z_BTNH.astype(wide))).astype(x_BTNH.dtype)


def _row(vector, dtype):
    return jnp.expand_dims(vector, (0, 1)).astype(dtype)

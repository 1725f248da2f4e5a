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
mesh heads are cut over `tensor`; tokens of a row over `context`, in pieces that are computed at the
same time (`_rule_of_pieces`), while all devices have the states of a cache.

Letters: B batch, T length, C chunk, K heads of queries and keys, N heads of values, N // K of them
for each of those, H dims of a head, D model dim, W tokens of the convolution, L layers; Z pieces of
the rows and X tokens of a piece (pieces.py).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxrope.attention import Place, gather_stripes, own_stripes
from jaxrope.decoder import layers, pieces
from jaxrope.decoder.config import DecoderConfig
from jaxrope.decoder.settings import ForwardSettings

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


def documents(
    config: DecoderConfig,
    settings: ForwardSettings,
    shape: tuple[int, int],
    segment_ids_BT: jax.Array | None,
) -> jax.Array:
    """Returns which document each token is of, and each of the W - 1 before it: int32 [Z, W - 1 +
    X], of the pieces of the rows, counted in each piece from the token before it on, which is of 0.

    Args:
      config, settings: of the model.
      shape: (B, T).
      segment_ids_BT: documents of packed rows; None: a row is one document.
    """
    cut, width = pieces.of(settings), config.delta_conv
    ids = cut.cut(jnp.zeros(shape, jnp.int32) if segment_ids_BT is None else segment_ids_BT)
    if segment_ids_BT is None:
        return jnp.pad(ids, ((0, 0), (width - 1, 0)))
    ids = jnp.concatenate([cut.before(ids, width), ids], axis=1)
    count = jnp.cumsum(ids[:, 1:] != ids[:, :-1], axis=1, dtype=jnp.int32)
    count = jnp.pad(count, ((0, 0), (1, 0)))
    return (count - count[:, width - 1 : width])[:, 1:]


def mixed(
    config: DecoderConfig,
    settings: ForwardSettings,
    document_ZS: jax.Array,
    weights: dict,
    y_BTD: jax.Array,
) -> jax.Array:
    """Returns what a layer reads of each token, normed and gated, out_BTNH; on a mesh of this
    device's heads and tokens.

    Args:
      config, settings: of the model.
      document_ZS: of `documents`.
      weights: of one layer, whole in D.
      y_BTD: normed.
    """
    cut = pieces.of(settings)
    qkv, gates, z_BTNH = _projected(weights, y_BTD)
    qkv, gates = jax.tree.map(cut.cut, (qkv, gates))
    width = config.delta_conv - 1
    qkv = [jnp.concatenate([cut.before(x, width), x], axis=1) for x in qkv]
    qkv, document_ZX = _convolved(weights, qkv, document_ZS), document_ZS[:, width:]
    if cut.spread:
        read = _rule_of_pieces(cut, qkv, gates, document_ZX)
    else:
        memory = jnp.zeros_like(gates[0], shape=_memory(qkv))
        read, _ = rule(qkv, gates, document_ZX, memory)
    return _gated(config, cut.joined(read).astype(y_BTD.dtype), z_BTNH, weights["delta_norm_LH"])


def mixed_cached(
    config: DecoderConfig,
    settings: ForwardSettings,
    cache: State,
    layer: jax.Array,
    place: Place,
    weights: dict,
    y_BTD: jax.Array,
) -> tuple[jax.Array, State]:
    """Returns (out_BTNH of `mixed`, the cache with the state after these tokens). Every device of
    `context` has the state, and computes it of all tokens.

    Args:
      config, settings, weights, y_BTD: as for `mixed`.
      cache: states of all delta layers [L, B, ...]; those of rows that begin are passed over.
      layer: int32, among delta layers.
      place: which tokens these are.
    """
    rows = y_BTD.shape[0]

    def read(cached):
        of_layer = jax.lax.dynamic_index_in_dim(cached, layer, keepdims=False)
        old = jax.lax.dynamic_slice_in_dim(of_layer, place.row, rows)
        begins = jnp.expand_dims(positions_BT[:, 0] == 0, tuple(range(1, old.ndim)))
        return jnp.where(begins & valid_BT[:, 0].reshape(begins.shape), 0, old)

    def write(cached, new):
        at = (layer, place.row, *(0,) * (new.ndim - 1))
        return jax.lax.dynamic_update_slice(cached, new[None].astype(cached.dtype), at)

    qkv, gates, z_BTNH = _projected(weights, y_BTD)
    gates = jax.tree.map(lambda x: x * place.valid_BT[..., None], gates)
    of_all = (qkv, gates, place.positions_BT, place.valid_BT)
    of_all = jax.tree.map(functools.partial(gather_stripes, mesh=settings.mesh), of_all)
    qkv, gates, positions_BT, valid_BT = of_all
    before = jax.tree.map(read, cache)
    last = before.q_BWKH, before.k_BWKH, before.v_BWNH
    qkv = [jnp.concatenate(pair, axis=1) for pair in zip(last, qkv, strict=True)]
    after = [_last(row_BSH, valid_BT) for row_BSH in qkv]
    document_BS = jnp.zeros(qkv[0].shape[:2], jnp.int32)
    qkv, document_BT = _convolved(weights, qkv, document_BS), document_BS[:, last[0].shape[1] :]
    read_BTNH, memory = rule(qkv, gates, document_BT, before.memory_BNHH)
    read_BTNH = own_stripes(read_BTNH, y_BTD.shape[1]).astype(y_BTD.dtype)
    out_BTNH = _gated(config, read_BTNH, z_BTNH, weights["delta_norm_LH"])
    return out_BTNH, jax.tree.map(write, cache, State(memory, *after))


def _projected(weights, y_BTD):
    """Returns (q, k, v), (decay_BTN, rate_BTN), z_BTNH."""
    wide = jnp.promote_types(y_BTD.dtype, jnp.float32)
    *qkv, z_BTNH = (
        layers.dot(f"BTD,D{heads}H->BT{heads}H", y_BTD, weights[f"delta_{name}_LD{heads}H"])
        for name, heads in (*_QKV, ("z", "N"))
    )
    rate_BTN, decay_BTN = (
        layers.dot("BTD,DN->BTN", y_BTD, weights[f"delta_{name}_LDN"]).astype(wide)
        for name in ("beta", "decay")
    )
    decay_BTN = jax.nn.softplus(decay_BTN + _row(weights["delta_decay_bias_LN"], wide))
    decay_BTN = -jnp.exp(_row(weights["delta_scale_bias_LN"], wide)) * decay_BTN
    return qkv, (decay_BTN, jax.nn.sigmoid(rate_BTN)), z_BTNH


def _rule_of_pieces(cut, qkv, gates, document_ZX):
    """Returns what each query reads, of pieces whose state before them is not known yet.

    What a piece reads and leaves behind is affine in that state S: out + q' S, and kept S + added.
    The rule gives all four in one scan, of a memory [0 | 1] as wide as values and keys. All devices
    exchange (kept, added), and each composes those before its pieces. Per token and head that is
    8 H H operations more, and q', as wide as a query, to keep; to find (kept, added) first and
    then to run the rule from the right state takes no fewer, and twice as many steps in sequence.
    Where a document begins in a piece, q' and kept are 0 from there on.
    """
    batch, heads, dim, wide = _memory(qkv)
    zeros = jnp.zeros_like(gates[0], shape=(batch, heads, dim, wide))
    ones = jnp.broadcast_to(jnp.eye(dim, dtype=zeros.dtype), (batch, heads, dim, dim))
    both, maps = rule(qkv, gates, document_ZX, jnp.concatenate([zeros, ones], axis=-1))
    (read, queries), (added, kept) = (jnp.split(x, [wide], axis=-1) for x in (both, maps))

    def step_fn(step, memory_BNHH):
        kept, added = step
        return _dot("BNHG,BNGJ->BNHJ", kept, memory_BNHH) + added

    start = zeros[: batch // cut.per_device]
    memory = cut.carried(step_fn, (kept, added), start)
    return read + _dot("ZXNH,ZNHJ->ZXNJ", queries, memory)


def _memory(qkv):
    """Returns the shape of a state: rows, N, H of keys, H of values."""
    _, k, v = qkv
    return len(v), v.shape[2], k.shape[3], v.shape[3]


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
      memory_BNHH: the state before the first token; where it is wider than values are, they are 0
        there.
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

    # not inverted by powers: where keys repeat they grow as binomials do, to 1e18 for 64 tokens
    system = _dot("BNCH,BNXH->BNCX", rate * k, k) * between
    wanted = jnp.concatenate([rate * v, rate * k * since_state[..., None]], axis=-1)
    values, keys = jnp.split(_solved(jnp.tril(system, -1), wanted), [v.shape[-1]], axis=-1)
    more = memory_BNHH.shape[-1] - values.shape[-1]
    values = jnp.pad(values, ((0, 0),) * 3 + ((0, more),))
    change = values - _dot("BNCH,BNHJ->BNCJ", keys, memory_BNHH)
    out = _dot("BNCH,BNHJ->BNCJ", q * since_state[..., None], memory_BNHH)
    out += _dot("BNCX,BNXJ->BNCJ", _dot("BNCH,BNXH->BNCX", q, k) * between, change)
    memory_BNHH = memory_BNHH * since_state[..., -1][..., None, None]
    memory_BNHH += _dot("BNCH,BNCJ->BNHJ", k * between[..., -1, :, None], change)
    return (memory_BNHH, document_BC[:, -1]), out.swapaxes(1, 2)


def _solved(below_BNCX, wanted_BNCJ):
    """Returns x of (1 + below) x = wanted."""

    def solve(transposed):
        how = dict(transposed=transposed)
        cpu, default = (functools.partial(fn, **how) for fn in (_by_halves, _by_rows))
        return lambda _, x_BNCJ: jax.lax.platform_dependent(
            below_BNCX, x_BNCJ, cpu=cpu, default=default
        )

    return jax.lax.custom_linear_solve(
        lambda x_BNCJ: x_BNCJ + _dot("BNCX,BNXJ->BNCJ", below_BNCX, x_BNCJ),
        wanted_BNCJ,
        solve=solve(transposed=False),
        transpose_solve=solve(transposed=True),
    )


def _by_rows(below_BNCX, x_BNCJ, *, transposed):
    how = dict(lower=True, unit_diagonal=True, trans=int(transposed))
    return jax.scipy.linalg.solve_triangular(below_BNCX, x_BNCJ, **how)


def _by_halves(below_BNCX, x_BNCJ, *, transposed):
    # LAPACK on a CPU waits for threads of a pool, in which all devices of a mesh can wait like that
    batch, heads, size, _ = below_BNCX.shape
    whole = 1 << (size - 1).bit_length()
    pads = ((0, 0), (0, 0), (0, whole - size), (0, whole - size))
    below_BNCX = jnp.pad(below_BNCX, pads)
    inverse = jnp.ones((batch, heads, whole, 1, 1), below_BNCX.dtype)  # of blocks of one token
    while (half := inverse.shape[-1]) < whole:
        blocks = below_BNCX.reshape(batch, heads, -1, 2 * half, whole // half // 2, 2 * half)
        corner = jnp.einsum("BNiaib->BNiab", blocks)[..., half:, :half]
        first, second = inverse[:, :, ::2], inverse[:, :, 1::2]
        corner = -_dot("BNiab,BNibc->BNiac", _dot("BNiab,BNibc->BNiac", second, corner), first)
        above = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
        inverse = jnp.concatenate([above, jnp.concatenate([corner, second], axis=-1)], axis=-2)
    letters = "BNXC,BNXJ->BNCJ" if transposed else "BNCX,BNXJ->BNCJ"
    return _dot(letters, inverse[:, :, 0, :size, :size], x_BNCJ)


def _normed(x):
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + _EPS)


def _dot(letters, x, y):
    # HIGHEST: the default of a TPU rounds float32 operands to bfloat16
    return jnp.einsum(letters, x, y, precision=jax.lax.Precision.HIGHEST)


def _convolved(weights, rows, document_BS):
    """Returns q, k and v after the causal convolution of each channel.

    Args:
      weights: of the layer.
      rows: of q, k and v, with the W - 1 tokens before their first one.
      document_BS: of these.
    """
    convs = (weights[f"delta_{name}_conv_LW{heads}H"] for name, heads in _QKV)
    return [_convolved_row(*pair, document_BS) for pair in zip(rows, convs, strict=True)]


def _convolved_row(row_BSH, weight_WH, document_BS):
    width, wide = len(weight_WH), jnp.promote_types(row_BSH.dtype, jnp.float32)
    length = row_BSH.shape[1] - width + 1

    def term(lag):
        same_BT = document_BS[:, lag : lag + length] == document_BS[:, width - 1 :]
        x = row_BSH[:, lag : lag + length].astype(wide) * _row(weight_WH[lag], wide)
        return jnp.where(same_BT[..., None, None], x, 0)

    return jax.nn.silu(sum(term(lag) for lag in range(width)).astype(row_BSH.dtype))


def _last(row_BSH, valid_BT):
    """Returns the last W - 1 tokens of the rows that count."""
    width = row_BSH.shape[1] - valid_BT.shape[1]
    at_BW = jnp.sum(valid_BT, axis=1)[:, None] + jnp.arange(width)[None]
    return jnp.take_along_axis(row_BSH, at_BW[..., None, None], axis=1)


def _gated(config, x_BTNH, z_BTNH, scale_H):
    """RMSNorm of each head, times the gate."""
    wide = jnp.promote_types(x_BTNH.dtype, jnp.float32)
    power = jnp.mean(jnp.square(x_BTNH.astype(wide)), axis=-1, keepdims=True)
    normed = (x_BTNH.astype(wide) * jax.lax.rsqrt(power + config.norm_eps)).astype(x_BTNH.dtype)
    scaled = normed * jnp.expand_dims(scale_H, (0, 1, 2)).astype(x_BTNH.dtype)
    return (scaled * jax.nn.silu(z_BTNH.astype(wide))).astype(x_BTNH.dtype)


def _row(vector, dtype):
    return jnp.expand_dims(vector, (0, 1)).astype(dtype)

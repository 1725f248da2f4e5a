"""What each rotary pair does in attention: its part of the logits and of the entropy, and how the
entropy answers to its frequency, its gain and the temperature.

A logit is a sum over pairs, s = sum over f of s_f, s_f = scale (A_f cos + B_f sin) of the angle
between query and key, and one term more for dims that do not turn. With p = softmax(s):

  H = log-sum-exp - sum over f of E_p[s_f]
  dH / d temperature = -Var_p(s)      (s -> temperature * s, at 1)
  dH / d gain_f      = -Cov_p(s, s_f) (s_f -> gain_f * s_f, at 1)
  dH / d factor_f    = -Cov_p(s, d s_f / d factor_f)

Factors are the rope's, factor_f = plain frequency / frequency. Per-pair norms and shares are those
of Barbero et al. (arXiv 2410.06205). Terms of all pairs of tokens never exist: sums of keys
weighted by p, by p (s - E[s]) and by that times the distance, give all of them.

Letters: B batch, T queries, S keys, N heads, K kv heads, G = N // K, H head dim, R rotary pairs,
Q terms: the R pairs, and the dims that do not turn as one more where there are any; C block of
queries, X block of keys, Y sums.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrope import rope
from jaxrope.analysis import blocks, sweep
from jaxrope.attention import masks


class EntropyTerms(NamedTuple):
    """The entropy of each query and head, and its slopes; float32 or wider, nats.

    Attributes:
      entropy_BTN: H.
      lse_BTN: log-sum-exp of the logits.
      expected_BTNQ: E_p[s_f]; H = lse - its sum over Q, large numbers whose difference is rounded
        coarser than H.
      temperature_BTN: dH / d temperature.
      gain_BTNQ: dH / d gain; its sum over Q is the one of the temperature.
      factor_BTNR: dH / d factor.
    """

    entropy_BTN: jax.Array
    lse_BTN: jax.Array
    expected_BTNQ: jax.Array
    temperature_BTN: jax.Array
    gain_BTNQ: jax.Array
    factor_BTNR: jax.Array


def entropy_terms(
    q_BTNH: jax.Array, k_BSKH: jax.Array, r: rope.Rope, mask: masks.Mask, *, block: int
) -> EntropyTerms:
    """Returns the entropy of each query, split over the pairs, and its slopes.

    It takes two passes over the keys; memory is linear in T and S. For a long text give some of its
    queries, with their positions in the mask.

    Args:
      q_BTNH, k_BSKH: not rotated, as `decoder.probe` shows them.
      r: the rope of the layer; positions below its start_tokens have no slope in a factor.
      mask: which key a query may see.
      block: tokens in a block.
    """
    num_pairs, mask = r.factors_R.shape[-1], mask.of_batch(len(q_BTNH))
    q, k = _turned(q_BTNH, k_BSKH, r, mask)
    scale, level = q.shape[-1] ** -0.5, sweep.level(q, k, mask, block=block)

    def visit(carry, part):
        p, centred = part.weights_BKGCX, part.centred_BKGCX
        moved_BCX = part.queries[:, :, None] - part.keys[:, None]
        w = p * centred
        kinds = p, w, w * moved_BCX[:, None, None].astype(w.dtype)
        sums = [sweep.dot("BKGCX,BXKH->HBKGC", kind, part.k_BXKH) for kind in kinds]
        return jax.tree.map(jnp.add, carry, (jnp.sum(w * centred, axis=-1), *sums))

    start = sweep.zeros(q, k), *[sweep.zeros(q, k, q.shape[-1])] * 3
    moved = _moved(r, mask.q_positions_BT), _moved(r, mask.kv_positions_BS)
    sums = sweep.second_look((q, k, mask), level, visit, start, block=block, extra=moved)
    variance, p_keys, w_keys, moved_keys = (blocks.by_head(x, q.shape[2]) for x in sums)
    slope_R = (rope.inv_freq(r) / r.factors_R).astype(q.dtype)
    return EntropyTerms(
        entropy_BTN=level.entropy,
        lse_BTN=level.lse,
        expected_BTNQ=scale * _sum_pairs(q * p_keys, num_pairs),
        temperature_BTN=-variance,
        gain_BTNQ=-scale * _sum_pairs(q * w_keys, num_pairs),
        factor_BTNR=scale * slope_R[None, None, None] * _cross(q, moved_keys, num_pairs),
    )


def norms(x_BTNH: jax.Array, num_pairs: int) -> jax.Array:
    """Returns the mean length of each rotary pair, [N, R], over all tokens; of queries or of keys.

    The product of both bounds |s_f| / scale: what a pair can do at most.
    """
    x = x_BTNH.astype(jnp.promote_types(x_BTNH.dtype, jnp.float32))
    first, second = x[..., :num_pairs], x[..., num_pairs : 2 * num_pairs]
    return jnp.mean(jnp.sqrt(jnp.square(first) + jnp.square(second)), axis=(0, 1))


class LogitRows(NamedTuple):
    """Moments of s_f over the keys that a query sees, each counted once; distances in tokens, below
    0 for keys ahead.

    Attributes:
      keys_BTN: how many it sees.
      mean_BTNQ: of s_f.
      squares_BTNQ: sum of squares of s_f - mean.
      products_BTNQ: sum of (s_f - mean) (distance - its mean).
      distance_BTN: mean distance.
      distance_squares_BTN: sum of squares of distance - its mean.
    """

    keys_BTN: jax.Array
    mean_BTNQ: jax.Array
    squares_BTNQ: jax.Array
    products_BTNQ: jax.Array
    distance_BTN: jax.Array
    distance_squares_BTN: jax.Array


def logit_rows(
    q_BTNH: jax.Array, k_BSKH: jax.Array, r: rope.Rope, mask: masks.Mask, *, block: int
) -> LogitRows:
    """Returns the moments of each term of the logits, for `usage`; arguments as `entropy_terms`."""
    num_pairs, mask = r.factors_R.shape[-1], mask.of_batch(len(q_BTNH))
    q, k = _turned(q_BTNH, k_BSKH, r, mask)
    scale, num_heads = q.shape[-1] ** -0.5, q.shape[2]
    centre_B1KH = jnp.mean(k, axis=1, keepdims=True)  # large means would cancel in the squares
    keys_BT, distance_BT = _mean_distance(q, k, mask, block)
    sums = _moments((q, k - centre_B1KH, mask), distance_BT, num_pairs, block)
    divisor_BTNQ = jnp.maximum(keys_BT, 1.0)[..., None, None]
    centre = scale * _sum_pairs(q * _every_head(centre_B1KH, num_heads), num_pairs)
    mean = scale * _sum_pairs(q * sums["k"], num_pairs) / divisor_BTNQ
    squares = scale**2 * _quadratic(q, sums, num_pairs) - divisor_BTNQ * mean**2

    def spread(x_BT):
        return jnp.broadcast_to(x_BT[..., None], q.shape[:-1])

    return LogitRows(
        keys_BTN=spread(keys_BT),
        mean_BTNQ=jnp.where(keys_BT[..., None, None] > 0, mean + centre, 0.0),
        squares_BTNQ=jnp.maximum(squares, 0.0),
        products_BTNQ=scale * _sum_pairs(q * sums["off"], num_pairs),
        distance_BTN=spread(distance_BT),
        distance_squares_BTN=spread(sums["distance"]),
    )


class Usage(NamedTuple):
    """How a head uses its rotary pairs, float64 [N, Q], over all pairs of tokens that see each
    other.

    Attributes:
      variance: of s_f.
      share: variance / its sum over Q; the terms may be correlated, so that it is no share of the
        logit's own variance.
      correlation: of s_f with the distance, -1 to 1; 0 for a term that is constant.
    """

    variance: np.ndarray
    share: np.ndarray
    correlation: np.ndarray


def usage(rows: LogitRows) -> Usage:
    """Returns the moments of `logit_rows`, combined over queries for each head."""
    rows = LogitRows(*(np.asarray(x, np.float64) for x in rows))
    keys = rows.keys_BTN[..., None]
    distance, distance_squares = rows.distance_BTN[..., None], rows.distance_squares_BTN[..., None]
    total = keys.sum((0, 1))
    mean, mean_distance = ((keys * x).sum((0, 1)) / total for x in (rows.mean_BTNQ, distance))
    apart, apart_distance = rows.mean_BTNQ - mean, distance - mean_distance
    squares = (rows.squares_BTNQ + keys * apart**2).sum((0, 1))
    products = (rows.products_BTNQ + keys * apart * apart_distance).sum((0, 1))
    distances = (distance_squares + keys * apart_distance**2).sum((0, 1))
    variance, bound = squares / total, np.sqrt(squares * distances)
    return Usage(
        variance=variance,
        share=variance / np.maximum(variance.sum(-1, keepdims=True), np.finfo(np.float64).tiny),
        correlation=np.divide(products, bound, out=np.zeros_like(products), where=bound > 0),
    )


def _turned(q_BTNH, k_BSKH, r, mask):
    """Rotated queries and keys, float32 or wider."""
    dtype = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    q = rope.rotate(q_BTNH.astype(dtype), *rope.cos_sin(r, mask.q_positions_BT))
    return q, rope.rotate(k_BSKH.astype(dtype), *rope.cos_sin(r, mask.kv_positions_BS))


def _moved(r: rope.Rope, positions_BT) -> jax.Array:
    """How far a change of frequency turns a token: its position, unless the start keeps it."""
    return jnp.where(positions_BT < r.start_tokens, 0, positions_BT)


def _sum_pairs(x, num_pairs: int) -> jax.Array:
    """Sums products [..., H] over the two dims of each pair, and over the rest: [..., Q]."""
    first, second, rest = jnp.split(x, (num_pairs, 2 * num_pairs), axis=-1)
    if not rest.shape[-1]:
        return first + second
    return jnp.concatenate([first + second, jnp.sum(rest, axis=-1, keepdims=True)], axis=-1)


def _cross(q, k, num_pairs: int) -> jax.Array:
    """q1 k2 - q2 k1 of each pair: the slope of q1 k1 + q2 k2 as q turns ahead of k."""
    q_first, q_second = q[..., :num_pairs], q[..., num_pairs : 2 * num_pairs]
    k_first, k_second = k[..., :num_pairs], k[..., num_pairs : 2 * num_pairs]
    return q_first * k_second - q_second * k_first


def _every_head(x_BTKH, num_heads: int) -> jax.Array:
    """[B, T, N, H]: each query head has what its kv head has."""
    return jnp.repeat(x_BTKH, num_heads // x_BTKH.shape[2], axis=2)


def _mean_distance(q, k, mask: masks.Mask, block: int) -> tuple[jax.Array, jax.Array]:
    """(how many keys each query sees, their mean distance), [B, T]."""

    def visit(carry, _, __, block_mask):
        keys, total = carry[0]
        visible = masks.allowed(block_mask).astype(keys.dtype)
        off = visible * blocks.steps_back(block_mask).astype(keys.dtype)
        return (keys + jnp.sum(visible, axis=-1), total + jnp.sum(off, axis=-1)), None

    none = jnp.zeros(q.shape[:2], q.dtype)
    (keys, total), _ = blocks.walk(
        visit, ((none, none), None), (q[..., :0], k[..., :0]), mask, block
    )
    return keys, total / jnp.maximum(keys, 1.0)


def _moments(arrays, distance_BT, num_pairs: int, block: int) -> dict[str, jax.Array]:
    """Sums over the keys that each query sees, [B, T, N, ...]: of the keys "k", of keys times the
    distance from its mean "off", of products of the two dims of each pair "aa", "ab", "bb", of the
    squared term of the rest "rest"; and [B, T], of the square of that distance, "distance".
    """
    q, k, mask = arrays
    dtype, num_heads, dim = q.dtype, q.shape[2], k.shape[3]
    has_rest = dim > 2 * num_pairs

    def visit(carry, query, k_BXKH, block_mask):
        rest_BCNH, distance_BC = query
        visible = masks.allowed(block_mask).astype(dtype)
        off = visible * (blocks.steps_back(block_mask).astype(dtype) - distance_BC[..., None])
        a, b, rest = jnp.split(k_BXKH, (num_pairs, 2 * num_pairs), axis=-1)
        block_sums = {
            name: sweep.dot("BCX,BXKY->YBKC", visible, x)[..., None, :]
            for name, x in {"k": k_BXKH, "aa": a * a, "ab": a * b, "bb": b * b}.items()
        }
        block_sums["off"] = sweep.dot("BCX,BXKY->YBKC", off, k_BXKH)[..., None, :]
        if has_rest:
            terms = blocks.logits(rest_BCNH, rest, 1.0)
            block_sums["rest"] = jnp.sum(visible[:, None, None] * terms**2, axis=-1)
        block_sums["distance"] = jnp.sum(off * off, axis=-1)
        return jax.tree.map(jnp.add, carry[0], block_sums), None

    widths = {"k": dim, "off": dim, "aa": num_pairs, "ab": num_pairs, "bb": num_pairs}
    of_keys = q[:, :, : k.shape[2]]  # one query head for each kv head
    start = {name: sweep.zeros(of_keys, k, y) for name, y in widths.items()}
    start["distance"] = jnp.zeros(q.shape[:2], dtype)
    if has_rest:
        start["rest"] = sweep.zeros(q, k)
    pairs = (q[..., 2 * num_pairs :], distance_BT), k
    sums, _ = blocks.walk(visit, (start, None), pairs, mask, block)
    totals = {n: _every_head(blocks.by_head(sums[n], k.shape[2]), num_heads) for n in widths}
    if has_rest:
        totals["rest"] = blocks.by_head(sums["rest"], num_heads)
    return totals | {"distance": sums["distance"]}


def _quadratic(q_BTNH, sums, num_pairs: int) -> jax.Array:
    """The sum over keys of each term's square, [..., Q], of what `_moments` summed."""
    a, b, _ = jnp.split(q_BTNH, (num_pairs, 2 * num_pairs), axis=-1)
    squares = a**2 * sums["aa"] + 2 * a * b * sums["ab"] + b**2 * sums["bb"]
    if "rest" not in sums:
        return squares
    return jnp.concatenate([squares, sums["rest"][..., None]], axis=-1)

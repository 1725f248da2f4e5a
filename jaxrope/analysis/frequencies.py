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
queries, X block of keys.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrope import masks, rope
from jaxrope.analysis import sweep


class EntropyTerms(NamedTuple):
    """The entropy of each query and head, and its slopes; float32 or wider, nats.

    Attributes:
      lse_BTN: log-sum-exp of the logits.
      expected_BTNQ: E_p[s_f]; entropy = lse - its sum over Q.
      temperature_BTN: dH / d temperature.
      gain_BTNQ: dH / d gain; its sum over Q is the one of the temperature.
      factor_BTNR: dH / d factor.
    """

    lse_BTN: jax.Array
    expected_BTNQ: jax.Array
    temperature_BTN: jax.Array
    gain_BTNQ: jax.Array
    factor_BTNR: jax.Array

    @property
    def entropy_BTN(self) -> jax.Array:
        """H, nats."""
        return self.lse_BTN - jnp.sum(self.expected_BTNQ, axis=-1)


def logit_terms(q_BTNH: jax.Array, k_BSKH: jax.Array, r: rope.Rope, mask: masks.Mask) -> jax.Array:
    """Returns s_f of every pair of tokens, [B, N, T, S, Q], whether seen or not: for few tokens.

    Args:
      q_BTNH, k_BSKH: not rotated.
      r: the rope of the layer.
      mask: its positions are used.
    """
    q, k = _turned(q_BTNH, k_BSKH, r, mask)
    k = jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)
    both = q[:, :, None] * k[:, None]  # BTSNH
    terms = _sum_pairs(both, r.factors_R.shape[-1])
    return jnp.moveaxis(terms, 3, 1) * q.shape[-1] ** -0.5


def entropy_terms(
    q_BTNH: jax.Array, k_BSKH: jax.Array, r: rope.Rope, mask: masks.Mask, *, block: int
) -> EntropyTerms:
    """Returns the entropy of each query, split over the pairs, and its slopes.

    It takes two passes over the keys; memory is linear in T and S. For a long text give some of its
    queries, with their positions in the mask.

    Args:
      q_BTNH, k_BSKH: not rotated, as `llama.probe` shows them.
      r: the rope of the layer; positions below its start_tokens have no slope in a factor.
      mask: which key a query may see.
      block: tokens in a block.
    """
    num_pairs = r.factors_R.shape[-1]
    q, k = _turned(q_BTNH, k_BSKH, r, mask)
    scale = q.shape[-1] ** -0.5
    mask = mask.of_batch(len(q))
    moved = {"moved": _moved(r, mask.q_positions_BT)}, {"moved": _moved(r, mask.kv_positions_BS)}

    def rows_fn(fold, q_BKGCH, _):
        found = sweep.softmax(fold, q_BKGCH)

        def visit(carry, part):
            p = found.weights(part)
            centred = jnp.where(p > 0, part.logits_BKGCX - found.mean[..., None], 0.0)
            w = p * centred
            turned = part.queries["moved"][:, :, None] - part.keys["moved"][:, None]
            kinds = p, w, w * turned.astype(w.dtype)[:, None, None]
            sums = [sweep.dot("BKGCX,BXKH->BKGCH", kind, part.k_BXKH) for kind in kinds]
            variance = jnp.sum(w * centred, axis=-1)
            return jax.tree.map(jnp.add, carry, (variance, *sums))

        zero = jnp.zeros_like(q_BKGCH)
        start = zero[..., 0], zero, zero, zero
        variance, p_keys, w_keys, moved_keys = fold(visit, start)
        slope = rope.inv_freq(r) / r.factors_R
        slope = slope.astype(zero.dtype).reshape((1,) * 4 + (num_pairs,))
        return EntropyTerms(
            lse_BTN=found.lse,
            expected_BTNQ=scale * _sum_pairs(q_BKGCH * p_keys, num_pairs),
            temperature_BTN=-variance,
            gain_BTNQ=-scale * _sum_pairs(q_BKGCH * w_keys, num_pairs),
            factor_BTNR=scale * slope * _cross(q_BKGCH, moved_keys, num_pairs),
        )

    return sweep.over_queries(q, k, mask, rows_fn, block=block, queries=moved[0], keys=moved[1])


def norms(x_BTNH: jax.Array, num_pairs: int) -> jax.Array:
    """Returns the mean length of each rotary pair, [N, R], over all tokens; of queries or of keys.

    The product of both bounds |s_f| / scale: what a pair can do at most.
    """
    x = x_BTNH.astype(jnp.promote_types(x_BTNH.dtype, jnp.float32))
    first, second = x[..., :num_pairs], x[..., num_pairs : 2 * num_pairs]
    return jnp.mean(jnp.sqrt(jnp.square(first) + jnp.square(second)), axis=(0, 1))


class LogitRows(NamedTuple):
    """Moments of s_f over the keys that a query sees, each counted once; distances in tokens.

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
    num_pairs = r.factors_R.shape[-1]
    q, k = _turned(q_BTNH, k_BSKH, r, mask)
    scale = q.shape[-1] ** -0.5
    centre_B1KH = jnp.mean(k, axis=1, keepdims=True)  # large means would cancel in the squares
    centre_BK11H = jnp.swapaxes(centre_B1KH, 1, 2)[:, :, None]

    def rows_fn(fold, q_BKGCH, _):
        keys_BC, distance_BC = _mean_distance(fold, q_BKGCH)
        some = jnp.maximum(keys_BC, 1.0)[:, None, None, :, None]
        sums, distance_squares = _moments(fold, q_BKGCH, distance_BC, num_pairs)
        mean = scale * _sum_pairs(q_BKGCH * sums["k"][:, :, None], num_pairs) / some
        squares = scale**2 * _quadratic(q_BKGCH, sums, num_pairs) - some * mean**2
        centre = scale * _sum_pairs(q_BKGCH * centre_BK11H, num_pairs)

        def spread(x_BC):
            return jnp.broadcast_to(x_BC[:, None, None], q_BKGCH.shape[:-1])

        return LogitRows(
            keys_BTN=spread(keys_BC),
            mean_BTNQ=jnp.where(keys_BC[:, None, None, :, None] > 0, mean + centre, 0.0),
            squares_BTNQ=jnp.maximum(squares, 0.0),
            products_BTNQ=scale * _sum_pairs(q_BKGCH * sums["off"][:, :, None], num_pairs),
            distance_BTN=spread(distance_BC),
            distance_squares_BTN=spread(distance_squares),
        )

    return sweep.over_queries(q, k - centre_B1KH, mask, rows_fn, block=block)


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
    """Returns what `logit_rows` found of each query, put together for each head."""
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


def _mean_distance(fold, q_BKGCH) -> tuple[jax.Array, jax.Array]:
    """(how many keys each query sees, their mean distance), [B, C]."""

    def visit(carry, part):
        seen = part.seen_BCX.astype(carry[0].dtype)
        return carry[0] + seen.sum(-1), carry[1] + jnp.sum(seen * part.distances(), axis=-1)

    none = jnp.zeros_like(q_BKGCH[:, 0, 0, :, 0])
    keys, total = fold(visit, (none, none))
    return keys, total / jnp.maximum(keys, 1.0)


def _moments(fold, q_BKGCH, distance_BC, num_pairs: int):
    """(sums over the keys that a query sees, sum of squares of the distance from its mean): of the
    keys "k", of keys times the distance from its mean "off", of products of the two dims of each
    pair "aa", "ab", "bb", and of the squared term of the rest "rest".
    """
    batch, kv_heads, _, size, dim = q_BKGCH.shape
    dtype = q_BKGCH.dtype

    def visit(carry, part):
        sums, distance_squares = carry
        seen = part.seen_BCX.astype(dtype)
        off = seen * (part.distances().astype(dtype) - distance_BC[..., None])
        a, b, rest = jnp.split(part.k_BXKH, (num_pairs, 2 * num_pairs), axis=-1)
        found = {
            name: sweep.dot("BCX,BXKY->BKCY", seen, x)
            for name, x in {"k": part.k_BXKH, "aa": a * a, "ab": a * b, "bb": b * b}.items()
        }
        found["off"] = sweep.dot("BCX,BXKY->BKCY", off, part.k_BXKH)
        term = sweep.dot("BKGCH,BXKH->BKGCX", q_BKGCH[..., 2 * num_pairs :], rest)
        found["rest"] = jnp.sum(seen[:, None, None] * term**2, axis=-1)
        return jax.tree.map(jnp.add, sums, found), distance_squares + jnp.sum(off * off, axis=-1)

    widths = {"k": dim, "off": dim, "aa": num_pairs, "ab": num_pairs, "bb": num_pairs}
    start = {name: jnp.zeros((batch, kv_heads, size, y), dtype) for name, y in widths.items()}
    start["rest"] = jnp.zeros(q_BKGCH.shape[:-1], dtype)
    return fold(visit, (start, jnp.zeros((batch, size), dtype)))


def _quadratic(q_BKGCH, sums, num_pairs: int) -> jax.Array:
    """The sum over keys of each term's square, [..., Q], of what `_moments` summed."""
    a, b, rest = jnp.split(q_BKGCH, (num_pairs, 2 * num_pairs), axis=-1)
    aa, ab, bb = (sums[name][:, :, None] for name in ("aa", "ab", "bb"))
    squares = a**2 * aa + 2 * a * b * ab + b**2 * bb
    if not rest.shape[-1]:
        return squares
    return jnp.concatenate([squares, sums["rest"][..., None]], axis=-1)

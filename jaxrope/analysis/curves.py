"""Attention by distance, token by token or in bins of equal width: a second pass, which needs
the log-sum-exp of every query.

Mass is summed over queries, and so are the pairs that could have any: their quotient is the mean
probability of a key at that distance over the queries that see one (a mean over all queries would
make long distances look rare, which few queries have).

Letters: B batch, T queries, S keys, N heads, K kv heads, G = N // K, C block of queries, X block of
keys, E bins of distance.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrope.analysis import blocks, spread
from jaxrope.analysis.state import Options
from jaxrope.attention import AXIS, Mask, allowed
from jaxrope.errors import InputError

_MOST_PAIRS = 2**31


@dataclasses.dataclass(frozen=True)
class Bins:
    """Distances in bins of equal width; what is beyond the last one is left out.

    Attributes:
      count: number of bins.
      width: distances in a bin; 1: exact.
      sink: the first key of a document counts too; False: the log-sum-exp must be without it
        (Stats.non_sink_lse).
    """

    count: int
    width: int = 1
    sink: bool = True

    def __post_init__(self):
        for name in ("count", "width"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"analysis.bins.{name} must be a positive number, got {value!r}.")


class Curve(NamedTuple):
    """Sums over queries.

    Attributes:
      mass_BNE: probability.
      pairs_BE: int32, pairs of a query with a key it sees.
    """

    mass_BNE: jax.Array
    pairs_BE: jax.Array

    def mean(self) -> jax.Array:
        """Returns the mean probability of a visible key by its distance, [B, N, E]; 0 where no
        query sees any.
        """
        pairs = jnp.maximum(self.pairs_BE, 1)[:, None]
        return self.mass_BNE / pairs.astype(self.mass_BNE.dtype)


def curve(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    lse_BTN: jax.Array,
    mask: Mask,
    options: Options,
    bins: Bins,
) -> Curve:
    """Returns attention by distance.

    Args:
      q_BTNH, k_BSKH, mask: as for streaming.statistics.
      lse_BTN: log-sum-exp of the logits, from the first pass (Stats.lse).
      options: block, scale and spread are used; spread, the sums are over the queries of all.
      bins: of distance.

    Raises:
      ValueError: so many pairs in a bin that their number has more than 31 bits.
    """
    num_heads = q_BTNH.shape[2]
    options, mask = options.of(k_BSKH), mask.of_batch(q_BTNH.shape[0])
    ways = spread.devices(options.spread)
    most = 2 * bins.width * q_BTNH.shape[1] * ways  # keys ahead and behind
    if most >= _MOST_PAIRS:
        raise ValueError(
            f"analysis.bins.width: {bins.width} distances in a bin with {q_BTNH.shape[1] * ways} "
            f"queries may be {most} pairs, and they are counted to {_MOST_PAIRS}. Take "
            "narrower bins, or fewer queries."
        )
    dtype = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    start = Curve(
        jnp.zeros((q_BTNH.shape[0], num_heads, bins.count), dtype),
        jnp.zeros((q_BTNH.shape[0], bins.count), jnp.int32),
    )

    def visit(carry, queries, k_BXKH, block_mask):
        seen_BCX = allowed(block_mask)
        if not bins.sink:
            seen_BCX &= block_mask.kv_positions_BS[:, None] != 0
        q_BCNH, lse_BCN = queries
        logits = blocks.logits(q_BCNH, k_BXKH, options.scale)
        batch, _, _, q_len, kv_len = logits.shape
        logits_BNCX = logits.reshape(batch, num_heads, q_len, kv_len)
        p_BNCX = jnp.exp(logits_BNCX - lse_BCN.swapaxes(1, 2)[..., None])
        p_BNCX = jnp.where(seen_BCX[:, None], p_BNCX, 0)
        return None, Curve(
            *map(jnp.add, carry[1], _by_distance(p_BNCX, seen_BCX, block_mask, bins))
        )

    def step(sums, k_BSKH, mask):
        pairs = (q_BTNH, lse_BTN), k_BSKH
        return blocks.walk(visit, (None, sums), pairs, mask, options.block)[1]

    sums = spread.WAYS[options.spread](step, start, k_BSKH, mask)
    return sums if options.spread == "alone" else jax.lax.psum(sums, AXIS)


def _by_distance(p_BNCX, seen_BCX, mask: Mask, bins: Bins) -> Curve:
    """Sums of a block.

    Where tokens lie as they are numbered, a pair's distance is that of its places in the block and
    one more number: sums along diagonals, of which the block has C + X - 1, are then all there is
    to be put into bins. Otherwise every pair is put there by itself, a hundred times as slow.
    """
    q_len, kv_len = seen_BCX.shape[1:]
    back_BCX = blocks.steps_back(mask)
    place_CX = jnp.arange(q_len)[:, None] - jnp.arange(kv_len)[None]
    more_BCX = back_BCX - place_CX[None]
    least, most = (
        reduce(jnp.where(seen_BCX, more_BCX, other), axis=(1, 2))
        for reduce, other in ((jnp.min, 2**30), (jnp.max, -(2**30)))
    )

    def along_diagonals():
        delta_BD = least[:, None] + jnp.arange(1 - kv_len, q_len)[None]
        return _into_bins(_diagonals(p_BNCX), _diagonals(seen_BCX), delta_BD, bins)

    def one_by_one():
        flat = (x.reshape(*x.shape[:-2], -1) for x in (p_BNCX, seen_BCX, back_BCX))
        return _into_bins(*flat, bins)

    # a block without a pair has least > most
    return jax.lax.cond(jnp.all(least >= most), along_diagonals, one_by_one)


def _into_bins(p_BND, seen_BD, delta_BD, bins: Bins) -> Curve:
    number_BD = jnp.abs(delta_BD) // bins.width

    def of_row(p_ND, seen_D, number_D):
        mass = jnp.zeros((p_ND.shape[0], bins.count), p_ND.dtype)
        pairs = jnp.zeros(bins.count, jnp.int32)
        count_D = seen_D.astype(jnp.int32)
        return (
            mass.at[:, number_D].add(p_ND, mode="drop"),
            pairs.at[number_D].add(count_D, mode="drop"),
        )

    return Curve(*jax.vmap(of_row)(p_BND, seen_BD, number_BD))


def _diagonals(x):
    """Sums [..., C, X] along diagonals, the key's place counted from behind: [..., C + X - 1]."""
    *lead, q_len, kv_len = x.shape
    dtype = jnp.int32 if x.dtype == bool else x.dtype
    x = jnp.flip(x, -1).astype(dtype)
    x = jnp.pad(x, [(0, 0)] * (len(lead) + 1) + [(0, q_len)])  # each row one place further right
    x = x.reshape(*lead, -1)[..., : q_len * (q_len + kv_len - 1)]
    return jnp.sum(x.reshape(*lead, q_len, -1), axis=-2)

"""Statistics of attention at any length: one pass over blocks of keys, and a state that goes on
where another one has ended, so that keys may lie on several devices. Nothing as large as T x S
exists.

Of the sums of a state (state.py) entropy is ln l - u / l, the largest probability 1 / l, a mass its
sum / l. Distances are positions between query and key. The first key is the one at position 0 of a
document: where attention sinks (arXiv 2309.17453).

A query that sees no key has zeros everywhere, but -1e30 for its log-sum-exp and -1 for its most
probable key.

Letters: B batch, T queries, S keys, N heads, K kv heads, H head dim, E bins of distance, Z sets of
keys.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrope.analysis import blocks, spread
from jaxrope.analysis.state import (
    Keys,
    Options,
    Softmax,
    State,
    empty,
    merge,
    num_bins,
    of_block,
)
from jaxrope.attention import Mask

__all__ = [
    "Keys",
    "Options",
    "State",
    "Stats",
    "bin_edges",
    "effective_tokens",
    "empty",
    "finish",
    "keys_of",
    "merge",
    "normalised_entropy",
    "num_bins",
    "state_of",
    "statistics",
    "update",
]


class Stats(NamedTuple):
    """Of each query and head, float32 [B, T, N] unless said otherwise.

    Attributes:
      entropy: nats; exactly 0 with one visible key.
      visible: number of visible keys, int32 [B, T].
      lse: log-sum-exp of the logits.
      max_p: the largest probability.
      participation: 1 / sum of p^2.
      sink, first: masses of the first key of the document and of its first FIRST_KEYS keys.
      local: mass of the keys nearer than Options.local.
      mean_distance: tokens.
      set_mass: masses of the sets, [B, T, N, Z].
      bin_mass: masses by distance, [B, T, N, E].
      bin_pairs: visible keys by distance, int32 [B, T, E].
      top_key: int32, index of the most probable key; of equal ones the least.
      non_sink_entropy: without the first key, what is left made a distribution again; 0 where
        nothing is left.
      non_sink_lse: log-sum-exp without the first key.
    """

    entropy: jax.Array
    visible: jax.Array
    lse: jax.Array
    max_p: jax.Array
    participation: jax.Array
    sink: jax.Array
    first: jax.Array
    local: jax.Array
    mean_distance: jax.Array
    set_mass: jax.Array
    bin_mass: jax.Array
    bin_pairs: jax.Array
    top_key: jax.Array
    non_sink_entropy: jax.Array
    non_sink_lse: jax.Array


def statistics(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    mask: Mask,
    options: Options,
    *,
    index_BS: jax.Array | None = None,
    sets_BSZ: jax.Array | None = None,
) -> Stats:
    """Returns the statistics of softmax(scale q k^T + mask).

    Args:
      q_BTNH, k_BSKH: rotated; N is a multiple of K. T and S may differ: the queries may be some of
        all, or those of a decoder that looks at an encoder. Spread over devices, this one's.
      mask: which key a query may see. Not causal: distances go both ways.
      options: what is measured, and how keys of other devices are reached.
      index_BS: int32 numbers of the keys; None: 0, 1, 2, ...
      sets_BSZ: bool, sets of keys whose mass is measured; None: no sets.

    Raises:
      ValueError: the arrays do not fit each other.
    """
    return finish(state_of(q_BTNH, keys_of(k_BSKH, index_BS, sets_BSZ), mask, options))


def state_of(q_BTNH: jax.Array, keys: Keys, mask: Mask, options: Options) -> State:
    """Returns the state after the keys that Options.spread reaches."""
    options, mask = options.of(keys.k_BSKH), mask.of_batch(q_BTNH.shape[0])

    def step(state, keys, mask):
        return update(state, q_BTNH, keys, mask, options)

    return spread.WAYS[options.spread](step, empty(q_BTNH, keys, options), keys, mask)


def keys_of(k_BSKH: jax.Array, index_BS=None, sets_BSZ=None) -> Keys:
    """Returns the keys with what was left out: their numbers, and no sets.

    Raises:
      ValueError: the sets are not of these keys.
    """
    batch, length = k_BSKH.shape[:2]
    if index_BS is None:
        index_BS = jnp.arange(length, dtype=jnp.int32)[None]
    if sets_BSZ is None:
        sets_BSZ = jnp.zeros((batch, length, 0), bool)
    if sets_BSZ.ndim != 3 or sets_BSZ.shape[:2] != (batch, length):
        raise ValueError(
            f"analysis: sets_BSZ must be [{batch}, {length}, Z], got {sets_BSZ.shape}."
        )
    return Keys(k_BSKH, jnp.broadcast_to(index_BS, (batch, length)), sets_BSZ)


def update(state: State, q_BTNH: jax.Array, keys: Keys, mask: Mask, options: Options) -> State:
    """Returns the state after these keys too; `options` of Options.of, over the keys of all."""

    def visit(carry, q_BCNH, block: Keys, block_mask: Mask):
        return merge(carry[0], of_block(q_BCNH, block, block_mask, options)), None

    mask = mask.of_batch(q_BTNH.shape[0])
    return blocks.walk(visit, (state, None), (q_BTNH, keys), mask, options.block)[0]


def finish(state: State) -> Stats:
    """Returns the statistics of a finished state."""
    whole = Softmax(*state[:3])
    has_key, l = state.l != 0, whole.total  # noqa: E741
    num_heads = state.m.shape[1] * state.m.shape[2]

    def rows(x):
        return blocks.by_head(jnp.where(has_key[(None,) * (x.ndim - 4)], x, 0), num_heads)

    return Stats(
        entropy=rows(whole.entropy),
        visible=blocks.by_head(state.visible, 1)[..., 0],
        lse=blocks.by_head(whole.lse, num_heads),
        max_p=rows(1 / l),
        participation=rows(l**2 / jnp.where(has_key, state.l2, 1)),
        **{name: rows(getattr(state, name) / l) for name in ("sink", "first", "local")},
        mean_distance=rows(state.distance / l),
        set_mass=rows(state.sets / l[None]),
        bin_mass=rows(state.bins / l[None]),
        bin_pairs=blocks.by_head(state.pairs, 1)[:, :, 0],
        top_key=rows(state.key + 1) - 1,
        non_sink_entropy=rows(state.rest.entropy),
        non_sink_lse=blocks.by_head(state.rest.lse, num_heads),
    )


def bin_edges(bins: int) -> list[int]:
    """Returns the least distance of each bin, and one beyond the last: 0, 1, 2, 4, 8, ..."""
    return [0] + [2**e for e in range(bins)]


def edges(length: int) -> list[int]:
    """Returns the edges of the bins of distances below `length`: 0, 1, 2, 4, ... and `length`."""
    return [edge for edge in bin_edges(num_bins(length)) if edge < length] + [length]


def normalised_entropy(entropy: jax.Array, visible: jax.Array) -> jax.Array:
    """Returns entropy / ln(visible), from 0 to 1; 0 where there is no choice, which a mean had
    better leave out.

    Args:
      entropy: nats, [..., T, N].
      visible: number of keys it is over, [..., T].
    """
    choice = visible > 1
    logs = jnp.log(jnp.where(choice, visible, 2).astype(entropy.dtype))
    return jnp.where(choice[..., None], entropy / logs[..., None], 0)


def effective_tokens(entropy: jax.Array) -> jax.Array:
    """Returns e^entropy: so many equally probable keys have this entropy."""
    return jnp.exp(entropy)

"""Which blocks of queries meet which blocks of keys, as the list that the TPU kernels walk.

A tile is a block of queries with a block of keys. The kernels take a list of tiles in an order that
keeps what they accumulate in fast memory: by queries for the forward pass, by keys for the backward
pass. The list is data (a scalar-prefetch argument), so that a hop of the ring, a packed row and a
window need no other kernel; its length is static. A tile says whether its pairs need masking at all
and whether it is passed over.

Letters: B batch, I blocks of queries, J blocks of keys, E entries of a list.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrope.attention.masks import Mask

FIRST, LAST, SKIP, MASKED = 1, 2, 4, 8  # flags: of its run, of its run, do nothing, look at ids
_FLAG_BITS, _KEY_BITS = 4, 14
MAX_QUERY_BLOCKS, MAX_KEY_BLOCKS = 1 << 13, 1 << _KEY_BITS


class Tiles(NamedTuple):
    """A list for each row of the batch.

    Attributes:
      codes: int32 [B * E]: block of queries, block of keys and flags in one word.
      num: E.
    """

    codes: jax.Array
    num: int


class Kinds(NamedTuple):
    """How each tile is processed, bool [B, I, J].

    Attributes:
      active_BIJ: some query may see some key.
      masked_BIJ: not every query may see every key.
    """

    active_BIJ: jax.Array
    masked_BIJ: jax.Array


def unpack(code):
    """Returns (block of queries, block of keys, flags) of a code."""
    keys = (code >> _FLAG_BITS) & (MAX_KEY_BLOCKS - 1)
    return code >> (_FLAG_BITS + _KEY_BITS), keys, code & (2**_FLAG_BITS - 1)


def kinds_of(mask: Mask, q_block: int, kv_block: int) -> Kinds:
    """Returns what each tile of a mask needs, from the extremes of its ids alone: an inactive tile
    surely has no pair, an unmasked one surely has all.
    """
    q_low, q_high = _extremes(mask.q_positions_BT, q_block, axis=2)
    kv_low, kv_high = _extremes(mask.kv_positions_BS, kv_block, axis=1)
    active = jnp.ones(jnp.broadcast_shapes(q_low.shape, kv_low.shape), bool)
    full = active
    if mask.causal:
        active, full = active & (q_high >= kv_low), full & (q_low >= kv_high)
    if mask.window is not None:
        active &= q_low - kv_high < mask.window
        full &= q_high - kv_low < mask.window
    same, single = segment_kinds(mask, q_block, kv_block)
    return Kinds(active & same, ~(full & single))


def of_rows(kinds: Kinds, blocks: np.ndarray) -> Kinds:
    """Returns the kinds for the blocks of queries `blocks`, which may repeat."""
    return Kinds(kinds.active_BIJ[:, blocks], kinds.masked_BIJ[:, blocks])


def segment_kinds(mask: Mask, q_block: int, kv_block: int) -> tuple[jax.Array, jax.Array]:
    """Returns (may share a segment, are all of one segment) of each tile, bool [B, I, J]."""
    if mask.q_segment_ids_BT is None:
        always = jnp.ones((1, 1, 1), bool)
        return always, always
    q_low, q_high = _extremes(mask.q_segment_ids_BT, q_block, axis=2)
    kv_low, kv_high = _extremes(mask.kv_segment_ids_BS, kv_block, axis=1)
    same = (q_high >= kv_low) & (kv_high >= q_low)
    return same, (q_low == q_high) & (kv_low == kv_high) & (q_low == kv_low)


def by_queries(kinds: Kinds) -> Tiles:
    """Returns the active tiles, block of queries by block of queries."""
    _, num_q, num_kv = kinds.active_BIJ.shape
    q_E, kv_E = np.divmod(np.arange(num_q * num_kv), num_kv)
    return _compact(kinds, q_E, kv_E, by_keys=False)


def by_keys(kinds: Kinds) -> Tiles:
    """Returns the active tiles, block of keys by block of keys."""
    _, num_q, num_kv = kinds.active_BIJ.shape
    kv_E, q_E = np.divmod(np.arange(num_q * num_kv), num_q)
    return _compact(kinds, q_E, kv_E, by_keys=True)


def listed(q_E, kv_E, kinds: Kinds, *, by_keys: bool) -> Tiles:
    """Returns the tiles of a list, each active or passed over as `kinds` says.

    Args:
      q_E, kv_E: blocks of queries and of keys; numpy, or jax where a hop chooses them.
      kinds: B may be 1.
      by_keys: the list is in the order of the keys.
    """
    active_BE, masked_BE = (x[:, q_E, kv_E] for x in kinds)
    key_E = jnp.asarray(kv_E if by_keys else q_E)
    edge = jnp.ones((1,), bool)
    changes = key_E[1:] != key_E[:-1]
    flags_E = FIRST * jnp.concatenate([edge, changes]) + LAST * jnp.concatenate([changes, edge])
    flags_BE = flags_E[None] + SKIP * ~active_BE + MASKED * masked_BE
    return _packed(jnp.asarray(q_E)[None], jnp.asarray(kv_E)[None], flags_BE)


def _compact(kinds: Kinds, q_E: np.ndarray, kv_E: np.ndarray, *, by_keys: bool) -> Tiles:
    """Active tiles first; the rest is passed over and fetches nothing."""
    active_BE, masked_BE = (
        jnp.broadcast_to(x, kinds.active_BIJ.shape)[:, q_E, kv_E] for x in kinds
    )
    order_BE = jnp.argsort(~active_BE, axis=1, stable=True)
    count_B1 = jnp.sum(active_BE, axis=1, keepdims=True)
    place_E = jnp.arange(len(q_E))[None]
    order_BE = jnp.take_along_axis(
        order_BE, jnp.minimum(place_E, jnp.maximum(count_B1 - 1, 0)), axis=1
    )
    q_BE, kv_BE = jnp.asarray(q_E)[order_BE], jnp.asarray(kv_E)[order_BE]
    key_BE = kv_BE if by_keys else q_BE
    changes = key_BE[:, 1:] != key_BE[:, :-1]
    edge = jnp.ones((changes.shape[0], 1), bool)
    first = jnp.concatenate([edge, changes], axis=1)
    last = jnp.concatenate([changes, edge], axis=1) | (place_E == count_B1 - 1)
    masked_BE = jnp.take_along_axis(masked_BE, order_BE, axis=1)
    live = place_E < count_B1
    flags = jnp.where(live, FIRST * first + LAST * last + MASKED * masked_BE, SKIP)
    return _packed(q_BE, kv_BE, flags)


def _packed(q_BE, kv_BE, flags_BE) -> Tiles:
    codes = (q_BE << (_FLAG_BITS + _KEY_BITS)) + (kv_BE << _FLAG_BITS) + flags_BE
    return Tiles(codes.astype(jnp.int32).reshape(-1), codes.shape[1])


def _extremes(ids_BT: jax.Array, block: int, *, axis: int) -> tuple[jax.Array, jax.Array]:
    blocks = ids_BT.reshape(ids_BT.shape[0], -1, block)
    return tuple(jnp.expand_dims(f(blocks, axis=2), axis) for f in (jnp.min, jnp.max))

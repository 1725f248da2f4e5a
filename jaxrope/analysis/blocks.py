"""The walk over blocks of queries and keys that every pass over attention shares.

A block of keys that no query of the block may see is skipped; padding at the end neither sees
nor is seen. The carry of each query goes in and comes out, so that a walk may continue where
another one, over other keys, has ended.

Letters: B batch, T queries, S keys, N heads, K kv heads, G = N // K, H head dim, n blocks, C block
of queries, X block of keys.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrope.attention import Mask, any_allowed, pad


def walk(visit: Callable[..., tuple], start, pairs, mask: Mask, block: int):
    """Returns (rows, totals) after every pair of blocks.

    Args:
      visit: ((rows, totals), queries, keys, mask), each of a block, gives (rows, totals).
      start: (rows, totals): the carry of each query, a pytree of leaves [..., T], and one of all
        queries together.
      pairs: (queries, keys): pytrees with leaves [B, T, ...] and [B, S, ...].
      mask: of these queries and keys; B rows of ids.
      block: tokens of a block, at most.
    """
    q_len, kv_len = mask.q_positions_BT.shape[1], mask.kv_positions_BS.shape[1]
    q_block, kv_block = min(block, q_len), min(block, kv_len)
    q_more, kv_more = -q_len % q_block, -kv_len % kv_block
    (rows, totals), (queries, keys) = start, pairs
    # tied to the queries: else the masks of all pairs of blocks could be kept from layer to layer
    queries, mask = jax.lax.optimization_barrier((queries, mask))
    mask = pad(mask, q_more, kv_more)
    q_ids = mask.q_positions_BT, mask.q_segment_ids_BT
    kv_ids = mask.kv_positions_BS, mask.kv_segment_ids_BS
    queries = cut((_filled_up(queries, q_more), q_ids), q_block)
    keys = cut((_filled_up(keys, kv_more), kv_ids), kv_block)
    rows = jax.tree.map(lambda x: _cut_last(x, q_more, q_block), rows)

    def over_queries(totals, of_queries):
        row, (query, q_part) = of_queries

        def over_keys(carry, of_keys):
            key, kv_part = of_keys
            block_mask = Mask(
                q_part[0], kv_part[0], q_part[1], kv_part[1], mask.causal, mask.window
            )

            def look(carry):
                return visit(carry, query, key, block_mask)

            return jax.lax.cond(any_allowed(block_mask), look, lambda carry: carry, carry), None

        (row, totals), _ = jax.lax.scan(over_keys, (row, totals), keys)
        return totals, row

    totals, rows = jax.lax.scan(over_queries, totals, (rows, queries))
    return jax.tree.map(lambda x: _joined_last(x)[..., :q_len], rows), totals


def logits(q_BCNH: jax.Array, k_BXKH: jax.Array, scale: float) -> jax.Array:
    """Returns logits_BKGCX of a block, float32 or wider, whether or not a key may be seen."""
    dtype = jnp.promote_types(q_BCNH.dtype, jnp.float32)
    batch, q_len, _, head_dim = q_BCNH.shape
    q_BCKGH = q_BCNH.reshape(batch, q_len, k_BXKH.shape[2], -1, head_dim)
    return scale * jnp.einsum(
        "BCKGH,BXKH->BKGCX",
        q_BCKGH,
        k_BXKH,
        preferred_element_type=dtype,
        precision=jax.lax.Precision.HIGHEST,  # a TPU would round float32 to bfloat16
    )


def steps_back(mask: Mask) -> jax.Array:
    """Returns positions from query back to key, int32 [B, T, S], below 0 for keys ahead."""
    return mask.q_positions_BT[:, :, None] - mask.kv_positions_BS[:, None, :]


def distances(mask: Mask) -> jax.Array:
    """Returns tokens between query and key, int32 [B, T, S], 0 or more; of keys ahead, too."""
    return jnp.abs(steps_back(mask))


def by_head(x: jax.Array, num_heads: int) -> jax.Array:
    """Returns [B, T, N, ...] of leaves [..., B, K, G, T]."""
    *lead, batch, kv_heads, group, length = x.shape
    assert kv_heads * group == num_heads
    x = x.reshape(*lead, batch, num_heads, length)
    order = (len(lead), len(lead) + 2, len(lead) + 1, *range(len(lead)))
    return x.transpose(order)


def cut(tree, block: int):
    """Cuts leaves [B, length, ...] into [n, B, block, ...]; block divides length."""

    def cut_leaf(x):
        blocks = x.reshape(x.shape[0], x.shape[1] // block, block, *x.shape[2:])
        return jnp.moveaxis(blocks, 1, 0)

    return jax.tree.map(cut_leaf, tree)


def _filled_up(tree, tokens: int):
    """Adds zeros to the end of axis 1."""

    def pad_leaf(x):
        return jnp.pad(x, [(0, tokens if axis == 1 else 0) for axis in range(x.ndim)])

    return jax.tree.map(pad_leaf, tree) if tokens else tree


def _cut_last(x, tokens: int, block: int):
    """[..., T] -> [n, ..., block], filled up with `tokens` zeros."""
    x = jnp.pad(x, [(0, tokens if axis == x.ndim - 1 else 0) for axis in range(x.ndim)])
    # no -1: bins and sets may be none
    return jnp.moveaxis(x.reshape(*x.shape[:-1], x.shape[-1] // block, block), -2, 0)


def _joined_last(x):
    """[n, ..., block] -> [..., n * block]."""
    x = jnp.moveaxis(x, 0, -2)
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])

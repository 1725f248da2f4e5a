"""All pairs of queries and keys, block by block, for statistics that need more than one look: what
is found first, such as the log-sum-exp, is known when the keys are gone through again.

A block of keys that no query of the block may see is passed over. Nothing is as large as the square
of the length.

Letters: B batch, T queries, S keys, N heads, K kv heads, G = N // K, H head dim, n blocks, C block
of queries, X block of keys.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrope import masks

_MASKED = -1e30


class Block(NamedTuple):
    """Some queries and some keys.

    Attributes:
      logits_BKGCX: scaled; -1e30 where the key may not be seen.
      seen_BCX: where it may.
      k_BXKH: the keys.
      queries: leaves [B, C, ...], as given to `over_queries`.
      keys: leaves [B, X, ...], as given.
    """

    logits_BKGCX: jax.Array
    seen_BCX: jax.Array
    k_BXKH: jax.Array
    queries: Any
    keys: Any

    def distances(self) -> jax.Array:
        """Positions from key to query, float32 [B, C, X]; `queries` and `keys` hold them."""
        q, k = self.queries["position"], self.keys["position"]
        return (q[:, :, None] - k[:, None]).astype(jnp.float32)


Fold = Callable[[Callable[[Any, Block], Any], Any], Any]


def over_queries(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    mask: masks.Mask,
    rows_fn: Callable[[Fold, jax.Array, Any], Any],
    *,
    block: int,
    queries: dict | None = None,
    keys: dict | None = None,
) -> Any:
    """Returns what `rows_fn` finds of each query, leaves [B, T, N, ...].

    Args:
      q_BTNH, k_BSKH: rotated.
      mask: of them; T and S may differ.
      rows_fn: (fold, q_BKGCH, queries) -> leaves [B, K, G, C, ...]. `fold(visit_fn, start)` goes
        through all blocks of keys, carry = visit_fn(carry, block).
      block: tokens of a block of queries, and of keys.
      queries: name -> [B, T, ...], cut as the queries are; "position" is among them.
      keys: name -> [B, S, ...], the same for keys.
    """
    (batch, q_len, num_heads, dim), (kv_len, kv_heads) = q_BTNH.shape, k_BSKH.shape[1:3]
    dtype = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    q_block, kv_block = min(block, q_len), min(block, kv_len)
    padded = masks.pad(mask.of_batch(batch), -q_len % q_block, -kv_len % kv_block)
    queries = (queries or {}) | {"position": padded.q_positions_BT}
    keys = (keys or {}) | {"position": padded.kv_positions_BS}
    q_ids = {"position": padded.q_positions_BT, "segment": padded.q_segment_ids_BT}
    kv_ids = {"position": padded.kv_positions_BS, "segment": padded.kv_segment_ids_BS}
    scale = dim**-0.5

    def join(q, kv):
        ids = q["position"], kv["position"], q["segment"], kv["segment"]
        return masks.Mask(*ids, mask.causal, mask.window)

    kv_cut = _cut((k_BSKH.astype(dtype), kv_ids, keys), kv_block)

    def rows(part):
        q_BCNH, q_id, own = part
        q_BCKGH = q_BCNH.reshape(batch, q_block, kv_heads, -1, dim)
        q_BKGCH = q_BCKGH.transpose(0, 2, 3, 1, 4)

        def fold(visit_fn, start):
            def step(carry, kv_part):
                k_BXKH, kv_id, others = kv_part
                both = join(q_id, kv_id)

                def visit(carry):
                    seen_BCX = masks.allowed(both)
                    logits = scale * dot("BKGCH,BXKH->BKGCX", q_BKGCH, k_BXKH)
                    logits = jnp.where(seen_BCX[:, None, None], logits, _MASKED)
                    return visit_fn(carry, Block(logits, seen_BCX, k_BXKH, own, others))

                return jax.lax.cond(masks.any_allowed(both), visit, lambda c: c, carry), None

            return jax.lax.scan(step, start, kv_cut)[0]

        return rows_fn(fold, q_BKGCH, own)

    found = jax.lax.map(rows, _cut((q_BTNH.astype(dtype), q_ids, queries), q_block))

    def whole(x):  # [n, B, K, G, C, ...] -> [B, T, N, ...]
        x = jnp.moveaxis(x, (1, 0, 4), (0, 1, 2))
        x = x.reshape(batch, x.shape[1] * x.shape[2], num_heads, *x.shape[5:])
        return x[:, :q_len]

    return jax.tree.map(whole, found)


class Softmax(NamedTuple):
    """What a first pass finds of each query, [B, K, G, C].

    Attributes:
      lse: log-sum-exp of the logits, nats.
      mean: of the logits under their softmax, nats.
    """

    lse: jax.Array
    mean: jax.Array

    def weights(self, block: Block) -> jax.Array:
        """Probabilities of a block, [B, K, G, C, X]."""
        weights = jnp.exp(block.logits_BKGCX - self.lse[..., None])
        return jnp.where(block.seen_BCX[:, None, None], weights, 0.0)


def softmax(fold: Fold, q_BKGCH: jax.Array) -> Softmax:
    """Returns the first pass; a query that sees no key has zeros."""
    rows, dtype = q_BKGCH.shape[:-1], q_BKGCH.dtype

    def visit(carry, block):
        top, total, offset = carry
        new_top = jnp.maximum(top, jnp.max(block.logits_BKGCX, axis=-1))
        shrink = jnp.exp(top - new_top)
        z = jnp.where(block.seen_BCX[:, None, None], block.logits_BKGCX - new_top[..., None], 0.0)
        e = jnp.where(block.seen_BCX[:, None, None], jnp.exp(z), 0.0)
        moved = jnp.where(total > 0, (top - new_top) * total, 0.0)
        offset = shrink * (offset + moved) + jnp.sum(e * z, axis=-1)
        return new_top, shrink * total + jnp.sum(e, axis=-1), offset

    start = jnp.full(rows, _MASKED, dtype), jnp.zeros(rows, dtype), jnp.zeros(rows, dtype)
    top, total, offset = fold(visit, start)
    some, total = total > 0, jnp.where(total > 0, total, 1.0)
    top = jnp.where(some, top, 0.0)
    return Softmax(top + jnp.log(total), top + offset / total)


def dot(letters: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns a product, all of float32's digits on every platform."""
    # HIGHEST: the default of a TPU rounds float32 operands to bfloat16
    return jnp.einsum(letters, x, y, precision=jax.lax.Precision.HIGHEST)


def _cut(tree, block: int):
    """Cuts leaves [B, length, ...] into [n, B, block, ...], the last one filled up with zeros."""

    def cut(x):
        missing = -np.shape(x)[1] % block
        x = jnp.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (jnp.ndim(x) - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, block, *x.shape[2:]), 1, 0)

    return jax.tree.map(cut, tree)

"""Two walks over all pairs of queries and keys: the first finds the level of each query's logits,
the second visits the keys again with their probabilities.

Letters: B batch, T queries, S keys, N heads, K kv heads, G = N // K, H head dim, C block of
queries, X block of keys.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrope.analysis import blocks, state
from jaxrope.analysis.state import Softmax
from jaxrope.attention import MASKED, Mask, allowed


class Part(NamedTuple):
    """Some queries and some keys.

    Attributes:
      weights_BKGCX: probabilities; 0 where the key may not be seen.
      centred_BKGCX: logits less their mean under the softmax of the query, nats; 0 there.
      seen_BCX: where it may be seen.
      k_BXKH: the keys.
      queries: leaves [B, C, ...], as given to `second_look`.
      keys: leaves [B, X, ...], as given.
      mask: of these; it has their positions.
    """

    weights_BKGCX: jax.Array
    centred_BKGCX: jax.Array
    seen_BCX: jax.Array
    k_BXKH: jax.Array
    queries: Any
    keys: Any
    mask: Mask


def level(q_BTNH: jax.Array, k_BSKH: jax.Array, mask: Mask, *, block: int) -> Softmax:
    """Returns the sums of each query and head, [B, T, N], of rotated queries and keys in float32 or
    wider.
    """
    scale, zero = q_BTNH.shape[-1] ** -0.5, zeros(q_BTNH, k_BSKH)

    def visit(carry, q_BCNH, k_BXKH, block_mask):
        logits = blocks.logits(q_BCNH, k_BXKH, scale)
        block_sums, _ = state.softmax_of(logits, allowed(block_mask)[:, None, None])
        return state.merge_softmax(carry[0], block_sums), None

    start = Softmax(jnp.full_like(zero, MASKED), zero, zero)
    sums, _ = blocks.walk(visit, (start, None), (q_BTNH, k_BSKH), mask, block)
    return jax.tree.map(lambda x: blocks.by_head(x, q_BTNH.shape[2]), sums)


def second_look(
    arrays: tuple[jax.Array, jax.Array, Mask],
    level: Softmax,
    visit_fn: Callable[[Any, Part], Any],
    start: Any,
    *,
    block: int,
    extra: tuple[Any, Any] = ((), ()),
) -> Any:
    """Returns the carry after all pairs: carry = visit_fn(carry, part), leaves [..., T].

    Args:
      arrays: (q_BTNH, k_BSKH, mask), rotated, float32 or wider.
      level: the result of `level`.
      visit_fn: sees leaves [..., C] of the queries of a part.
      start: of the carry; see `zeros`.
      block: tokens in a block.
      extra: (leaves [B, T, ...], leaves [B, S, ...]) that travel with queries and with keys.
    """
    q_BTNH, k_BSKH, mask = arrays
    scale, kv_heads = q_BTNH.shape[-1] ** -0.5, k_BSKH.shape[2]

    def of_keys(x_BCN):
        x_BCKG = x_BCN.reshape(*x_BCN.shape[:2], kv_heads, -1)
        return jnp.moveaxis(x_BCKG, 1, 3)[..., None]

    def visit(carry, query, key, block_mask):
        (q_BCNH, block_level, queries), (k_BXKH, keys) = query, key
        # counted from the greatest: a logit of 30 has lost digits that probabilities need
        sums = Softmax(*map(of_keys, block_level))
        seen_BCX, logits = allowed(block_mask), blocks.logits(q_BCNH, k_BXKH, scale)
        visible = seen_BCX[:, None, None]
        below = jnp.where(visible, logits - sums.m, 0.0)
        weights = jnp.where(visible, jnp.exp(below) / sums.total, 0.0)
        centred = jnp.where(visible, below - sums.u / sums.total, 0.0)
        part = Part(weights, centred, seen_BCX, k_BXKH, queries, keys, block_mask)
        return visit_fn(carry[0], part), None

    pairs = (q_BTNH, level, extra[0]), (k_BSKH, extra[1])
    return blocks.walk(visit, (start, None), pairs, mask, block)[0]


def zeros(q_BTNH: jax.Array, k_BSKH: jax.Array, *lead: int) -> jax.Array:
    """Returns zeros [*lead, B, K, G, T] to begin a carry with; blocks.by_head makes them [B, T, N,
    *lead] at the end."""
    (batch, length, num_heads, _), kv_heads = q_BTNH.shape, k_BSKH.shape[2]
    return jnp.zeros((*lead, batch, kv_heads, num_heads // kv_heads, length), q_BTNH.dtype)


def dot(letters: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns a product, all of float32's digits on every platform."""
    # HIGHEST: the default of a TPU rounds float32 operands to bfloat16
    return jnp.einsum(letters, x, y, precision=jax.lax.Precision.HIGHEST)

"""Two walks over all pairs of queries and keys: the first finds the softmax of each query, the
second goes through the keys again with their probabilities known.

Letters: B batch, T queries, S keys, N heads, K kv heads, G = N // K, H head dim, C block of
queries, X block of keys.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrope.analysis import blocks
from jaxrope.attention.blockwise import MASKED
from jaxrope.masks import Mask, allowed


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


class Softmax(NamedTuple):
    """Of each query and head, [B, T, N], nats; zeros where no key is seen.

    Attributes:
      lse: log-sum-exp of the logits.
      mean: of the logits under their softmax; the entropy is lse - mean.
    """

    lse: jax.Array
    mean: jax.Array


def softmax(q_BTNH: jax.Array, k_BSKH: jax.Array, mask: Mask, *, block: int) -> Softmax:
    """Returns the softmax of each query, of rotated queries and keys in float32 or wider."""
    scale = q_BTNH.shape[-1] ** -0.5

    def visit(carry, q_BCNH, k_BXKH, own):
        (top, total, offset), _ = carry
        seen = allowed(own)[:, None, None]
        logits = jnp.where(seen, blocks.logits(q_BCNH, k_BXKH, scale), MASKED)
        new_top = jnp.maximum(top, jnp.max(logits, axis=-1))
        shrink = jnp.exp(top - new_top)
        z = jnp.where(seen, logits - new_top[..., None], 0.0)
        e = jnp.where(seen, jnp.exp(z), 0.0)
        moved = jnp.where(total > 0, (top - new_top) * total, 0.0)
        offset = shrink * (offset + moved) + jnp.sum(e * z, axis=-1)
        return (new_top, shrink * total + jnp.sum(e, axis=-1), offset), None

    zero = zeros(q_BTNH, k_BSKH)
    start = jnp.full_like(zero, MASKED), zero, zero
    (top, total, offset), _ = blocks.walk(visit, (start, None), (q_BTNH, k_BSKH), mask, block)
    some, total = total > 0, jnp.where(total > 0, total, 1.0)
    top = jnp.where(some, top, 0.0)
    found = Softmax(top + jnp.log(total), top + offset / total)
    return jax.tree.map(lambda x: blocks.by_head(x, q_BTNH.shape[2]), found)


def second_look(
    arrays: tuple[jax.Array, jax.Array, Mask],
    found: Softmax,
    visit_fn: Callable[[Any, Part], Any],
    start: Any,
    *,
    block: int,
    extra: tuple[Any, Any] = ((), ()),
) -> Any:
    """Returns the carry after all pairs: carry = visit_fn(carry, part), leaves [..., T].

    Args:
      arrays: (q_BTNH, k_BSKH, mask), rotated, float32 or wider.
      found: what `softmax` found of them.
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

    def visit(carry, query, key, own):
        (q_BCNH, lse_BCN, mean_BCN, queries), (k_BXKH, keys) = query, key
        seen_BCX = allowed(own)
        seen, logits = seen_BCX[:, None, None], blocks.logits(q_BCNH, k_BXKH, scale)
        weights = jnp.where(seen, jnp.exp(logits - of_keys(lse_BCN)), 0.0)
        centred = jnp.where(seen, logits - of_keys(mean_BCN), 0.0)
        part = Part(weights, centred, seen_BCX, k_BXKH, queries, keys, own)
        return visit_fn(carry[0], part), None

    pairs = (q_BTNH, found.lse, found.mean, extra[0]), (k_BSKH, extra[1])
    return blocks.walk(visit, (start, None), pairs, mask, block)[0]


def zeros(q_BTNH: jax.Array, k_BSKH: jax.Array, *lead: int) -> jax.Array:
    """Returns zeros [*lead, B, K, G, T] to begin a carry with; blocks.by_head makes them [B, T, N,
    *lead] at the end."""
    (batch, length, num_heads, _), kv_heads = q_BTNH.shape, k_BSKH.shape[2]
    return jnp.zeros((*lead, batch, kv_heads, num_heads // kv_heads, length), q_BTNH.dtype)


def distances(mask: Mask) -> jax.Array:
    """Returns positions from key to query, [B, T, S], below 0 for keys ahead."""
    return mask.q_positions_BT[:, :, None] - mask.kv_positions_BS[:, None]


def dot(letters: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns a product, all of float32's digits on every platform."""
    # HIGHEST: the default of a TPU rounds float32 operands to bfloat16
    return jnp.einsum(letters, x, y, precision=jax.lax.Precision.HIGHEST)

"""How far two ropes make attention differ on the same queries and keys: KL in one pass.

KL(p || q) = E_p[s - t] - LSE_s + LSE_t, where s and t are the logits of p and q; one more sum than
entropy takes. With t = 0 everywhere it is ln n - entropy of p.

Letters: B batch, T queries, S keys, N heads, K kv heads, G = N // K, H head dim, R rotary pairs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrope import rope
from jaxrope.analysis import blocks, spread
from jaxrope.analysis.state import Options
from jaxrope.attention import MASKED, Mask, allowed

Turn = tuple[jax.Array, jax.Array]


class Side(NamedTuple):
    """Sums over keys of one of the two, [B, K, G, T].

    Attributes:
      m: maximum of its logits.
      l: sum of e^(s - m).
      u: sum of e^(s - m) (s - m).
      w: sum of e^(s - m) (s - t), t the other's logits.
    """

    m: jax.Array
    l: jax.Array  # noqa: E741 (the letter of the formula)
    u: jax.Array
    w: jax.Array


class Divergence(NamedTuple):
    """Of each query and head, nats, float32 [B, T, N]; 0 where no key is seen.

    Attributes:
      kl: KL(first || second).
      reverse_kl: KL(second || first).
      entropy, second_entropy: of the two.
    """

    kl: jax.Array
    reverse_kl: jax.Array
    entropy: jax.Array
    second_entropy: jax.Array


def kl_between(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    turns: tuple[Turn, Turn],
    second_turns: tuple[Turn, Turn],
    mask: Mask,
    options: Options,
) -> Divergence:
    """Returns how attention with the first rope differs from that with the second.

    Args:
      q_BTNH, k_BSKH: not rotated, as `llama.probe` shows them.
      turns: (cos, sin) of the queries and (cos, sin) of the keys by the first rope, attention
        factor included, as rope.cos_sin makes them; for a sequence that looks at itself twice the
        same.
      second_turns: the same of the second rope.
      mask: which key a query may see.
      options: block, scale and spread are used.
    """
    options, mask = options.of(k_BSKH), mask.of_batch(q_BTNH.shape[0])
    both = turns, second_turns
    queries = tuple(rope.rotate(q_BTNH, *of_q) for of_q, _ in both)
    keys = tuple(rope.rotate(k_BSKH, *of_k) for _, of_k in both)
    (batch, length, num_heads, _), kv_heads = q_BTNH.shape, k_BSKH.shape[2]
    rows = batch, kv_heads, num_heads // kv_heads, length
    dtype = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    zeros = jnp.zeros(rows, dtype)
    start = (Side(jnp.full(rows, MASKED, dtype), zeros, zeros, zeros),) * 2

    def visit(carry, queries, keys, block_mask):
        visible = allowed(block_mask)[:, None, None]
        pairs = zip(queries, keys, strict=True)
        s, t = (blocks.logits(q, k, options.scale) for q, k in pairs)
        sides = _side(s, t, visible), _side(t, s, visible)
        return tuple(merge(x, y) for x, y in zip(carry[0], sides, strict=True)), None

    def step(sides, keys, mask):
        return blocks.walk(visit, (sides, None), (queries, keys), mask, options.block)[0]

    first, second = spread.WAYS[options.spread](step, start, keys, mask)
    (entropy, lse), (second_entropy, second_lse) = (_entropy_and_lse(x) for x in (first, second))
    divergence = Divergence(
        _share(first.w, first.l) - lse + second_lse,
        _share(second.w, second.l) - second_lse + lse,
        entropy,
        second_entropy,
    )
    return Divergence(*(blocks.by_head(x, num_heads) for x in divergence))


def merge(first: Side, second: Side) -> Side:
    """Returns the sums over the keys of both, which are disjoint."""
    m = jnp.maximum(first.m, second.m)

    def moved(x):
        by = x.m - m  # -1e30 where nothing was seen; l and u are 0 there
        share = jnp.exp(by)
        return share * x.l, share * (x.u + by * x.l), share * x.w

    return Side(m, *(a + b for a, b in zip(moved(first), moved(second), strict=True)))


def _side(s, t, visible) -> Side:
    m = jnp.max(jnp.where(visible, s, MASKED), axis=-1)
    z = jnp.where(visible & (s != m[..., None]), s - m[..., None], 0)
    e = jnp.where(visible, jnp.exp(z), 0)
    return Side(m, *(jnp.sum(x, axis=-1) for x in (e, e * z, e * (s - t))))


def _share(x, total):
    return x / jnp.where(total == 0, 1, total)


def _entropy_and_lse(side: Side):
    log = jnp.log(jnp.where(side.l == 0, 1, side.l))
    # without a key both log-sum-exps are the same -1e30, and cancel
    return log - _share(side.u, side.l), side.m + log

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
from jaxrope.analysis.state import Options, Softmax, merge_softmax, softmax_of
from jaxrope.attention import MASKED, Mask, allowed

Turn = tuple[jax.Array, jax.Array]


class Side(NamedTuple):
    """Sums over keys of one of the two.

    Attributes:
      own: of its logits.
      w: sum of e^(s - m) (s - t), t the other's logits, [B, K, G, T].
    """

    own: Softmax
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
      q_BTNH, k_BSKH: not rotated, as `decoder.probe` shows them.
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
    start = (Side(Softmax(jnp.full(rows, MASKED, dtype), zeros, zeros), zeros),) * 2

    def visit(carry, queries, keys, block_mask):
        visible = allowed(block_mask)[:, None, None]
        pairs = zip(queries, keys, strict=True)
        s, t = (blocks.logits(q, k, options.scale) for q, k in pairs)
        sides = _side(s, t, visible), _side(t, s, visible)
        return tuple(merge(x, y) for x, y in zip(carry[0], sides, strict=True)), None

    def step(sides, keys, mask):
        return blocks.walk(visit, (sides, None), (queries, keys), mask, options.block)[0]

    first, second = spread.WAYS[options.spread](step, start, keys, mask)
    # without a key both log-sum-exps are the same -1e30, and cancel
    divergence = Divergence(
        first.w / first.own.total - first.own.lse + second.own.lse,
        second.w / second.own.total - second.own.lse + first.own.lse,
        first.own.entropy,
        second.own.entropy,
    )
    return Divergence(*(blocks.by_head(x, num_heads) for x in divergence))


def merge(first: Side, second: Side) -> Side:
    """Returns the sums over the keys of both, which are disjoint."""
    own = merge_softmax(first.own, second.own)
    return Side(own, sum(jnp.exp(x.own.m - own.m) * x.w for x in (first, second)))


def _side(s, t, visible) -> Side:
    own, e = softmax_of(s, visible)
    return Side(own, jnp.sum(e * (s - t), axis=-1))

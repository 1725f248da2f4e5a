"""The work of one device of the ring in one hop, with any kernel.

Both halves of a device's tokens are chunks of the zigzag, so a hop has no diagonal: keys that come
from an earlier device of the ring meet all queries with their first half; those of a later device
meet the second half of the queries with both of theirs. Either way it is two whole blocks, h x h,
of the four: no arithmetic is wasted, and one flag chooses the operands.

Letters: B batch, T local tokens, N heads, K kv heads, H head dim.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrope.attention import layout as layouts
from jaxrope.attention import pallas_tpu, tiles
from jaxrope.attention.blockwise import EMPTY, MASKED
from jaxrope.attention.flash import LANES
from jaxrope.attention.layout import Layout
from jaxrope.attention.local import KERNELS, Results
from jaxrope.attention.masks import Mask
from jaxrope.attention.pallas_tpu import Queries
from jaxrope.attention.scale import Scale


class Sizes(NamedTuple):
    """What is static: of the kernel, and scale of the logits, tokens in a block."""

    kernel: str
    scale: Scale
    block: int


class Segments(NamedTuple):
    """Documents of the queries and of the keys of a device, int32 [B, T]; None: one document."""

    queries: jax.Array | None
    keys: jax.Array | None


class Keys(NamedTuple):
    """What travels round the ring.

    Attributes:
      k, v: in the layout of the kernel.
      segment_ids_BT: of the keys, or None.
    """

    k: jax.Array
    v: jax.Array
    segment_ids_BT: jax.Array | None


def local_mask(q_segment_ids_BT, keys: Keys, batch: int, length: int, *, causal: bool) -> Mask:
    """Returns the mask of a hop: by place in the local order, which increases in position."""
    place_BT = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    ids = q_segment_ids_BT, keys.segment_ids_BT
    return Mask(place_BT, place_BT, *ids, causal, None, ordered=True)


class MergedHops:
    """Hops by a kernel that begins anew; their results are merged by the log-sum-exp."""

    def __init__(self, q_BTNH, segments: Segments, num_kv_heads: int, sizes: Sizes):
        del num_kv_heads
        self.kernel, self.q, self.segments = KERNELS[sizes.kernel], q_BTNH, segments
        self.half = q_BTNH.shape[1] // 2
        self.how = dict(scale=sizes.scale, block=sizes.block)

    def keys(self, k_BTKH, v_BTKH) -> Keys:
        """Returns the keys as they travel round the ring."""
        return Keys(k_BTKH, v_BTKH, self.segments.keys)

    def own(self, keys: Keys):
        """Returns the carry after the device's own keys."""
        return self.kernel.forward(self.q, keys.k, keys.v, self._own_mask(keys), **self.how)

    def visit(self, carry, keys: Keys, earlier: jax.Array):
        """Returns the carry after the keys of another device."""
        (_, q_high, q_any), (low, chosen), masks = self._operands(keys, earlier)
        first = self.kernel.forward(q_high, low.k, low.v, masks[0], **self.how)
        out, lse = self.kernel.forward(q_any, chosen.k, chosen.v, masks[1], **self.how)
        for_low = out, jnp.where(earlier, lse, MASKED)
        for_high = out, jnp.where(earlier, MASKED, lse)
        carry_low, carry_high = (tuple(part(x) for x in carry) for part in (self._low, self._high))
        carry_low = _merged(carry_low, for_low)
        carry_high = _merged(_merged(carry_high, first), for_high)
        return tuple(
            jnp.concatenate(pair, axis=1) for pair in zip(carry_low, carry_high, strict=True)
        )

    def finish(self, carry):
        """Returns (out_BTNH, log-sum-exp for the backward pass)."""
        out, lse = carry
        return out.astype(self.q.dtype), lse

    def results(self, results: Results) -> Results:
        """Returns the inputs of the backward pass that belong to the queries."""
        return results

    def own_grads(self, results, keys: Keys):
        """Returns (dq, (dk, dv)) of the device's own keys."""
        dq, *dkv = self.kernel.backward(self.q, keys[:2], self._own_mask(keys), results, **self.how)
        return dq, tuple(dkv)

    def visit_grads(self, dq, results, keys: Keys, earlier: jax.Array):
        """Returns (dq with what a hop adds, (dk, dv) of the hop)."""
        (_, q_high, q_any), (low, chosen), masks = self._operands(keys, earlier)
        high = Results(*map(self._high, results))
        chosen_results = Results(
            *(jnp.where(earlier, self._low(x), self._high(x)) for x in results)
        )
        dq_first, *dkv_first = self.kernel.backward(q_high, low[:2], masks[0], high, **self.how)
        dq_any, *dkv_any = self.kernel.backward(
            q_any, chosen[:2], masks[1], chosen_results, **self.how
        )
        for_low, for_high = (jnp.where(flag, dq_any, 0) for flag in (earlier, ~earlier))
        dq = dq + jnp.concatenate([for_low, dq_first + for_high], axis=1)
        dkv = (
            jnp.concatenate([a + jnp.where(earlier, b, 0), jnp.where(earlier, 0, b)], axis=1)
            for a, b in zip(dkv_first, dkv_any, strict=True)
        )
        return dq, tuple(dkv)

    def finish_grads(self, dq, dkv):
        """Returns (dq_BTNH, dk_BTKH, dv_BTKH)."""
        return dq, *dkv

    def _own_mask(self, keys: Keys) -> Mask:
        batch, length = self.q.shape[:2]
        return local_mask(self.segments.queries, keys, batch, length, causal=True)

    def _operands(self, keys: Keys, earlier):
        low, high = (
            Keys(*(None if x is None else part(x) for x in keys))
            for part in (self._low, self._high)
        )
        chosen = jax.tree.map(lambda a, b: jnp.where(earlier, a, b), low, high)
        q_low, q_high = self._low(self.q), self._high(self.q)
        segments = (None, None)
        if self.segments.queries is not None:
            s_low, s_high = self._low(self.segments.queries), self._high(self.segments.queries)
            segments = s_high, jnp.where(earlier, s_low, s_high)
        size = self.q.shape[0], self.half
        masks = (
            local_mask(segments[0], low, *size, causal=False),
            local_mask(segments[1], chosen, *size, causal=False),
        )
        return (q_low, q_high, jnp.where(earlier, q_low, q_high)), (low, chosen), masks

    def _low(self, x):
        return x[:, : self.half]

    def _high(self, x):
        return x[:, self.half :]


def _merged(carry, other):
    """Returns the softmax over the keys of both, from their outputs and log-sum-exps."""
    (out, lse), (other_out, other_lse) = carry, other
    both = jnp.logaddexp(lse, other_lse)
    share, other_share = (  # zero where neither side has a visible key
        jnp.where(x < EMPTY, 0, jnp.exp(x - both))[..., None] for x in (lse, other_lse)
    )
    return out * share + other_out * other_share, both


class FlashHops:
    """Hops by the TPU kernels: a hop is one call that goes on from the carry, in place; which
    blocks are meant is an argument of it.
    """

    def __init__(self, q_BTNH, segments: Segments, num_kv_heads: int, sizes: Sizes):
        batch, length, num_heads, head_dim = q_BTNH.shape
        interpret = sizes.kernel == "flash_interpret"
        block = _dividing_block(length // 2, sizes.block, interpret)
        self.layout = Layout(
            batch=batch,
            kv_heads=num_kv_heads,
            group=num_heads // num_kv_heads,
            parts=2,
            part_len=length // 2,
            head_dim=head_dim,
            q_block=block,
            kv_block=block,
            scale=sizes.scale,
            interpret=interpret,
        )
        self.dtype, self.segments = q_BTNH.dtype, segments
        self.q_ZMH = layouts.rows(self.layout, q_BTNH)
        self.batch, self.length, self.half = batch, length, self.layout.part_blocks

    def keys(self, k_BTKH, v_BTKH) -> Keys:
        """Returns the keys as they travel round the ring."""
        return Keys(layouts.keys(k_BTKH), layouts.keys(v_BTKH), self.segments.keys)

    def own(self, keys: Keys) -> layouts.Carry:
        """Returns the carry after the device's own keys."""
        mask, kinds = self._own_kinds(keys)
        q_E, kv_E = self._causal()
        walk = tiles.listed(q_E, kv_E, kinds, by_keys=False)
        return self._forward(layouts.start(self.layout), keys, mask, walk)

    def visit(self, carry: layouts.Carry, keys: Keys, earlier: jax.Array) -> layouts.Carry:
        """Returns the carry after the keys of another device."""
        mask, kinds = self._hop_kinds(keys)
        half = self.half
        all_q, low_kv = _grid(range(2 * half), range(half))
        high_q, all_kv = _grid(range(half, 2 * half), range(2 * half))
        q_E, kv_E = jnp.where(earlier, all_q, high_q), jnp.where(earlier, low_kv, all_kv)
        return self._forward(carry, keys, mask, tiles.listed(q_E, kv_E, kinds, by_keys=False))

    def finish(self, carry: layouts.Carry):
        """Returns (out_BTNH, log-sum-exp for the backward pass)."""
        return layouts.finish(self.layout, carry, self.dtype)

    def results(self, results: Results) -> Queries:
        """Returns the inputs of the backward pass that belong to the queries; the log-sum-exp is
        in the layout of the kernel.
        """
        dout_ZMH = layouts.rows(self.layout, results.dout.astype(self.dtype))
        inner_Z1M = layouts.vectors(self.layout, results.inner)
        return Queries(self.q_ZMH, dout_ZMH, results.lse, inner_Z1M)

    def own_grads(self, results: Queries, keys: Keys):
        """Returns (dq, (dk, dv)) of the device's own keys, without the factor `scale`."""
        mask, kinds = self._own_kinds(keys)
        grads = layouts.zero_grads(self.layout, self.length)
        for chunk in range(self.layout.num_chunks):
            blocks = self.layout.token_blocks(chunk)
            kv_E, q_E = _grid(range(2 * self.half), range(len(blocks)))
            live = kv_E <= blocks[q_E]
            walk = tiles.listed(q_E[live], kv_E[live], tiles.of_rows(kinds, blocks), by_keys=True)
            grads = self._backward(grads, results, keys, mask, walk, chunk)
        return grads[0], tuple(grads[1:])

    def visit_grads(self, dq, results: Queries, keys: Keys, earlier: jax.Array):
        """Returns (dq with what a hop adds, (dk, dv) of the hop)."""
        mask, kinds = self._hop_kinds(keys)
        grads = dq, *layouts.zero_grads(self.layout, self.length)[1:]
        num = self.layout.num_chunks // 2  # in each half of the queries
        for work in range(2 * num):
            half_of_keys, chunk = divmod(work, num)
            blocks, high_blocks = (self.layout.token_blocks(c) for c in (work, num + chunk))
            kv_E, q_E = _grid(range(self.half), range(len(blocks)))
            walk = tiles.listed(
                q_E,
                kv_E + jnp.where(earlier, 0, half_of_keys * self.half),
                tiles.of_rows(kinds, jnp.where(earlier, blocks, high_blocks)),
                by_keys=True,
            )
            at = jnp.where(earlier, work, num + chunk)
            grads = self._backward(grads, results, keys, mask, walk, at)
        return grads[0], tuple(grads[1:])

    def finish_grads(self, dq, dkv):
        """Returns (dq_BTNH, dk_BTKH, dv_BTKH)."""
        return layouts.finish_grads(self.layout, (dq, *dkv))

    def _forward(self, carry, keys: Keys, mask: Mask, walk):
        return pallas_tpu.forward(self.layout, carry, self.q_ZMH, keys[:2], mask, walk)

    def _backward(self, grads, results: Queries, keys: Keys, mask: Mask, walk, chunk):
        return pallas_tpu.backward(self.layout, grads, results, keys[:2], mask, walk, chunk)

    def _own_kinds(self, keys: Keys) -> tuple[Mask, tiles.Kinds]:
        mask = local_mask(self.segments.queries, keys, self.batch, self.length, causal=True)
        same, single = self._segment_kinds(mask)
        q, kv = np.indices((2 * self.half,) * 2)
        return mask, tiles.Kinds(same & (kv <= q)[None], ~single | (kv == q)[None])

    def _hop_kinds(self, keys: Keys) -> tuple[Mask, tiles.Kinds]:
        mask = local_mask(self.segments.queries, keys, self.batch, self.length, causal=False)
        same, single = self._segment_kinds(mask)
        return mask, tiles.Kinds(same, ~single)

    def _segment_kinds(self, mask: Mask):
        kinds = tiles.segment_kinds(mask, self.layout.q_block, self.layout.kv_block)
        return (jnp.broadcast_to(x, (self.batch, 2 * self.half, 2 * self.half)) for x in kinds)

    def _causal(self) -> tuple[np.ndarray, np.ndarray]:
        q_E, kv_E = _grid(range(2 * self.half), range(2 * self.half))
        live = kv_E <= q_E
        return q_E[live], kv_E[live]


HOPS = {
    "blockwise": MergedHops,
    "cudnn": MergedHops,
    "flash": FlashHops,
    "flash_interpret": FlashHops,
}


def _grid(outer: range, inner: range) -> tuple[np.ndarray, np.ndarray]:
    """Returns all pairs, the second changing faster."""
    return np.repeat(outer, len(inner)), np.tile(inner, len(outer))


def _dividing_block(length: int, block: int, interpret: bool) -> int:
    """Returns the largest block no larger than `block` that divides `length`, in whole lanes."""
    unit = 1 if interpret else LANES
    most = max(1, min(block, length) // unit)
    return unit * next(num for num in range(most, 0, -1) if length % (num * unit) == 0)

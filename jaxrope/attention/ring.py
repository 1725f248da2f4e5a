"""Ring attention (arXiv 2310.01889) in the zigzag layout, without a branch and without waste.

Keys and values go round the ring; every hop computes two whole blocks (`hops`). Each rotation is
issued before the arithmetic of its hop and does not depend on it, so that the wire is hidden; in
the backward pass dk and dv follow one hop late for the same reason. Nothing is unrolled: the
scheduler would move all rotations to the front. Keys are never repeated for the heads of a group.

A row is taken to be in zigzag order of a sequence whose positions increase within every segment,
and whose segments lie one behind another, as the loader makes them; causal, T = S. Where queries
see no further than a chunk of the zigzag, no ring is walked: each chunk gets the one before it
(`neighbours`).

Letters: B batch, T local tokens, N heads, K kv heads, H head dim.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrope.attention import local, zigzag
from jaxrope.attention.hops import HOPS, Keys, Segments, Sizes
from jaxrope.attention.local import named, results_of
from jaxrope.attention.masks import NOWHERE, Mask


class Ring(NamedTuple):
    """Who is in it.

    Attributes:
      size: devices of a ring.
      stride: rings side by side; device i of a ring is number i * stride of the axis.
    """

    size: int
    stride: int

    def index(self) -> jax.Array:
        """Returns this device's place in its ring."""
        return jax.lax.axis_index(zigzag.AXIS) // self.stride

    def rotate(self, tree, steps: int = 1):
        """Returns what the device `steps` before this one had."""
        num = self.size * self.stride
        pairs = [(place, (place + steps * self.stride) % num) for place in range(num)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, zigzag.AXIS, pairs), tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attention(ring: Ring, sizes: Sizes, q_BTNH, k_BTKH, v_BTKH, segments: Segments):
    """Returns out_BTNH in the dtype of q; of this device's tokens."""
    return _attention_fwd(ring, sizes, q_BTNH, k_BTKH, v_BTKH, segments)[0]


def _attention_fwd(ring: Ring, sizes: Sizes, q, k, v, segments):
    hops = HOPS[sizes.kernel](q, segments, k.shape[2], sizes)
    index = ring.index()
    keys = hops.keys(k, v)
    arriving = ring.rotate(keys)
    carry = hops.own(keys)

    def hop(state, number):
        carry, keys = state
        arriving = ring.rotate(keys)
        return (hops.visit(carry, keys, number <= index), arriving), None

    state = carry, arriving
    if ring.size > 2:
        state, _ = jax.lax.scan(hop, state, jnp.arange(1, ring.size - 1))
    carry, keys = state
    carry = hops.visit(carry, keys, ring.size - 1 <= index)  # the last keys go nowhere
    out, lse = named(*hops.finish(carry))
    return out, (q, k, v, segments, out, lse)


class _Travelling(NamedTuple):
    """The state of the backward pass.

    Attributes:
      dq: of this device's queries, so far.
      keys: that are here now.
      dkv: gradients of the keys that were here one hop ago, by the devices before this one.
      pending: what this device adds to them.
    """

    dq: jax.Array
    keys: Keys
    dkv: tuple[jax.Array, jax.Array]
    pending: tuple[jax.Array, jax.Array]


def _attention_bwd(ring: Ring, sizes: Sizes, residuals, dout):
    q, k, v, segments, out, lse = residuals
    hops = HOPS[sizes.kernel](q, segments, k.shape[2], sizes)
    index = ring.index()
    results = hops.results(results_of(lse, out, dout))
    keys = hops.keys(k, v)
    arriving = ring.rotate(keys)
    dq, pending = hops.own_grads(results, keys)
    state = _Travelling(dq, arriving, jax.tree.map(jnp.zeros_like, pending), pending)

    def hop(state: _Travelling, number, *, last: bool = False):
        dkv = ring.rotate(jax.tree.map(jnp.add, state.dkv, state.pending))
        arriving = state.keys if last else ring.rotate(state.keys)
        dq, pending = hops.visit_grads(state.dq, results, state.keys, number <= index)
        return _Travelling(dq, arriving, dkv, pending), None

    if ring.size > 2:
        state, _ = jax.lax.scan(hop, state, jnp.arange(1, ring.size - 1))
    state, _ = hop(state, ring.size - 1, last=True)
    grads = hops.finish_grads(state.dq, jax.tree.map(jnp.add, state.dkv, state.pending))
    dq, dk, dv = (grad.astype(x.dtype) for grad, x in zip(grads, (q, k, v), strict=True))
    return dq, *ring.rotate((dk, dv)), None  # home


attention.defvjp(_attention_fwd, _attention_bwd)


def neighbours(ring: Ring, sizes: Sizes, q_BTNH, k_BTKH, v_BTKH, mask: Mask):
    """Returns out_BTNH in the dtype of q, where no query sees further back than a chunk.

    Device r has chunks r and 2n - 1 - r: the ones before them are those of devices r - 1 and r + 1,
    and for the last device its own. Half of the keys and values travel each way, once.

    Args:
      ring: who is in it.
      sizes: of the kernel.
      q_BTNH, k_BTKH, v_BTKH: of this device's tokens.
      mask: with a window of at most T / 2 + 1.
    """
    segments_BT = mask.kv_segment_ids_BS
    if segments_BT is None:
        segments_BT = jnp.zeros_like(mask.kv_positions_BS)
    keys = k_BTKH, v_BTKH, mask.kv_positions_BS, segments_BT
    low, high = zip(*(jnp.split(x, 2, axis=1) for x in keys), strict=True)
    *before_low, segments = ring.rotate(low)
    before_low = *before_low, jnp.where(ring.index() == 0, NOWHERE, segments)
    is_last = ring.index() == ring.size - 1
    arriving = ring.rotate(high, -1)
    before_high = jax.tree.map(lambda a, b: jnp.where(is_last, a, b), low, arriving)

    def rows(x_BT):  # each chunk is a row
        return jnp.concatenate(jnp.split(x_BT, 2, axis=1))

    pairs = zip(before_low, low, before_high, high, strict=True)
    k, v, positions, segments = (
        jnp.concatenate([jnp.concatenate(pair, axis=1) for pair in (four[:2], four[2:])])
        for four in pairs
    )
    q_segments = mask.q_segment_ids_BT
    if q_segments is None:
        q_segments = jnp.zeros_like(mask.q_positions_BT)
    ids = rows(mask.q_positions_BT), positions, rows(q_segments), segments
    of_chunks = Mask(*ids, mask.causal, mask.window, mask.ordered)
    out = local.attention(sizes.kernel, rows(q_BTNH), k, v, of_chunks, sizes.scale, sizes.block)
    return jnp.concatenate(jnp.split(out, 2), axis=1)

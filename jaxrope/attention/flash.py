"""Attention on one TPU chip by the kernels of `pallas_tpu`, for every mask.

Blocks that no query of theirs may see are neither fetched nor computed, and blocks that are seen
whole are not masked; which those are is found from the ids while the program runs, so packed rows,
windows and permuted sequences need no other code.

Letters: B batch, T query length, S key length, N heads, K kv heads, H head dim.
"""

import jax.numpy as jnp

from jaxrope.attention import layout as layouts
from jaxrope.attention import pallas_tpu, tiles
from jaxrope.attention.layout import Layout
from jaxrope.attention.masks import Mask, pad
from jaxrope.attention.pallas_tpu import Queries
from jaxrope.attention.scale import Scale

LANES = 128  # a block is a multiple of these, but where the interpreter runs it


def forward(q_BTNH, k_BSKH, v_BSKH, mask: Mask, *, scale: Scale, block: int, interpret: bool):
    """Returns (out_BTNH, lse_BTN), float32; see `local.Kernel`."""
    layout, q, k, v, mask = _prepared(
        q_BTNH, k_BSKH, v_BSKH, mask, scale=scale, block=block, interpret=interpret
    )
    walk = tiles.by_queries(tiles.kinds_of(mask, layout.q_block, layout.kv_block))
    kv = layouts.keys(k), layouts.keys(v)
    start = layouts.start(layout)
    carry = pallas_tpu.forward(layout, start, layouts.rows(layout, q), kv, mask, walk)
    out, lse_Z1M = layouts.finish(layout, carry, jnp.float32)
    lse = layouts.heads(layout, lse_Z1M)[..., 0]
    return out[:, : q_BTNH.shape[1]], lse[:, : q_BTNH.shape[1]]


def backward(q_BTNH, kv, mask: Mask, results, *, scale: Scale, block: int, interpret: bool):
    """Returns (dq_BTNH, dk_BSKH, dv_BSKH), float32; see `local.Kernel`."""
    lengths = q_BTNH.shape[1], kv[0].shape[1]
    layout, q, k, v, mask = _prepared(
        q_BTNH, *kv, mask, scale=scale, block=block, interpret=interpret
    )
    lse, inner, dout = (_pad(x, layout.part_len - lengths[0]) for x in results[:3])
    queries = Queries(
        layouts.rows(layout, q),
        layouts.rows(layout, dout.astype(q.dtype)),
        layouts.vectors(layout, lse),
        layouts.vectors(layout, inner),
    )
    grads = layouts.zero_grads(layout, k.shape[1])
    kv = layouts.keys(k), layouts.keys(v)
    kinds = tiles.kinds_of(mask, layout.q_block, layout.kv_block)
    for chunk in range(layout.num_chunks):
        walk = tiles.by_keys(tiles.of_rows(kinds, layout.token_blocks(chunk)))
        grads = pallas_tpu.backward(layout, grads, queries, kv, mask, walk, chunk)
    dq, dk, dv = layouts.finish_grads(layout, grads)
    return dq[:, : lengths[0]], dk[:, : lengths[1]], dv[:, : lengths[1]]


def block_size(length: int, block: int, interpret: bool) -> int:
    """Returns the tokens in a block: `block`, or what holds a shorter sequence whole."""
    unit = 1 if interpret else LANES
    return min(-(-block // unit), -(-length // unit)) * unit


def _prepared(q, k, v, mask: Mask, *, scale: Scale, block: int, interpret: bool):
    """Returns the layout, and everything filled up to whole blocks with tokens that see nothing."""
    (batch, q_len, num_heads, head_dim), (kv_len, kv_heads) = q.shape, k.shape[1:3]
    q_block = block_size(q_len, block, interpret)
    kv_block = block_size(kv_len, block, interpret)
    more_q, more_kv = -q_len % q_block, -kv_len % kv_block
    layout = Layout(
        batch=batch,
        kv_heads=kv_heads,
        group=num_heads // kv_heads,
        parts=1,
        part_len=q_len + more_q,
        head_dim=head_dim,
        q_block=q_block,
        kv_block=kv_block,
        scale=scale,
        interpret=interpret,
    )
    return layout, _pad(q, more_q), _pad(k, more_kv), _pad(v, more_kv), pad(mask, more_q, more_kv)


def _pad(x, tokens: int):
    widths = [(0, tokens if axis == 1 else 0) for axis in range(x.ndim)]
    return jnp.pad(x, widths) if tokens else x

"""Attention over a spread sequence by moving it: all keys to every device (all-gather), or heads in
exchange for tokens (Ulysses, arXiv 2309.14509), alone or round a ring of groups (USP, 2405.07719).

Letters: B batch, T and S local tokens, N heads, K kv heads, H head dim, U devices of a group.
"""

import functools

import jax
import jax.numpy as jnp

from jaxrope.attention import local, zigzag
from jaxrope.attention.hops import Sizes
from jaxrope.attention.masks import Mask


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def all_gather(sizes: Sizes, group: int, q_BTNH, k_BSKH, v_BSKH, mask: Mask):
    """Returns out_BTNH of this device's queries and all keys.

    Gradients of keys are summed over the devices in float32 or wider.

    Args:
      sizes: of the kernel.
      group: neighbours on the axis that have the same tokens; every so-manieth device takes part.
      q_BTNH, k_BSKH, v_BSKH, mask: of this device.
    """
    return _all_gather_fwd(sizes, group, q_BTNH, k_BSKH, v_BSKH, mask)[0]


def _all_gather_fwd(sizes: Sizes, group: int, q, k, v, mask: Mask):
    forward = local.KERNELS[sizes.kernel].forward
    whole = _whole_mask(mask, group)
    block = _block(sizes, q)
    keys = _gather(k, group), _gather(v, group)
    out, lse = forward(q, *keys, whole, scale=sizes.scale, block=block)
    out, lse = local.named(out.astype(q.dtype), lse)
    return out, (q, k, v, mask, out, lse)


def _all_gather_bwd(sizes: Sizes, group: int, residuals, dout):
    q, k, v, mask, out, lse = residuals
    backward = local.KERNELS[sizes.kernel].backward
    dq, dk, dv = backward(
        q,
        (_gather(k, group), _gather(v, group)),
        _whole_mask(mask, group),
        local.results_of(lse, out, dout),
        scale=sizes.scale,
        block=_block(sizes, q),
    )
    how = dict(scatter_dimension=1, tiled=True, axis_index_groups=_strided(group))
    dk, dv = (jax.lax.psum_scatter(x, zigzag.AXIS, **how) for x in (dk, dv))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


all_gather.defvjp(_all_gather_fwd, _all_gather_bwd)


def _block(sizes: Sizes, q_BTNH) -> int:
    """Returns tokens in a block: a chunk of the zigzag at most, or none could be passed over."""
    return min(sizes.block, max(1, q_BTNH.shape[1] // 2))


def _gather(x_BS, group: int):
    groups = _strided(group)
    return jax.lax.all_gather(x_BS, zigzag.AXIS, axis=1, tiled=True, axis_index_groups=groups)


def _strided(group: int) -> list[list[int]] | None:
    num = jax.lax.axis_size(zigzag.AXIS)
    return None if group == 1 else [list(range(first, num, group)) for first in range(group)]


def _whole_mask(mask: Mask, group: int) -> Mask:
    segments = mask.kv_segment_ids_BS
    return Mask(
        mask.q_positions_BT,
        _gather(mask.kv_positions_BS, group),
        mask.q_segment_ids_BT,
        None if segments is None else _gather(segments, group),
        mask.causal,
        mask.window,
    )


def heads_for_tokens(attention_fn, group: int, q_BTNH, k_BSKH, v_BSKH, mask: Mask):
    """Returns out_BTNH of `attention_fn(q, k, v, mask)` called with all tokens of a group's devices
    and a part of the heads.

    Args:
      attention_fn: on [B, U T, N / U, H].
      group: U; neighbours on the axis. N is a multiple of it; K too, or U is one of K: then a kv
        head goes to several devices.
      q_BTNH, k_BSKH, v_BSKH, mask: of this device.
    """
    repeats = max(1, group // k_BSKH.shape[2])
    if repeats > 1:
        k_BSKH, v_BSKH = (jnp.repeat(x, repeats, axis=2) for x in (k_BSKH, v_BSKH))
    to_heads = functools.partial(_exchange, group=group, split=2, joined=1)
    q, k, v = (to_heads(x) for x in (q_BTNH, k_BSKH, v_BSKH))
    ids = (
        mask.q_positions_BT,
        mask.kv_positions_BS,
        mask.q_segment_ids_BT,
        mask.kv_segment_ids_BS,
    )
    whole = (None if x is None else _gather_group(x, group) for x in ids)
    out = attention_fn(q, k, v, Mask(*whole, mask.causal, mask.window, mask.ordered))
    return _exchange(out, group=group, split=1, joined=2)


def _exchange(x, *, group: int, split: int, joined: int):
    return jax.lax.all_to_all(
        x, zigzag.AXIS, split, joined, axis_index_groups=_groups(group), tiled=True
    )


def _gather_group(ids_BT, group: int):
    return jax.lax.all_gather(
        ids_BT, zigzag.AXIS, axis=1, tiled=True, axis_index_groups=_groups(group)
    )


def _groups(group: int) -> list[list[int]] | None:
    num = jax.lax.axis_size(zigzag.AXIS)
    if group == num:
        return None
    return [list(range(first, first + group)) for first in range(0, num, group)]

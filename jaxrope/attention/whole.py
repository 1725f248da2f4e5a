"""Spread attention for arrays that are whole: dealt out over a mesh, computed, put together again.

Letters: B batch, T query length, S key length, N heads, K kv heads, H head dim.
"""

import jax
import numpy as np
from jax.sharding import PartitionSpec

from jaxrope import attention
from jaxrope.attention import zigzag
from jaxrope.attention.backends import Settings
from jaxrope.attention.masks import Mask

_ROWS = ("data", "fsdp")


def attend_whole(
    backend: str,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    mask: Mask,
    settings: Settings,
) -> jax.Array:
    """Returns `attention.attend` of whole arrays in their natural order, by all devices of a mesh.

    Args:
      backend: a name in BACKENDS.
      q_BTNH, k_BSKH, v_BSKH, mask: as for one device.
      settings: with the mesh: rows go over data and fsdp, tokens over context, heads over tensor.
    """
    mesh, ulysses = settings.mesh, settings.ulysses
    context = mesh.shape[zigzag.AXIS]
    orders = [zigzag.order(backend, x.shape[1], context, ulysses) for x in (q_BTNH, k_BSKH)]
    rows, tokens = PartitionSpec(_ROWS, zigzag.AXIS), PartitionSpec(_ROWS, zigzag.AXIS, "tensor")

    def local(q, k, v, mask):
        return attention.attend(backend, q, k, v, mask=mask, settings=settings)

    spread = jax.shard_map(
        local, mesh=mesh, in_specs=(tokens, tokens, tokens, rows), out_specs=tokens, check_vma=False
    )
    mask = mask.of_batch(q_BTNH.shape[0])
    dealt = Mask(
        _permuted(mask.q_positions_BT, orders[0]),
        _permuted(mask.kv_positions_BS, orders[1]),
        _permuted(mask.q_segment_ids_BT, orders[0]),
        _permuted(mask.kv_segment_ids_BS, orders[1]),
        mask.causal,
        mask.window,
        mask.ordered,
    )
    order_of = dict(q=orders[0], k=orders[1], v=orders[1])
    whole = dict(q=q_BTNH, k=k_BSKH, v=v_BSKH)
    operands = (_permuted(x, order_of[name]) for name, x in whole.items())
    out = spread(*operands, dealt)
    return out if orders[0] is None else out[:, zigzag.inverse(orders[0])]


def _permuted(x, order_T: np.ndarray | None):
    return x if x is None or order_T is None else x[:, order_T]

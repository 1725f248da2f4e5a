"""Attention to cached keys and values: of a prompt, and of the tokens generated since.

Token p of a row lies at slot p; where layers see a window of few tokens, at slot p modulo the
number of slots, and `ring_slots` of them hold every key that a query may still see. Which token a
slot has follows from the newest one of its row, and causality hides what is still empty.

On a mesh the slots are dealt over axis `context` in stripes of `STRIPE` tokens: stripe i is on
device i mod n. Every device then holds the same share of a prompt from its first tokens on, and of
a chunk of it computes the very tokens whose keys it keeps: no key ever travels. Each device attends
to its own keys, and the results are merged by the log-sum-exp.

Keys are read a block at a time, and only those blocks that some query may see: time follows what is
in the cache, not what would fit into it.

Letters: L layers of one kind, B batch, T query length, S slots of a device, N heads, K kv heads,
G = N // K, H head dim, X block of keys.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxrope.attention.backends import Settings
from jaxrope.attention.blockwise import EMPTY, MASKED
from jaxrope.mesh import sharding

STRIPE = 16  # tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Cached keys, already rotated, and values; on a mesh a device's part.

    Attributes:
      keys_LBSKH, values_LBSKH: in the compute dtype.
    """

    keys_LBSKH: jax.Array
    values_LBSKH: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Place:
    """Which tokens these are, and where they lie.

    Attributes:
      positions_BT: int32, the slot of each token over all devices. A device has either one token
        for each row, which all devices of axis `context` have (T = 1), or its stripes of
        consecutive tokens.
      valid_BT: bool; other tokens are not cached.
      row: int32, the row of the cache that is row 0 here.
    """

    positions_BT: jax.Array
    valid_BT: jax.Array
    row: jax.Array


def unit(mesh) -> int:
    """Returns the tokens of which slots, and tokens that are handed in together, are a multiple."""
    return STRIPE * sharding.ways(mesh, "context")


def ring_slots(window: int, chunk: int) -> int:
    """Returns the slots that layers with a window need, whatever the length: a multiple of `chunk`,
    the most tokens that are handed in together, each of which sees `window` tokens.
    """
    return -(-(window + chunk - 1) // chunk) * chunk


def slot_positions(start: jax.Array, count: int, mesh) -> jax.Array:
    """Returns the positions, int32 [count], of this device's slots from `start` on.

    Args:
      start: position, a multiple of `unit`.
      count: slots of this device.
      mesh: where this runs, inside a shard_map, or None.
    """
    ways = sharding.ways(mesh, "context")
    slots = jnp.arange(count, dtype=jnp.int32)
    rank = lax.axis_index("context") if ways > 1 else 0
    return start + (slots // STRIPE * ways + rank) * STRIPE + slots % STRIPE


def gather_stripes(x_BT: jax.Array, mesh) -> jax.Array:
    """Returns [B, ...] of the tokens of all devices, in their order; a single one as it is."""
    ways, (batch, length) = sharding.ways(mesh, "context"), x_BT.shape[:2]
    if ways == 1 or length == 1:
        return x_BT
    x = lax.all_gather(x_BT, "context", axis=1)
    x = x.reshape(batch, ways, length // STRIPE, STRIPE, *x_BT.shape[2:]).swapaxes(1, 2)
    return x.reshape(batch, ways * length, *x_BT.shape[2:])


def own_stripes(x_BS: jax.Array, length: int) -> jax.Array:
    """Returns the `length` tokens of this device; undoes `gather_stripes`."""
    if length == x_BS.shape[1]:
        return x_BS
    x = x_BS.reshape(x_BS.shape[0], length // STRIPE, -1, STRIPE, *x_BS.shape[2:])
    x = lax.dynamic_index_in_dim(x, lax.axis_index("context"), axis=2, keepdims=False)
    return x.reshape(x_BS.shape[0], length, *x_BS.shape[2:])


def write(
    cache: Cache, layer: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, place: Place, mesh
) -> Cache:
    """Returns the cache with the valid tokens' keys and values of a layer, k_BTKH already
    rotated. Where it is the only user of the cache, XLA writes in place.
    """
    put = _put_token if place.positions_BT.shape[1] == 1 else _put_stripes
    pairs = (cache.keys_LBSKH, k_BTKH), (cache.values_LBSKH, v_BTKH)
    return Cache(*(put(old, layer, new.astype(old.dtype), place, mesh) for old, new in pairs))


def attend(
    q_BTNH: jax.Array,
    cache: Cache,
    layer: jax.Array,
    place: Place,
    *,
    window: int | None,
    settings: Settings,
) -> jax.Array:
    """Returns the attention of queries to the keys up to their own, out_BTNH in the dtype of q;
    accumulated in float32 or wider.

    Args:
      q_BTNH: already rotated, at place.positions_BT, whose keys are in the cache.
      cache: of all layers.
      layer: int32.
      place: of the queries.
      window: tokens a query sees, its own included; None: all.
      settings: block, scale, cap and mesh are used.
    """
    positions_BT, is_single = place.positions_BT, q_BTNH.shape[1] == 1
    if settings.context == 1:
        part = _partial(q_BTNH, positions_BT, cache, (layer, place.row), window, settings)
        return part[0].astype(q_BTNH.dtype)
    q = q_BTNH
    if not is_single:  # each device attends to its own keys for all queries
        q, positions_BT = (
            lax.all_gather(x, "context", axis=1, tiled=True) for x in (q, positions_BT)
        )
    out, lse = _partial(q, positions_BT, cache, (layer, place.row), window, settings)
    share = jnp.exp(lse - lax.pmax(lse, "context"))
    out = out * (share / lax.psum(share, "context"))[..., None]
    if is_single:
        return lax.psum(out, "context").astype(q_BTNH.dtype)
    out = lax.psum_scatter(out, "context", scatter_dimension=1, tiled=True)
    return out.astype(q_BTNH.dtype)


def _put_token(cached_LBSKH, layer, x_BTKH, place, mesh):
    """One token for each row, each at its own position; the device that has its stripe keeps it."""
    ways, slots = sharding.ways(mesh, "context"), cached_LBSKH.shape[2]
    stripe_B, inside_B = jnp.divmod(place.positions_BT[:, 0] % (slots * ways), STRIPE)
    mine_B = place.valid_BT[:, 0]
    if ways > 1:
        mine_B &= stripe_B % ways == lax.axis_index("context")
    slot_B = jnp.where(mine_B, stripe_B // ways * STRIPE + inside_B, slots)
    row_B = place.row + jnp.arange(x_BTKH.shape[0])
    return cached_LBSKH.at[layer, row_B, slot_B].set(x_BTKH[:, 0], mode="drop")


def _put_stripes(cached_LBSKH, layer, x_BTKH, place, mesh):
    """Consecutive slots; all rows begin at the same one. They do not run over the end: their first
    token is a multiple of a chunk, and so are the slots.
    """
    slots = cached_LBSKH.shape[2]
    start = place.positions_BT[0, 0] // unit(mesh) * STRIPE % slots
    at, size = (layer, place.row, start, 0, 0), (1, *x_BTKH.shape)
    old = lax.dynamic_slice(cached_LBSKH, at, size)[0]
    new = jnp.where(place.valid_BT[..., None, None], x_BTKH, old)
    return lax.dynamic_update_slice(cached_LBSKH, new[None], at)


def _partial(q_BTNH, positions_BT, cache, layer_and_row, window, settings):
    """Returns (out_BTNH, log-sum-exp BTN) over this device's keys, float32 or wider; a query that
    sees none of them has zeros and -1e30.
    """
    batch, q_len, num_heads, head_dim = q_BTNH.shape
    slots, kv_heads = cache.keys_LBSKH.shape[2:4]
    block = math.gcd(slots, settings.block)
    dtype = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    q_BTKGH = q_BTNH.reshape(batch, q_len, kv_heads, num_heads // kv_heads, head_dim)
    scale = settings.scale_for(head_dim)
    newest_B, num_slots = jnp.max(positions_BT, axis=1), slots * settings.context
    slot_S = slot_positions(jnp.int32(0), slots, settings.mesh)
    key_positions_BS = newest_B[:, None] - (newest_B[:, None] - slot_S[None]) % num_slots

    def visit(i, carry):
        out, top, total = carry
        k_BXKH, v_BXKH = (
            _block(x, *layer_and_row, i * block, batch, block)
            for x in (cache.keys_LBSKH, cache.values_LBSKH)
        )
        key_positions_BX = lax.dynamic_slice_in_dim(key_positions_BS, i * block, block, axis=1)
        distance_BTX = positions_BT[..., None] - key_positions_BX[:, None]
        visible_BTX = (distance_BTX >= 0) & (key_positions_BX >= 0)[:, None]
        if window is not None:
            visible_BTX &= distance_BTX < window
        logits = scale.logits(_dot("BTKGH,BXKH->BKGTX", q_BTKGH, k_BXKH, dtype))
        logits = jnp.where(visible_BTX[:, None, None], logits, MASKED)
        new_top = jnp.maximum(top, jnp.max(logits, axis=-1))
        weights, shrink = jnp.exp(logits - new_top[..., None]), jnp.exp(top - new_top)
        values = _dot("BKGTX,BXKH->BKGTH", weights.astype(v_BXKH.dtype), v_BXKH, dtype)
        return (
            out * shrink[..., None] + values,
            new_top,
            total * shrink + jnp.sum(weights, axis=-1),
        )

    rows = (batch, kv_heads, num_heads // kv_heads, q_len)
    start = (
        jnp.zeros((*rows, head_dim), dtype),
        jnp.full(rows, MASKED, dtype),
        jnp.zeros(rows, dtype),
    )
    whole = unit(settings.mesh)
    last = (jnp.max(positions_BT) // whole + 1) * STRIPE
    last = jnp.minimum(-(-last // block), slots // block)
    out, top, total = lax.fori_loop(0, last, visit, start)
    empty = top < EMPTY
    total = jnp.where(empty, 1, total)
    out = jnp.where(empty[..., None], 0, out / total[..., None])
    lse = jnp.where(empty, MASKED, top + jnp.log(total))
    out_BTNH = out.transpose(0, 3, 1, 2, 4).reshape(q_BTNH.shape)
    return out_BTNH, lse.transpose(0, 3, 1, 2).reshape(q_BTNH.shape[:3])


def _block(cached_LBSKH, layer, row, start, batch, block):
    size = (1, batch, block, *cached_LBSKH.shape[3:])
    return lax.dynamic_slice(cached_LBSKH, (layer, row, start, 0, 0), size)[0]


def _dot(letters, x, y, dtype):
    # HIGHEST: the default of a TPU rounds float32 operands to bfloat16
    return jnp.einsum(letters, x, y, preferred_element_type=dtype, precision=lax.Precision.HIGHEST)

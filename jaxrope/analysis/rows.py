"""Whole rows of attention for a few queries, such as those that write an answer: differentiable in
the rope, on a mesh too, memory linear in the number of keys.

A row is what one query gives to all keys. Rows are computed one after another from what
`decoder.probe` shows of a layer, and each is passed to a function that extracts what is needed.
Queries are found by number, wherever on the mesh they lie.

Letters: B batch, T queries, S keys (T and S of this device), M chosen queries, N heads, K kv heads,
G = N // K, H head dim, E bins of distance.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxrope import decoder, rope
from jaxrope.analysis import patterns, streaming
from jaxrope.attention import masks
from jaxrope.mesh import collectives

_MASKED = -1e30
_CONTEXT = ("context",)


class Row(NamedTuple):
    """One query of each sequence of the batch, this device's keys.

    Attributes:
      weights_BNS: probabilities; their sum over the keys of all devices is 1.
      distances_BS: positions from the key to the query.
      positions_BS: of the keys, in their documents.
      seen_BS: the query may see the key.
      total_fn: sums something [..., S] over all keys of all devices.
      greatest_fn: the same for the maximum; not differentiable.
    """

    weights_BNS: jax.Array
    distances_BS: jax.Array
    positions_BS: jax.Array
    seen_BS: jax.Array
    total_fn: Callable[[jax.Array], jax.Array]
    greatest_fn: Callable[[jax.Array], jax.Array]


def over_rows(
    layer: decoder.Seen,
    picks_BT: jax.Array,
    count: int,
    row_fn: Callable[[Row], Any],
    *,
    mesh: Mesh | None = None,
) -> Any:
    """Returns what `row_fn` finds in each chosen row, leaves [B, M, ...].

    Args:
      layer: a layer, as `decoder.probe` shows it.
      picks_BT: int32; 1, 2, ..., M where a query is chosen, in any order, else 0. What is found of
        a number that is nowhere in a sequence has no meaning.
      count: M.
      row_fn: Row -> pytree of [B, ...]; it sums over keys with the row's functions.
      mesh: the shard_map in which this runs, or None.
    """
    numbers_M = jnp.arange(1, count + 1, dtype=picks_BT.dtype)
    here_BMT = picks_BT[:, None, :] == numbers_M[None, :, None]
    q_BTNH, k_BSKH = (rope.rotate(x, *layer.turn) for x in (layer.q_BTNH, layer.k_BTKH))
    dtype = jnp.promote_types(q_BTNH.dtype, jnp.float32)

    def chosen(x_BTX, wide):
        flat = x_BTX.reshape(*x_BTX.shape[:2], -1).astype(wide)
        # HIGHEST: the default of a TPU rounds float32 operands to bfloat16
        picked = jnp.einsum(
            "BMT,BTX->BMX", here_BMT.astype(wide), flat, precision=jax.lax.Precision.HIGHEST
        )
        picked = collectives.sum_over(picked, mesh, *_CONTEXT)
        return picked.reshape(*picked.shape[:2], *x_BTX.shape[2:]).swapaxes(0, 1)

    mask = layer.mask
    queries = {"q": chosen(q_BTNH, dtype), "position": chosen(mask.q_positions_BT, jnp.int32)}
    if mask.q_segment_ids_BT is not None:
        queries["segment"] = chosen(mask.q_segment_ids_BT, jnp.int32)

    @jax.checkpoint
    def read_row(query):
        return row_fn(_row(query, k_BSKH.astype(dtype), mask, mesh))

    leaves = jax.lax.map(read_row, queries)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), leaves)


def _row(query, k_BSKH, mask: masks.Mask, mesh) -> Row:
    position_B1 = query["position"][:, None]
    segment_B1 = query["segment"][:, None] if "segment" in query else None
    ids = position_B1, mask.kv_positions_BS, segment_B1, mask.kv_segment_ids_BS
    seen_BS = masks.allowed(masks.Mask(*ids, mask.causal, mask.window))[:, 0]
    q_BNH, axes = query["q"], collectives.axes_of(mesh, _CONTEXT)
    batch, num_heads, dim = q_BNH.shape
    q_BKGH = q_BNH.reshape(batch, k_BSKH.shape[2], -1, dim)
    logits = jnp.einsum(
        "BKGH,BSKH->BKGS", q_BKGH, k_BSKH, precision=jax.lax.Precision.HIGHEST
    ).reshape(batch, num_heads, -1)
    logits = jnp.where(seen_BS[:, None], logits * dim**-0.5, _MASKED)

    def total(x_XS):
        return collectives.sum_over(jnp.sum(x_XS, axis=-1), mesh, *_CONTEXT)

    def greatest(x_XS):
        top = jax.lax.stop_gradient(jnp.max(x_XS, axis=-1))
        return jax.lax.pmax(top, axes) if axes else top

    weights = jnp.exp(logits - greatest(logits)[..., None]) * seen_BS[:, None]
    weights = weights / jnp.maximum(total(weights), np.finfo(np.float32).tiny)[..., None]
    distances_BS = position_B1 - mask.kv_positions_BS
    return Row(weights, distances_BS, mask.kv_positions_BS, seen_BS, total, greatest)


def without_first(row: Row, first_keys: int) -> Row:
    """Returns the row without the first keys of each document (the sink): what is left is made a
    distribution again. Nothing is left of a query that sees none but those: its weights are 0.
    """
    seen_BS = row.seen_BS & (row.positions_BS >= first_keys)
    weights = row.weights_BNS * seen_BS[:, None]
    total = row.total_fn(weights)[..., None]
    weights = jnp.where(total > 0, weights / jnp.where(total > 0, total, 1.0), 0.0)
    return row._replace(weights_BNS=weights, seen_BS=seen_BS)


def entropy(row: Row) -> jax.Array:
    """Returns entropy_BN, nats."""
    return row.total_fn(patterns.surprise(row.weights_BNS))


def normalised_entropy(row: Row) -> jax.Array:
    """Returns entropy / ln(keys seen), [B, N], 0 to 1; 0 of a query that sees one key."""
    seen_B = row.total_fn(row.seen_BS.astype(row.weights_BNS.dtype))
    return streaming.normalised_entropy(entropy(row), seen_B)


def mass(row: Row, keys_BS: jax.Array) -> jax.Array:
    """Returns mass_BN: the probability of a set of keys.

    Args:
      row: of `over_rows`.
      keys_BS: 1 or True for the keys of the set, of this device.
    """
    return row.total_fn(row.weights_BNS * keys_BS[:, None].astype(row.weights_BNS.dtype))


def by_distance(row: Row, edges) -> jax.Array:
    """Returns mass_BNE: the probability of the keys whose distance is at least edges[e] and below
    edges[e + 1].
    """
    low, high = (jnp.asarray(x, row.distances_BS.dtype) for x in (edges[:-1], edges[1:]))
    distance = row.distances_BS[:, None]
    inside_BES = (distance >= low[None, :, None]) & (distance < high[None, :, None])
    found_BNE = jnp.einsum(
        "BNS,BES->BNE",
        row.weights_BNS,
        inside_BES.astype(row.weights_BNS.dtype),
        precision=jax.lax.Precision.HIGHEST,
    )
    return row.total_fn(found_BNE[..., None])


def by_every_distance(row: Row) -> jax.Array:
    """Returns mass_BNS: place d has the probability of the key d tokens back. All keys are on this
    device, and batch rows have their query at the same place.
    """
    length = row.weights_BNS.shape[-1]
    place = row.distances_BS[0, 0] + row.positions_BS[0, 0]
    # reversed, key j stands at length - 1 - j; what comes round are keys ahead, which have none
    return jnp.roll(jnp.flip(row.weights_BNS, -1), place - (length - 1), axis=-1)


def top_key(row: Row) -> jax.Array:
    """Returns position_BN, int32, of the key with the greatest probability; of equal ones the
    first."""
    is_top = row.weights_BNS == row.greatest_fn(row.weights_BNS)[..., None]
    is_top &= row.seen_BS[:, None]
    none = jnp.iinfo(jnp.int32).max
    return -row.greatest_fn(jnp.where(is_top, -row.positions_BS[:, None], -none))

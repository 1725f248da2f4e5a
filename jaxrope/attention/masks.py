"""Which key a query may see, as data: positions and segment ids travel with the tokens, so that a
permuted or sliced sequence needs no other rule.

A query sees a key of its own segment (document) at no later position, and nearer than the sliding
window. Positions count within a segment.

Letters: B batch, T query length, S key length.
"""

import dataclasses

import jax
import jax.numpy as jnp

_PAD_SEGMENTS = (-2, -3)  # of queries and of keys: alike to no segment and not to each other
NOWHERE = _PAD_SEGMENTS[1]  # the segment of keys that no query sees


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """The rule and its data.

    Attributes:
      q_positions_BT, kv_positions_BS: int32 tokens from the start of the segment.
      q_segment_ids_BT, kv_segment_ids_BS: int32, 0 or more; None: one segment.
      causal: keys at later positions are hidden.
      window: keys `window` or more tokens back are hidden too (Mistral: window tokens are seen, the
        query's own included); None: no window.
      ordered: each segment is in one piece, its positions go up by one, and the last query of a
        causal mask is at the place of the last key, so that a kernel may go by places. On a mesh
        that is said of the whole row, in the order of `zigzag.order`.
    """

    q_positions_BT: jax.Array
    kv_positions_BS: jax.Array
    q_segment_ids_BT: jax.Array | None = None
    kv_segment_ids_BS: jax.Array | None = None
    causal: bool = dataclasses.field(default=True, metadata={"static": True})
    window: int | None = dataclasses.field(default=None, metadata={"static": True})
    ordered: bool = dataclasses.field(default=False, metadata={"static": True})

    def of_batch(self, batch: int) -> "Mask":
        """Returns the mask with one row of ids for each of `batch` rows."""
        return jax.tree.map(lambda ids: jnp.broadcast_to(ids, (batch, ids.shape[1])), self)


def self_mask(
    positions_BT: jax.Array,
    segment_ids_BT: jax.Array | None = None,
    *,
    causal: bool = True,
    window: int | None = None,
    ordered: bool = False,
) -> Mask:
    """Returns the mask of a sequence that attends to itself; see Mask."""
    ids = positions_BT, positions_BT, segment_ids_BT, segment_ids_BT
    return Mask(*ids, causal, window, ordered)


def pad(mask: Mask, q_tokens: int, kv_tokens: int) -> Mask:
    """Returns the mask with tokens added at the end, which see nothing and are not seen."""
    if not (q_tokens or kv_tokens):
        return mask
    q_segments, kv_segments = mask.q_segment_ids_BT, mask.kv_segment_ids_BS
    if q_segments is None:
        q_segments = jnp.zeros_like(mask.q_positions_BT)
        kv_segments = jnp.zeros_like(mask.kv_positions_BS)

    def add(x, tokens, **how):
        return jnp.pad(x, ((0, 0), (0, tokens)), **how)

    return Mask(
        add(mask.q_positions_BT, q_tokens, mode="edge"),
        add(mask.kv_positions_BS, kv_tokens, mode="edge"),
        add(q_segments, q_tokens, constant_values=_PAD_SEGMENTS[0]),
        add(kv_segments, kv_tokens, constant_values=_PAD_SEGMENTS[1]),
        mask.causal,
        mask.window,
    )


def allowed(mask: Mask) -> jax.Array:
    """Returns mask_BTS: True where the query may see the key."""
    q, kv = mask.q_positions_BT[:, :, None], mask.kv_positions_BS[:, None, :]
    visible = jnp.ones(jnp.broadcast_shapes(q.shape, kv.shape), bool)
    if mask.causal:
        visible &= q >= kv
    if mask.window is not None:
        visible &= q - kv < mask.window
    if mask.q_segment_ids_BT is not None:
        visible &= mask.q_segment_ids_BT[:, :, None] == mask.kv_segment_ids_BS[:, None, :]
    return visible


def any_allowed(mask: Mask) -> jax.Array:
    """Returns a scalar: False only if no query of these may see any key of these. Cheap, from the
    extremes alone, so True may be too much.
    """
    q, kv = mask.q_positions_BT, mask.kv_positions_BS
    possible = jnp.array(True)
    if mask.causal:
        possible &= jnp.any(jnp.max(q, axis=1) >= jnp.min(kv, axis=1))
    if mask.window is not None:
        possible &= jnp.any(jnp.min(q, axis=1) - jnp.max(kv, axis=1) < mask.window)
    if mask.q_segment_ids_BT is not None:
        q, kv = mask.q_segment_ids_BT, mask.kv_segment_ids_BS
        overlap = (jnp.max(q, axis=1) >= jnp.min(kv, axis=1)) & (
            jnp.max(kv, axis=1) >= jnp.min(q, axis=1)
        )
        possible &= jnp.any(overlap)
    return possible


def all_allowed(mask: Mask) -> jax.Array:
    """Returns a scalar: True if each query of these may see each key of these. Cheap, from the
    extremes alone.
    """
    q, kv = mask.q_positions_BT, mask.kv_positions_BS
    certain = jnp.array(True)
    if mask.causal:
        certain &= jnp.all(jnp.min(q, axis=1) >= jnp.max(kv, axis=1))
    if mask.window is not None:
        certain &= jnp.all(jnp.max(q, axis=1) - jnp.min(kv, axis=1) < mask.window)
    if mask.q_segment_ids_BT is not None:
        ids = jnp.concatenate([mask.q_segment_ids_BT, mask.kv_segment_ids_BS], axis=1)
        certain &= jnp.all(jnp.min(ids, axis=1) == jnp.max(ids, axis=1))
    return certain

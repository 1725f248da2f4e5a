"""Which key a query may see, as data: positions and segment ids travel with the tokens, so that a
permuted or sliced sequence needs no other rule.

A query sees a key of its own segment (document) at no later position, and nearer than the sliding
window. Positions count within a segment.

Letters: B batch, T query length, S key length.
"""

import dataclasses

import jax
import jax.numpy as jnp


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
    """

    q_positions_BT: jax.Array
    kv_positions_BS: jax.Array
    q_segment_ids_BT: jax.Array | None = None
    kv_segment_ids_BS: jax.Array | None = None
    causal: bool = dataclasses.field(default=True, metadata={"static": True})
    window: int | None = dataclasses.field(default=None, metadata={"static": True})


def self_mask(
    positions_BT: jax.Array,
    segment_ids_BT: jax.Array | None = None,
    *,
    causal: bool = True,
    window: int | None = None,
) -> Mask:
    """Returns the mask of a sequence that attends to itself."""
    return Mask(positions_BT, positions_BT, segment_ids_BT, segment_ids_BT, causal, window)


def allowed(mask: Mask) -> jax.Array:
    """Returns mask_BTS: True where the query may see the key."""
    q, kv = mask.q_positions_BT[:, :, None], mask.kv_positions_BS[:, None, :]
    seen = jnp.ones(jnp.broadcast_shapes(q.shape, kv.shape), bool)
    if mask.causal:
        seen &= q >= kv
    if mask.window is not None:
        seen &= q - kv < mask.window
    if mask.q_segment_ids_BT is not None:
        seen &= mask.q_segment_ids_BT[:, :, None] == mask.kv_segment_ids_BS[:, None, :]
    return seen


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

"""How the keys of other devices are reached, where a sequence lies over the axis `context`.

Queries stay where they are. Keys go round a ring, one hop after another (arXiv 2310.01889), or are
gathered at once; the state of the queries is carried from one part of the keys to the next. Masks
are made of positions and segments, which travel with the keys, so that every mask and every order
of the tokens is served alike; in the zigzag order of `attention.order` causal work is even. A few
queries may be on all devices instead, each with its own keys: then the states are merged.

Letters: B batch, T queries and S keys of this device.
"""

from collections.abc import Callable

import jax

from jaxrope.attention import AXIS, Mask

Step = Callable[..., object]  # (state, keys, mask) -> state


def alone(step: Step, state, keys, mask: Mask):
    """Returns the state after the keys of this device."""
    return step(state, keys, mask)


def ring(step: Step, state, keys, mask: Mask):
    """Returns the state after the keys of all devices, which come by one after another."""
    size = jax.lax.axis_size(AXIS)
    pairs = [(place, (place + 1) % size) for place in range(size)]

    def visit(state, here):
        keys, positions_BS, segments_BS = here
        return step(state, keys, _with_keys(mask, positions_BS, segments_BS))

    def hop(carry, _):
        state, here = carry
        # issued before the arithmetic, and not dependent on it
        coming = jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, pairs), here)
        return (visit(state, here), coming), None

    start = state, (keys, mask.kv_positions_BS, mask.kv_segment_ids_BS)
    carry, _ = jax.lax.scan(hop, start, None, length=size - 1)
    return visit(*carry)  # the last keys go nowhere


def all_gather(step: Step, state, keys, mask: Mask):
    """Returns the state after the keys of all devices, every device having all of them."""
    here = keys, mask.kv_positions_BS, mask.kv_segment_ids_BS
    keys, positions_BS, segments_BS = jax.tree.map(
        lambda x: jax.lax.all_gather(x, AXIS, axis=1, tiled=True), here
    )
    return step(state, keys, _with_keys(mask, positions_BS, segments_BS))


WAYS: dict[str, Callable] = {"alone": alone, "ring": ring, "all_gather": all_gather}


def devices(way: str) -> int:
    """Returns on how many devices the keys lie that a way reaches."""
    return 1 if way == "alone" else jax.lax.axis_size(AXIS)


def merged(merge: Callable, state):
    """Returns the states of all devices merged, the same on each; of queries that all of them have.

    Args:
      merge: (state, state) -> state.
      state: of the keys of this device.
    """
    states = jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS), state)
    first, rest = (jax.tree.map(lambda x, s=s: x[s], states) for s in (0, slice(1, None)))
    return jax.lax.scan(lambda total, other: (merge(total, other), None), first, rest)[0]


def _with_keys(mask: Mask, positions_BS, segments_BS) -> Mask:
    ids = mask.q_positions_BT, positions_BS, mask.q_segment_ids_BT, segments_BS
    return Mask(*ids, mask.causal, mask.window)

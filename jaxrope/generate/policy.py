"""Which length chooses the factors of a row, and the ropes of all rows as one.

Keys in the cache were rotated with the factors of their time, and the hidden states behind them
(from the second layer on) were computed with those. Turning the keys on is exact in the first layer
only, so it is not offered: a row whose factors change is read again from its tokens.

Letters: B batch, L layers.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxrope import rope
from jaxrope.rope import Rope, RopeFn

# (tokens of the prompt, of prompt and max_new_tokens, of the row now) -> the length that counts
POLICIES: dict[str, Callable[[int, int, int], int]] = {
    "recompute": lambda prompt, planned, now: now,
    "fixed": lambda prompt, planned, now: planned,
    "keep": lambda prompt, planned, now: prompt,
}


def changes(rope_fn: RopeFn, before: int, after: int) -> bool:
    """Returns whether a sequence of `after` tokens has other factors than one of `before`."""
    return before != after and rope_fn.bucket(before) != rope_fn.bucket(after)


def of_rows(rope_fn: RopeFn, lengths: Sequence[int], num_layers: int) -> Rope:
    """Returns the ropes of rows by their lengths, on the host: leaves [B, ...], or [L, B, ...] if
    the factors of any length differ between layers.
    """
    ropes = [rope_fn(length) for length in lengths]
    longest = (bucket.max_len for bucket in rope_fn.buckets)
    if not any(rope_fn(length or 1).per_layer for length in longest):
        return rope.stack(ropes)
    layered = [r if r.per_layer else rope.stack([r] * num_layers, per_layer=True) for r in ropes]
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *layered)

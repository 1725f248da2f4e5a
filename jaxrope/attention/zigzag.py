"""Which token lies on which device of the axis `context`: chunks dealt out so that causal attention
costs every device the same.

A ring of n devices cuts a sequence into 2n chunks; device r holds chunks r and 2n - 1 - r, in this
order, so that its tokens increase in position. What travels with the tokens (targets, positions,
segment ids, loss weights) is permuted alike, once, on the host; attention then needs no other rule.
"""

import numpy as np

AXIS = "context"


def ring_size(backend: str, context: int, ulysses: int) -> int:
    """Returns the devices of a ring: all of the axis, or its groups that exchange no heads.

    `all_gather` has no ring, but its queries are dealt out alike.
    """
    sizes = {"ring": context, "all_gather": context, "usp": context // ulysses, "ulysses": 1}
    return sizes.get(backend, 1)


def order(backend: str, length: int, context: int, ulysses: int = 1) -> np.ndarray | None:
    """Returns the index of the token at each place of the permuted sequence, int64 [length]; None
    where the natural order stays.

    Args:
      backend: a name in attention.BACKENDS.
      length: tokens; 2 * context divides it (`attention.check`).
      context: devices on the axis.
      ulysses: of them in a group that exchanges heads.
    """
    ring = ring_size(backend, context, ulysses)
    if ring == 1:
        return None
    chunks = np.arange(length).reshape(2 * ring, -1)
    return np.concatenate([np.concatenate([chunks[r], chunks[-1 - r]]) for r in range(ring)])


def inverse(order_T: np.ndarray) -> np.ndarray:
    """Returns the permutation that undoes one."""
    undone = np.empty_like(order_T)
    undone[order_T] = np.arange(len(order_T))
    return undone

"""Arithmetic that causal attention did not need, from who meets whom: pairs of a query and a key in
the blocks that are computed, against the pairs that count. The backward pass visits the same.
"""

import numpy as np


def of(backend: str, case: dict, devices: int, ulysses: int) -> tuple[float, float]:
    """Returns what was computed beyond the pairs that count, as shares of these: (by all devices
    together, if all were as slow as the slowest one of each hop).

    Args:
      backend: a name in attention.BACKENDS, or "ringattention", the package.
      case: "length" and "block", tokens.
      devices: that a sequence is spread over.
      ulysses: of them exchange heads, for "usp".
    """
    length, block = case["length"], case["block"]
    needed = length * (length + 1) / 2
    hops = _HOPS[backend](length, block, devices, ulysses)  # pairs, [hop, device]
    total, slowest = hops.sum(), hops.shape[1] * hops.max(axis=1).sum()
    return float(total / needed - 1), float(slowest / needed - 1)


def visited(q_positions, kv_positions, block: int) -> int:
    """Returns the pairs of the blocks in which some query may see some key."""
    q_block, kv_block = min(block, len(q_positions)), min(block, len(kv_positions))
    last = _blocks(q_positions, q_block).max(axis=1)
    first = _blocks(kv_positions, kv_block).min(axis=1)
    return int((last[:, None] >= first[None]).sum()) * q_block * kv_block


def _blocks(positions, block):
    short = -len(positions) % block
    return np.pad(positions, (0, short), mode="edge").reshape(-1, block)


def _reference(length, block, devices, ulysses):
    return np.full((1, 1), length**2)


def _one_device(length, block, devices, ulysses):
    place = np.arange(length)
    return np.full((1, 1), visited(place, place, block))


def _zigzag(length, ring):
    """Returns the positions of each device of a ring."""
    chunks = np.arange(length).reshape(2 * ring, -1)
    return [np.concatenate([chunks[r], chunks[-1 - r]]) for r in range(ring)]


def _ring(length, block, devices, ulysses):
    """Own keys, causal by place; then two whole blocks of half the tokens in every hop."""
    ring = devices // ulysses
    local = length // ring
    own = visited(np.arange(local), np.arange(local), block)
    return np.array([[own] * ring] + [[2 * (local // 2) ** 2] * ring] * (ring - 1))


def _all_gather(length, block, devices, ulysses):
    parts = _zigzag(length, devices)
    block = min(block, length // devices // 2)  # exchange.py: no more than a chunk
    return np.array([[visited(part, np.concatenate(parts), block) for part in parts]])


def _package(length, block, devices, ulysses):
    """Contiguous parts; a block that no query sees is passed over, and the device then waits."""
    local = length // devices
    parts = np.arange(length).reshape(devices, local)
    hop = [[visited(parts[r], parts[r - i], block) for r in range(devices)] for i in range(devices)]
    return np.array(hop)


_HOPS = {
    "reference": _reference,
    "blockwise": _one_device,
    "ulysses": _one_device,  # every device has all tokens of some heads
    "ring": _ring,
    "usp": _ring,
    "all_gather": _all_gather,
    "ringattention": _package,
}

"""What attention computes on this device, against the definition: values and all gradients, in
bfloat16, relative to the largest number. The definition is computed in float32 from the same
operands; attention in blocks, in bfloat16 too, shows what such operands cost.

A ring is taken round by one device in the place of all, with the hops of the program for many.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrope import attention
from jaxrope.attention import hops, local, masks
from jaxrope.attention.scale import Scale

TOLERANCE = 0.02  # of the largest number: bfloat16 rounds weights to 0.4%
WORSE = 2.0  # times the error of attention in blocks
RING = 2


@dataclasses.dataclass(frozen=True)
class Case:
    """A mask, and how many devices are in its ring."""

    name: str
    mask: masks.Mask
    devices: int = 1


def cases(length: int) -> list[Case]:
    """Returns every kind of mask that a training, a search or a hop has.

    Args:
      length: tokens; a multiple of 2 * RING.
    """

    def row(*parts, **how):
        lens = np.array(parts) * length // sum(parts)
        lens[-1] += length - lens.sum()
        positions = np.concatenate([np.arange(n) for n in lens])[None]
        segments = np.repeat(np.arange(1, len(lens) + 1), lens)[None]
        ids = (jnp.asarray(x, jnp.int32) for x in (positions, segments))
        return masks.self_mask(*ids, ordered=True, **how)

    def last(mask):
        """The second half of the queries, and all keys."""
        names = ("q_positions_BT", "q_segment_ids_BT")
        return dataclasses.replace(
            mask, **{name: getattr(mask, name)[:, length // 2 :] for name in names}
        )

    def one(**how):
        return masks.self_mask(jnp.arange(length, dtype=jnp.int32)[None], ordered=True, **how)

    some, window = (3, 1, 7, 13), length // 9
    return [
        Case("causal", one()),
        Case("full", one(causal=False)),
        Case("window", one(window=window)),
        Case("packed", row(*some)),
        Case("packed, 40 documents", row(*range(1, 41))),
        Case("packed, window", row(*some, window=window)),
        Case("last queries, packed", last(row(*some))),
        Case("last queries, packed, window", last(row(*some, window=window))),
        Case("ring", one(), RING),
        Case("ring, packed", row(*some), RING),
    ]


def compared(case: Case, backend: str, kernel: str, size: tuple[int, int, int]) -> dict:
    """Returns the errors of a case, and whether they are those of bfloat16.

    Args:
      case: of `cases`.
      backend, kernel: of attention.resolve.
      size: heads, kv heads, head dim.
    """
    mask = case.mask
    given = operands(mask.q_positions_BT.shape[1], mask.kv_positions_BS.shape[1], *size)

    def program(backend, kernel):
        if case.devices > 1:
            return functools.partial(ring, kernel, case.devices, mask)
        return with_gradients(functools.partial(attend, backend, kernel, mask))

    @jax.jit
    def errors(*given):
        exact = with_gradients(functools.partial(attend, "reference", "blockwise", mask))
        exact = exact(*(x.astype(jnp.float32) for x in given))
        return [
            [jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)) for a, b in zip(x, exact, strict=True)]
            for x in (program(backend, kernel)(*given), program("blockwise", "blockwise")(*given))
        ]

    ours, blocks = jax.tree.map(float, errors(*given))
    agrees = all(a < TOLERANCE and a < WORSE * b + 1e-3 for a, b in zip(ours, blocks, strict=True))
    return dict(
        case=case.name,
        heads=f"{size[0]}/{size[1]} of {size[2]}",
        kernel=kernel,
        errors=dict(zip(("out", "dq", "dk", "dv"), ours, strict=True)),
        in_blocks=max(blocks),
        agrees=agrees,
    )


def operands(q_len: int, kv_len: int, heads: int, kv_heads: int, dim: int) -> list[jax.Array]:
    """Returns [q, k, v, dout] of one row, bfloat16."""
    shapes = [(q_len, heads), (kv_len, kv_heads), (kv_len, kv_heads), (q_len, heads)]
    keys = jax.random.split(jax.random.key(0), 4)
    return [
        jax.random.normal(key, (1, *shape, dim), jnp.bfloat16)
        for key, shape in zip(keys, shapes, strict=True)
    ]


def attend(backend: str, kernel: str, mask: masks.Mask, q, k, v) -> jax.Array:
    """Returns attention on this device."""
    settings = attention.Settings(kernel=kernel, block=min(1024, q.shape[1]))
    return attention.attend(backend, q, k, v, mask=mask, settings=settings)


def with_gradients(attend_fn):
    """Returns (q, k, v, dout) -> (out, dq, dk, dv), compiled."""

    @jax.jit
    def both(q, k, v, dout):
        out, pull = jax.vjp(attend_fn, q, k, v)
        return out, *pull(dout)

    return both


def ring(kernel: str, devices: int, mask: masks.Mask, q, k, v, dout) -> tuple[Any, ...]:
    """Returns (out, dq, dk, dv) by the hops of all devices of a ring."""
    order, places = attention.order("ring", q.shape[1], devices), range(devices)
    sizes = hops.Sizes(kernel, Scale(q.shape[-1] ** -0.5), 512)

    def dealt(x):
        return [None] * devices if x is None else jnp.split(x[:, order], devices, axis=1)

    def whole(parts):
        return jnp.concatenate(parts, axis=1)[:, attention.inverse(order)]

    segments = [hops.Segments(ids, ids) for ids in dealt(mask.q_segment_ids_BT)]
    hop = [
        hops.HOPS[kernel](q, ids, k.shape[2], sizes)
        for q, ids in zip(dealt(q), segments, strict=True)
    ]
    keys = [h.keys(*kv) for h, *kv in zip(hop, dealt(k), dealt(v), strict=True)]
    outs, dqs, dkvs = [], [], [[] for _ in places]
    for me, dout_me in zip(places, dealt(dout), strict=True):
        others = [other for other in places if other != me]
        carry = hop[me].own(keys[me])
        for other in others:
            carry = hop[me].visit(carry, keys[other], jnp.array(other < me))
        out, lse = hop[me].finish(carry)
        results = hop[me].results(local.results_of(lse, out, dout_me))
        dq, dkv = hop[me].own_grads(results, keys[me])
        dkvs[me].append(dkv)
        for other in others:
            dq, dkv = hop[me].visit_grads(dq, results, keys[other], jnp.array(other < me))
            dkvs[other].append(dkv)
        outs.append(out)
        dqs.append(dq)
    sums = [jax.tree.map(lambda *x: sum(x), *some) for some in dkvs]
    grads = [h.finish_grads(*x) for h, *x in zip(hop, dqs, sums, strict=True)]
    return whole(outs), *map(whole, zip(*grads, strict=True))

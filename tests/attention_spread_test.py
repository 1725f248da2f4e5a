"""Backends that spread a sequence over devices, against the definition on one device: values and
all gradients, on meshes of eight CPU devices.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxrope import attention
from jaxrope.attention import hops, masks
from jaxrope.mesh.sharding import AXES

BATCH, LENGTH, HEAD_DIM = 2, 48, 8


def mesh_of(**sizes):
    shape = [sizes.get(axis, 1) for axis in AXES]
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def ids(*rows):
    """Positions and segment ids of rows of documents, given by their lengths."""
    positions = [np.concatenate([np.arange(n) for n in row]) for row in rows]
    segments = [np.repeat(np.arange(1, len(row) + 1), row) for row in rows]
    return np.stack(positions).astype(np.int32), np.stack(segments).astype(np.int32)


def causal(q_len=LENGTH, **how):
    return masks.self_mask(np.arange(q_len, dtype=np.int32)[None], **how)


def packed(**how):
    """Documents that cross the borders of chunks, one of them of one token."""
    return masks.self_mask(*ids((11, 1, 36), (36, 11, 1)), **how)


def blind():
    """Packed, and some queries see no key at all."""
    positions, segments = ids((11, 1, 36), (36, 11, 1))
    queries = np.where(np.arange(LENGTH) % 5 == 3, -7, segments).astype(np.int32)
    return masks.Mask(positions, positions, queries, segments)


def shorter():
    """16 queries at the end of 48 keys."""
    keys = np.arange(LENGTH, dtype=np.int32)[None]
    return masks.Mask(keys[:, -16:], keys)


CASES = [  # backend, ulysses, mesh, heads, kv heads, mask
    ("ring", 1, dict(context=2), 4, 2, packed),
    ("ring", 1, dict(context=4, fsdp=2), 2, 2, packed),
    ("ring", 1, dict(context=8), 4, 1, causal),
    ("ring", 1, dict(data=2, context=2, tensor=2), 4, 2, blind),
    ("all_gather", 1, dict(context=2), 4, 2, functools.partial(causal, window=7)),
    ("all_gather", 1, dict(context=4), 2, 2, blind),
    ("all_gather", 1, dict(context=8), 4, 1, shorter),
    ("all_gather", 1, dict(data=2, context=2, tensor=2), 4, 2, functools.partial(packed, window=5)),
    ("ulysses", 1, dict(context=2, fsdp=2), 4, 2, packed),
    ("ulysses", 1, dict(context=4), 8, 2, functools.partial(packed, window=5)),
    ("ulysses", 1, dict(context=8), 8, 1, shorter),
    ("ulysses", 1, dict(data=2, context=2, tensor=2), 8, 4, blind),
    ("usp", 2, dict(context=4), 4, 2, packed),
    ("usp", 2, dict(context=8), 4, 4, blind),
    ("usp", 4, dict(context=8), 4, 2, causal),
    ("usp", 2, dict(context=4, tensor=2), 4, 2, packed),
    # windows of less than a chunk, of one more than a chunk (the most), and of more
    ("ring", 1, dict(context=4), 4, 2, functools.partial(packed, window=3)),
    ("ring", 1, dict(context=2), 4, 2, functools.partial(causal, window=13)),
    ("ring", 1, dict(context=4, tensor=2), 4, 2, functools.partial(causal, window=7)),
    ("ring", 1, dict(context=4), 4, 1, functools.partial(packed, window=20)),
    ("usp", 2, dict(context=8), 4, 2, functools.partial(packed, window=6)),
    ("usp", 2, dict(context=8), 4, 2, functools.partial(causal, window=30)),
]


def inputs(mask, heads, kv_heads, dtype):
    rng = np.random.default_rng(0)
    q_len, kv_len = mask.q_positions_BT.shape[1], mask.kv_positions_BS.shape[1]
    shapes = [(q_len, heads), (kv_len, kv_heads), (kv_len, kv_heads), (q_len, heads)]
    return [jnp.asarray(rng.normal(size=(BATCH, *s, HEAD_DIM)), dtype) for s in shapes]


def value_and_grads(attention_fn, operands):
    """Returns the output and the gradients of q, k and v for one given gradient of the output."""

    @jax.jit
    def both(q, k, v, dout):
        out, pull = jax.vjp(attention_fn, q, k, v)
        return out, *pull(dout)

    return [np.asarray(x, np.float64) for x in both(*operands)]


def errors(found, expected):
    """Returns the largest error of each, relative to the largest entry."""
    return [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(found, expected, strict=True)]


def spread(backend, ulysses, sizes, mask, *, kernel="blockwise", block=4):
    return functools.partial(
        attention.attend_whole,
        backend,
        mask=mask,
        settings=attention.Settings(
            mesh=mesh_of(**sizes), kernel=kernel, ulysses=ulysses, block=block
        ),
    )


def definition(mask):
    return functools.partial(attention.attend, "reference", mask=mask)


@pytest.mark.parametrize("backend, ulysses, sizes, heads, kv_heads, make_mask", CASES)
def test_equals_the_definition_in_float64(backend, ulysses, sizes, heads, kv_heads, make_mask):
    with jax.enable_x64(True):
        mask = make_mask()
        operands = inputs(mask, heads, kv_heads, jnp.float64)
        found = value_and_grads(spread(backend, ulysses, sizes, mask), operands)
        expected = value_and_grads(definition(mask), operands)
    assert max(errors(found, expected)) < 1e-12


@pytest.mark.parametrize("backend, ulysses", [("ring", 1), ("all_gather", 1), ("usp", 2)])
def test_bfloat16_is_no_worse_than_on_one_device(backend, ulysses):
    """Hops are merged, and gradients summed over the devices, in float32: an error of bfloat16
    comes from the operands and the last rounding alone, however many devices there are.
    """
    mask = packed()
    operands = inputs(mask, 4, 2, jnp.bfloat16)
    exact = value_and_grads(definition(mask), [x.astype(jnp.float32) for x in operands])
    one = value_and_grads(functools.partial(attention.attend, "blockwise", mask=mask), operands)
    found = value_and_grads(spread(backend, ulysses, dict(context=4), mask), operands)
    for ours, theirs in zip(errors(found, exact), errors(one, exact), strict=True):
        assert ours < 1.3 * theirs + 1e-4 and ours < 0.02


FLASH = [
    ("ring", 1, dict(context=2), 4, 2, packed),
    pytest.param("ring", 1, dict(context=4), 2, 2, causal, marks=pytest.mark.slow),
    pytest.param("ring", 1, dict(context=4), 4, 1, blind, marks=pytest.mark.slow),
    pytest.param("usp", 2, dict(context=4), 4, 2, packed, marks=pytest.mark.slow),
    pytest.param("all_gather", 1, dict(context=2), 4, 2, shorter, marks=pytest.mark.slow),
    pytest.param("ulysses", 1, dict(context=2), 4, 2, packed, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("backend, ulysses, sizes, heads, kv_heads, make_mask", FLASH)
def test_the_kernels_of_the_tpu(backend, ulysses, sizes, heads, kv_heads, make_mask):
    """Float32 in Pallas' interpreter: 2e-6 of the largest entry."""
    mask = make_mask()
    operands = inputs(mask, heads, kv_heads, jnp.float32)
    kernel = spread(backend, ulysses, sizes, mask, kernel="flash_interpret")
    found = value_and_grads(kernel, operands)
    assert max(errors(found, value_and_grads(definition(mask), operands))) < 2e-6


@pytest.mark.parametrize("kernel", ["blockwise", "flash_interpret"])
def test_rotations_do_not_wait_for_arithmetic(kernel):
    """In each body of a scan, every rotation comes before the first product and takes nothing from
    one; there are two of keys and, going back, two more of their gradients.
    """
    mask = causal()
    operands = inputs(mask, 2, 2, jnp.float32)
    attention_fn = spread("ring", 1, dict(context=4), mask, kernel=kernel)

    def both(q, k, v, dout):
        out, pull = jax.vjp(attention_fn, q, k, v)
        return out, *pull(dout)

    bodies = [body for body in scan_bodies(jax.make_jaxpr(both)(*operands).jaxpr)]
    rotating = [body for body in bodies if count(body, "ppermute")]
    assert sorted(count(body, "ppermute") for body in rotating) == [2, 4]
    for body in rotating:
        first = next(i for i, eqn in enumerate(body.eqns) if computes(eqn))
        tainted = set()
        for i, eqn in enumerate(body.eqns):
            inside = {str(v) for v in eqn.invars if not hasattr(v, "val")} & tainted
            if eqn.primitive.name == "ppermute":
                assert i < first and not inside
            if inside or computes(eqn):
                tainted |= {str(v) for v in eqn.outvars}


def inner_jaxprs(eqn):
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            found = getattr(item, "jaxpr", item)
            if hasattr(found, "eqns"):
                yield found


def scan_bodies(jaxpr):
    for eqn in jaxpr.eqns:
        for inner in inner_jaxprs(eqn):
            if eqn.primitive.name == "scan":
                yield inner
            yield from scan_bodies(inner)


def count(jaxpr, name):
    """Equations of this name in a body itself."""
    return sum(eqn.primitive.name == name for eqn in jaxpr.eqns)


def computes(eqn):
    if eqn.primitive.name in ("dot_general", "pallas_call"):
        return True
    return any(computes(e) for inner in inner_jaxprs(eqn) for e in inner.eqns)


def test_two_blocks_a_hop():
    """A hop of the ring has the products of two h x h blocks: none is computed to be thrown away.

    Counted in the jaxpr: blocks of 12 tokens are a chunk, so that a product is a block.
    """
    mask = causal()
    operands = inputs(mask, 1, 1, jnp.float32)
    attention_fn = spread("ring", 1, dict(context=2), mask, block=12)
    products = dot_count(jax.make_jaxpr(attention_fn)(*operands[:3]).jaxpr)
    # own: 2 x 2 blocks in one loop body (3 live); the peeled hop: 2 blocks; each of 2 products
    assert products == 2 * (1 + 2)


def dot_count(jaxpr):
    inside = sum(dot_count(inner) for eqn in jaxpr.eqns for inner in inner_jaxprs(eqn))
    return inside + count(jaxpr, "dot_general")


def test_blocks_of_the_kernels_divide_a_chunk_in_whole_lanes():
    sizes = {
        (2048, 1024): 1024,
        (1152, 1024): 384,
        (384, 512): 384,
        (128, 64): 128,
        (896, 512): 128,
    }
    for (length, block), expected in sizes.items():
        assert hops._dividing_block(length, block, False) == expected
    assert hops._dividing_block(36, 10, True) == 9


@pytest.mark.parametrize("num", [2, 4, 8])
def test_zigzag_order(num):
    """Device r holds chunks r and 2n - 1 - r; undone by its inverse."""
    order = attention.order("ring", 16 * num, num, 1)
    chunks = order.reshape(num, 2, 8)[:, :, 0] // 8
    assert np.array_equal(chunks, [[r, 2 * num - 1 - r] for r in range(num)])
    assert np.array_equal(order[attention.inverse(order)], np.arange(16 * num))


def test_order_follows_the_ring():
    assert np.array_equal(attention.order("usp", 32, 8, 4), attention.order("ring", 32, 2, 1))
    assert attention.order("ulysses", 32, 8, 1) is None
    assert attention.order("blockwise", 32, 1, 1) is None
    assert attention.order("ring", 32, 1, 1) is None


@pytest.mark.parametrize(
    "backend, kwargs, message",
    [
        ("ring", dict(mask=shorter), "'ring' cannot do 4 queries with 12 keys.*all_gather"),
        ("ring", dict(mask=functools.partial(causal, causal=False)), "a mask that is not causal"),
        (
            "blockwise",
            dict(),
            "one device only.*spreads a sequence over 4.*Backends that can: ring",
        ),
        ("flash", dict(), "'flash' sees the tokens of one device only"),
        ("ulysses", dict(heads=6), "deals 6 heads and 2 kv heads out to 4 devices.*ring, all_gath"),
        ("usp", dict(ulysses=4, heads=6), "'usp' deals 6 heads and 2 kv heads out to 4 devices"),
    ],
)
def test_what_a_backend_cannot_do_it_refuses(backend, kwargs, message):
    mask = kwargs.get("mask", causal)()
    operands = inputs(mask, kwargs.get("heads", 4), 2, jnp.float32)[:3]
    with pytest.raises(NotImplementedError, match=message):
        spread(backend, kwargs.get("ulysses", 1), dict(context=4), mask)(*operands)

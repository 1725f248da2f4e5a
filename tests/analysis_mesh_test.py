"""Statistics of a sequence that lies on eight devices equal those of one device."""

import dataclasses
import functools

import dense_attention as dense
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxrope import attention, decoder, rope
from jaxrope.analysis import divergence, measuring, streaming
from jaxrope.analysis.streaming import Options
from jaxrope.errors import InputError
from jaxrope.mesh import sharding

LENGTH = 48


def mesh_of(**sizes):
    return sharding.make_mesh(dict(data=1, fsdp=1, context=1, tensor=1) | sizes)


def loud(params):
    return jax.tree.map(lambda x: 10 * x if x.ndim > 2 else x, params)


def rows_of(config, batch):
    """Tokens of packed documents that cross the borders of devices, and what belongs to them."""
    rng = np.random.default_rng(4)
    rows = [((11, 1, 36), (36, 11, 1), (48,), (1, 2, 45))[i % 4] for i in range(batch)]
    sets = rng.random((batch, LENGTH, 2)) < 0.2
    tokens = rng.integers(0, config.vocab_size, (batch, LENGTH)).astype(np.int32)
    return tokens, measuring.Inputs(*dense.ids(*rows), sets_BTZ=sets)


@pytest.fixture(scope="module")
def model(tiny_config, tiny_params):
    """The tiny model with attention that is far from even."""
    return tiny_config, loud(tiny_params)


CASES = {  # backend, mesh, batch, window, spread, queries
    "ring of 8": ("ring", dict(context=8), 2, None, "alone", None),
    "ring, heads cut": ("ring", dict(context=4, tensor=2), 1, None, "ring", None),
    "gathered, rows cut": ("all_gather", dict(data=2, context=4), 2, None, "all_gather", None),
    "window": ("all_gather", dict(context=8), 1, 7, "ring", None),
    "natural order": ("ulysses", dict(context=2, fsdp=4), 4, None, "alone", None),
    "some queries": ("ring", dict(context=4, tensor=2), 2, None, "alone", [[47, 0, 30]]),
    "no context": ("blockwise", dict(data=2, fsdp=2, tensor=2), 4, None, "ring", [[5, 40]]),
}


SLOW = ("ring, heads cut", "gathered, rows cut", "natural order", "no context")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES]
)
def test_eight_devices_equal_one(model, name):
    backend, sizes, batch, window, spread, queries = CASES[name]
    config, params = dataclasses.replace(model[0], sliding_window=window), model[1]
    r = rope.make("yarn", factor=2.0, beta_fast=32.0, beta_slow=1.0, **geometry(config))(LENGTH)
    tokens, inputs = rows_of(config, batch)
    if queries is not None:
        queries = (np.array(queries) + np.arange(batch)[:, None]) % LENGTH  # each row its own
        inputs = inputs._replace(queries_BM=queries)
    how = dict(inputs=inputs, options=Options(block=8, local=5))
    wanted = measuring.measure(config, params, tokens, r, **how)
    mesh = mesh_of(**sizes)
    how["options"] = dataclasses.replace(how["options"], spread=spread)
    settings = decoder.ForwardSettings(attention=backend, attention_block=8, mesh=mesh)
    placed = sharding.put(params, decoder.param_shardings(config, mesh))
    found = measuring.measure(config, placed, tokens, r, settings=settings, **how)
    assert len(found) == config.num_layers
    for ours, theirs in zip(found, wanted, strict=True):
        dense.assert_same(ours, theirs._asdict())
        assert np.ptp(theirs.entropy) > 0.5 and theirs.set_mass.max() > 0.1


def geometry(config):
    names = ("head_dim", "rotary_dim", "theta", "original_len")
    return {name: getattr(config, name) for name in names} | dict(attention_factor=1.2)


def in_parts(fn, mask, *operands, context=4):
    """Returns fn(q, k, ..., mask) with tokens in zigzag order over `context` devices, put back."""
    mesh = mesh_of(context=context, data=8 // context)
    order = [
        attention.order("ring", x.shape[1], context)
        for x in (mask.q_positions_BT, mask.kv_positions_BS)
    ]
    spec = PartitionSpec(None, "context")

    def dealt(x, side):
        return None if x is None else jnp.asarray(x)[:, order[side]]

    q_ids, kv_ids = (
        (dealt(mask.q_positions_BT, 0), dealt(mask.q_segment_ids_BT, 0)),
        (dealt(mask.kv_positions_BS, 1), dealt(mask.kv_segment_ids_BS, 1)),
    )
    parted = dataclasses.replace(
        mask,
        q_positions_BT=q_ids[0],
        kv_positions_BS=kv_ids[0],
        q_segment_ids_BT=q_ids[1],
        kv_segment_ids_BS=kv_ids[1],
    )
    numbers = jnp.asarray(order[1], jnp.int32)[None]
    run = jax.jit(
        jax.shard_map(
            fn,
            mesh=mesh,
            in_specs=spec,
            out_specs=spec,
            check_vma=False,
        )
    )
    operands = [dealt(x, side) for side, x in enumerate(operands)]
    found = run(*operands, parted, numbers)
    back = attention.inverse(order[0])
    return jax.tree.map(lambda x: np.asarray(x)[:, back], found)


@pytest.mark.parametrize(
    "kind, spread", [("across", "ring"), ("across", "all_gather"), ("both ways", "ring")]
)
def test_masks_that_no_ring_of_attention_has(kind, spread):
    """Cross-attention with T != S, and both directions, in zigzag order all the same."""
    make = {
        "across": functools.partial(dense.across, 24),
        "both ways": functools.partial(dense.packed, causal=False),
    }
    mask = make[kind]()
    q, k = dense.inputs(mask, 4, 2)
    options = Options(block=4, local=5, spread=spread)

    def local(q, k, mask, index):
        return streaming.statistics(q, k, mask, options, index_BS=index)

    wanted = dense.statistics(q, k, mask, local=5, bins=7)
    dense.assert_same(in_parts(local, mask, q, k), wanted)


def test_kl_round_a_ring():
    mask = dense.packed()
    q, k = dense.inputs(mask, 4, 2)
    options, here = Options(block=4, spread="ring"), Options(block=4)
    ropes = [rope.build(np.full(4, f), theta=100.0, attention_factor=f) for f in (1.0, 1.4)]

    def kl(q, k, mask, _, options=options):
        turns = (rope.cos_sin(r, mask.q_positions_BT) for r in ropes)
        return divergence.kl_between(q, k, *((turn, turn) for turn in turns), mask, options)

    whole = jax.tree.map(jnp.asarray, mask)
    wanted = jax.jit(functools.partial(kl, options=here))(q, k, whole, None)
    for ours, theirs in zip(in_parts(kl, mask, q, k), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.max(wanted.kl) > 0.1


def test_a_length_that_does_not_divide_is_refused(model):
    config, params = model
    settings = decoder.ForwardSettings(attention="ring", mesh=mesh_of(context=8))
    with pytest.raises(InputError, match="must be a multiple of 16 for forward.attention 'ring'"):
        measuring.measure(config, params, np.zeros((1, 40), int), None, settings=settings)

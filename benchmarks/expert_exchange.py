"""Weights gathered to tokens against tokens sent to experts: an MLP of experts, compiled for TPUs.

  python -m benchmarks.expert_exchange [--model=qwen3_30b_a3b] [--topology=v5p:4x4x4]

Forward and backward of one layer over the axis fsdp of 8, its inputs kept and the rest computed
again, bfloat16. "gathered" is what jaxrope does. "exchanged" has each device keep its own
experts: `jax.lax.ragged_all_to_all` sends every pair of a token and an expert there and back. As no
token may be dropped, a device must have room for the pairs of all devices; or, with --room=2, for
twice its share, which an uneven load would exceed. Prints the compiler's peak of a device, and what
a device sends. Needs libtpu (`make aot`).
"""

import argparse
import functools
import sys

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxrope import decoder, topology
from jaxrope.decoder import experts, grouped
from jaxrope.mesh import sharding
from jaxrope.topology import compile

_GIB = 2**30
WAYS = 8  # devices of fsdp
NAMES = ("expert_gate_LEDF", "expert_up_LEDF", "expert_down_LEFD")


def gathered(shares_BTK, chosen_BTK, x_BTD, weights):
    """Returns the layer's output; every device gathers the weights of all experts."""
    weights = {
        name: jax.lax.all_gather(weight, "fsdp", axis=0, tiled=True)
        for name, weight in weights.items()
    }
    return experts.mixed(shares_BTK, chosen_BTK, x_BTD, weights, jax.nn.silu)


def exchanged(shares_BTK, chosen_BTK, x_BTD, weights, *, room):
    """Returns the layer's output; pairs go to the device that has their expert, and back.

    Letters: P pairs, W devices, E experts of a device, R rows that a device has room for.
    """
    per_token, dim = chosen_BTK.shape[-1], x_BTD.shape[-1]
    local = weights[NAMES[0]].shape[0]
    expert_P = chosen_BTK.reshape(-1)
    rows = room * len(expert_P)
    order_P = jnp.argsort(expert_P)
    counts_WE = jnp.zeros(WAYS * local, jnp.int32).at[expert_P].add(1).reshape(WAYS, local)
    x_PD = jnp.repeat(x_BTD.reshape(-1, dim), per_token, axis=0)[order_P]
    me = jax.lax.axis_index("fsdp")
    all_WWE = jax.lax.all_gather(counts_WE, "fsdp")  # from, to, expert
    sent_WW = all_WWE.sum(-1)
    before_WW = jnp.cumsum(sent_WW, 0) - sent_WW  # what lies before a sender's rows at the receiver
    starts_WW = jnp.cumsum(sent_WW, 1) - sent_WW  # where a sender has them
    there = starts_WW[me], sent_WW[me], before_WW[me], sent_WW[:, me]
    back = before_WW[:, me], sent_WW[:, me], starts_WW[:, me], sent_WW[me]
    exchange = functools.partial(jax.lax.ragged_all_to_all, axis_name="fsdp")
    y_RD = exchange(x_PD, jnp.zeros((rows, dim), x_PD.dtype), *there)
    # They lie by sender, then expert; the product wants them by expert.
    sizes_WE = all_WWE[:, me]
    ends = jnp.cumsum(sizes_WE.reshape(-1))
    group_R = jnp.searchsorted(ends, jnp.arange(rows), side="right")
    expert_R = jnp.where(group_R < len(ends), group_R % local, local)
    order_R = jnp.argsort(expert_R)
    y_RD, sizes_E = y_RD[order_R], sizes_WE.sum(0)
    gate_RF, up_RF = (grouped.product(y_RD, weights[name], sizes_E) for name in NAMES[:2])
    y_RD = grouped.product(jax.nn.silu(gate_RF) * up_RF, weights[NAMES[2]], sizes_E)
    y_PD = exchange(y_RD[jnp.argsort(order_R)], jnp.zeros_like(x_PD), *back)
    y_BTKD = y_PD[jnp.argsort(order_P)].reshape(*chosen_BTK.shape, dim)
    return jnp.sum(y_BTKD * shares_BTK[..., None].astype(y_BTKD.dtype), axis=-2)


def lower(layer_fn, mesh, model, tokens: int):
    """Returns forward and backward of a layer, lowered; `tokens` of each device."""
    spec = PartitionSpec(("fsdp", "context"))
    of_weights = PartitionSpec("fsdp")

    def gradients(shares_BTK, chosen_BTK, x_BTD, weights, dy_BTD):
        fn = jax.checkpoint(lambda s, x, w: layer_fn(s, chosen_BTK, x, w))
        y_BTD, transpose = jax.vjp(fn, shares_BTK, x_BTD, weights)
        return y_BTD, transpose(dy_BTD)

    def abstract(shape, dtype, where):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, where))

    shape, dim = (mesh.size, tokens), model.embed_dim
    pairs = (*shape, model.experts_per_token)
    wide = (model.num_experts, dim, model.expert_dim)
    weights = dict.fromkeys(NAMES[:2], abstract(wide, jnp.bfloat16, of_weights))
    weights[NAMES[2]] = abstract((wide[0], wide[2], dim), jnp.bfloat16, of_weights)
    arguments = (
        abstract(pairs, jnp.float32, spec),
        abstract(pairs, jnp.int32, spec),
        abstract((*shape, dim), jnp.bfloat16, spec),
        weights,
        abstract((*shape, dim), jnp.bfloat16, spec),
    )
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, arguments)
    fn = jax.shard_map(
        gradients,
        mesh=mesh,
        in_specs=specs,
        out_specs=(spec, (spec, spec, dict.fromkeys(NAMES, of_weights))),
        check_vma=False,
    )
    return jax.jit(fn).lower(*arguments)


def main() -> int:
    """Compiles both; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen3_30b_a3b")
    parser.add_argument("--topology", default="v5p:4x4x4")
    parser.add_argument("--tokens", type=int, default=32_768, help="of a device")
    parser.add_argument("--room", type=int, default=WAYS, help="times the pairs of a device")
    options = parser.parse_args()
    model = decoder.SHAPES[options.model]
    sizes = dict(data=1, fsdp=WAYS, context=-1, tensor=1)
    mesh = sharding.make_mesh(sizes, topology.devices(options.topology))
    layers = dict(gathered=gathered, exchanged=functools.partial(exchanged, room=options.room))
    for name, layer_fn in layers.items():
        compiled, text = compile.with_text(lower(layer_fn, mesh, model, options.tokens), "tpu")
        peak = compiled.memory_analysis().peak_memory_in_bytes
        sent = sum(hop.total_bytes for hop in topology.read_schedule(text).collectives)
        # What a ragged exchange sends is data, of which the schedule knows nothing: an even load
        exchanges = sum(" ragged-all-to-all(" in line for line in text.splitlines())
        rows = options.tokens * model.experts_per_token * (WAYS - 1) / WAYS
        sent += exchanges * rows * model.embed_dim * jnp.bfloat16.dtype.itemsize
        print(f"{name:10} peak of a device {peak / _GIB:5.1f} GiB, sends {sent / _GIB:4.2f} GiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Attention alone, over a whole sequence: for checks of the ring apart from the model.

Letters: B batch, T length, N heads, K kv heads, H head dim.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrope import attention
from jaxrope.attention import masks
from jaxrope.llama import LlamaConfig

_SPEC = PartitionSpec(("data", "fsdp"), "context", "tensor", None)


def lower_attention(
    model: LlamaConfig,
    mesh: Mesh,
    *,
    seq_len: int,
    backend: str,
    kernel: str,
    gradient: bool,
) -> jax.stages.Lowered:
    """Returns the attention of one layer over one row for each device of (data, fsdp), lowered: its
    output, or the gradients of q, k and v from that of the output. bfloat16, one document.

    Args:
      model: for num_heads, num_kv_heads and head_dim.
      mesh: of sharding.make_mesh.
      seq_len: tokens.
      backend, kernel: names; see attention.attend.
      gradient: forward and backward.
    """

    settings = attention.Settings(kernel=kernel, mesh=mesh)

    def attend(positions_BT, q_BTNH, k_BTKH, v_BTKH):
        mask = masks.self_mask(positions_BT)
        return attention.attend(backend, q_BTNH, k_BTKH, v_BTKH, mask=mask, settings=settings)

    def gradients(positions_BT, q_BTNH, k_BTKH, v_BTKH, dout_BTNH):
        _, transpose = jax.vjp(lambda *qkv: attend(positions_BT, *qkv), q_BTNH, k_BTKH, v_BTKH)
        return transpose(dout_BTNH)

    rows = mesh.shape["data"] * mesh.shape["fsdp"]

    def abstract(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def heads(number):
        return abstract((rows, seq_len, number, model.head_dim), jnp.bfloat16, _SPEC)

    where = PartitionSpec(*_SPEC[:2])
    arguments = [abstract((rows, seq_len), jnp.int32, where), heads(model.num_heads)]
    arguments += [heads(model.num_kv_heads)] * 2 + [heads(model.num_heads)] * gradient
    fn = jax.shard_map(
        gradients if gradient else attend,
        mesh=mesh,
        in_specs=tuple(leaf.sharding.spec for leaf in arguments),
        out_specs=(_SPEC,) * 3 if gradient else _SPEC,
        check_vma=False,  # kernels do not declare over which axes their results vary
    )
    return jax.jit(fn).lower(*arguments)

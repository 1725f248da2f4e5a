"""The state of a batch while it is generated, and the few sizes that it can have.

Rows lie over the axes `data` and `fsdp` of a mesh, slots of the cache over `context`
(attention.cached), kv heads over `tensor`.

Letters: L layers, B batch, S slots, K kv heads, H head dim, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrope import attention, decoder
from jaxrope.decoder import DTYPES, DecoderConfig, ForwardSettings
from jaxrope.mesh import sharding
from jaxrope.rope import Rope


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """A batch between two tokens.

    Attributes:
      caches: of the layers of each kind, keys and values [L, B, S, K, H], or the states of delta
        layers [L, B, ...].
      lengths_B: int32, tokens of each row that were read: its first empty slot.
      rope: the factors that the row's keys were rotated with, leaves [B, ...]; [L, B, ...] if they
        differ between layers.
      logits_BV: of the token that comes next, float32 or wider.
      streams_B2: uint32, the key of each row's random stream.
    """

    caches: dict[str, decoder.Cache]
    lengths_B: jax.Array
    rope: Rope
    logits_BV: jax.Array
    streams_B2: jax.Array


def empty(
    config: DecoderConfig,
    settings: ForwardSettings,
    sizes: tuple[int, int],
    rope: Rope,
    streams_B2: np.ndarray,
) -> State:
    """Returns the state before anything was read.

    Args:
      config, settings: the model.
      sizes: (slots of each row, see `capacity`; tokens of a chunk).
      rope: of each row, on the host.
      streams_B2: of each row, on the host.
    """
    batch, (slots, chunk) = len(streams_B2), sizes
    dtype = DTYPES[settings.compute_dtype]

    def make(rope, streams_B2):
        logits_BV = jnp.zeros((batch, config.vocab_size), jnp.promote_types(dtype, jnp.float32))
        caches = decoder.empty_caches(config, settings, batch=batch, slots=slots, chunk=chunk)
        return State(caches, jnp.zeros(batch, jnp.int32), rope, logits_BV, streams_B2)

    if settings.mesh is None:
        return jax.jit(make)(rope, streams_B2)
    abstract = jax.eval_shape(make, rope, streams_B2)
    where = jax.tree.map(lambda spec: NamedSharding(settings.mesh, spec), specs(abstract))
    return jax.jit(make, out_shardings=where)(rope, streams_B2)


def with_rope(state: State, rope: Rope, mesh: Mesh | None) -> State:
    """Returns the state with other ropes, given on the host."""
    if mesh is None:
        return dataclasses.replace(state, rope=jax.tree.map(jnp.asarray, rope))
    where = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(state).rope)
    return dataclasses.replace(state, rope=sharding.put(rope, where))


def rows_sharding(mesh: Mesh) -> NamedSharding:
    """Returns where an array with a leading axis of rows lies."""
    return NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES))


def specs(state: State) -> State:
    """Returns where the parts of a state lie on a mesh, PartitionSpecs in its tree."""
    rows = PartitionSpec(sharding.BATCH_AXES)
    of_rope = PartitionSpec(None, sharding.BATCH_AXES) if state.rope.per_layer else rows
    of_keys = PartitionSpec(None, sharding.BATCH_AXES, "context", "tensor")
    of_memory = PartitionSpec(None, sharding.BATCH_AXES, "tensor")
    of_delta = decoder.delta.State(of_memory, *[PartitionSpec(*of_keys[:2], None, "tensor")] * 3)
    of_attention = attention.Cache(of_keys, of_keys)
    return State(
        {kind: of_delta if kind == "delta" else of_attention for kind in state.caches},
        rows,
        jax.tree.map(lambda _: of_rope, state.rope),
        rows,
        rows,
    )


def pieces(length: int, chunk: int, unit: int) -> list[tuple[int, int]]:
    """Returns (start, size) of the parts in which `length` tokens are read: chunks, the last one no
    larger than it must be. They depend on the length alone, so that to read again is to compute the
    same.
    """
    chunks = [(start, chunk) for start in range(0, length - chunk, chunk)]
    start = len(chunks) * chunk
    return [*chunks, (start, capacity(length - start, chunk, unit))]


def capacity(length: int, chunk: int, unit: int) -> int:
    """Returns the slots for rows of up to `length` tokens: the first length of the ladder of `unit`
    and `chunk` (decoder.lengths) that holds them, so that few sizes are ever compiled.
    """
    return next(slots for slots in decoder.lengths.ladder(unit, chunk) if slots >= length)

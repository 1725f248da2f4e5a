"""What is compiled: the reading of a chunk, and the step from one token to the next.

Both take the state and give it back (its memory is used again), and both are compiled once for each
size of batch, cache and chunk. A chunk is of one row for each group of devices that shares rows: it
costs what that row costs, and gives the same bits whatever else is in the batch.

Letters: B batch, W groups of devices that have rows of their own, T tokens of a device, C chunk, D
model dim, V vocabulary.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxrope import attention, decoder
from jaxrope.generate import state as states
from jaxrope.generate.options import Sampling
from jaxrope.generate.sampling import draw
from jaxrope.generate.state import State
from jaxrope.mesh import collectives, sharding


class Chunk(NamedTuple):
    """What is read at one time.

    Attributes:
      tokens_WC: int32, one row for each group.
      lengths_W: int32, tokens of the whole row; 0: the group's row stays as it is.
      start: int32, position of the first token of the chunk.
      row: int32, which of a group's rows.
    """

    tokens_WC: jax.Array
    lengths_W: jax.Array
    start: jax.Array
    row: jax.Array


@functools.partial(jax.jit, static_argnames=("config", "settings"), donate_argnames=("state",))
def read_chunk(params, state: State, chunk: Chunk, *, config, settings) -> State:
    """Returns the state after a chunk; with the last one of a row come the logits of its next
    token.
    """

    def local(params, state, chunk):
        mesh, length_B = settings.mesh, chunk.lengths_W
        size = chunk.tokens_WC.shape[1]
        count = size // sharding.ways(mesh, "context")
        positions_T = attention.slot_positions(chunk.start, count, mesh)
        tokens_BT = chunk.tokens_WC[:, positions_T - chunk.start]
        valid_BT = positions_T[None] < length_B[:, None]
        place = attention.Place(positions_T[None], valid_BT, chunk.row)
        rope = _rope_of(state.rope, chunk.row)
        x_BTD, caches = decoder.hidden_cached(
            config, params, tokens_BT, rope, state.caches, place, settings
        )
        is_last_BT = positions_T[None] == length_B[:, None] - 1
        x_BD = jnp.sum(jnp.where(is_last_BT[..., None], x_BTD, 0), axis=1)
        x_BD = collectives.sum_over(x_BD, mesh, "context")
        logits_BV = decoder.next_logits(config, params, x_BD, settings)
        ends_B = (length_B > chunk.start) & (length_B <= chunk.start + size)
        read_B = jnp.minimum(length_B, chunk.start + size)
        return dataclasses.replace(
            state,
            caches=caches,
            lengths_B=_set(state.lengths_B, chunk.row, read_B, length_B > chunk.start),
            logits_BV=_set(state.logits_BV, chunk.row, logits_BV, ends_B[:, None]),
        )

    rows = PartitionSpec(sharding.BATCH_AXES)
    of_chunk = Chunk(rows, rows, PartitionSpec(), PartitionSpec())
    return _spread(local, config, settings, state, of_chunk)(params, state, chunk)


@functools.partial(
    jax.jit, static_argnames=("config", "settings", "sampling"), donate_argnames=("state",)
)
def step(
    params, state: State, advance_B, *, config, settings, sampling: Sampling
) -> tuple[State, jax.Array]:
    """Draws the next token of every row, and reads it in the rows that advance.

    Returns:
      (the state, tokens_B int32, which every device has).
    """
    tokens_B = draw(state.logits_BV, state.streams_B2, state.lengths_B, sampling)

    def local(params, state, row):
        tokens_B, advance_B = row
        place = attention.Place(state.lengths_B[:, None], advance_B[:, None], jnp.int32(0))
        x_BTD, caches = decoder.hidden_cached(
            config, params, tokens_B[:, None], state.rope, state.caches, place, settings
        )
        logits_BV = decoder.next_logits(config, params, x_BTD[:, 0], settings)
        return dataclasses.replace(
            state,
            caches=caches,
            lengths_B=state.lengths_B + advance_B,
            logits_BV=jnp.where(advance_B[:, None], logits_BV, state.logits_BV),
        )

    rows = PartitionSpec(sharding.BATCH_AXES)
    spread = _spread(local, config, settings, state, (rows, rows))
    new = spread(params, state, (tokens_B, advance_B))
    if settings.mesh is not None:  # every process reads all of them
        whole = sharding.replicated(settings.mesh)
        tokens_B = jax.lax.with_sharding_constraint(tokens_B, whole)
    return new, tokens_B


def _spread(local, config, settings, state, extra):
    """Returns `local`, (params, state, extra) -> state, as run by all devices of the mesh."""
    mesh = settings.mesh
    if mesh is None:
        return local
    of_params = jax.tree.map(lambda where: where.spec, decoder.param_shardings(config, mesh))
    of_state = states.specs(state)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(of_params, of_state, extra),
        out_specs=of_state,
        check_vma=False,  # loops inside start from constants, which vary nowhere
    )


def _rope_of(rope, row):
    axis = 1 if rope.per_layer else 0
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, row, 1, axis), rope)


def _set(x_B, row, new_1, where_1):
    old_1 = jax.lax.dynamic_slice_in_dim(x_B, row, 1)
    updated_1 = jnp.where(where_1, new_1.astype(x_B.dtype), old_1)
    return jax.lax.dynamic_update_slice_in_dim(x_B, updated_1, row, 0)

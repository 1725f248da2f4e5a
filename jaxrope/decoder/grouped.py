"""Products of rows, sorted by group, with the matrices of their groups; with gradients, and under
jax.vmap, where matrices are shared, one after another.

XLA has a kernel for it on a TPU (`jax.lax.ragged_dot`). Elsewhere it multiplies every row by every
matrix; on a CPU blocks of rows are multiplied here instead, as many as there are.

Letters: P rows, D and F their dims before and after, E groups, C rows of a block.
"""

import jax
import jax.numpy as jnp

_BLOCK = 128  # rows: a group ends in a block that it does not fill


@jax.custom_vjp
def product(x_PD: jax.Array, weight_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Returns y_PF: each row times the matrix of its group.

    Args:
      x_PD: rows of group 0, then of group 1, ...
      weight_EDF: in the dtype of x.
      sizes_E: int32, rows of each group; P in all.
    """
    return _forward(x_PD, weight_EDF, sizes_E)


def _fwd(x_PD, weight_EDF, sizes_E):
    return _forward(x_PD, weight_EDF, sizes_E), (x_PD, weight_EDF, sizes_E)


def _bwd(residuals, dy_PF):
    x_PD, weight_EDF, sizes_E = residuals
    dx_PD = _forward(dy_PF, weight_EDF.swapaxes(1, 2), sizes_E)
    return dx_PD, _of_weights(x_PD, dy_PF, sizes_E), None


product.defvjp(_fwd, _bwd)


@jax.custom_batching.sequential_vmap
def _forward(x_PD, weight_EDF, sizes_E):
    how = dict(cpu=in_blocks, default=ragged)
    return jax.lax.platform_dependent(x_PD, weight_EDF, sizes_E, **how)


@jax.custom_batching.sequential_vmap
def _of_weights(x_PD, dy_PF, sizes_E):
    how = dict(cpu=weights_in_blocks, default=ragged_weights)
    return jax.lax.platform_dependent(x_PD, dy_PF, sizes_E, **how)


def ragged(x_PD, weight_EDF, sizes_E):
    """Returns `product` by XLA's kernel."""
    return jax.lax.ragged_dot(x_PD, weight_EDF, sizes_E, precision=_precision(x_PD))


_ROWS_OF_EACH = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), (0,), ())


def ragged_weights(x_PD, dy_PF, sizes_E):
    """Returns the gradients of the matrices, [E, D, F], by XLA's kernel."""
    how = dict(precision=_precision(x_PD))
    return jax.lax.ragged_dot_general(x_PD, dy_PF, sizes_E, _ROWS_OF_EACH, **how)


def in_blocks(x_PD, weight_EDF, sizes_E):
    """Returns `product`, block by block in the order of the rows: what a block has of the next
    group is written again by that group's own.
    """
    x_PD, place = _padded(x_PD), _places(sizes_E)

    def body(block, y_PF):
        group, start, _ = place(block)
        x_CD = jax.lax.dynamic_slice_in_dim(x_PD, start, _BLOCK)
        y_CF = jnp.dot(x_CD, weight_EDF[group], precision=_precision(x_PD))
        return jax.lax.dynamic_update_slice_in_dim(y_PF, y_CF, start, 0)

    y_PF = jnp.zeros((x_PD.shape[0], weight_EDF.shape[-1]), x_PD.dtype)
    return jax.lax.fori_loop(0, _num_blocks(sizes_E), body, y_PF)[:-_BLOCK]


def weights_in_blocks(x_PD, dy_PF, sizes_E):
    """Returns the gradients of the matrices, [E, D, F], block by block."""
    x_PD, dy_PF, place = _padded(x_PD), _padded(dy_PF), _places(sizes_E)

    def body(block, sums_EDF):
        group, start, stop = place(block)
        x_CD, dy_CF = (jax.lax.dynamic_slice_in_dim(x, start, _BLOCK) for x in (x_PD, dy_PF))
        here_C = start + jnp.arange(_BLOCK) < stop
        dy_CF = jnp.where(here_C[:, None], dy_CF, 0)
        part_DF = jnp.dot(x_CD.T, dy_CF, precision=_precision(x_PD))
        return sums_EDF.at[group].add(part_DF)

    sums_EDF = jnp.zeros((len(sizes_E), x_PD.shape[-1], dy_PF.shape[-1]), x_PD.dtype)
    return jax.lax.fori_loop(0, _num_blocks(sizes_E), body, sums_EDF)


def _num_blocks(sizes_E):
    return jnp.sum(-(-sizes_E // _BLOCK))


def _places(sizes_E):
    """Returns block -> (its group, its first row, the end of the group's rows)."""
    blocks_E, stops_E = jnp.cumsum(-(-sizes_E // _BLOCK)), jnp.cumsum(sizes_E)

    def place(block):
        group = jnp.searchsorted(blocks_E, block, side="right")
        left = blocks_E[group] - block  # blocks of the group from this one on
        first = stops_E[group] - sizes_E[group]
        number = -(-sizes_E[group] // _BLOCK) - left
        return group, first + number * _BLOCK, stops_E[group]

    return place


def _padded(x_PD):
    return jnp.pad(x_PD, ((0, _BLOCK), (0, 0)))


def _precision(x_PD):
    # HIGHEST: the default of a TPU rounds float32 operands to bfloat16
    return jax.lax.Precision.HIGHEST if x_PD.dtype == jnp.float32 else None

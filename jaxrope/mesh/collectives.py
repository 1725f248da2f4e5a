"""Collectives of the devices of a mesh inside the model: weights, embeddings, sums.

All of this runs inside one shard_map in which every axis of the mesh is manual (`check_vma=False`)
and each device sees its part of every array. Without a mesh, and over an axis of one device, they
cost nothing.

Gradients are those of the sum of the losses of all devices: a psum is the transpose of a psum, an
all-gather that of a reduce-scatter. A loss that every device of `tensor` has counts as often, so it
is divided by their number (train/step.py).

Letters: B batch, T length, D model dim, V vocabulary, n devices that share the model dim.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from jaxrope.mesh import sharding

TENSOR = ("tensor",)
_LANES = 128  # numbers in a row of a tile of a TPU


def axes_of(mesh: Mesh | None, axes: tuple[str, ...]) -> tuple[str, ...]:
    """Returns those of `axes` that have more than one device."""
    return tuple(axis for axis in axes if mesh is not None and mesh.shape[axis] > 1)


def gather(weights: dict, dtype, mesh: Mesh | None) -> dict:
    """Returns weights with all of their model dim, in `dtype`; each is named by its letters.

    The model dim is the letter D of a name: "o_LNHD" (without its layers) has it last. Weights are
    cast before they travel. Their gradients are summed in float32 or wider on the way back, and
    have the dtype of the weights.
    """
    axes = axes_of(mesh, sharding.RULES["embed"])

    def gather_leaf(name, weight):
        dim = _embed_dim(name)
        if dim is None or not axes:
            return weight.astype(dtype)
        return _gather(weight, dim, axes, jnp.dtype(dtype).name, jnp.dtype(weight.dtype).name)

    return {name: gather_leaf(name, weight) for name, weight in weights.items()}


def scatter_sum(gradients: dict, weights: dict, mesh: Mesh | None) -> dict:
    """Returns the gradients of the arguments of `gather`, from those of its results.

    Args:
      gradients: of whole weights, in any dtype; summed in float32 or wider.
      weights: the argument of `gather`.
      mesh: the same.
    """
    axes = axes_of(mesh, sharding.RULES["embed"])

    def scatter_leaf(name, gradient):
        dim = _embed_dim(name)
        if dim is not None and axes:
            gradient = _scatter(gradient, dim, axes)
        return gradient.astype(weights[name].dtype)

    return {name: scatter_leaf(name, gradient) for name, gradient in gradients.items()}


def sum_over(x, mesh: Mesh | None, *names: str):
    """Returns the sum of each array of a pytree over the devices of these axes."""
    axes = axes_of(mesh, names)
    return lax.psum(x, axes) if axes else x


def sum_over_tensor(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Returns the sum over the devices of axis `tensor`."""
    return sum_over(x, mesh, *TENSOR)


def shard_of_vocab(rows: int, vocab_size: int) -> jax.Array | None:
    """Returns the first word of this device's `rows`; None: it has all words."""
    return None if rows == vocab_size else lax.axis_index("tensor") * rows


def look_up(
    table_VD: jax.Array, tokens_BT: jax.Array, dtype, mesh: Mesh | None, *, vocab_size: int
) -> jax.Array:
    """Returns the embeddings x_BTD of this device's tokens, in `dtype`.

    Each device looks up the tokens of all devices in its columns of the table, then they exchange
    the results: no device holds the whole table.

    Args:
      table_VD: this device's part.
      tokens_BT: this device's.
      dtype: of the result.
      mesh: where this runs, or None.
      vocab_size: of the whole table.
    """
    axes = axes_of(mesh, sharding.RULES["embed"])
    ids = lax.all_gather(tokens_BT, axes) if axes else tokens_BT
    first = shard_of_vocab(table_VD.shape[0], vocab_size)
    if first is None:
        x = table_VD[ids].astype(dtype)
    else:
        here = (ids >= first) & (ids < first + table_VD.shape[0])
        x = table_VD[jnp.where(here, ids - first, 0)].astype(dtype)
        x = jnp.where(here[..., None], x, 0)
    if axes:
        x = lax.all_to_all(x, axes, split_axis=0, concat_axis=x.ndim - 1, tiled=True)[0]
    return x if first is None else sum_over_tensor(x, mesh)


def _embed_dim(name: str) -> int | None:
    letters = name.rsplit("_", 1)[1].removeprefix("L")
    return letters.index("D") if "D" in letters else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _gather(weight, dim, axes, dtype, master_dtype):
    del master_dtype
    whole = weight.astype(dtype)
    # one axis at a time, the inner one first: over both at once XLA takes an all-reduce instead
    # (libtpu 0.0.52, 64 chips and more), which sends twice as much
    for axis in reversed(axes):
        whole = lax.all_gather(whole, axis, axis=dim, tiled=True)
    return whole


def _gather_fwd(weight, dim, axes, dtype, master_dtype):
    return _gather(weight, dim, axes, dtype, master_dtype), None


def _gather_bwd(dim, axes, dtype, master_dtype, _, gradient):
    del dtype
    return (_scatter(gradient, dim, axes).astype(master_dtype),)


_gather.defvjp(_gather_fwd, _gather_bwd)


def _scatter(gradient, dim, axes):
    part = gradient.astype(jnp.promote_types(gradient.dtype, jnp.float32))
    if dim == 0 and part.ndim == 2 and part.shape[1] % _LANES == 0:
        # rows of a matrix come in XLA's tiles of 8: it would pad a device's part, and have what is
        # too much go to the neighbour in a hop that nothing hides (libtpu 0.0.52)
        part = part.reshape(part.shape[0], -1, _LANES)
    for axis in axes:
        part = lax.psum_scatter(part, axis, scatter_dimension=dim, tiled=True)
    return part.reshape(*part.shape[: gradient.ndim - 1], -1)

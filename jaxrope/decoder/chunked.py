"""A function of each token alone, a chunk of the sequence at a time, forward and backward.

What the function needs on the way (logits, the wide activations of an MLP) exists for one chunk
only; the backward pass computes it again, or, for a sum, there is nothing left to compute in it.
Gradients of the weights are summed over the chunks in float32 or wider, then over the devices.

Letters: B batch, T length, D model dim, C chunk, n chunks.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrope.mesh import collectives


def over_chunks(
    fn: Callable, x_BTD: jax.Array, extra: Any, weights: dict, *, chunk: int, mesh=None
) -> Any:
    """Returns fn(x_BTD, extra, whole weights), computed chunk by chunk.

    Args:
      fn: (x_BCD, extra of the chunk, weights) -> pytree of floats [B, C, ...]; what it says of a
        token depends on that token alone. It must not close over traced values.
      x_BTD: differentiable.
      extra: pytree of arrays [B, T, ...] that have no gradient.
      weights: as collectives.gather takes them; gathered once, in the dtype of x.
      chunk: tokens of each row in a chunk.
      mesh: where this runs, or None.
    """
    return _over_chunks(fn, min(chunk, x_BTD.shape[1]), mesh, x_BTD, extra, weights)


def sum_over_chunks(
    fn: Callable, x_BTD: jax.Array, extra: Any, weights: dict, *, chunk: int, mesh=None
) -> jax.Array:
    """Returns the sum over the chunks of fn(x_BCD, extra of the chunk, whole weights), a scalar in
    float32 or wider. What is differentiated of it is computed with the value, so nothing is
    computed again.

    Args:
      fn: as over_chunks has it, but returns a scalar; a token whose extra is zero adds nothing.
      x_BTD, extra, weights, chunk, mesh: see over_chunks.
    """
    return _sum_over_chunks(fn, min(chunk, x_BTD.shape[1]), mesh, x_BTD, extra, weights)


def map_chunks(fn: Callable, arrays: Any, *, chunk: int) -> Any:
    """Returns fn(arrays), computed chunk by chunk; not meant to be differentiated."""
    length = jax.tree.leaves(arrays)[0].shape[1]
    chunk = min(chunk, length)
    return _join(jax.lax.map(fn, _cut(arrays, chunk)), length)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _over_chunks(fn, chunk, mesh, x_BTD, extra, weights):
    whole = collectives.gather(weights, x_BTD.dtype, mesh)
    return map_chunks(lambda part: fn(*part, whole), (x_BTD, extra), chunk=chunk)


def _fwd(fn, chunk, mesh, x_BTD, extra, weights):
    return _over_chunks(fn, chunk, mesh, x_BTD, extra, weights), (x_BTD, extra, weights)


def _bwd(fn, chunk, mesh, residuals, gradient):
    x_BTD, extra, weights = residuals
    whole = collectives.gather(weights, x_BTD.dtype, mesh)

    def body(sums, part):
        x_BCD, extra_BC, gradient_BC = part
        _, transpose = jax.vjp(lambda x, w: fn(x, extra_BC, w), x_BCD, whole)
        by_x_BCD, by_weights = transpose(gradient_BC)
        return jax.tree.map(_add, sums, by_weights), by_x_BCD

    parts = _cut((x_BTD, extra, gradient), chunk)
    by_weights, by_x_nBCD = jax.lax.scan(body, jax.tree.map(_wide_zeros, whole), parts)
    by_weights = collectives.scatter_sum(by_weights, weights, mesh)
    return _join(by_x_nBCD, x_BTD.shape[1]), None, by_weights


_over_chunks.defvjp(_fwd, _bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _sum_over_chunks(fn, chunk, mesh, x_BTD, extra, weights):
    whole = collectives.gather(weights, x_BTD.dtype, mesh)

    def body(total, part):
        return total + fn(*part, whole), None

    return jax.lax.scan(body, _wide_zeros(x_BTD[0, 0, 0]), _cut((x_BTD, extra), chunk))[0]


def _sum_fwd(fn, chunk, mesh, x_BTD, extra, weights):
    whole = collectives.gather(weights, x_BTD.dtype, mesh)

    def body(sums, part):
        x_BCD, extra_BC = part
        of = jax.value_and_grad(lambda x, w: fn(x, extra_BC, w), argnums=(0, 1))
        value, (by_x_BCD, by_weights) = of(x_BCD, whole)
        return jax.tree.map(_add, sums, (value, by_weights)), by_x_BCD

    start = jax.tree.map(_wide_zeros, (x_BTD[0, 0, 0], whole))
    (total, by_weights), by_x_nBCD = jax.lax.scan(body, start, _cut((x_BTD, extra), chunk))
    by_weights = collectives.scatter_sum(by_weights, weights, mesh)
    return total, (_join(by_x_nBCD, x_BTD.shape[1]), by_weights)


def _sum_bwd(fn, chunk, mesh, residuals, gradient):
    by_x_BTD, by_weights = jax.tree.map(lambda g: (g * gradient).astype(g.dtype), residuals)
    return by_x_BTD, None, by_weights


_sum_over_chunks.defvjp(_sum_fwd, _sum_bwd)


def _wide_zeros(like):
    return jnp.zeros(like.shape, jnp.promote_types(like.dtype, jnp.float32))


def _add(total, part):
    return total + part.astype(total.dtype)


def _cut(arrays, chunk):
    """Cuts each [B, T, ...] into [n, B, C, ...]; the last chunk is filled up with zeros."""

    def cut(x):
        pad = -x.shape[1] % chunk
        x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2)) if pad else x
        return x.reshape(x.shape[0], -1, chunk, *x.shape[2:]).swapaxes(0, 1)

    return jax.tree.map(cut, arrays)


def _join(parts, length):
    def join(x_nBC):
        x = x_nBC.swapaxes(0, 1)
        return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]

    return jax.tree.map(join, parts)

"""Cross entropy without the [T, V] logits: cut along the sequence, in float32 or wider, gradients
computed with the values. The words may lie over axis `tensor` of a mesh.

Letters: B batch, T length, D model dim, V vocabulary, C chunk.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrope.decoder import chunked
from jaxrope.mesh import cache, collectives

# Of logits on a CPU: 8 MiB, but 128 positions; with fewer a product reads the head too often.
_CACHED, _POSITIONS = 8 << 20, 128


class Targets(NamedTuple):
    """The words to come, and what each counts in a sum."""

    words_BT: jax.Array
    weights_BT: jax.Array


def nll_sum(
    x_BTD: jax.Array,
    head_DV: jax.Array,
    targets: Targets,
    *,
    chunk: int,
    mesh=None,
    vocab_size: int = 0,
    cap: float | None = None,
) -> jax.Array:
    """Returns the sum of weight * -log softmax(x head)[target], nats, float32 or wider, over the
    tokens of this device. At most `chunk` positions of each row have logits at one time.

    Args:
      x_BTD, targets: of this device.
      head_DV: of this device; gathered over the devices that share the model dim.
      chunk: positions.
      mesh: where this runs, inside a shard_map; None: one device.
      vocab_size: of the whole head; 0: head_DV has all words.
      cap: of the logits; None: none.
    """

    def fn(x_BCD, part, weights):
        logits_BCV = _logits(x_BCD, weights["head_DV"], cap)
        return jnp.sum(part.weights_BT * _nll(logits_BCV, part.words_BT, mesh, vocab_size))

    chunk = _cached(chunk, x_BTD, head_DV, mesh)
    weights = {"head_DV": head_DV}
    return chunked.sum_over_chunks(fn, x_BTD, targets, weights, chunk=chunk, mesh=mesh)


def nll_and_hits(
    x_BTD: jax.Array,
    head_DV: jax.Array,
    targets_BT: jax.Array,
    *,
    chunk: int,
    mesh=None,
    vocab_size: int = 0,
    cap: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns (nll_BT float32 nats, hits_BT bool: the target is the first word of the largest
    logit); see nll_sum.
    """
    whole_DV = collectives.gather({"head_DV": head_DV}, x_BTD.dtype, mesh)["head_DV"]

    def both(part):
        x_BCD, targets_BC = part
        logits_BCV = _logits(x_BCD, whole_DV, cap)
        first = collectives.shard_of_vocab(logits_BCV.shape[-1], vocab_size or whole_DV.shape[-1])
        picked_BC = _picked(logits_BCV, targets_BC, first, mesh)[..., None]
        at_BC = targets_BC if first is None else targets_BC - first
        before_BCV = jnp.arange(whole_DV.shape[-1])[None, None] < at_BC[..., None]
        better_BCV = (logits_BCV > picked_BC) | ((logits_BCV == picked_BC) & before_BCV)
        better_BC = jnp.sum(better_BCV, axis=-1)
        if first is not None:
            better_BC = collectives.sum_over_tensor(better_BC, mesh)
        return _nll(logits_BCV, targets_BC, mesh, vocab_size), better_BC == 0

    chunk = _cached(chunk, x_BTD, head_DV, mesh)
    return chunked.map_chunks(both, (x_BTD, targets_BT), chunk=chunk)


def _cached(chunk, x_BTD, head_DV, mesh):
    rows, words = x_BTD.shape[0], head_DV.shape[-1]
    how = dict(least=_POSITIONS // rows, mesh=mesh)
    return cache.cut(chunk, lambda positions: 4 * rows * positions * words, _CACHED, **how)


def capped(logits: jax.Array, cap: float | None) -> jax.Array:
    """Returns cap * tanh(logits / cap) (Gemma 2, arXiv 2408.00118, section 2)."""
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def _logits(x_BCD, head_DV, cap):
    return capped(_product(x_BCD, head_DV), cap)


@jax.custom_vjp
def _product(x_BCD, head_DV):
    wide = jnp.promote_types(x_BCD.dtype, jnp.float32)
    return _einsum("BCD,DV->BCV", x_BCD, head_DV, preferred_element_type=wide)


def _product_fwd(x_BCD, head_DV):
    return _product(x_BCD, head_DV), (x_BCD, head_DV)


def _product_bwd(residuals, dlogits_BCV):
    """In the dtype of x, as all other products: a CPU would do those of mixed dtypes in float32.

    That of x is computed in the order that transposes the smaller operand, see layers.dot.
    """
    x_BCD, head_DV = residuals
    dlogits_BCV = dlogits_BCV.astype(x_BCD.dtype)
    dhead_DV = _einsum("BCD,BCV->DV", x_BCD, dlogits_BCV)
    if dlogits_BCV.size < head_DV.size:
        dx_DBC = _einsum("DV,BCV->DBC", head_DV, dlogits_BCV)
        return jnp.moveaxis(dx_DBC, 0, -1), dhead_DV
    return _einsum("BCV,DV->BCD", dlogits_BCV, head_DV), dhead_DV


_product.defvjp(_product_fwd, _product_bwd)


def _einsum(letters, x, y, **how):
    # HIGHEST: the default of a TPU rounds float32 operands to bfloat16
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(letters, x, y, precision=precision, **how)


def _nll(logits_BCV, targets_BC, mesh, vocab_size):
    words = logits_BCV.shape[-1]
    first = collectives.shard_of_vocab(words, vocab_size or words)
    picked_BC = _picked(logits_BCV, targets_BC, first, mesh)
    if first is None:
        return jax.nn.logsumexp(logits_BCV, axis=-1) - picked_BC
    top_BC = jax.lax.pmax(jax.lax.stop_gradient(jnp.max(logits_BCV, axis=-1)), collectives.TENSOR)
    total_BC = jnp.sum(jnp.exp(logits_BCV - top_BC[..., None]), axis=-1)
    return top_BC + jnp.log(collectives.sum_over_tensor(total_BC, mesh)) - picked_BC


def _picked(logits_BCV, targets_BC, first, mesh):
    """Returns the logit of each target; `first` is the first word of this device, or None."""
    if first is None:
        return _at(logits_BCV, targets_BC)
    here = (targets_BC >= first) & (targets_BC < first + logits_BCV.shape[-1])
    picked_BC = jnp.where(here, _at(logits_BCV, jnp.where(here, targets_BC - first, 0)), 0)
    return collectives.sum_over_tensor(picked_BC, mesh)


@jax.custom_jvp
def _at(logits_BCV, words_BC):
    return jnp.take_along_axis(logits_BCV, words_BC[..., None], axis=-1)[..., 0]


@_at.defjvp
def _at_jvp(primals, tangents):
    """By comparison, whose transpose is no scatter."""
    is_word = jnp.arange(primals[0].shape[-1])[None, None] == primals[1][..., None]
    return _at(*primals), jnp.sum(jnp.where(is_word, tangents[0], 0), axis=-1)

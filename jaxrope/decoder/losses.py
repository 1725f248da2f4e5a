"""Cross entropy without the [T, V] logits: cut along the sequence, in float32 or wider, recomputed
in the backward pass. The words may lie over axis `tensor` of a mesh.

Letters: B batch, T length, D model dim, V vocabulary, C chunk.
"""

import jax
import jax.numpy as jnp

from jaxrope.decoder import chunked
from jaxrope.mesh import collectives


def token_nll(
    x_BTD: jax.Array,
    head_DV: jax.Array,
    targets_BT: jax.Array,
    *,
    chunk: int,
    mesh=None,
    vocab_size: int = 0,
    cap: float | None = None,
) -> jax.Array:
    """Returns nll_BT, float32 or wider: -log softmax(x head)[target], nats. At most `chunk`
    positions of each row have logits at one time.

    Args:
      x_BTD, targets_BT: of this device.
      head_DV: of this device; gathered over the devices that share the model dim.
      chunk: positions.
      mesh: where this runs, inside a shard_map; None: one device.
      vocab_size: of the whole head; 0: head_DV has all words.
      cap: of the logits; None: none.
    """

    def fn(x_BCD, targets_BC, weights):
        logits_BCV = _logits(x_BCD, weights["head_DV"], cap)
        return _nll(logits_BCV, targets_BC, mesh, vocab_size)

    weights = {"head_DV": head_DV}
    return chunked.over_chunks(fn, x_BTD, targets_BT, weights, chunk=chunk, mesh=mesh)


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
    """Returns (nll_BT float32 nats, hits_BT bool: the target is the argmax); see token_nll."""
    whole_DV = collectives.gather({"head_DV": head_DV}, x_BTD.dtype, mesh)["head_DV"]

    def both(part):
        x_BCD, targets_BC = part
        logits_BCV = _logits(x_BCD, whole_DV, cap)
        best_BC = _argmax(logits_BCV, mesh, vocab_size)
        return _nll(logits_BCV, targets_BC, mesh, vocab_size), best_BC == targets_BC

    return chunked.map_chunks(both, (x_BTD, targets_BT), chunk=chunk)


def capped(logits: jax.Array, cap: float | None) -> jax.Array:
    """Returns cap * tanh(logits / cap) (Gemma 2, arXiv 2408.00118, section 2)."""
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def _logits(x_BCD, head_DV, cap):
    logits_BCV = jnp.einsum(
        "BCD,DV->BCV",
        x_BCD,
        head_DV,
        preferred_element_type=jnp.promote_types(x_BCD.dtype, jnp.float32),
        precision=jax.lax.Precision.HIGHEST if x_BCD.dtype == jnp.float32 else None,
    )
    return capped(logits_BCV, cap)


def _nll(logits_BCV, targets_BC, mesh, vocab_size):
    words = logits_BCV.shape[-1]
    first = collectives.shard_of_vocab(words, vocab_size or words)
    if first is None:
        return jax.nn.logsumexp(logits_BCV, axis=-1) - _pick(logits_BCV, targets_BC)
    top_BC = jax.lax.pmax(jax.lax.stop_gradient(jnp.max(logits_BCV, axis=-1)), collectives.TENSOR)
    total_BC = jnp.sum(jnp.exp(logits_BCV - top_BC[..., None]), axis=-1)
    here = (targets_BC >= first) & (targets_BC < first + words)
    at = jnp.where(here, targets_BC - first, 0)[..., None]
    picked_BC = jnp.where(here, jnp.take_along_axis(logits_BCV, at, axis=-1)[..., 0], 0)
    total_BC, picked_BC = (collectives.sum_over_tensor(x, mesh) for x in (total_BC, picked_BC))
    return top_BC + jnp.log(total_BC) - picked_BC


def _pick(logits_BCV, targets_BC):
    """Returns the logit of each target: by comparison, whose gradient is no scatter."""
    is_target = jnp.arange(logits_BCV.shape[-1])[None, None] == targets_BC[..., None]
    return jnp.sum(jnp.where(is_target, logits_BCV, 0), axis=-1)


def _argmax(logits_BCV, mesh, vocab_size):
    """Returns the first word with the largest logit."""
    words = logits_BCV.shape[-1]
    best_BC = jnp.argmax(logits_BCV, axis=-1)
    first = collectives.shard_of_vocab(words, vocab_size or words)
    if first is None:
        return best_BC
    highest_BC = jnp.max(logits_BCV, axis=-1)
    is_best = highest_BC == jax.lax.pmax(highest_BC, collectives.TENSOR)
    return jax.lax.pmin(jnp.where(is_best, first + best_BC, vocab_size), collectives.TENSOR)

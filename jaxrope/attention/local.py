"""One device's attention with any kernel, differentiable: what `blockwise` and `flash` are, and
what the backends that spread a sequence call on their parts.

A kernel is a pair of functions, forward and backward. The backward one takes the log-sum-exp over
all keys, so the keys that it is given may be a part of them. Results are float32 or wider.

Letters: B batch, T query length, S key length, N heads, K kv heads, H head dim.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxrope.attention import blockwise, cudnn, flash
from jaxrope.attention.masks import Mask
from jaxrope.attention.scale import Scale

# Names for remat policies: with both saved, a backward pass does not run the attention again.
OUT, LSE = "attention_out", "attention_lse"


class Results(NamedTuple):
    """What a backward pass is given of the forward one, and the gradient; over all keys.

    Attributes:
      lse: BTN, float32 or wider.
      inner: BTN, float32 or wider: the sum over H of out * dout.
      dout: BTNH.
      out: BTNH; cuDNN wants it instead of `inner`.
    """

    lse: jax.Array
    inner: jax.Array
    dout: jax.Array
    out: jax.Array


@dataclasses.dataclass(frozen=True)
class Kernel:
    """See the module.

    Attributes:
      forward: (q_BTNH, k_BSKH, v_BSKH, mask, *, scale, block) -> (out_BTNH, lse_BTN).
      backward: (q_BTNH, kv, mask, Results, *, scale, block) -> (dq_BTNH, dk_BSKH, dv_BSKH).
    """

    forward: Callable
    backward: Callable


KERNELS = {
    "blockwise": Kernel(blockwise.forward, blockwise.backward),
    "flash": Kernel(
        functools.partial(flash.forward, interpret=False),
        functools.partial(flash.backward, interpret=False),
    ),
    "flash_interpret": Kernel(
        functools.partial(flash.forward, interpret=True),
        functools.partial(flash.backward, interpret=True),
    ),
    "cudnn": Kernel(cudnn.forward, cudnn.backward),
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 5, 6))
def attention(kernel: str, q_BTNH, k_BSKH, v_BSKH, mask: Mask, scale: Scale, block: int):
    """Returns out_BTNH in the dtype of q."""
    out, _ = KERNELS[kernel].forward(q_BTNH, k_BSKH, v_BSKH, mask, scale=scale, block=block)
    return out.astype(q_BTNH.dtype)


def _attention_fwd(kernel, q, k, v, mask, scale, block):
    out, lse = KERNELS[kernel].forward(q, k, v, mask, scale=scale, block=block)
    out, lse = named(out.astype(q.dtype), lse)
    return out, (q, k, v, mask, out, lse)


def _attention_bwd(kernel, scale, block, residuals, dout):
    q, k, v, mask, out, lse = residuals
    results = results_of(lse, out, dout)
    grads = KERNELS[kernel].backward(q, (k, v), mask, results, scale=scale, block=block)
    return *(grad.astype(x.dtype) for grad, x in zip(grads, (q, k, v), strict=True)), None


attention.defvjp(_attention_fwd, _attention_bwd)


def named(out: jax.Array, lse: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns both with the names that remat policies know."""
    return checkpoint_name(out, OUT), checkpoint_name(lse, LSE)


def results_of(lse_BTN: jax.Array, out_BTNH: jax.Array, dout_BTNH: jax.Array) -> Results:
    """Returns what a backward pass is given."""
    dtype = jnp.promote_types(out_BTNH.dtype, jnp.float32)
    inner_BTN = jnp.sum(out_BTNH.astype(dtype) * dout_BTNH.astype(dtype), axis=-1)
    return Results(lse_BTN, inner_BTN, dout_BTNH, out_BTNH)

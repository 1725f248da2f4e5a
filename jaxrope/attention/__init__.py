"""Attention behind one signature; a backend is chosen by its name and never replaced by another.

Letters of `jax.nn.dot_product_attention`: B batch, T query length, S key length, N heads, K kv
heads, G = N // K, H head dim.
"""

import jax

from jaxrope.attention.blockwise import blockwise
from jaxrope.attention.reference import reference
from jaxrope.errors import choose
from jaxrope.masks import Mask

BACKENDS = {"blockwise": blockwise, "reference": reference}

__all__ = ["BACKENDS", "attend", "blockwise", "reference"]


def attend(
    backend: str,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    mask: Mask,
    scale: float | None = None,
    block: int = 512,
) -> jax.Array:
    """Returns softmax(scale q k^T + mask) v, out_BTNH in the dtype of q; accumulated in float32 or
    wider. A query that sees no key gives zeros.

    Args:
      backend: a name in BACKENDS.
      q_BTNH, k_BSKH, v_BSKH: already rotated; N is a multiple of K.
      mask: which key a query may see.
      scale: of the logits; None: H^-0.5.
      block: tokens in a block, for backends that cut the sequence.

    Raises:
      InputError: an unknown backend.
      ValueError: shapes that do not fit each other.
    """
    attention_fn = choose("attention", backend, BACKENDS)
    (batch, _, num_heads, head_dim), kv_shape = q_BTNH.shape, k_BSKH.shape
    if (
        kv_shape != v_BSKH.shape
        or kv_shape[0] != batch
        or kv_shape[3] != head_dim
        or num_heads % kv_shape[2]
    ):
        raise ValueError(
            f"attention: q_BTNH {q_BTNH.shape}, k_BSKH {kv_shape} and v_BSKH {v_BSKH.shape} must "
            "agree in B and H, and N must be a multiple of K."
        )
    return attention_fn(
        q_BTNH, k_BSKH, v_BSKH, mask=mask, scale=scale or head_dim**-0.5, block=block
    )

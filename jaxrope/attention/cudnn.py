"""Attention on an NVIDIA GPU by cuDNN, through jax.nn.dot_product_attention.

It takes no positions and no segment ids, so it is for sequences in their natural order only.

Letters: B batch, T query length, S key length, N heads, K kv heads, H head dim.
"""

import jax
import jax.numpy as jnp

from jaxrope.attention.masks import Mask
from jaxrope.attention.scale import Scale
from jaxrope.errors import UnsupportedError


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask,
    scale: Scale,
    implementation: str = "cudnn",
) -> jax.Array:
    """Returns out_BTNH.

    Args:
      q_BTNH, k_BSKH, v_BSKH: bfloat16 or float16.
      mask: natural.
      scale: of the products, without a cap.
      implementation: of jax.nn.dot_product_attention; a test takes "xla".

    Raises:
      UnsupportedError: the mask, the dtype or the cap is not for cuDNN.
    """
    wrong = None
    if not mask.natural:
        wrong = "packed or permuted rows (positions or segment ids that are given)"
    elif q_BTNH.dtype not in (jnp.bfloat16, jnp.float16) and implementation == "cudnn":
        wrong = f"{q_BTNH.dtype} (set forward.compute_dtype to bfloat16)"
    elif scale.cap is not None:
        wrong = f"logits capped at {scale.cap:g}"
    if wrong:
        raise UnsupportedError(
            f"attention 'flash' on a GPU is cuDNN's, which cannot do {wrong}. Backends that can: "
            "blockwise, reference."
        )
    return jax.nn.dot_product_attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        scale=scale.factor,
        is_causal=mask.causal,
        # its window counts the keys before the query, ours the query too
        local_window_size=None if mask.window is None else (mask.window - 1, 0),
        implementation=implementation,
    )

"""Attention by its definition: the whole T x S matrix. Every other backend is compared with
this one.
"""

import jax
import jax.numpy as jnp

from jaxrope.attention.masks import Mask, allowed
from jaxrope.attention.scale import Scale


def reference(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, *, mask: Mask, scale: Scale, block: int
) -> jax.Array:
    """See `attention.attend`. `block` is not used: nothing is cut."""
    del block
    batch, q_len, num_heads, head_dim = q_BTNH.shape
    num_kv_heads = k_BSKH.shape[2]
    dtype = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    q_BTKGH = q_BTNH.reshape(batch, q_len, num_kv_heads, num_heads // num_kv_heads, head_dim)
    products_BKGTS = jnp.einsum(
        "BTKGH,BSKH->BKGTS",
        q_BTKGH,
        k_BSKH,
        preferred_element_type=dtype,
        precision=jax.lax.Precision.HIGHEST,
    )
    logits_BKGTS = scale.logits(products_BKGTS)
    visible = allowed(mask)[:, None, None]
    logits_BKGTS = jnp.where(visible, logits_BKGTS, -jnp.inf)
    top = jnp.max(logits_BKGTS, axis=-1, keepdims=True)
    weights = jnp.where(visible, jnp.exp(logits_BKGTS - jnp.where(jnp.isfinite(top), top, 0)), 0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1, total)
    out = jnp.einsum(
        "BKGTS,BSKH->BTKGH", weights, v_BSKH.astype(dtype), precision=jax.lax.Precision.HIGHEST
    )
    return out.reshape(q_BTNH.shape).astype(q_BTNH.dtype)

"""Attention behind one signature; a backend is selected by name, with no silent fallback.

Letters of `jax.nn.dot_product_attention`: B batch, T query length, S key length, N heads, K kv
heads, G = N // K, H head dim.
"""

import jax

from jaxrope.attention import masks
from jaxrope.attention.backends import BACKENDS, SPREAD, Settings
from jaxrope.attention.blockwise import MASKED
from jaxrope.attention.cached import (
    Cache,
    Place,
    gather_stripes,
    own_stripes,
    ring_slots,
    slot_positions,
    unit,
    write,
)
from jaxrope.attention.cached import attend as attend_cached
from jaxrope.attention.choice import LACK, check, length_unit, resolve
from jaxrope.attention.local import KERNELS, LSE, OUT
from jaxrope.attention.masks import Mask, allowed, any_allowed, pad
from jaxrope.attention.trial import lacks
from jaxrope.attention.whole import attend_whole
from jaxrope.attention.zigzag import AXIS, inverse, order
from jaxrope.errors import choose

__all__ = [
    "AXIS",
    "BACKENDS",
    "Cache",
    "KERNELS",
    "LACK",
    "LSE",
    "MASKED",
    "Mask",
    "OUT",
    "Place",
    "SPREAD",
    "Settings",
    "allowed",
    "any_allowed",
    "attend",
    "attend_cached",
    "attend_whole",
    "check",
    "gather_stripes",
    "inverse",
    "lacks",
    "length_unit",
    "masks",
    "order",
    "own_stripes",
    "pad",
    "resolve",
    "ring_slots",
    "slot_positions",
    "unit",
    "write",
]


def attend(
    backend: str,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    mask: Mask,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
) -> jax.Array:
    """Returns softmax(scale q k^T + mask) v, out_BTNH in the dtype of q; accumulated in float32 or
    wider. Logits may be capped (settings.cap). A query that sees no key gives zeros.

    Args:
      backend: a name in BACKENDS.
      q_BTNH, k_BSKH, v_BSKH: already rotated; N is a multiple of K. With settings.mesh, this
        device's part of them: its rows, its heads, its tokens in the order of `order`.
      mask: which key a query may see; of this device's tokens.
      settings: how it is computed.

    Raises:
      InputError: an unknown name.
      UnsupportedError: (a NotImplementedError) this backend cannot do this; the message names those
        that can.
      ValueError: shapes that do not fit each other.
    """
    attention_fn = choose("attention", backend, BACKENDS)
    choose("attention_kernel", settings.kernel, KERNELS)
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
    return attention_fn(q_BTNH, k_BSKH, v_BSKH, mask.of_batch(batch), settings)

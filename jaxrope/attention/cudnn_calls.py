"""cuDNN's fused attention as XLA knows it: one custom call forward, one backward.

They are what `jax.nn.dot_product_attention(implementation="cudnn")` lowers to, and come with every
jax for GPUs. That function is not called, because a ring needs what it hides: packed sequences with
their log-sum-exp, and a backward pass that is given the output and the log-sum-exp over all keys,
of which a hop has a part. Of the others, jax's Pallas kernels have no packed rows (the one for
Hopper; nor causal gradients) or no grouped heads (the deprecated one for Triton); tokamax's Mosaic
kernels can do all of this, for nine more packages, but lower on a GPU alone.

Letters: B rows, T query length, S key length, N heads, K kv heads, H head dim, M sequences of a row
at most.
"""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrope.errors import UnsupportedError

ELEMENT_TYPES = {"bfloat16": "BF16", "float16": "F16"}
_LEGACY_API = 2  # XLA finds the calls by their names; they are no typed FFI handlers
_AS_BTNH = (0, 2, 1, 3)  # of an array BNTH, in memory and as a permutation
# (contracted dims, batch dims) of the left and of the right operand, for BTNH and BNTS
_PRODUCTS = {
    "bmm1": ((3, 3), ((0, 2), (0, 2))),
    "bmm2": ((3, 1), ((0, 1), (0, 2))),
}
_PRODUCTS_BACK = {
    "bmm1_grad_gemm1": ((2, 1), ((0, 1), (0, 2))),
    "bmm1_grad_gemm2": ((3, 1), ((0, 1), (0, 2))),
    "bmm2_grad_gemm1": ((2, 1), ((0, 1), (0, 2))),
    "bmm2_grad_gemm2": ((3, 3), ((0, 2), (0, 2))),
}


class How(NamedTuple):
    """What is static.

    Attributes:
      scale: of the products of queries and keys.
      causal: the i-th query of a sequence sees its keys up to the i-th.
      window: and of these the last so many; None: all. Only where causal.
    """

    scale: float
    causal: bool
    window: int | None


class Sequences(NamedTuple):
    """Sequences of queries, each with one of keys, anywhere in the rows; int32.

    Those of all rows lie one behind another, and behind them those of length 0. What lies in no
    sequence is neither read nor written: the results have anything there.

    Attributes:
      q_lens_BM, kv_lens_BM: tokens.
      q_offsets_BM1, kv_offsets_BM1: where they begin, in numbers (not tokens) from the beginning of
        the array; then its length.
    """

    q_lens_BM: jax.Array
    kv_lens_BM: jax.Array
    q_offsets_BM1: jax.Array
    kv_offsets_BM1: jax.Array


def forward(q_BTNH, k_BSKH, v_BSKH, sequences: Sequences | None, how: How):
    """Returns (out_BTNH in the dtype of q, log-sum-exp float32 [B, N, T], or [B M, N, T] by place
    in the sequence).

    Args:
      q_BTNH, k_BSKH, v_BSKH: of one dtype of ELEMENT_TYPES.
      sequences: None: each row is one.
      how: the rest.
    """
    batch, length, heads, _ = q_BTNH.shape
    shapes = [q_BTNH.shape, (batch * _most(sequences), heads, length)]
    config = _config(q_BTNH, k_BSKH, sequences, how, _PRODUCTS)
    operands = q_BTNH, k_BSKH, v_BSKH, *(sequences or ())
    return _call("__cudnn$fmhaSoftmax", operands, shapes, (q_BTNH.dtype, jnp.float32), config)


def backward(q_BTNH, kv, results, sequences: Sequences | None, how: How):
    """Returns (dq_BTNH, dk_BSKH, dv_BSKH) in the dtype of q.

    Args:
      q_BTNH, sequences, how: of the forward pass.
      kv: (k_BSKH, v_BSKH).
      results: (log-sum-exp as of `forward`, out_BTNH, dout_BTNH); these may be over more keys.
    """
    k_BSKH, v_BSKH = kv
    lse, out_BTNH, dout_BTNH = results
    shapes = [q_BTNH.shape, k_BSKH.shape, v_BSKH.shape]
    config = _config(q_BTNH, k_BSKH, sequences, how, _PRODUCTS_BACK)
    operands = q_BTNH, k_BSKH, v_BSKH, lse, dout_BTNH, out_BTNH, *(sequences or ())
    return _call("__cudnn$fmhaSoftmaxBackward", operands, shapes, (q_BTNH.dtype,) * 3, config)


def _call(target: str, operands, shapes, dtypes, config: str) -> tuple[jax.Array, ...]:
    """Returns the results; those with heads come as BNTH, in memory as BTNH."""
    declared, layouts = [], []
    for shape, dtype in zip(shapes, dtypes, strict=True):
        is_BTNH = len(shape) == 4
        shape = tuple(shape[dim] for dim in _AS_BTNH) if is_BTNH else shape
        declared.append(jax.ShapeDtypeStruct(shape, dtype))
        layouts.append(_AS_BTNH if is_BTNH else tuple(range(len(shape))))
    *results, _ = jax.ffi.ffi_call(
        target,
        (*declared, jax.ShapeDtypeStruct((0,), jnp.uint8)),  # XLA makes a workspace of the last
        vmap_method="sequential",
        output_layouts=(*layouts, (0,)),
        custom_call_api_version=_LEGACY_API,
        legacy_backend_config=config,
    )(*operands)
    return tuple(x.transpose(_AS_BTNH) if x.ndim == 4 else x for x in results)


def _most(sequences: Sequences | None) -> int:
    return 1 if sequences is None else sequences.q_lens_BM.shape[1]


def _config(q_BTNH, k_BSKH, sequences: Sequences | None, how: How, products) -> str:
    """Returns XLA's GpuBackendConfig as JSON; strings where its numbers have 64 bits."""
    dtype = str(q_BTNH.dtype)
    if dtype not in ELEMENT_TYPES:
        raise UnsupportedError(
            f"attention 'flash' on a GPU is cuDNN's, which cannot do {dtype}. Set "
            "forward.compute_dtype to bfloat16, or use blockwise."
        )
    (batch, q_len, heads, _), kv_len = q_BTNH.shape, k_BSKH.shape[1]
    mask_type = "CAUSAL" if how.causal else "NO_MASK"
    if sequences is not None:
        mask_type = "PADDING_CAUSAL" if how.causal else "PADDING"
    logits = {
        "element_type": ELEMENT_TYPES[dtype],
        "dimensions": [str(size) for size in (batch, heads, q_len, kv_len)],
        "tuple_shapes": [],
        "layout": {
            "dim_level_types": [],
            "dim_unique": [],
            "dim_ordered": [],
            "minor_to_major": ["3", "2", "1", "0"],
            "tiles": [],
            "element_size_in_bits": "0",
            "memory_space": "0",
            "index_primitive_type": "PRIMITIVE_TYPE_INVALID",
            "pointer_primitive_type": "PRIMITIVE_TYPE_INVALID",
            "dynamic_shape_metadata_prefix_bytes": "0",
        },
        "is_dynamic_dimension": [False] * 4,
    }
    config = {
        "algorithm": {
            "algo_id": "0",
            "math_type": "TENSOR_OP_MATH",
            "tuning_knobs": {"17": "1", "24": "0"},
            "is_cudnn_frontend": True,
            "workspace_size": "0",
        },
        "fmha_scale": how.scale,
        "intermediate_tensor_shape": logits,
        "is_flash_attention": True,
        "mask_type": mask_type,
        "dropout_rate": 0.0,
        "seed": 42,
        "sliding_window_length": how.window or 0,
        "max_seg_per_batch": _most(sequences),
        "is_paged_attention": False,
    }
    for name, (contracted, batched) in products.items():
        config[f"{name}_dot_dimension_numbers"] = {
            "lhs_contracting_dimensions": [str(contracted[0])],
            "rhs_contracting_dimensions": [str(contracted[1])],
            "lhs_batch_dimensions": [str(dim) for dim in batched[0]],
            "rhs_batch_dimensions": [str(dim) for dim in batched[1]],
        }
    return json.dumps({"operation_queue_id": "0", "cudnn_fmha_backend_config": config})

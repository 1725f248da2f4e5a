"""Programs for attention on one GPU: ours, and those of others."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import gpu_conformance
from jaxrope.attention import masks


class Peer(NamedTuple):
    """A way to compute attention.

    Attributes:
      make: (tokens, (heads, kv heads, head dim)) -> {"forward", "both": (fn, wait)}, where wait
        waits for what fn returned.
      pairs: of tokens that see each other, in a row.
    """

    make: Callable
    pairs: float


def peers(backend: str, kernel: str, length: int, documents: int, window: int) -> dict[str, Peer]:
    """Returns all of them by name.

    Args:
      backend, kernel: ours.
      length: tokens of a row; a multiple of documents.
      documents: of the packed row.
      window: tokens that a query sees in a window.
    """
    places, each = jnp.arange(length, dtype=jnp.int32)[None], length // documents
    packed = masks.self_mask(places % each, places // each + 1, ordered=True)
    causal, windowed = (
        masks.self_mask(places, window=w, ordered=True) for w in (None, min(window, length))
    )

    def ours(mask, *how):
        return functools.partial(
            _jax_programs, functools.partial(gpu_conformance.attend, *how, mask)
        )

    def through_jax(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")

    half = length * length / 2
    near = min(window, length)
    return {
        "ours": Peer(ours(causal, backend, kernel), half),
        "ours, packed": Peer(ours(packed, backend, kernel), half / documents),
        "ours, window": Peer(ours(windowed, backend, kernel), near * (length - near / 2)),
        "cuDNN through jax": Peer(functools.partial(_jax_programs, through_jax), half),
        "torch, flash": Peer(functools.partial(_torch_programs, "FLASH_ATTENTION"), half),
        "torch, cuDNN": Peer(functools.partial(_torch_programs, "CUDNN_ATTENTION"), half),
        "blocks": Peer(ours(causal, "blockwise", "blockwise"), half),
    }


def _jax_programs(fn, length: int, sizes):
    operands = gpu_conformance.operands(length, length, *sizes)
    forward, both = jax.jit(fn), gpu_conformance.with_gradients(fn)
    return {
        "forward": (lambda: forward(*operands[:3]), jax.block_until_ready),
        "both": (lambda: both(*operands), jax.block_until_ready),
    }


def _torch_programs(which: str, length: int, sizes):
    import torch
    from torch.nn import attention as sdpa

    if not torch.cuda.is_available():
        raise ImportError("torch has no GPU")
    heads, kv_heads, dim = sizes
    q, k, v, dout = (
        torch.randn(1, n, length, dim, device="cuda", dtype=torch.bfloat16)
        for n in (heads, kv_heads, kv_heads, heads)
    )
    how = dict(is_causal=True, enable_gqa=True)

    def attend():
        with sdpa.sdpa_kernel(sdpa.SDPBackend[which]):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, **how)

    def forward():
        with torch.no_grad():
            return attend()

    def both():
        for x in (q, k, v):
            x.requires_grad_()
        return torch.autograd.grad(attend(), (q, k, v), dout)

    def wait(_):
        torch.cuda.synchronize()

    return {"forward": (forward, wait), "both": (both, wait)}

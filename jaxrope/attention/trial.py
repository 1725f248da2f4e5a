"""A trial of cuDNN's attention on the GPU at hand, before a program relies on it: it depends on the
versions of cuDNN, the driver and XLA what it takes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxrope.attention import cudnn, local, masks
from jaxrope.attention.scale import Scale

_TOKENS, _DOCUMENTS = 512, 3
_APART = 0.05  # of the largest number; in bfloat16 blocks are half a hundredth from the definition


def lacks(
    dtype: str,
    head_dim: int,
    heads: tuple[int, int],
    *,
    window: int | None,
    capped: bool,
    capability: float | None,
) -> str | None:
    """Returns what cuDNN's attention cannot do here; None: it can, and a trial gave the results and
    gradients of attention in blocks. Run on the first GPU; seconds, once in a process.

    Args:
      dtype, head_dim, capped, capability: see cudnn.lacks.
      heads: of queries, and of keys.
      window: of the layers that slide; None: none do.
    """
    lack = cudnn.lacks(dtype, head_dim, capped=capped, capability=capability)
    windows = (None,) if window is None else (None, min(window, _TOKENS // 4))
    return lack or next(filter(None, (_trial(dtype, head_dim, heads, w) for w in windows)), None)


@functools.cache
def _trial(dtype, head_dim, heads, window):
    rng, shape = np.random.default_rng(0), (1, _TOKENS)
    dims = (heads[0], heads[1], heads[1], heads[0])
    operands = [jnp.asarray(rng.normal(size=(*shape, n, head_dim)), dtype) for n in dims]
    place = np.arange(_TOKENS, dtype=np.int32)[None]
    ids = place * _DOCUMENTS // _TOKENS + 1
    starts = np.searchsorted(ids[0], ids[0])[None]

    def both(kernel, q, k, v, dout):
        mask = masks.self_mask(place - starts, ids, window=window, ordered=True)
        scale = Scale(head_dim**-0.5, None)
        attend = functools.partial(local.attention, kernel, mask=mask, scale=scale, block=_TOKENS)
        out, transpose = jax.vjp(lambda *qkv: attend(*qkv), q, k, v)
        return out, *transpose(dout)

    kind = "packed rows" if window is None else f"a window of {window} in packed rows"
    try:
        with jax.default_device(jax.local_devices()[0]):
            found, wanted = (
                jax.tree.map(np.float32, jax.jit(functools.partial(both, kernel))(*operands))
                for kernel in ("cudnn", "blockwise")
            )
    except (RuntimeError, ValueError) as error:  # of a compiler or a driver: blocks do it too
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return f"{kind} on this GPU, by a trial: {reason}"
    apart = max(np.max(abs(a - b)) / np.max(abs(b)) for a, b in zip(found, wanted, strict=True))
    if apart < _APART:
        return None
    return f"{kind} on this GPU, by a trial: its results are {apart:.0%} from those of blocks"

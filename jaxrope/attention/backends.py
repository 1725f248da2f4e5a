"""The backends by name, each with the one signature of `attention.attend`.

Letters: B batch, T query length, S key length, N heads, K kv heads, H head dim.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from jaxrope.attention import exchange, local, ring, zigzag
from jaxrope.attention.hops import Segments, Sizes
from jaxrope.attention.masks import Mask
from jaxrope.attention.reference import reference as by_definition
from jaxrope.attention.scale import Scale
from jaxrope.errors import UnsupportedError
from jaxrope.mesh import cache


@dataclasses.dataclass(frozen=True)
class Settings:
    """How attention is computed.

    Attributes:
      scale: of the products of queries and keys; None: H^-0.5.
      cap: of the logits, see scale.Scale; None: none.
      block: tokens in a block, for backends that cut the sequence.
      kernel: what computes the part of a device, a name in KERNELS.
      mesh: the caller is inside a shard_map over it, all axes manual; None: one device.
      ulysses: devices of the axis `context` that exchange heads, for "usp".
    """

    scale: float | None = None
    cap: float | None = None
    block: int = 512
    kernel: str = "blockwise"
    mesh: Mesh | None = None
    ulysses: int = 1

    @property
    def context(self) -> int:
        """Devices that a sequence is spread over."""
        return self.mesh.shape[zigzag.AXIS] if self.mesh else 1

    def scale_for(self, head_dim: int) -> Scale:
        """Returns how products of vectors of `head_dim` become logits."""
        return Scale(head_dim**-0.5 if self.scale is None else self.scale, self.cap)

    def sizes(self, head_dim: int) -> Sizes:
        """Returns what the parts of a spread backend need."""
        return Sizes(self.kernel, self.scale_for(head_dim), self.block)


def reference(q_BTNH, k_BSKH, v_BSKH, mask: Mask, settings: Settings) -> jax.Array:
    """The definition."""
    _refuse_context("reference", settings)
    scale = settings.scale_for(q_BTNH.shape[-1])
    return by_definition(q_BTNH, k_BSKH, v_BSKH, mask=mask, scale=scale, block=0)


def blockwise(q_BTNH, k_BSKH, v_BSKH, mask: Mask, settings: Settings) -> jax.Array:
    """XLA, in blocks."""
    _refuse_context("blockwise", settings)
    return _local("blockwise", settings, q_BTNH, k_BSKH, v_BSKH, mask)


def flash(q_BTNH, k_BSKH, v_BSKH, mask: Mask, settings: Settings) -> jax.Array:
    """The platform's own kernels: ours on a TPU, cuDNN's on a GPU."""
    _refuse_context("flash", settings)
    kernel = settings.kernel if settings.kernel != "blockwise" else "flash"
    return _local(kernel, settings, q_BTNH, k_BSKH, v_BSKH, mask)


def ring_attention(q_BTNH, k_BSKH, v_BSKH, mask: Mask, settings: Settings) -> jax.Array:
    """Keys go round a ring of all devices of the axis; with a window only to the neighbours, or,
    where it is longer than a chunk, to all.
    """
    _refuse_for_ring("ring", q_BTNH, k_BSKH, mask)
    return _ring(ring.Ring(settings.context, 1), settings, q_BTNH, k_BSKH, v_BSKH, mask)


def all_gather(q_BTNH, k_BSKH, v_BSKH, mask: Mask, settings: Settings) -> jax.Array:
    """Every device takes all keys."""
    if settings.context == 1:
        return _local(settings.kernel, settings, q_BTNH, k_BSKH, v_BSKH, mask)
    return _gathered(settings, 1, q_BTNH, k_BSKH, v_BSKH, mask)


def ulysses(q_BTNH, k_BSKH, v_BSKH, mask: Mask, settings: Settings) -> jax.Array:
    """Every device takes all tokens, and a part of the heads."""
    within = functools.partial(_local, settings.kernel, settings)
    if settings.context == 1:
        return within(q_BTNH, k_BSKH, v_BSKH, mask)
    _refuse_heads("ulysses", settings.context, q_BTNH, k_BSKH)
    return exchange.heads_for_tokens(within, settings.context, q_BTNH, k_BSKH, v_BSKH, mask)


def usp(q_BTNH, k_BSKH, v_BSKH, mask: Mask, settings: Settings) -> jax.Array:
    """Groups of `ulysses` devices exchange heads; keys go round a ring of groups."""
    _refuse_for_ring("usp", q_BTNH, k_BSKH, mask)
    group = settings.ulysses
    if settings.context % group:
        raise ValueError(
            f"attention: the group of usp, {group}, must divide the axis context, "
            f"{settings.context}."
        )
    rings = ring.Ring(settings.context // group, group)
    within = functools.partial(_ring, rings, settings)
    if group == 1:
        return within(q_BTNH, k_BSKH, v_BSKH, mask)
    _refuse_heads("usp", group, q_BTNH, k_BSKH)
    return exchange.heads_for_tokens(within, group, q_BTNH, k_BSKH, v_BSKH, mask)


BACKENDS: dict[str, Callable[..., jax.Array]] = {
    "reference": reference,
    "blockwise": blockwise,
    "flash": flash,
    "ring": ring_attention,
    "all_gather": all_gather,
    "ulysses": ulysses,
    "usp": usp,
}
_CACHED = 5 << 20  # bytes of a block's logits on a CPU: twice as many took up to twice as long
SPREAD = ("ring", "all_gather", "ulysses", "usp")  # take a sequence that lies on several devices


def _local(kernel: str, settings: Settings, q, k, v, mask: Mask) -> jax.Array:
    scale = settings.scale_for(q.shape[-1])
    return local.attention(kernel, q, k, v, mask, scale, _block(settings, q))


def _block(settings: Settings, q_BTNH: jax.Array) -> int:
    def logits_bytes(block):
        return 4 * q_BTNH.shape[0] * q_BTNH.shape[2] * block**2

    block = min(settings.block, q_BTNH.shape[1])
    return cache.cut(block, logits_bytes, _CACHED, least=64, mesh=settings.mesh)


def _ring(who: ring.Ring, settings: Settings, q, k, v, mask: Mask) -> jax.Array:
    if who.size == 1:
        return _local(settings.kernel, settings, q, k, v, mask)
    sizes = settings.sizes(q.shape[-1])
    if mask.window is None:
        segments = Segments(mask.q_segment_ids_BT, mask.kv_segment_ids_BS)
        return ring.attention(who, sizes, q, k, v, segments)
    if mask.window <= q.shape[1] // 2 + 1:
        return ring.neighbours(who, sizes, q, k, v, mask)
    return _gathered(settings, who.stride, q, k, v, mask)


def _gathered(settings: Settings, group: int, q, k, v, mask: Mask) -> jax.Array:
    """Keys come in the order of the zigzag, for which cuDNN has no mask: blocks do that there."""
    sizes = settings.sizes(q.shape[-1])
    if sizes.kernel == "cudnn":
        sizes = sizes._replace(kernel="blockwise")
    return exchange.all_gather(sizes, group, q, k, v, mask)


def _refuse_context(name: str, settings: Settings) -> None:
    if settings.context > 1:
        raise UnsupportedError(
            f"attention '{name}' sees the tokens of one device only, and the mesh spreads a "
            f"sequence over {settings.context}. Backends that can: {', '.join(SPREAD)}."
        )


def _refuse_for_ring(name: str, q_BTNH, k_BSKH, mask: Mask) -> None:
    wrong = None
    if not mask.causal:
        wrong = "a mask that is not causal"
    elif q_BTNH.shape[1] != k_BSKH.shape[1]:
        wrong = f"{q_BTNH.shape[1]} queries with {k_BSKH.shape[1]} keys"
    if wrong:
        raise UnsupportedError(
            f"attention '{name}' cannot do {wrong}. Backends that can: all_gather, ulysses; on "
            "one device: blockwise, flash, reference."
        )


def _refuse_heads(name: str, group: int, q_BTNH, k_BSKH) -> None:
    num_heads, kv_heads = q_BTNH.shape[2], k_BSKH.shape[2]
    if num_heads % group or (kv_heads % group and group % kv_heads):
        raise UnsupportedError(
            f"attention '{name}' deals {num_heads} heads and {kv_heads} kv heads out to {group} "
            "devices: it must divide the first, and divide or be a multiple of the second. "
            "Backends that can: ring, all_gather."
        )

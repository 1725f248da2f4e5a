"""How the TPU kernels want their operands: queries as rows of their kv head, results transposed.

Rows: the queries of one kv head, M = P G C of them in the order part, head of the group, token;
the ring's P = 2 parts are the halves of the zigzag, else P = 1.

Letters: B batch, T query length, S key length, N heads, K kv heads, G = N // K, H head dim,
Z = B K, P parts, C tokens of a part, M rows, Q rows of a block of queries, X keys of a block.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrope.attention.scale import Scale

MASKED = -1e30  # not -inf: the difference of two infinities is not a number
EMPTY = -1e29  # a row whose maximum lies below has seen no key
_CHUNK_BLOCKS = 8  # blocks of queries whose dq is in fast memory: 4 MiB with 1,024 tokens of 128


@dataclasses.dataclass(frozen=True)
class Layout:
    """The sizes that a call is compiled for; see the module for the letters.

    Attributes:
      batch, kv_heads, group, parts, part_len, head_dim: B, K, G, P, C, H.
      q_block, kv_block: Q and X; Q divides C.
      scale: of the logits.
      interpret: run by the interpreter, on any platform.
    """

    batch: int
    kv_heads: int
    group: int
    parts: int
    part_len: int
    head_dim: int
    q_block: int
    kv_block: int
    scale: Scale
    interpret: bool

    @property
    def part_blocks(self) -> int:
        """Blocks of queries in a part, for one head."""
        return self.part_len // self.q_block

    @property
    def chunk(self) -> int:
        """Rows whose dq is in fast memory at one time; they divide a part's."""
        blocks = self.group * self.part_blocks
        return self.q_block * next(n for n in range(_CHUNK_BLOCKS, 0, -1) if blocks % n == 0)

    @property
    def num_chunks(self) -> int:
        """Chunks of all rows."""
        return self.parts * self.group * self.part_len // self.chunk

    def token_blocks(self, chunk: int) -> np.ndarray:
        """Returns the block of tokens, along T, of each block of rows of a chunk."""
        row_blocks = (chunk * self.chunk) // self.q_block + np.arange(self.chunk // self.q_block)
        part, rest = np.divmod(row_blocks, self.group * self.part_blocks)
        return part * self.part_blocks + rest % self.part_blocks


class Carry(NamedTuple):
    """The forward pass so far, float32: the unnormalised output, transposed, with the running
    maximum of the logits over `scale.factor` and the sum of the weights.
    """

    out_ZHM: jax.Array
    top_Z1M: jax.Array
    total_Z1M: jax.Array


def rows(layout: Layout, x_BTNH: jax.Array) -> jax.Array:
    """Returns x_ZMH of queries, outputs or their gradients."""
    split = (layout.batch, layout.parts, -1, layout.kv_heads, layout.group, layout.head_dim)
    ordered = x_BTNH.reshape(split).transpose(0, 3, 1, 4, 2, 5)
    return ordered.reshape(layout.batch * layout.kv_heads, -1, layout.head_dim)


def vectors(layout: Layout, x_BTN: jax.Array) -> jax.Array:
    """Returns x_Z1M of one number for each query and head."""
    return rows(dataclasses.replace(layout, head_dim=1), x_BTN[..., None]).swapaxes(1, 2)


def heads(layout: Layout, x_ZHM: jax.Array) -> jax.Array:
    """Returns x_BTNH of what a kernel left transposed."""
    dim = x_ZHM.shape[1]
    split = (layout.batch, layout.kv_heads, dim, layout.parts, layout.group, -1)
    ordered = x_ZHM.reshape(split).transpose(0, 3, 5, 1, 4, 2)
    return ordered.reshape(layout.batch, -1, layout.kv_heads * layout.group, dim)


def keys(x_BSKH: jax.Array) -> jax.Array:
    """Returns x_ZSH of keys or values."""
    batch, length, num_kv_heads, head_dim = x_BSKH.shape
    return x_BSKH.transpose(0, 2, 1, 3).reshape(batch * num_kv_heads, length, head_dim)


def unkeys(layout: Layout, x_ZSH: jax.Array) -> jax.Array:
    """Returns x_BSKH; undoes `keys`."""
    return x_ZSH.reshape(layout.batch, layout.kv_heads, *x_ZSH.shape[1:]).transpose(0, 2, 1, 3)


def start(layout: Layout) -> Carry:
    """Returns the carry before any key was seen."""
    num, size = layout.batch * layout.kv_heads, layout.parts * layout.group * layout.part_len
    return Carry(
        jnp.zeros((num, layout.head_dim, size), jnp.float32),
        jnp.full((num, 1, size), MASKED, jnp.float32),
        jnp.zeros((num, 1, size), jnp.float32),
    )


def finish(layout: Layout, carry: Carry, dtype) -> tuple[jax.Array, jax.Array]:
    """Returns (out_BTNH in `dtype`, log-sum-exp Z1M float32); rows that saw no key give zeros."""
    empty = carry.top_Z1M < EMPTY
    total = jnp.where(empty, 1, carry.total_Z1M)
    out_ZHM = jnp.where(empty, 0, carry.out_ZHM / total).astype(dtype)
    lse_Z1M = jnp.where(empty, MASKED, carry.top_Z1M * layout.scale.factor + jnp.log(total))
    return heads(layout, out_ZHM), lse_Z1M


def zero_grads(layout: Layout, kv_len: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (dq_ZHM, dk_ZSH, dv_ZSH) of zeros, float32."""
    num, dim = layout.batch * layout.kv_heads, layout.head_dim
    rows = layout.parts * layout.group * layout.part_len
    dkv = jnp.zeros((num, kv_len, dim), jnp.float32)
    return jnp.zeros((num, dim, rows), jnp.float32), dkv, dkv


def finish_grads(layout: Layout, grads) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (dq_BTNH, dk_BSKH, dv_BSKH), float32, of what `pallas_tpu.backward` summed up."""
    dq_ZHM, dk_ZSH, dv_ZSH = grads
    dk_BSKH, dv_BSKH = unkeys(layout, dk_ZSH), unkeys(layout, dv_ZSH)
    factor = layout.scale.factor
    return factor * heads(layout, dq_ZHM), factor * dk_BSKH, dv_BSKH

"""Attention in blocks with a running softmax: memory linear in length, and a backward pass that
recomputes the weights from the log-sum-exp.

Online softmax (Milakov and Gimelshein, arXiv 1805.02867; FlashAttention-2, arXiv 2307.08691). A
block of keys that no query of the block may see is passed over, and one that all may see needs no
mask: on a CPU that of keys by queries costs more than a product.

Letters: B batch, T query length, S key length, N heads, K kv heads, G = N // K, H head dim, n
blocks, C block of queries, X block of keys, M = G C.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrope.attention.masks import Mask, all_allowed, allowed, any_allowed, pad
from jaxrope.attention.scale import Scale

MASKED = -1e30  # not -inf: the difference of two infinities is not a number
EMPTY = -1e29  # a row whose maximum lies below has seen no key


def forward(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask, *, scale: Scale, block: int
) -> tuple[jax.Array, jax.Array]:
    """Returns (out_BTNH, log-sum-exp BTN), both float32 or wider; a row that sees no key has zeros
    and a log-sum-exp of -1e30.
    """
    q_BTNH, mask = _tie(q_BTNH, mask)
    cut = _Cut.of(q_BTNH, k_BSKH, block)
    blocks = cut.mask(mask)
    out, lse = _forward(cut.queries(q_BTNH), cut.keys(k_BSKH), cut.keys(v_BSKH), blocks, scale)
    return cut.rows(out), cut.rows(lse[..., None])[..., 0]


def backward(
    q_BTNH: jax.Array,
    kv: tuple[jax.Array, jax.Array],
    mask: Mask,
    results: NamedTuple,
    *,
    scale: Scale,
    block: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (dq_BTNH, dk_BSKH, dv_BSKH), float32 or wider (FlashAttention-2, Algorithm 2).

    Args:
      q_BTNH: queries.
      kv: (k_BSKH, v_BSKH); they may be a part of all keys.
      mask: of these queries and keys.
      results: local.Results over ALL keys.
      scale: of the logits.
      block: tokens in a block.
    """
    k_BSKH, v_BSKH = kv
    q_BTNH, mask = _tie(q_BTNH, mask)
    cut = _Cut.of(q_BTNH, k_BSKH, block)
    q, dout = cut.queries(q_BTNH), cut.queries(results.dout.astype(q_BTNH.dtype))
    lse, inner = (cut.queries(x[..., None])[..., 0] for x in (results.lse, results.inner))
    rows = _Rows(q, dout, lse, inner)
    dq, dk, dv = _backward(rows, cut.keys(k_BSKH), cut.keys(v_BSKH), cut.mask(mask), scale)
    return cut.rows(dq), cut.unkeys(dk), cut.unkeys(dv)


@dataclasses.dataclass(frozen=True)
class _Cut:
    """How sequences are cut into blocks; the last block is filled up with tokens that see nothing.

    Attributes:
      q_len, kv_len: T and S.
      q_block, kv_block: tokens of a block.
      kv_heads: K.
    """

    q_len: int
    kv_len: int
    q_block: int
    kv_block: int
    kv_heads: int

    @classmethod
    def of(cls, q_BTNH, k_BSKH, block: int):
        q_len, (kv_len, kv_heads) = q_BTNH.shape[1], k_BSKH.shape[1:3]
        return cls(q_len, kv_len, min(block, q_len), min(block, kv_len), kv_heads)

    def queries(self, x_BTNH):
        """Returns x_nBKGCH."""
        batch, _, num_heads, dim = x_BTNH.shape
        x = _pad(x_BTNH, -self.q_len % self.q_block)
        split = (batch, -1, self.q_block, self.kv_heads, num_heads // self.kv_heads, dim)
        return x.reshape(split).transpose(1, 0, 3, 4, 2, 5)

    def rows(self, x_nBKGCH):
        """Returns x_BTNH; undoes `queries`."""
        _, batch, kv_heads, group, _, dim = x_nBKGCH.shape
        x = x_nBKGCH.transpose(1, 0, 4, 2, 3, 5).reshape(batch, -1, kv_heads * group, dim)
        return x[:, : self.q_len]

    def keys(self, x_BSKH):
        """Returns x_nBKCH."""
        batch, _, kv_heads, dim = x_BSKH.shape
        x = _pad(x_BSKH, -self.kv_len % self.kv_block)
        return x.reshape(batch, -1, self.kv_block, kv_heads, dim).transpose(1, 0, 3, 2, 4)

    def unkeys(self, x_nBKCH):
        """Returns x_BSKH; undoes `keys`."""
        _, batch, kv_heads, _, dim = x_nBKCH.shape
        x = x_nBKCH.transpose(1, 0, 3, 2, 4).reshape(batch, -1, kv_heads, dim)
        return x[:, : self.kv_len]

    def mask(self, mask: Mask) -> Mask:
        """Returns the mask with leaves [n, B, block]."""
        padded = pad(mask, -self.q_len % self.q_block, -self.kv_len % self.kv_block)
        return _cut_mask(padded, self.q_block, self.kv_block)


class _Rows(NamedTuple):
    q: jax.Array
    dout: jax.Array
    lse: jax.Array
    inner: jax.Array


def _tie(q_BTNH, mask: Mask):
    """Returns both, the mask such that it depends on the queries.

    Otherwise, where a scan over layers is differentiated, JAX takes the masks of all pairs of
    blocks out of it and keeps them, N T^2 numbers: 1.3 GiB with 4 heads and 8,192 tokens.
    """
    return jax.lax.optimization_barrier((q_BTNH, mask))


def _forward(q, k, v, mask, scale):
    """Returns (out_nBKGCH, log-sum-exp nBKGC), float32 or wider."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    pairs = len(q) * len(k)

    def over_queries(_, query):
        q_block, q_mask = query

        def over_keys(carry, keys):
            k_block, v_block, kv_mask = keys
            block_mask = _join(mask, q_mask, kv_mask)

            def visit(carry, some_hidden):
                out, top, total = carry
                logits = scale.logits(_dot("BKGCH,BKXH->BKGCX", q_block, k_block, dtype))
                if some_hidden:
                    logits = jnp.where(allowed(block_mask)[:, None, None], logits, MASKED)
                new_top = jnp.maximum(top, jnp.max(logits, axis=-1))
                weights = jnp.exp(logits - new_top[..., None])
                shrink = jnp.exp(top - new_top)
                out = out * shrink[..., None] + _dot(
                    "BKGCX,BKXH->BKGCH", weights.astype(v.dtype), v_block, dtype
                )
                return out, new_top, total * shrink + jnp.sum(weights, axis=-1)

            return _visit(block_mask, pairs, visit, lambda carry: carry, carry), None

        rows = q_block.shape[:-1]
        start = (
            jnp.zeros(q_block.shape, dtype),
            jnp.full(rows, MASKED, dtype),
            jnp.zeros(rows, dtype),
        )
        (out, top, total), _ = jax.lax.scan(over_keys, start, (k, v, _kv_part(mask)))
        empty = top < EMPTY
        out = jnp.where(empty[..., None], 0, out / jnp.where(empty, 1, total)[..., None])
        lse = jnp.where(empty, MASKED, top + jnp.log(jnp.where(empty, 1, total)))
        return None, (out, lse)

    return jax.lax.scan(over_queries, None, (q, _q_part(mask)))[1]


def _backward(rows: _Rows, k, v, mask, scale):
    """Returns gradients of q, k and v, block by block.

    Weights are computed transposed, keys by queries (M = G C of them), and dq as its transpose, so
    that each of the five products of a block is a plain one of rows by columns: XLA's CPU backend
    takes three times as long for a transposed operand.
    """
    q = rows.q
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    pairs = len(q) * len(k)
    flat = (*q.shape[:3], -1)
    q_nBKMH, dout_nBKMH = (x.reshape(*flat, q.shape[-1]) for x in (q, rows.dout))
    lse_nBKM, inner_nBKM = rows.lse.reshape(flat), rows.inner.reshape(flat)
    queries = (q_nBKMH, dout_nBKMH, lse_nBKM, inner_nBKM, _q_part(mask))
    k_nBKHC = k.swapaxes(-1, -2)

    def over_queries(carry, query):
        q_BKMH, dout_BKMH, lse_BKM, inner_BKM, q_mask = query

        def over_keys(dq_BKHM, keys):
            k_BKXH, k_BKHX, v_BKXH, kv_mask = keys
            block_mask = _join(mask, q_mask, kv_mask)

            def visit(dq_BKHM, some_hidden):
                logits = scale.logits(_dot("BKXH,BKMH->BKXM", k_BKXH, q_BKMH, dtype))
                weights = jnp.exp(logits - lse_BKM[:, :, None])
                if some_hidden:
                    visible = _visible_transposed(block_mask, logits.shape)
                    weights = jnp.where(visible, weights, 0)
                dweights = _dot("BKXH,BKMH->BKXM", v_BKXH, dout_BKMH, dtype)
                dlogits = weights * (dweights - inner_BKM[:, :, None])
                dlogits = (dlogits * scale.slope(logits)).astype(q.dtype)
                dv_BKXH = _dot("BKXM,BKMH->BKXH", weights.astype(q.dtype), dout_BKMH, dtype)
                dk_BKXH = _dot("BKXM,BKMH->BKXH", dlogits, q_BKMH, dtype)
                dq_BKHM = dq_BKHM + _dot("BKHX,BKXM->BKHM", k_BKHX, dlogits, dtype)
                return dq_BKHM, (dk_BKXH, dv_BKXH)

            def skip(dq_BKHM):
                return dq_BKHM, (jnp.zeros(k_BKXH.shape, dtype), jnp.zeros(v_BKXH.shape, dtype))

            return _visit(block_mask, pairs, visit, skip, dq_BKHM)

        start = jnp.zeros(q_BKMH.swapaxes(-1, -2).shape, dtype)
        dq_BKHM, (dk, dv) = jax.lax.scan(over_keys, start, (k, k_nBKHC, v, _kv_part(mask)))
        return (carry[0] + dk, carry[1] + dv), dq_BKHM

    start = (jnp.zeros(k.shape, dtype), jnp.zeros(v.shape, dtype))
    (dk, dv), dq_nBKHM = jax.lax.scan(over_queries, start, queries)
    return dq_nBKHM.swapaxes(-1, -2).reshape(q.shape), dk, dv


def _visit(block_mask, pairs, visit, skip, carry):
    """Returns visit(carry, some keys are hidden from some queries), or skip(carry) if all are."""
    if pairs < 16:  # many are at the edge of what is seen, and each branch is compiled
        return jax.lax.cond(any_allowed(block_mask), lambda c: visit(c, True), skip, carry)
    which = any_allowed(block_mask).astype(int) + all_allowed(block_mask)
    branches = skip, lambda c: visit(c, True), lambda c: visit(c, False)
    return jax.lax.switch(which, branches, carry)


def _visible_transposed(block_mask, shape_BKXM):
    """The mask of a block as keys by queries, [B, 1, X, M]; M repeats the queries for each of G."""
    visible_BXC = allowed(block_mask).swapaxes(1, 2)
    batch, num_keys, num_queries = visible_BXC.shape
    group = shape_BKXM[-1] // num_queries
    visible = jnp.broadcast_to(visible_BXC[:, :, None], (batch, num_keys, group, num_queries))
    return visible.reshape(batch, 1, num_keys, -1)


def _dot(letters, x, y, dtype):
    # HIGHEST: the default of a TPU rounds float32 operands to bfloat16
    return jnp.einsum(
        letters, x, y, preferred_element_type=dtype, precision=jax.lax.Precision.HIGHEST
    )


def _pad(x_BTXX, tokens):
    return jnp.pad(x_BTXX, ((0, 0), (0, tokens), (0, 0), (0, 0))) if tokens else x_BTXX


def _cut_mask(mask: Mask, q_block: int, kv_block: int) -> Mask:
    """Cuts each leaf [B, length] into blocks [n, B, block]."""

    def cut(x, block):
        return None if x is None else x.reshape(x.shape[0], -1, block).transpose(1, 0, 2)

    return Mask(
        cut(mask.q_positions_BT, q_block),
        cut(mask.kv_positions_BS, kv_block),
        cut(mask.q_segment_ids_BT, q_block),
        cut(mask.kv_segment_ids_BS, kv_block),
        mask.causal,
        mask.window,
    )


def _q_part(mask: Mask):
    return mask.q_positions_BT, mask.q_segment_ids_BT


def _kv_part(mask: Mask):
    return mask.kv_positions_BS, mask.kv_segment_ids_BS


def _join(mask: Mask, q_part, kv_part) -> Mask:
    return Mask(q_part[0], kv_part[0], q_part[1], kv_part[1], mask.causal, mask.window)

"""Attention in blocks with a running softmax: memory linear in length, and a backward pass that
recomputes the weights from the log-sum-exp.

Online softmax (Milakov and Gimelshein, arXiv 1805.02867; FlashAttention-2, arXiv 2307.08691). A
block of keys that no query of the block may see is passed over.

Letters: B batch, T query length, S key length, N heads, K kv heads, G = N // K, H head dim, n
blocks, C block of queries, X block of keys, M = G C.
"""

import functools

import jax
import jax.numpy as jnp

from jaxrope.masks import Mask, allowed, any_allowed

_MASKED = -1e30  # not -inf: the difference of two infinities is not a number
_EMPTY = -1e29  # a row whose maximum lies below has seen no key
_PAD_SEGMENTS = (-2, -3)  # of queries and of keys: alike to no segment and not to each other


def blockwise(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, *, mask: Mask, scale: float, block: int
) -> jax.Array:
    """See `attention.attend`. `block` is the most tokens of queries, and of keys, in one block."""
    batch, q_len, num_heads, head_dim = q_BTNH.shape
    kv_len, num_kv_heads = k_BSKH.shape[1:3]
    q_block, kv_block = min(block, q_len), min(block, kv_len)
    mask = _pad_mask(_broadcast_mask(mask, batch), -q_len % q_block, -kv_len % kv_block)
    q = _pad(q_BTNH, -q_len % q_block).reshape(
        batch, -1, q_block, num_kv_heads, num_heads // num_kv_heads, head_dim
    )
    q_nBKGCH = q.transpose(1, 0, 3, 4, 2, 5)
    k_nBKCH, v_nBKCH = (
        _pad(x, -kv_len % kv_block)
        .reshape(batch, -1, kv_block, num_kv_heads, head_dim)
        .transpose(1, 0, 3, 2, 4)
        for x in (k_BSKH, v_BSKH)
    )
    out_nBKGCH = _attention(q_nBKGCH, k_nBKCH, v_nBKCH, _cut_mask(mask, q_block, kv_block), scale)
    out = out_nBKGCH.transpose(1, 0, 4, 2, 3, 5).reshape(batch, -1, num_heads, head_dim)
    return out[:, :q_len]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q, k, v, mask, scale):
    return _forward(q, k, v, mask, scale)[0]


def _forward(q, k, v, mask, scale):
    """Returns (out_nBKGCH in the dtype of q, log-sum-exp nBKGC in float32 or wider)."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)

    def over_queries(_, query):
        q_block, q_mask = query

        def over_keys(carry, keys):
            k_block, v_block, kv_mask = keys
            block_mask = _join(mask, q_mask, kv_mask)

            def visit(carry):
                out, top, total = carry
                logits = _logits(q_block, k_block, block_mask, scale, dtype)
                new_top = jnp.maximum(top, jnp.max(logits, axis=-1))
                weights = jnp.exp(logits - new_top[..., None])
                shrink = jnp.exp(top - new_top)
                out = out * shrink[..., None] + _dot(
                    "BKGCX,BKXH->BKGCH", weights.astype(v.dtype), v_block, dtype
                )
                return out, new_top, total * shrink + jnp.sum(weights, axis=-1)

            return jax.lax.cond(any_allowed(block_mask), visit, lambda carry: carry, carry), None

        rows = q_block.shape[:-1]
        start = (
            jnp.zeros(q_block.shape, dtype),
            jnp.full(rows, _MASKED, dtype),
            jnp.zeros(rows, dtype),
        )
        (out, top, total), _ = jax.lax.scan(over_keys, start, (k, v, _kv_part(mask)))
        empty = top < _EMPTY
        out = jnp.where(empty[..., None], 0, out / jnp.where(empty, 1, total)[..., None])
        return None, (out.astype(q.dtype), jnp.where(empty, _MASKED, top + jnp.log(total)))

    return jax.lax.scan(over_queries, None, (q, _q_part(mask)))[1]


def _attention_fwd(q, k, v, mask, scale):
    out, lse = _forward(q, k, v, mask, scale)
    return out, (q, k, v, mask, out, lse)


def _attention_bwd(scale, residuals, dout):
    """Gradients of q, k and v (FlashAttention-2, Algorithm 2), block by block.

    Weights are computed transposed, keys by queries (M = G C of them), and dq as its transpose, so
    that each of the five products of a block is a plain one of rows by columns: XLA's CPU backend
    takes three times as long for a transposed operand.
    """
    q, k, v, mask, out, lse = residuals
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    rows_nBKM = jnp.sum(dout.astype(dtype) * out.astype(dtype), axis=-1)
    flat = (*q.shape[:3], -1)
    q_nBKMH, dout_nBKMH = (x.reshape(*flat, q.shape[-1]) for x in (q, dout))
    queries = (q_nBKMH, dout_nBKMH, lse.reshape(flat), rows_nBKM.reshape(flat), _q_part(mask))
    k_nBKHC = k.swapaxes(-1, -2)

    def over_queries(carry, query):
        q_BKMH, dout_BKMH, lse_BKM, rows_BKM, q_mask = query

        def over_keys(dq_BKHM, keys):
            k_BKXH, k_BKHX, v_BKXH, kv_mask = keys
            block_mask = _join(mask, q_mask, kv_mask)

            def visit(dq_BKHM):
                logits = scale * _dot("BKXH,BKMH->BKXM", k_BKXH, q_BKMH, dtype)
                seen = _seen_transposed(block_mask, logits.shape)
                weights = jnp.where(seen, jnp.exp(logits - lse_BKM[:, :, None]), 0)
                dweights = _dot("BKXH,BKMH->BKXM", v_BKXH, dout_BKMH, dtype)
                dlogits = (weights * (dweights - rows_BKM[:, :, None]) * scale).astype(q.dtype)
                dv_BKXH = _dot("BKXM,BKMH->BKXH", weights.astype(q.dtype), dout_BKMH, dtype)
                dk_BKXH = _dot("BKXM,BKMH->BKXH", dlogits, q_BKMH, dtype)
                dq_BKHM = dq_BKHM + _dot("BKHX,BKXM->BKHM", k_BKHX, dlogits, dtype)
                return dq_BKHM, (dk_BKXH, dv_BKXH)

            def skip(dq_BKHM):
                return dq_BKHM, (jnp.zeros(k_BKXH.shape, dtype), jnp.zeros(v_BKXH.shape, dtype))

            return jax.lax.cond(any_allowed(block_mask), visit, skip, dq_BKHM)

        start = jnp.zeros(q_BKMH.swapaxes(-1, -2).shape, dtype)
        dq_BKHM, (dk, dv) = jax.lax.scan(over_keys, start, (k, k_nBKHC, v, _kv_part(mask)))
        return (carry[0] + dk, carry[1] + dv), dq_BKHM

    start = (jnp.zeros(k.shape, dtype), jnp.zeros(v.shape, dtype))
    (dk, dv), dq_nBKHM = jax.lax.scan(over_queries, start, queries)
    dq = dq_nBKHM.swapaxes(-1, -2).reshape(q.shape)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_attention.defvjp(_attention_fwd, _attention_bwd)


def _logits(q_block, k_block, block_mask, scale, dtype):
    logits = scale * _dot("BKGCH,BKXH->BKGCX", q_block, k_block, dtype)
    return jnp.where(allowed(block_mask)[:, None, None], logits, _MASKED)


def _seen_transposed(block_mask, shape_BKXM):
    """The mask of a block as keys by queries, [B, 1, X, M]; M repeats the queries for each of G."""
    seen_BXC = allowed(block_mask).swapaxes(1, 2)
    batch, num_keys, num_queries = seen_BXC.shape
    group = shape_BKXM[-1] // num_queries
    seen = jnp.broadcast_to(seen_BXC[:, :, None], (batch, num_keys, group, num_queries))
    return seen.reshape(batch, 1, num_keys, -1)


def _dot(letters, x, y, dtype):
    # HIGHEST: the default of a TPU rounds float32 operands to bfloat16
    return jnp.einsum(
        letters, x, y, preferred_element_type=dtype, precision=jax.lax.Precision.HIGHEST
    )


def _pad(x_BTXX, tokens):
    return jnp.pad(x_BTXX, ((0, 0), (0, tokens), (0, 0), (0, 0))) if tokens else x_BTXX


def _broadcast_mask(mask: Mask, batch: int) -> Mask:
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, x.shape[1])), mask)


def _pad_mask(mask: Mask, q_tokens: int, kv_tokens: int) -> Mask:
    if not (q_tokens or kv_tokens):
        return mask
    if mask.q_segment_ids_BT is None:
        q_segments, kv_segments = (
            jnp.zeros_like(mask.q_positions_BT),
            jnp.zeros_like(mask.kv_positions_BS),
        )
    else:
        q_segments, kv_segments = mask.q_segment_ids_BT, mask.kv_segment_ids_BS

    def pad(x, tokens, **kwargs):
        return jnp.pad(x, ((0, 0), (0, tokens)), **kwargs)

    return Mask(
        pad(mask.q_positions_BT, q_tokens, mode="edge"),
        pad(mask.kv_positions_BS, kv_tokens, mode="edge"),
        pad(q_segments, q_tokens, constant_values=_PAD_SEGMENTS[0]),
        pad(kv_segments, kv_tokens, constant_values=_PAD_SEGMENTS[1]),
        mask.causal,
        mask.window,
    )


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

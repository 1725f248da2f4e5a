"""Attention kernels for the TPU, with state that is carried from call to call.

The state is an argument and the result of each call, updated in place: the unnormalised output with
its running maximum and sum going forward, dq, dk and dv going backward, all in float32. So a hop of
the ring is one call: nothing is merged afterwards, and no operand is copied to be chosen.

Weights are computed transposed, keys by queries: the maximum and the sum over keys then run over
rows of registers, and what belongs to a query is a row vector. Each product of a tile is a plain
one. The backward pass is one kernel of five products a tile; the dq of a chunk of rows stays in
fast memory while the tiles go by in the order of the keys.

Letters: B batch, T query length, S key length, N heads, K kv heads, G = N // K, H head dim,
Z = B K, P parts, C tokens of a part, M rows, Q rows of a block of queries, X keys of a block.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxrope.attention import tiles
from jaxrope.attention.layout import MASKED, Carry, Layout
from jaxrope.attention.masks import Mask
from jaxrope.attention.tiles import Tiles

_LOG2_E = math.log2(math.e)


def forward(
    layout: Layout, carry: Carry, q_ZMH: jax.Array, kv: tuple, mask: Mask, walk: Tiles
) -> Carry:
    """Returns the carry after the tiles of `walk`, which is in the order of the queries.

    Args:
      layout: sizes.
      carry: updated in place where the compiler can.
      q_ZMH: see `rows`.
      kv: (k_ZSH, v_ZSH); see `keys`.
      mask: of these queries and keys; looked at in tiles flagged MASKED.
      walk: blocks of queries are numbered along T, those of keys along S.
    """
    q_ids, kv_ids = _ids(mask)
    operands, state = _forward_specs(layout, len(q_ids), walk.num)
    of_keys = kv[0], kv[1].swapaxes(1, 2)
    arguments = (walk.codes, q_ZMH, *of_keys, *q_ids, *kv_ids, *carry)
    first_state = len(arguments) - len(carry)
    grid = (q_ZMH.shape[0], layout.group, walk.num)
    outputs = pl.pallas_call(
        functools.partial(_forward_kernel, layout=layout, mask=mask, num=walk.num),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid,
            in_specs=[*operands, *state],
            out_specs=state,
            scratch_shapes=[
                pltpu.VMEM((size, layout.q_block), jnp.float32) for size in (layout.head_dim, 1, 1)
            ],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in carry],
        input_output_aliases={first_state + i: i for i in range(len(carry))},
        compiler_params=_compiler_params(layout, ("parallel", "parallel", "arbitrary")),
        cost_estimate=_cost(layout, math.prod(grid), products=2),
        interpret=layout.interpret,
        name="attention_forward",
    )(*arguments)
    return Carry(*outputs)


def _forward_specs(layout: Layout, num_ids: int, num: int) -> tuple[list, list]:
    """Returns the specs of queries, keys, values and ids, and of the carry; grid (Z, G, E)."""
    q_block, kv_block, dim = layout.q_block, layout.kv_block, layout.head_dim
    blocks, per_part = layout.part_blocks, layout.group * layout.part_blocks

    def code(z, _, i, codes):
        return tiles.unpack(codes[z // layout.kv_heads * num + i])

    def row_block(z, g, i, codes):
        q, _, _ = code(z, g, i, codes)
        return q // blocks * per_part + g * blocks + q % blocks

    def key_block(*at):
        return code(*at)[1]

    def column(size):
        return pl.BlockSpec((1, size, q_block), lambda *at: (at[0], 0, row_block(*at)))

    row_spec = pl.BlockSpec((1, q_block, dim), lambda *at: (at[0], row_block(*at), 0))
    key_spec = pl.BlockSpec((1, kv_block, dim), lambda *at: (at[0], key_block(*at), 0))
    vt_spec = pl.BlockSpec((1, dim, kv_block), lambda *at: (at[0], 0, key_block(*at)))
    id_specs = _id_specs(layout, num_ids, lambda *at: code(*at)[0], key_block)
    return [row_spec, key_spec, vt_spec, *id_specs], [column(dim), column(1), column(1)]


def _forward_kernel(codes_ref, q_ref, k_ref, vt_ref, *refs, layout: Layout, mask: Mask, num: int):
    num_ids = 2 if mask.q_segment_ids_BT is None else 4
    id_refs, refs = refs[:num_ids], refs[num_ids:]
    before, after, (out_HQ, top_1Q, total_1Q) = refs[:3], refs[3:6], refs[6:]
    place = pl.program_id(0) // layout.kv_heads * num + pl.program_id(2)
    _, _, flags = tiles.unpack(codes_ref[place])
    power = layout.scale.factor * _LOG2_E

    @pl.when(_is(flags, tiles.FIRST))
    def _():
        out_HQ[...], top_1Q[...], total_1Q[...] = (ref[0] for ref in before)

    def visit(masked: bool):
        logits_XQ = _capped(layout, _product(k_ref[0], q_ref[0], transposed=True))
        if masked:
            visible_XQ = _visible(mask, id_refs)
            logits_XQ = jnp.where(visible_XQ, logits_XQ, MASKED)
        top = jnp.maximum(top_1Q[...], jnp.max(logits_XQ, axis=0, keepdims=True))
        weights_XQ = jnp.exp2((logits_XQ - top) * power)
        if masked:
            weights_XQ = jnp.where(visible_XQ, weights_XQ, 0)
        shrink = jnp.exp2((top_1Q[...] - top) * power)
        total_1Q[...] = total_1Q[...] * shrink + jnp.sum(weights_XQ, axis=0, keepdims=True)
        out_HQ[...] = out_HQ[...] * shrink + _product(vt_ref[0], weights_XQ.astype(vt_ref.dtype))
        top_1Q[...] = top

    pl.when(~_is(flags, tiles.SKIP) & ~_is(flags, tiles.MASKED))(lambda: visit(False))
    pl.when(~_is(flags, tiles.SKIP) & _is(flags, tiles.MASKED))(lambda: visit(True))

    @pl.when(_is(flags, tiles.LAST))
    def _():
        for ref, value in zip(after, (out_HQ, top_1Q, total_1Q), strict=True):
            ref[0] = value[...]


class Queries(NamedTuple):
    """What the backward pass needs of the queries.

    Attributes:
      q_ZMH, dout_ZMH: see `rows`.
      lse_Z1M: log-sum-exp over ALL keys.
      inner_Z1M: sum over H of out * dout.
    """

    q_ZMH: jax.Array
    dout_ZMH: jax.Array
    lse_Z1M: jax.Array
    inner_Z1M: jax.Array


def backward(
    layout: Layout,
    grads: tuple[jax.Array, jax.Array, jax.Array],
    queries: Queries,
    kv: tuple,
    mask: Mask,
    walk: Tiles,
    chunk: jax.Array | int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (dq_ZHM, dk_ZSH, dv_ZSH), float32, with what the tiles of one chunk of rows add; dq
    and dk still lack the factor of `layout.scale`.

    Args:
      layout: sizes.
      grads: those so far; updated in place where the compiler can.
      queries: of all rows.
      kv: (k_ZSH, v_ZSH).
      mask: of all queries and these keys.
      walk: in the order of the keys; its blocks of queries are numbered from the chunk's first row.
      chunk: which rows, in units of `layout.chunk`.
    """
    k_ZSH, v_ZSH = kv
    q_ids, kv_ids = _ids(mask)
    operands, sums = _backward_specs(layout, len(q_ids), walk.num)
    of_keys = k_ZSH, k_ZSH.swapaxes(1, 2), v_ZSH
    chunk = jnp.asarray(chunk, jnp.int32).reshape(1)
    arguments = (walk.codes, chunk, *queries, *of_keys, *q_ids, *kv_ids, *grads)
    first_sum = len(arguments) - len(grads)
    grid = (k_ZSH.shape[0], walk.num)
    outputs = pl.pallas_call(
        functools.partial(_backward_kernel, layout=layout, mask=mask, num=walk.num),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=grid,
            in_specs=[*operands, *sums],
            out_specs=sums,
            scratch_shapes=[pltpu.VMEM((layout.kv_block, layout.head_dim), jnp.float32)] * 2,
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in grads],
        input_output_aliases={first_sum + i: i for i in range(len(grads))},
        compiler_params=_compiler_params(layout, ("parallel", "arbitrary")),
        cost_estimate=_cost(layout, math.prod(grid), products=5),
        interpret=layout.interpret,
        name="attention_backward",
    )(*arguments)
    return tuple(outputs)


def _backward_specs(layout: Layout, num_ids: int, num: int) -> tuple[list, list]:
    """Returns the specs of queries, keys and ids, and of the three sums, for the grid (Z, E)."""
    q_block, kv_block, dim = layout.q_block, layout.kv_block, layout.head_dim
    blocks, per_part = layout.part_blocks, layout.group * layout.part_blocks
    per_chunk = layout.chunk // q_block

    def code(z, i, codes, _):
        return tiles.unpack(codes[z // layout.kv_heads * num + i])

    def row_block(z, i, codes, chunk):
        return chunk[0] * per_chunk + code(z, i, codes, chunk)[0]

    def token_block(*at):
        row = row_block(*at)
        return row // per_part * blocks + row % blocks

    def key_block(*at):
        return code(*at)[1]

    row_spec = pl.BlockSpec((1, q_block, dim), lambda *at: (at[0], row_block(*at), 0))
    vector_spec = pl.BlockSpec((1, 1, q_block), lambda *at: (at[0], 0, row_block(*at)))
    key_spec = pl.BlockSpec((1, kv_block, dim), lambda *at: (at[0], key_block(*at), 0))
    kt_spec = pl.BlockSpec((1, dim, kv_block), lambda *at: (at[0], 0, key_block(*at)))
    dq_spec = pl.BlockSpec((1, dim, layout.chunk), lambda z, i, codes, chunk: (z, 0, chunk[0]))
    id_specs = _id_specs(layout, num_ids, token_block, key_block)
    of_queries = [row_spec, row_spec, vector_spec, vector_spec]
    of_keys = [key_spec, kt_spec, key_spec]
    return [*of_queries, *of_keys, *id_specs], [dq_spec, key_spec, key_spec]


def _backward_kernel(codes_ref, chunk_ref, *refs, layout: Layout, mask: Mask, num: int):
    """FlashAttention-2, Algorithm 2, for one tile."""
    del chunk_ref
    q_ref, dout_ref, lse_ref, inner_ref, k_ref, kt_ref, v_ref = refs[:7]
    num_ids = 2 if mask.q_segment_ids_BT is None else 4
    id_refs, refs = refs[7 : 7 + num_ids], refs[7 + num_ids :]
    (dq_before, dk_before, dv_before), (dq_after, dk_after, dv_after) = refs[:3], refs[3:6]
    dk_XH, dv_XH = refs[6:]
    place = pl.program_id(0) // layout.kv_heads * num + pl.program_id(1)
    row_block, _, flags = tiles.unpack(codes_ref[place])
    power = layout.scale.factor * _LOG2_E

    @pl.when(pl.program_id(1) == 0)
    def _():
        dq_after[...] = dq_before[...]

    @pl.when(_is(flags, tiles.FIRST))
    def _():
        dk_XH[...], dv_XH[...] = dk_before[0], dv_before[0]

    def visit(masked: bool):
        q_QH, dout_QH = q_ref[0], dout_ref[0]
        logits_XQ = _capped(layout, _product(k_ref[0], q_QH, transposed=True))
        weights_XQ = jnp.exp2(logits_XQ * power - lse_ref[0] * _LOG2_E)
        if masked:
            weights_XQ = jnp.where(_visible(mask, id_refs), weights_XQ, 0)
        dweights_XQ = _product(v_ref[0], dout_QH, transposed=True)
        dlogits_XQ = weights_XQ * (dweights_XQ - inner_ref[0])
        if layout.scale.cap is not None:
            dlogits_XQ *= layout.scale.bend(layout.scale.factor * logits_XQ)
        dlogits_XQ = dlogits_XQ.astype(q_QH.dtype)
        dv_XH[...] += _product(weights_XQ.astype(q_QH.dtype), dout_QH)
        dk_XH[...] += _product(dlogits_XQ, q_QH)
        here = pl.ds(pl.multiple_of(row_block * layout.q_block, layout.q_block), layout.q_block)
        dq_after[0, :, here] += _product(kt_ref[0], dlogits_XQ)

    pl.when(~_is(flags, tiles.SKIP) & ~_is(flags, tiles.MASKED))(lambda: visit(False))
    pl.when(~_is(flags, tiles.SKIP) & _is(flags, tiles.MASKED))(lambda: visit(True))

    @pl.when(_is(flags, tiles.LAST))
    def _():
        dk_after[0], dv_after[0] = dk_XH[...], dv_XH[...]


def _capped(layout: Layout, products_XQ) -> jax.Array:
    """Returns the logits over `scale.factor`."""
    scale = layout.scale
    return products_XQ if scale.cap is None else scale.logits(products_XQ) / scale.factor


def _ids(mask: Mask) -> tuple[list, list]:
    """Returns the ids of queries and of keys, each [B, 1, length]."""
    q_ids, kv_ids = [mask.q_positions_BT], [mask.kv_positions_BS]
    if mask.q_segment_ids_BT is not None:
        q_ids.append(mask.q_segment_ids_BT)
        kv_ids.append(mask.kv_segment_ids_BS)
    return [x[:, None] for x in q_ids], [x[:, None] for x in kv_ids]


def _id_specs(layout: Layout, num: int, token_block, key_block) -> list:
    def spec(size, block):
        return pl.BlockSpec(
            (1, 1, size), lambda z, *rest: (z // layout.kv_heads, 0, block(z, *rest))
        )

    return [spec(layout.q_block, token_block)] * num + [spec(layout.kv_block, key_block)] * num


def _visible(mask: Mask, id_refs) -> jax.Array:
    """Returns the mask of a tile, keys by queries."""
    half = len(id_refs) // 2
    shape = (id_refs[half].shape[-1], id_refs[0].shape[-1])

    def pair(index):
        q_XQ = jnp.broadcast_to(id_refs[index][0], shape)
        return q_XQ, jnp.broadcast_to(id_refs[half + index][0], shape[::-1]).T

    q, kv = pair(0)
    visible = jnp.full(shape, True)
    if mask.causal:
        visible = visible & (q >= kv)
    if mask.window is not None:
        visible = visible & (q - kv < mask.window)
    if half == 2:
        q, kv = pair(1)
        visible = visible & (q == kv)
    return visible


def _product(x, y, *, transposed: bool = False) -> jax.Array:
    """Returns x y, or x y^T, in float32."""
    # HIGHEST: the default rounds float32 operands to bfloat16
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        x,
        y,
        (((1,), (1 if transposed else 0,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def _is(flags, flag: int) -> jax.Array:
    return (flags & flag) != 0


def _compiler_params(layout: Layout, semantics: tuple[str, ...]):
    # dq in and out, double buffered; what the compiler keeps of a tile; operands and states
    tile = layout.q_block * layout.kv_block
    needed = 16 * layout.chunk * layout.head_dim + 32 * tile + 4 * 2**20
    return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=needed)


def _cost(layout: Layout, steps: int, *, products: int) -> pl.CostEstimate:
    """Tells the scheduler how long a call takes, so that it hides what is on the wire behind it."""
    pairs = steps * layout.q_block * layout.kv_block
    fetched = steps * (layout.q_block + layout.kv_block) * layout.head_dim * products
    return pl.CostEstimate(
        flops=2 * products * pairs * layout.head_dim, transcendentals=pairs, bytes_accessed=fetched
    )

"""Attention on an NVIDIA GPU by cuDNN's fused kernels, for the rows that our loaders make and for
the hops of a ring.

A document of a packed row is a sequence of cuDNN's, so nothing is computed across documents, and a
hop between two chunks that share no document costs no kernel at all. A call takes a fixed number of
sequences; a row with more of them takes more calls, which is found while the program runs.

cuDNN sums up the gradients of a row's blocks in any order: two runs may differ in the last bit
unless XLA_FLAGS has --xla_gpu_deterministic_ops=true.

Letters: B batch, T query length, S key length, N heads, K kv heads, H head dim, M sequences of a
row in a call, R = B M.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrope.attention import cudnn_calls
from jaxrope.attention.blockwise import MASKED
from jaxrope.attention.cudnn_calls import How, Sequences
from jaxrope.attention.masks import Mask
from jaxrope.attention.scale import Scale
from jaxrope.errors import UnsupportedError

CAPABILITY = 9.0  # Hopper: cuDNN packs no rows on older ones
_HEAD_DIM_UNIT, _HEAD_DIM_MOST = 8, 256
# A call has a log-sum-exp for each of its sequences at the length of a row, 4 bytes x N T: 64 MiB
# at 32 heads and 32,768 tokens. Chunks of a ring share one document at most, and cuDNN takes a list
# of one for no list.
_SEQUENCES, _SEQUENCES_OF_HOP = 16, 2


def lacks(dtype: str, head_dim: int, *, capped: bool, capability: float | None) -> str | None:
    """Returns what cuDNN's attention cannot do of this; None: it can.

    Args:
      dtype: of queries, keys and values.
      head_dim: H.
      capped: logits are capped.
      capability: compute capability of the GPUs; None: they are not NVIDIA's.
    """
    if capability is None or capability < CAPABILITY:
        has = "another maker" if capability is None else f"compute capability {capability:.1f}"
        return f"GPUs of {has} (packed rows need NVIDIA's {CAPABILITY:.1f} or more)"
    if dtype not in cudnn_calls.ELEMENT_TYPES:
        return f"{dtype} (set forward.compute_dtype to bfloat16)"
    if capped:
        return "capped logits"
    if head_dim % _HEAD_DIM_UNIT or head_dim > _HEAD_DIM_MOST:
        return f"a head dim of {head_dim} (multiples of {_HEAD_DIM_UNIT} to {_HEAD_DIM_MOST})"
    return None


def forward(q_BTNH, k_BSKH, v_BSKH, mask: Mask, *, scale: Scale, block: int):
    """Returns (out_BTNH, lse_BTN), float32; see `local.Kernel`."""
    del block
    task = _Task.of(q_BTNH, k_BSKH, mask, scale)
    q, k, v = task.queries(q_BTNH), task.keys(k_BSKH), task.keys(v_BSKH)
    if task.ids is None:
        out, lse_BNT = cudnn_calls.forward(q, k, v, None, task.how)
        return task.rows(out).astype(jnp.float32), task.rows(lse_BNT.swapaxes(1, 2))
    shared = _Shared.of(*task.ids)

    def some(index, results):
        group = _Group.of(shared, index, task.most)
        sequences = group.sequences(q, k)
        out, lse_RNT = cudnn_calls.forward(q, k, v, sequences, task.how)
        return group.put_queries(results, (out.astype(jnp.float32), group.of_rows(lse_RNT)))

    start = jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:3], MASKED, jnp.float32)
    out, lse = jax.lax.fori_loop(0, shared.calls(task.most), some, start)
    return task.rows(out), task.rows(lse)


def backward(q_BTNH, kv, mask: Mask, results, *, scale: Scale, block: int):
    """Returns (dq_BTNH, dk_BSKH, dv_BSKH), float32; see `local.Kernel`."""
    del block
    task = _Task.of(q_BTNH, kv[0], mask, scale)
    q, k, v = task.queries(q_BTNH), *(task.keys(x) for x in kv)
    lse = task.queries(results.lse)
    out, dout = (task.queries(x.astype(q.dtype)) for x in (results.out, results.dout))
    call = functools.partial(cudnn_calls.backward, q, (k, v))
    if task.ids is None:
        grads = call((lse.swapaxes(1, 2), out, dout), None, task.how)
        grads = tuple(x.astype(jnp.float32) for x in grads)
    else:
        shared = _Shared.of(*task.ids)

        def some(index, grads):
            group = _Group.of(shared, index, task.most)
            given = group.of_sequences(lse), out, dout
            new = call(given, group.sequences(q, k), task.how)
            dq, *dkv = (x.astype(jnp.float32) for x in new)
            return *group.put_queries(grads[:1], (dq,)), *group.put_keys(grads[1:], dkv)

        start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
        grads = jax.lax.fori_loop(0, shared.calls(task.most), some, start)
    return task.rows(grads[0]), *(task.unkeys(x) for x in grads[1:])


class _Task(NamedTuple):
    """A mask as cuDNN can do it: there the i-th query of a sequence is at the place of its i-th
    key. Where queries are the last of more keys, others are put before them, which see them all and
    count nowhere; keys that a window hides from every query are left out.

    Attributes:
      how: is computed.
      ids: (q_ids_BT, kv_ids_BS) of documents; None: a row is one.
      most: sequences of a row in a call.
      before: queries that are put before the others.
      hidden: keys that are left out, the first ones.
    """

    how: How
    ids: tuple[jax.Array, jax.Array] | None
    most: int
    before: int
    hidden: int

    @classmethod
    def of(cls, q_BTNH, k_BSKH, mask: Mask, scale: Scale):
        """Raises UnsupportedError for what cuDNN cannot do."""
        q_len, kv_len = q_BTNH.shape[1], k_BSKH.shape[1]
        more = kv_len - q_len if mask.causal else 0
        wrong = None
        if not mask.ordered:
            wrong = "rows whose documents are not known to lie one behind another (Mask.ordered)"
        elif more < 0:
            wrong = f"{q_len} causal queries with {kv_len} keys"
        elif mask.window is not None and not mask.causal:
            wrong = "a window of a mask that is not causal"
        elif scale.cap is not None:
            wrong = f"logits capped at {scale.cap:g}"
        elif max(q_BTNH.size, k_BSKH.size) >= 2**31 and mask.q_segment_ids_BT is not None:
            wrong = f"packed queries of {q_BTNH.size:,} numbers on a device (2^31 are too many)"
        if wrong:
            raise UnsupportedError(
                f"attention 'flash' on a GPU is cuDNN's, which cannot do {wrong}. Backends that "
                "can: blockwise, reference."
            )
        hidden = 0 if mask.window is None else max(0, more - (mask.window - 1))
        before, ids = more - hidden, None
        if mask.q_segment_ids_BT is not None:
            kv_ids = mask.kv_segment_ids_BS[:, hidden:]
            ids = jnp.concatenate([kv_ids[:, :before], mask.q_segment_ids_BT], axis=1), kv_ids
        how = How(scale.factor, mask.causal, mask.window)
        return cls(how, ids, _SEQUENCES if mask.causal else _SEQUENCES_OF_HOP, before, hidden)

    def queries(self, x_BT):
        """Returns the array with `before` more tokens, of zeros: as a query, a log-sum-exp and a
        gradient they give weights of 1 and gradients of 0.
        """
        widths = [(self.before if axis == 1 else 0, 0) for axis in range(x_BT.ndim)]
        return jnp.pad(x_BT, widths) if self.before else x_BT

    def rows(self, x_BT):
        """Undoes `queries`."""
        return x_BT[:, self.before :]

    def keys(self, x_BS):
        """Returns the keys that are not left out."""
        return x_BS[:, self.hidden :]

    def unkeys(self, x_BS):
        """Undoes `keys`, with zeros."""
        return jnp.pad(x_BS, ((0, 0), (self.hidden, 0), (0, 0), (0, 0))) if self.hidden else x_BS


class _Shared(NamedTuple):
    """The documents that queries and keys of a row share.

    Attributes:
      runs_BT: the number of a token's document, from 1; of the queries.
      places_BT: that of it among the shared ones, from 1; until the next one begins.
      kv_starts_BT, kv_lens_BT: where the keys of the token's document are.
      kv_len: S.
    """

    runs_BT: jax.Array
    places_BT: jax.Array
    kv_starts_BT: jax.Array
    kv_lens_BT: jax.Array
    kv_len: int

    @classmethod
    def of(cls, q_ids_BT, kv_ids_BS):
        """From ids of documents, each in one piece."""
        changes = q_ids_BT[:, 1:] != q_ids_BT[:, :-1]
        begins_BT = jnp.concatenate([jnp.ones_like(changes[:, :1]), changes], axis=1)
        order_BS = jnp.argsort(kv_ids_BS, axis=1, stable=True)
        sorted_BS = jnp.take_along_axis(kv_ids_BS, order_BS, axis=1)
        low_BT, high_BT = (_search(sorted_BS, q_ids_BT, side) for side in ("left", "right"))
        last = kv_ids_BS.shape[1] - 1
        starts_BT = jnp.take_along_axis(order_BS, jnp.minimum(low_BT, last), axis=1)
        both_BT = begins_BT & (high_BT > low_BT)
        runs_BT, places_BT = (jnp.cumsum(x, axis=1, dtype=jnp.int32) for x in (begins_BT, both_BT))
        found = starts_BT.astype(jnp.int32), (high_BT - low_BT).astype(jnp.int32)
        return cls(runs_BT, places_BT, *found, last + 1)

    def calls(self, most: int) -> jax.Array:
        """Returns how many calls of `most` sequences a row it takes."""
        return -(-jnp.max(self.places_BT[:, -1]) // most)


class _Group(NamedTuple):
    """The shared documents of one call, of all rows one behind another; then some of no tokens.

    Attributes:
      rows_R: of the batch.
      q_starts_R, q_lens_R, kv_starts_R, kv_lens_R: tokens.
      numbers_BT: of the document among all, for the queries that are in one.
      has_queries_BT, has_keys_BS: whether a token is in a document.
    """

    rows_R: jax.Array
    q_starts_R: jax.Array
    q_lens_R: jax.Array
    kv_starts_R: jax.Array
    kv_lens_R: jax.Array
    numbers_BT: jax.Array
    has_queries_BT: jax.Array
    has_keys_BS: jax.Array

    @classmethod
    def of(cls, shared: _Shared, index, most: int):
        """The `index`-th `most` of each row."""
        batch, length = shared.runs_BT.shape
        wanted_BM = jnp.broadcast_to(index * most + 1 + jnp.arange(most), (batch, most))
        q_starts_BM = _search(shared.places_BT, wanted_BM, "left")
        is_there_BM = q_starts_BM < length
        first_BM = jnp.minimum(q_starts_BM, length - 1)
        runs_BM, kv_starts_BM, kv_lens_BM = (
            jnp.take_along_axis(x, first_BM, axis=1)
            for x in (shared.runs_BT, shared.kv_starts_BT, shared.kv_lens_BT)
        )
        q_lens_BM = _search(shared.runs_BT, runs_BM + 1, "left") - first_BM
        q_lens_BM, kv_lens_BM = (jnp.where(is_there_BM, x, 0) for x in (q_lens_BM, kv_lens_BM))
        has_queries_BT = _inside(first_BM, q_lens_BM, length)
        has_keys_BS = _inside(kv_starts_BM, kv_lens_BM, shared.kv_len)
        counts_B = jnp.sum(is_there_BM, axis=1)
        before_B = jnp.cumsum(counts_B) - counts_B
        numbers_BT = before_B[:, None] + shared.places_BT - 1 - index * most
        order_R = jnp.argsort(~is_there_BM.reshape(-1), stable=True)
        rows_BM = jnp.broadcast_to(jnp.arange(batch)[:, None], (batch, most))
        lists = rows_BM, first_BM, q_lens_BM, kv_starts_BM, kv_lens_BM
        listed = (x.reshape(-1)[order_R].astype(jnp.int32) for x in lists)
        return cls(*listed, numbers_BT, has_queries_BT, has_keys_BS)

    def sequences(self, q_BTNH, k_BSKH) -> Sequences:
        """Returns them as cuDNN wants them."""
        shape = q_BTNH.shape[0], -1
        lens = (x.reshape(shape) for x in (self.q_lens_R, self.kv_lens_R))
        starts = (self.q_starts_R, self.q_lens_R), (self.kv_starts_R, self.kv_lens_R)
        offsets = (
            self._offsets(*pair, x).reshape(shape)
            for pair, x in zip(starts, (q_BTNH, k_BSKH), strict=True)
        )
        return Sequences(*lens, *offsets)

    def _offsets(self, starts_R, lens_R, x_BTNH):
        batch, length, heads, dim = x_BTNH.shape
        tokens_R = jnp.where(lens_R > 0, self.rows_R * length + starts_R, batch * length)
        # one is needed behind the last, and JAX's own shape has one for each row
        return heads * dim * jnp.pad(tokens_R, (0, batch), constant_values=batch * length)

    def of_rows(self, x_RNT):
        """Returns x_BTN of numbers by sequence and place in it."""
        numbers_BT = jnp.clip(self.numbers_BT, 0, x_RNT.shape[0] - 1)
        length = numbers_BT.shape[1]
        starts_BT = self.q_starts_R[numbers_BT]
        return x_RNT[numbers_BT, :, jnp.clip(jnp.arange(length)[None] - starts_BT, 0, length - 1)]

    def of_sequences(self, x_BTN):
        """Returns x_RNT by sequence and place in it; undoes `of_rows`."""
        length = x_BTN.shape[1]
        tokens_RT = jnp.minimum(self.q_starts_R[:, None] + jnp.arange(length)[None], length - 1)
        return x_BTN[self.rows_R[:, None], tokens_RT].swapaxes(1, 2)

    def put_queries(self, old, new):
        """Returns arrays over queries, new where they are in a sequence."""
        return _put(self.has_queries_BT, old, new)

    def put_keys(self, old, new):
        """Returns arrays over keys, new where they are in a sequence."""
        return _put(self.has_keys_BS, old, new)


def _put(has_BT, old, new):
    def choose(a, b):
        return jnp.where(has_BT.reshape(*has_BT.shape, *(1,) * (a.ndim - 2)), b, a)

    return tuple(map(choose, old, new))


def _search(sorted_BS, wanted_BM, side: str):
    """Returns where in a row each would be put."""
    return jax.vmap(functools.partial(jnp.searchsorted, side=side))(sorted_BS, wanted_BM)


def _inside(starts_BM, lens_BM, length: int):
    """Returns has_BT: whether a token lies in some span of its row."""
    places = jnp.arange(length)[None, :, None]
    starts, lens = starts_BM[:, None], lens_BM[:, None]
    return jnp.any((places >= starts) & (places < starts + lens), axis=2)

"""Attention weights whole, in float64 numpy, and every statistic of them by its definition: what
the streaming statistics are held against.

Letters: B batch, T queries, S keys, N heads.
"""

import jax
import numpy as np

from jaxrope.attention import masks


def ids(*rows):
    """Positions and segment ids of rows of documents, given by their lengths."""
    positions = [np.concatenate([np.arange(n) for n in row]) for row in rows]
    segments = [np.repeat(np.arange(1, len(row) + 1), row) for row in rows]
    return np.stack(positions).astype(np.int32), np.stack(segments).astype(np.int32)


def causal(length=48, **how):
    return masks.self_mask(np.arange(length, dtype=np.int32)[None], **how)


def packed(**how):
    """Documents that cross the borders of blocks, one of them of one token."""
    return masks.self_mask(*ids((11, 1, 36), (36, 11, 1)), **how)


def blind(**how):
    """Packed, and some queries see no key at all."""
    positions, segments = ids((11, 1, 36), (36, 11, 1))
    queries = np.where(np.arange(48) % 5 == 3, -7, segments).astype(np.int32)
    return masks.Mask(positions, positions, queries, segments, **how)


def some_queries(length=48):
    """A few queries, in no order, of all keys."""
    keys = np.arange(length, dtype=np.int32)[None]
    return masks.Mask(keys[:, [47, 3, 0, 31, 30]], keys)


def across(queries=21, length=48):
    """Cross-attention: no mask, and other lengths on both sides."""
    places = (np.arange(n, dtype=np.int32)[None] for n in (queries, length))
    return masks.Mask(*places, causal=False)


def inputs(mask, heads, kv_heads, *, dim=8, dtype=np.float32, batch=2, loud=3.0):
    """Random (q_BTNH, k_BSKH)."""
    rng = np.random.default_rng(0)
    q_len, kv_len = mask.q_positions_BT.shape[1], mask.kv_positions_BS.shape[1]
    q = loud * rng.normal(size=(batch, q_len, heads, dim))
    return q.astype(dtype), rng.normal(size=(batch, kv_len, kv_heads, dim)).astype(dtype)


def needles(batch, length):
    """Two sets of keys for each row: a span, and single tokens; the second row has no span."""
    sets = np.zeros((batch, length, 2), bool)
    sets[0, 9:14, 0] = True
    sets[:, 5::11, 1] = True
    return sets


def seen_by(mask, batch):
    """Returns bool [B, T, S], by the definition of a mask."""
    q, kv = np.asarray(mask.q_positions_BT), np.asarray(mask.kv_positions_BS)
    ahead = q[:, :, None] - kv[:, None]
    seen = np.ones(ahead.shape, bool)
    if mask.causal:
        seen &= ahead >= 0
    if mask.window is not None:
        seen &= ahead < mask.window
    if mask.q_segment_ids_BT is not None:
        both = (np.asarray(x) for x in (mask.q_segment_ids_BT, mask.kv_segment_ids_BS))
        q_segments, kv_segments = both
        seen = seen & (q_segments[:, :, None] == kv_segments[:, None])
    shape = (batch, q.shape[1], kv.shape[1])
    return np.broadcast_to(seen, shape), np.broadcast_to(abs(ahead), shape)


def logits_of(q, k, scale=None):
    """Returns scaled logits, float64 [B, T, N, S]."""
    q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)
    k = np.repeat(k, q.shape[2] // k.shape[2], axis=2)
    return np.einsum("btnh,bsnh->btns", q, k) * (q.shape[3] ** -0.5 if scale is None else scale)


def softmax(logits, seen):
    """Returns (weights, log-sum-exp); rows that see nothing are 0 and -1e30."""
    seen = np.broadcast_to(seen[:, :, None], logits.shape)
    some = seen.any(-1)
    top = np.where(some, np.max(np.where(seen, logits, -np.inf), axis=-1, initial=-1e300), 0)
    e = np.where(seen, np.exp(np.where(seen, logits - top[..., None], 0)), 0)
    total = np.where(some, e.sum(-1), 1)
    return e / total[..., None], np.where(some, top + np.log(total), -1e30)


def entropy_of(p):
    """Returns entropy over the last axis, nats."""
    return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)


def statistics(q, k, mask, *, local, bins, sets=None, scale=None):
    """Returns the fields of streaming.Stats, each by its definition."""
    logits = logits_of(q, k, scale)
    seen, distance = seen_by(mask, len(q))
    p, lse = softmax(logits, seen)
    positions = np.broadcast_to(mask.kv_positions_BS, (len(q), k.shape[1]))[:, None, None]
    away = distance[:, :, None]
    number = np.minimum(np.where(distance > 0, np.frexp(distance)[1], 0), bins - 1)
    some = seen.any(-1)[..., None]
    rest_p, rest_lse = softmax(logits, seen & (positions[:, 0] != 0))
    squares = (p**2).sum(-1)
    sets = np.zeros((*positions.shape[::3], 0)) if sets is None else sets
    return dict(
        entropy=entropy_of(p),
        visible=seen.sum(-1),
        lse=lse,
        max_p=p.max(-1),
        participation=np.where(squares > 0, 1 / np.where(squares > 0, squares, 1), 0),
        sink=(p * (positions == 0)).sum(-1),
        first=(p * (positions < 4)).sum(-1),
        local=(p * (away < local)).sum(-1),
        mean_distance=(p * away).sum(-1),
        set_mass=np.einsum("btns,bsz->btnz", p, sets),
        bin_mass=np.stack([(p * (number == e)[:, :, None]).sum(-1) for e in range(bins)], -1),
        bin_pairs=np.stack([(seen & (number == e)).sum(-1) for e in range(bins)], -1),
        top_key=np.where(some, np.where(seen[:, :, None], logits, -np.inf).argmax(-1), -1),
        non_sink_entropy=entropy_of(rest_p),
        non_sink_lse=rest_lse,
    )


def assert_same(found, wanted, tolerance=1e-5):
    """Masses and entropies to `tolerance`; numbers of tokens and log-sum-exps relatively."""
    found = found._asdict() if hasattr(found, "_asdict") else found
    assert found.keys() == wanted.keys()
    for name, expected in wanted.items():
        ours = np.asarray(jax.device_get(found[name]))
        assert ours.shape == expected.shape, (name, ours.shape, expected.shape)
        if name in ("visible", "bin_pairs", "top_key"):
            assert np.array_equal(ours, expected), name
        else:
            scale = 1 + (np.abs(expected) if name in _RELATIVE else 0)
            error = np.max(np.abs(ours - expected) / scale, initial=0)
            assert error < tolerance, (name, error)


_RELATIVE = ("lse", "non_sink_lse", "mean_distance", "participation")

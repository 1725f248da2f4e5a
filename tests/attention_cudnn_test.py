"""cuDNN's attention without a GPU: all that is around its two calls, with a stand-in for them that
does what their documentation says; and the calls themselves, which are to be those of jax.
"""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrope import attention
from jaxrope.attention import cudnn, cudnn_calls, masks, trial
from tests.attention_spread_test import (
    CASES,
    causal,
    definition,
    errors,
    inputs,
    packed,
    spread,
    value_and_grads,
)
from tests.attention_spread_test import (
    ids as ids_of,
)

# ---- the stand-in


def places(x, sequences, which):
    """Returns (numbers of x in memory, [R, most tokens, ...]; which tokens are in a sequence)."""
    batch, length, *rest = x.shape
    size = int(np.prod(rest))
    lens, offsets = jnp.full((batch,), length), jnp.arange(batch) * x[0].size
    if sequences is not None:
        named = f"{which}_lens_BM", f"{which}_offsets_BM1"
        lens, offsets = (getattr(sequences, name) for name in named)
        lens = lens.reshape(-1)
        assert offsets.size > lens.size and offsets.dtype == lens.dtype == jnp.int32
        offsets = offsets.reshape(-1)[: lens.size]
    inside = jnp.arange(length)[None] < lens[:, None]
    numbers = offsets[:, None] + jnp.arange(length * size)[None]
    return numbers.reshape(len(lens), length, *rest), inside


def read(x, spot):
    numbers, inside = spot
    inside = inside.reshape(*inside.shape, *(1,) * (x.ndim - 2))
    return jnp.where(inside, x.reshape(-1)[jnp.where(inside, numbers, 0)], 0)


def written(like, value, spot):
    """Memory that held no numbers before."""
    numbers, inside = spot
    numbers = jnp.where(inside.reshape(*inside.shape, *(1,) * (like.ndim - 2)), numbers, like.size)
    memory = jnp.full(like.size, jnp.nan, like.dtype)
    return memory.at[numbers].set(value.astype(like.dtype), mode="drop").reshape(like.shape)


def weighed(q, k, how, q_inside, kv_inside):
    """Returns (logits RNTS, which of them count)."""
    group = q.shape[2] // k.shape[2]
    keys = jnp.repeat(k, group, axis=2)
    logits = how.scale * jnp.einsum("rtnh,rsnh->rnts", q, keys, precision="highest")
    back = jnp.arange(q.shape[1])[:, None] - jnp.arange(k.shape[1])[None]
    seen = q_inside[:, :, None] & kv_inside[:, None]
    if how.causal:
        seen &= (back >= 0)[None]
    if how.window:
        assert how.causal
        seen &= (back < how.window)[None]
    return logits, seen[:, None]


def stand_in_forward(q_BTNH, k_BSKH, v_BSKH, sequences, how):
    at_q, at_kv = places(q_BTNH, sequences, "q"), places(k_BSKH, sequences, "kv")
    q, (k, v) = read(q_BTNH, at_q), (read(x, at_kv) for x in (k_BSKH, v_BSKH))
    logits, seen = weighed(q, k, how, at_q[1], at_kv[1])
    lse = jax.nn.logsumexp(logits, axis=-1, where=seen)
    shares = jnp.where(seen, jnp.exp(logits - lse[..., None]), 0)
    values = jnp.repeat(v, q.shape[2] // v.shape[2], axis=2)
    out = jnp.einsum("rnts,rsnh->rtnh", shares, values, precision="highest")
    lse = jnp.where(at_q[1][:, None], lse, jnp.nan)
    return written(q_BTNH, out, at_q), lse


def stand_in_backward(q_BTNH, kv, results, sequences, how):
    (k_BSKH, v_BSKH), (lse, out_BTNH, dout_BTNH) = kv, results
    at_q, at_kv = places(q_BTNH, sequences, "q"), places(k_BSKH, sequences, "kv")
    q, out, dout = (read(x, at_q) for x in (q_BTNH, out_BTNH, dout_BTNH))
    k, v = (read(x, at_kv) for x in kv)
    kv_heads, group = k.shape[2], q.shape[2] // k.shape[2]
    logits, seen = weighed(q, k, how, at_q[1], at_kv[1])
    shares = jnp.where(seen, jnp.exp(logits - lse[..., None]), 0)
    einsum = functools.partial(jnp.einsum, precision="highest")
    values, keys = (jnp.repeat(x, group, axis=2) for x in (v, k))
    inner = jnp.sum(out * dout, axis=-1).swapaxes(1, 2)
    slopes = how.scale * shares * (einsum("rtnh,rsnh->rnts", dout, values) - inner[..., None])
    dq = einsum("rnts,rsnh->rtnh", slopes, keys)
    dk, dv = (
        einsum("rnts,rtnh->rsnh", a, b).reshape(*k.shape[:2], kv_heads, group, -1).sum(3)
        for a, b in ((slopes, q), (shares, dout))
    )
    return written(q_BTNH, dq, at_q), written(k_BSKH, dk, at_kv), written(v_BSKH, dv, at_kv)


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(cudnn_calls, "forward", stand_in_forward)
    monkeypatch.setattr(cudnn_calls, "backward", stand_in_backward)


# ---- what is around the calls


def of_rows(*rows):
    """A mask of documents of these lengths."""
    return functools.partial(masks.self_mask, *map(jnp.asarray, ids_of(*rows)))


def last_queries(count, mask):
    """The mask of the last queries of a row, as a chunk has before it another's keys."""
    ids = {name: getattr(mask, name) for name in ("q_positions_BT", "q_segment_ids_BT")}
    return dataclasses.replace(mask, **jax.tree.map(lambda x: x[:, -count:], ids))


def hop(q_rows, kv_rows):
    """Two chunks of places without an order, of documents with these ids: {id: tokens}."""
    q, kv = (
        jnp.int32([np.repeat(list(row), list(row.values())) for row in rows])
        for rows in (q_rows, kv_rows)
    )
    return masks.Mask(jnp.zeros_like(q), jnp.zeros_like(kv), q, kv, causal=False)


MANY = (1,) * 7 + (2, 3, 1, 1) * 2 + (1,) * 5 + (6, 5, 5)  # 23 documents, 42 tokens
ORDERED = {
    "causal": causal,
    "full": functools.partial(causal, causal=False),
    "window": functools.partial(causal, window=5),
    "packed": of_rows((11, 1, 30), (42,)),
    "packed, no order": functools.partial(of_rows((11, 1, 30), (20, 22)), causal=False),
    "packed, two calls": of_rows(MANY, (40, 2)),
    "packed, window, two calls": functools.partial(of_rows(MANY, MANY[::-1]), window=4),
    "last queries": lambda: last_queries(13, causal()),
    "last queries, packed": lambda: last_queries(13, of_rows((11, 1, 30), (30, 6, 6))()),
    "last queries, packed, window": lambda: last_queries(
        13, of_rows((11, 1, 30), (30, 6, 6))(window=6)
    ),
    "hop, one document": lambda: hop(({2: 9, 3: 12}, {7: 21}), ({1: 5, 2: 16}, {3: 4, 7: 17})),
    "hop, none in a row": lambda: hop(({2: 9, 3: 12}, {7: 21}), ({1: 5, 2: 16}, {3: 21})),
    "hop, none": lambda: hop(({2: 9, 3: 12}, {7: 21}), ({1: 21}, {3: 21})),
    "hop, many": lambda: hop(
        ({2: 2, 3: 2, 4: 3, 5: 4, 6: 10}, {9: 1, 7: 20}),
        ({1: 1, 3: 1, 2: 9, 5: 7, 6: 2, 0: 1}, {7: 21}),
    ),
}


def ours(mask, **how):
    ordered = dataclasses.replace(mask, ordered=True)
    settings = attention.Settings(kernel="cudnn", **how)
    return functools.partial(attention.attend, "flash", mask=ordered, settings=settings)


# `make test` runs what has most in it.
SLOW = (
    "full",
    "packed",
    "packed, no order",
    "packed, two calls",
    "last queries, packed",
    "hop, none",
)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] if case in SLOW else []) for case in ORDERED],
)
def test_equals_the_definition(case, stand_in):
    mask = ORDERED[case]()
    operands = inputs(mask, 4, 2, jnp.float32)
    found = value_and_grads(ours(mask), operands)
    expected = value_and_grads(definition(mask), operands)
    assert all(np.abs(a - b).max() < 2e-5 for a, b in zip(found, expected, strict=True))
    assert case == "hop, none" or np.abs(expected[0]).max() > 1


SPREAD = [
    ("ring", 1, dict(context=4), 4, 2, packed),
    ("ring", 1, dict(context=2, tensor=2), 4, 2, functools.partial(packed, window=9)),
]


@pytest.mark.parametrize(
    "backend, ulysses, sizes, heads, kv_heads, make_mask",
    SPREAD
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in CASES
        if case[0] != "all_gather" and "blind" not in str(case[5]) and "shorter" not in str(case[5])
    ],
)
def test_a_spread_sequence(backend, ulysses, sizes, heads, kv_heads, make_mask, stand_in):
    """Every hop is a call or some; merged by the log-sum-exp, with gradients of the whole."""
    mask = dataclasses.replace(make_mask(), ordered=True)
    operands = inputs(mask, heads, kv_heads, jnp.float32)
    found = value_and_grads(spread(backend, ulysses, sizes, mask, kernel="cudnn"), operands)
    assert max(errors(found, value_and_grads(definition(mask), operands))) < 2e-6


def test_candidates_under_vmap(stand_in):
    """With the documents of each, too."""
    cases = [of_rows((11, 1, 30), (42,))(), of_rows(MANY, (40, 2))()]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *cases)
    q, k, v, _ = inputs(cases[0], 4, 2, jnp.float32)
    found = jax.jit(jax.vmap(lambda mask: ours(mask)(q, k, v)))(stacked)
    for out, mask in zip(found, cases, strict=True):
        assert np.abs(out - definition(mask)(q, k, v)).max() < 2e-6


# ---- the calls


def calls_in(fn, *operands):
    """Returns (name, config, the rest) of each of cuDNN's calls in the program for a GPU."""
    lowered = jax.jit(fn).trace(*operands).lower(lowering_platforms=("cuda",))
    found = []
    for line in lowered.as_text().splitlines():
        if "custom_call @__cudnn" in line:
            config = re.search(r'backend_config = "(.*?)", ', line)
            rest = re.sub(r"%[\w#:]+", "%", line.replace(config.group(0), "")).strip()
            found.append((json.loads(config.group(1).replace(r"\22", '"')), rest))
    return found


@pytest.mark.parametrize("num", [1, 4])
@pytest.mark.parametrize(
    "causal, window", [(True, None), (True, 7), (False, None)], ids=["causal", "window", "full"]
)
def test_the_calls_are_those_of_jax(causal, window, num, monkeypatch):
    """Word for word what `jax.nn.dot_product_attention` leaves to XLA, with `num` sequences."""
    theirs = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(theirs, "check_cudnn_version", lambda: 91_900)
    monkeypatch.setattr(theirs, "check_is_flash_attention", lambda *_, **__: None)
    shapes = [(2, 256, heads, 64) for heads in (8, 2, 2, 8)]
    operands = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    lists = [jax.ShapeDtypeStruct((2, n), jnp.int32) for n in (num, num, num + 1, num + 1)]
    lists = lists if num > 1 else []

    def our_calls(q, k, v, dout, *lists):
        how = cudnn_calls.How(0.3, causal, window)
        sequences = cudnn_calls.Sequences(*lists) if lists else None
        out, lse = cudnn_calls.forward(q, k, v, sequences, how)
        return out, cudnn_calls.backward(q, (k, v), (lse, out, dout), sequences, how)

    def their_calls(q, k, v, dout, *lists):
        kind = "CAUSAL" if causal else "NO_MASK"
        if lists:
            kind = "PADDING_CAUSAL" if causal else "PADDING"
        names = ("q_seqlen", "kv_seqlen", "q_offsets", "kv_offsets")
        call = functools.partial(
            theirs.dot_product_attention,
            scale=0.3,
            mask_type=theirs.MaskType[kind],
            sliding_window_length=window,
            **dict(zip(names, lists, strict=False)),
        )
        out, pull = jax.vjp(call, q, k, v)
        return out, pull(dout)

    found, expected = (calls_in(fn, *operands, *lists) for fn in (our_calls, their_calls))
    assert len(found) == 2 and found == expected


LOWERED = {  # calls: forward and backward, of a device's own keys and of the hops
    "causal": ("flash", {}, causal, 2),
    "packed window": ("flash", {}, functools.partial(packed, window=5), 2),
    "ring": ("ring", dict(context=4), packed, 2 * (1 + 2 * 2)),
    "ring, window": ("ring", dict(context=4), functools.partial(packed, window=3), 2),
    "ring, long window": ("ring", dict(context=4), functools.partial(packed, window=20), 0),
    "ulysses": ("ulysses", dict(context=4), packed, 2),
}


@pytest.mark.parametrize("case", LOWERED)
def test_what_is_lowered_for_gpus(case):
    backend, sizes, make_mask, num = LOWERED[case]
    mask = dataclasses.replace(make_mask(), ordered=True)
    operands = [x.astype(jnp.bfloat16) for x in inputs(mask, 4, 4, jnp.float32)]
    attend = spread(backend, 1, sizes, mask, kernel="cudnn") if sizes else ours(mask)

    def both(q, k, v, dout):
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(dout)

    assert len(calls_in(both, *operands)) == num


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(ordered=False), "rows whose documents are not known to lie one behind another"),
        (dict(causal=False, window=3), "a window of a mask that is not causal"),
        (dict(cap=5.0), "logits capped at 5"),
        (dict(keys=7), "42 causal queries with 7 keys"),
        (dict(), "cannot do float32. Set forward.compute_dtype to bfloat16"),
        (dict(length=2**26), "packed queries of 4,294,967,296 numbers on a device"),
    ],
)
def test_what_cudnn_cannot_do_it_refuses(changed, message):
    length, num_keys = changed.pop("length", 42), changed.pop("keys", None)
    cap = changed.pop("cap", None)
    shapes = [(1, n, 4, 16) for n in (length, num_keys or length, num_keys or length)]
    q, k, v = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    rows = [jax.ShapeDtypeStruct((1, x.shape[1]), jnp.int32) for x in (q, k)]
    settings = attention.Settings(kernel="cudnn", cap=cap)

    def attend(q, k, v, q_ids, kv_ids):
        mask = masks.Mask(q_ids, kv_ids, q_ids, kv_ids, **dict(ordered=True) | changed)
        return attention.attend("flash", q, k, v, mask=mask, settings=settings)

    with pytest.raises(NotImplementedError, match=message):
        jax.eval_shape(attend, q, k, v, *rows)


def lacks(dtype="bfloat16", head_dim=128, capped=False, capability=9.0):
    return cudnn.lacks(dtype, head_dim, capped=capped, capability=capability)


def test_what_it_lacks_is_said():
    assert lacks() is lacks("float16", 256, capability=10.0) is None
    assert "compute capability 8.0" in lacks(capability=8.0)
    assert "another maker" in lacks(capability=None)
    assert "float32 (set forward.compute_dtype to bfloat16)" in lacks("float32")
    assert "capped" in lacks(capped=True)
    assert "a head dim of 512" in lacks(head_dim=512) and "of 12" in lacks(head_dim=12)


def tried(window=None):
    trial._trial.cache_clear()
    how = dict(window=window, capped=False, capability=9.0)
    return trial.lacks("bfloat16", 16, (4, 2), **how)


def test_a_program_relies_on_it_after_a_trial(stand_in, monkeypatch):
    """Which finds results that are wrong, NaN, and a GPU that refuses."""
    assert tried() is tried(window=100) is None
    forward = stand_in_forward

    def wrong(*given):
        out, lse = forward(*given)
        return out * 1.2, lse

    monkeypatch.setattr(cudnn_calls, "forward", wrong)
    assert "by a trial: its results are" in tried()
    monkeypatch.setattr(
        cudnn_calls, "forward", lambda *a: (forward(*a)[0] * jnp.nan, forward(*a)[1])
    )
    assert "by a trial: its results are nan% from those of blocks" in tried()

    def refuses(*given):
        window = given[-1].window
        if window:
            raise RuntimeError(f"no window of {window}\nand more")
        return forward(*given)

    monkeypatch.setattr(cudnn_calls, "forward", refuses)
    assert tried() is None
    assert tried(100) == "a window of 100 in packed rows on this GPU, by a trial: no window of 100"

"""One conformance suite over every backend, values and gradients, against loops in numpy. Backends
that spread a sequence over devices run it in attention_spread_test.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrope import attention
from jaxrope.attention import masks
from jaxrope.errors import InputError

BATCH, HEAD_DIM = 2, 8
ON_ONE_DEVICE = ("reference", "blockwise", "flash")
# The interpreter takes seconds to compile: `make test` runs it where it differs, `make slow` all.
INTERPRETED = ("packed window", "no key", "permuted")


def attend(backend, *operands, mask, **how):
    """Returns attention; the TPU's kernels run in the interpreter."""
    kernel = "flash_interpret" if backend == "flash" else "blockwise"
    settings = attention.Settings(kernel=kernel, **how)
    return attention.attend(backend, *operands, mask=mask, settings=settings)


def by_loops(q, k, v, seen, scale):
    """softmax(scale q k^T) v over the keys that are seen, one query at a time, float64."""
    out = np.zeros(q.shape)
    group = q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(q.shape[:3]):
        keys = np.flatnonzero(seen[b, t])
        if keys.size:
            logits = scale * k[b, keys, n // group] @ q[b, t, n]
            weights = np.exp(logits - logits.max())
            out[b, t, n] = weights / weights.sum() @ v[b, keys, n // group]
    return out


def inputs(q_len, kv_len, heads, kv_heads, dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = [(q_len, heads), (kv_len, kv_heads), (kv_len, kv_heads), (q_len, heads)]
    return [rng.normal(size=(BATCH, *shape, HEAD_DIM)).astype(dtype) for shape in shapes]


def packed(length, *lengths):
    """Positions and segment ids of documents packed into a row; the batch's rows differ."""
    rows = [lengths, lengths[::-1]]
    positions = [np.concatenate([np.arange(n) for n in row]) for row in rows]
    segments = [np.repeat(np.arange(len(row)), row) for row in rows]
    assert all(len(p) == length for p in positions)
    return jnp.int32(np.stack(positions)), jnp.int32(np.stack(segments))


def seen_by(mask):
    """The rule, one pair at a time."""
    mask = jax.tree.map(np.asarray, mask)
    q, kv = mask.q_positions_BT, mask.kv_positions_BS
    seen = np.zeros((BATCH, q.shape[1], kv.shape[1]), bool)
    for b, t, s in np.ndindex(seen.shape):
        back = q[b % len(q), t] - kv[b % len(kv), s]
        ok = (not mask.causal or back >= 0) and (mask.window is None or back < mask.window)
        if mask.q_segment_ids_BT is not None:
            ok &= bool(mask.q_segment_ids_BT[b, t] == mask.kv_segment_ids_BS[b, s])
        seen[b, t, s] = ok
    return seen


def positions(*numbers):
    return jnp.broadcast_to(jnp.int32(np.concatenate(numbers)), (BATCH, sum(map(len, numbers))))


CASES = {
    "causal": lambda: masks.self_mask(positions(np.arange(37))),
    "one block": lambda: masks.self_mask(positions(np.arange(16))),
    "window": lambda: masks.self_mask(positions(np.arange(37)), window=5),
    "full": lambda: masks.self_mask(positions(np.arange(21)), causal=False),
    "packed": lambda: masks.self_mask(*packed(40, 17, 1, 22)),
    "packed window": lambda: masks.self_mask(*packed(40, 3, 30, 7), window=9),
    "decode": lambda: masks.Mask(positions(np.arange(30, 33)), positions(np.arange(33))),
    "permuted": lambda: masks.self_mask(positions(np.random.default_rng(3).permutation(32))),
    "no key": lambda: masks.Mask(positions(np.arange(20)), positions(np.arange(10, 30))),
    "cross": lambda: masks.Mask(
        positions(np.zeros(5, int)), positions(np.zeros(23, int)), causal=False
    ),
}


HEADS = [(4, 2, case) for case in CASES] + [
    (heads, kv_heads, case) for heads, kv_heads in ((3, 3), (4, 1)) for case in ("causal", "packed")
]


def pair(backend, case, *rest):
    slow = backend == "flash" and case not in INTERPRETED
    return pytest.param(backend, case, *rest, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(
    "backend, case, heads, kv_heads",
    [pair(b, case, n, k) for b in ON_ONE_DEVICE for n, k, case in HEADS],
)
def test_values(backend, case, heads, kv_heads):
    mask = CASES[case]()
    q_len, kv_len = mask.q_positions_BT.shape[1], mask.kv_positions_BS.shape[1]
    q, k, v, _ = inputs(q_len, kv_len, heads, kv_heads)
    expected = by_loops(q, k, v, seen_by(mask), HEAD_DIM**-0.5)
    out = jax.jit(functools.partial(attend, backend, mask=mask, block=8))(q, k, v)
    assert out.dtype == q.dtype
    assert np.abs(out - expected).max() < 2e-6


@pytest.mark.parametrize(
    "backend, case", [pair(b, case) for b in ON_ONE_DEVICE[1:] for case in CASES]
)
def test_gradients(backend, case):
    mask = CASES[case]()
    q, k, v, weights = inputs(mask.q_positions_BT.shape[1], mask.kv_positions_BS.shape[1], 4, 2)

    def gradient(backend):
        def loss(q, k, v):
            out = attend(backend, q, k, v, mask=mask, scale=0.4, block=8)
            return jnp.sum(weights * out)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)

    for ours, theirs in zip(gradient(backend), gradient("reference"), strict=True):
        assert np.abs(ours - theirs).max() < 2e-5


@pytest.mark.parametrize("backend", ON_ONE_DEVICE)
def test_capped_logits(backend):
    """Gemma 2's: against the formula and jax's own gradient of it."""
    mask, cap = CASES["packed window"](), 1.5
    q, k, v, weights = inputs(mask.q_positions_BT.shape[1], mask.kv_positions_BS.shape[1], 4, 2)
    visible = jnp.asarray(seen_by(mask))[:, None]

    def formula(q, k, v):
        keys, values = (jnp.repeat(x, 2, axis=2) for x in (k, v))
        logits = 0.9 * jnp.einsum("btnh,bsnh->bnts", q, keys, precision="highest")
        logits = jnp.where(visible, cap * jnp.tanh(logits / cap), -jnp.inf)
        shares = jax.nn.softmax(logits, axis=-1)
        return jnp.einsum("bnts,bsnh->btnh", shares, values, precision="highest")

    capped = functools.partial(attend, backend, mask=mask, scale=0.9, cap=cap, block=8)
    for fn in (capped, functools.partial(capped, cap=None)):
        ours, pull = jax.vjp(jax.jit(fn), q, k, v)
        theirs, their_pull = jax.vjp(formula, q, k, v)
        errors = [
            np.abs(a - b).max()
            for a, b in zip((ours, *pull(weights)), (theirs, *their_pull(weights)), strict=True)
        ]
        if fn is capped:
            assert max(errors) < 2e-5, errors
        else:
            assert min(errors) > 1e-2, errors  # the cap is felt


def test_reference_gradient_by_differences():
    """The definition's own gradient, so that the suite above does not compare two mistakes."""
    mask = CASES["packed"]()
    q, k, v, weights = inputs(40, 40, 4, 2)
    seen = seen_by(mask)

    def loss(q, k, v):
        return jnp.sum(weights * attend("reference", q, k, v, mask=mask, scale=0.7))

    grads = jax.grad(loss, argnums=(0, 1, 2))(q, k, v)
    rng = np.random.default_rng(5)
    for which in range(3):
        step = rng.normal(size=(q, k, v)[which].shape)
        values = []
        for sign in (1, -1):
            moved = [x.astype(np.float64) for x in (q, k, v)]
            moved[which] = moved[which] + sign * 1e-6 * step
            values.append(np.sum(weights * by_loops(*moved, seen, 0.7)))
        slope = (values[0] - values[1]) / 2e-6
        assert np.sum(grads[which] * step) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize(
    "backend, block", [("blockwise", n) for n in (1, 5, 16, 64)] + [("flash", 64)]
)
def test_block_size_does_not_matter(backend, block):
    mask = CASES["packed"]()
    q, k, v, _ = inputs(40, 40, 4, 2)
    whole = attend("reference", q, k, v, mask=mask)
    assert np.abs(attend(backend, q, k, v, mask=mask, block=block) - whole).max() < 2e-6


@pytest.mark.parametrize("backend", ON_ONE_DEVICE[1:])
def test_large_logits_stay_finite(backend):
    q, k, v, _ = inputs(24, 24, 2, 2)
    mask = masks.self_mask(positions(np.arange(24)))
    out, pull = jax.vjp(lambda q: attend(backend, 300 * q, 300 * k, v, mask=mask, block=8), q)
    assert np.isfinite(out).all() and np.isfinite(pull(out)[0]).all()
    expected = by_loops(300 * q, 300 * k, v, seen_by(mask), HEAD_DIM**-0.5)
    assert np.abs(out - expected).max() < 1e-3


@pytest.mark.parametrize("backend", ON_ONE_DEVICE[1:])
def test_bfloat16_accumulates_in_float32(backend):
    q, k, v, _ = (jnp.asarray(x, jnp.bfloat16) for x in inputs(200, 200, 2, 1))
    mask = masks.self_mask(positions(np.arange(200)))
    out = attend(backend, q, k, v, mask=mask, block=16)
    exact = by_loops(*(np.float64(x) for x in (q, k, v)), seen_by(mask), HEAD_DIM**-0.5)
    assert out.dtype == jnp.bfloat16
    assert np.abs(np.float64(out) - exact).max() < 0.02  # 2^-8 of values up to 3


def test_memory_is_linear_in_length():
    """Forward and backward at 16,384 tokens: the T x T matrix of one head alone would be 1 GiB."""
    shape = jax.ShapeDtypeStruct((1, 16_384, 2, HEAD_DIM), jnp.float32)

    def loss(q, k, v):
        where = jnp.arange(q.shape[1], dtype=jnp.int32)[None]
        return jnp.sum(attention.attend("blockwise", q, k, v, mask=masks.self_mask(where)))

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(shape, shape, shape).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 100 * 2**20


@pytest.mark.parametrize("backend", ON_ONE_DEVICE[1:])
def test_candidates_under_vmap(backend):
    q, k, v, _ = inputs(20, 20, 4, 2)
    mask = masks.self_mask(positions(np.arange(20)))
    scales = jnp.array([0.5, 1.0, 2.0])
    batched = jax.vmap(lambda s: attend(backend, s * q, k, v, mask=mask, block=8))(scales)
    for out, s in zip(batched, scales, strict=True):
        one = attend(backend, s * q, k, v, mask=mask, block=8)
        assert np.allclose(out, one, atol=1e-6)


def test_any_allowed_never_misses_and_all_allowed_is_never_wrong():
    """False only where the rule allows no pair at all, True only where it allows every one; checked
    on random blocks.
    """
    rng = np.random.default_rng(0)
    skipped = whole = 0
    for _ in range(100):
        q, kv = rng.integers(0, 6, (2, BATCH, 3)) + rng.integers(0, 12, (2, 1, 1))
        segments = rng.integers(0, 3, (2, BATCH, 3)) if rng.random() < 0.5 else (None, None)
        window = int(rng.integers(1, 6)) if rng.random() < 0.5 else None
        segments = [None if s is None else jnp.int32(s) for s in segments]
        mask = masks.Mask(jnp.int32(q), jnp.int32(kv), *segments, rng.random() < 0.7, window)
        possible = bool(masks.any_allowed(mask))
        assert np.array_equal(masks.allowed(mask), seen_by(mask))
        assert possible or not seen_by(mask).any()
        skipped += not possible
        certain = bool(masks.all_allowed(mask))
        assert not certain or seen_by(mask).all()
        whole += certain
    assert skipped > 10 and whole > 10


def test_messages():
    q, k, v, _ = inputs(8, 8, 4, 3)
    mask = masks.self_mask(positions(np.arange(8)))
    with pytest.raises(InputError, match="Unknown attention 'blokwise'. Did you mean 'blockwise'"):
        attention.attend("blokwise", q, k, v, mask=mask)
    with pytest.raises(ValueError, match="N must be a multiple of K"):
        attention.attend("reference", q, k, v, mask=mask)

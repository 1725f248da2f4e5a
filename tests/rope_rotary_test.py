"""Phases, rotation, start tokens and gradients against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrope import rope
from jaxrope.errors import InputError

LIMIT = 2**22


def all_methods(head_dim, theta, original_len):
    geometry = dict(head_dim=head_dim, theta=theta, original_len=original_len)
    rng = np.random.default_rng(0)
    searched = np.sort(rng.uniform(1, 700, head_dim // 2)).round(2).tolist()
    methods = {
        "none": {},
        "pi": dict(factor=512.0),
        "ntk": dict(factor=64.0),
        "dynamic_ntk": dict(factor=2.0),
        "yarn": dict(factor=32.0, beta_fast=32, beta_slow=1, attention_factor=1.0),
        "llama3": dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0),
        "abf": dict(new_theta=theta * 100),
        "longrope": dict(factors=searched, attention_factor=1.0, max_len=LIMIT),
    }
    return {name: rope.make(name, **geometry, **constants) for name, constants in methods.items()}


def some_positions():
    rng = np.random.default_rng(1)
    edges = [2**k + d for k in range(3, 22) for d in (-1, 0, 1)] + [LIMIT - 1]
    return np.concatenate([np.arange(300), edges, rng.integers(0, LIMIT, 3000)]).astype(np.int32)


@pytest.mark.parametrize("theta, head_dim", [(10_000.0, 64), (500_000.0, 128)])
def test_exact_phases(theta, head_dim):
    """Below 2^22 every method is within 1e-6 of float64 (naive float32 is off by 0.25 there)."""
    positions = some_positions()
    ropes, expected = [], []
    for rope_fn in all_methods(head_dim, theta, 4096).values():
        factors = np.asarray(rope_fn.bucket(LIMIT).factors)
        plain = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        expected.append(positions[:, None].astype(np.float64) * (plain / factors))
        ropes.append(rope_fn(LIMIT))
        cos, sin = jax.jit(rope.cos_sin)(ropes[-1], positions[None])
        assert np.abs(np.float64(cos[0]) - np.cos(expected[-1])).max() < 1e-6, rope_fn.method
        assert np.abs(np.float64(sin[0]) - np.sin(expected[-1])).max() < 1e-6, rope_fn.method
    cos, sin = jax.jit(jax.vmap(rope.cos_sin, in_axes=(0, None)))(
        rope.stack(ropes), positions[None]
    )
    assert np.abs(np.float64(cos[:, 0]) - np.cos(expected)).max() < 1e-6
    assert np.abs(np.float64(sin[:, 0]) - np.sin(expected)).max() < 1e-6
    assert not jax.config.jax_enable_x64 and cos.dtype == jnp.float32


def test_naive_float32_fails_where_ours_holds():
    plain = np.float32(10_000.0) ** (-np.arange(32, dtype=np.float32) / 32)
    naive = np.cos(np.float32(LIMIT - 1) * plain)
    exact = np.cos((LIMIT - 1) * 10_000.0 ** (-np.arange(32) / 32))
    assert np.abs(naive - exact).max() > 0.05


@pytest.mark.parametrize("start_tokens, scale", [(0, 1.2), (4, 1.3), (256, 0.9)])
def test_start_tokens(start_tokens, scale):
    """Eq. 3: below n̂ the original angle and no attention factor; from n̂ on, both."""
    factors = np.linspace(1, 8, 16)
    r = rope.build(factors, theta=10_000.0, start_tokens=start_tokens, attention_factor=scale)
    positions = np.arange(300)
    cos, sin = rope.cos_sin(r, positions[None])
    plain = 10_000.0 ** (-np.arange(16) / 16)
    for n in (0, 1, 3, 4, 5, 255, 256, 299):
        inv, by = (plain, 1.0) if n < start_tokens else (plain / factors, scale)
        assert np.allclose(cos[0, n], by * np.cos(n * inv), atol=2e-6)
        assert np.allclose(sin[0, n], by * np.sin(n * inv), atol=2e-6)


def test_rotate_half_split_layout():
    """HF's rotate_half, written out: pair i is dims i and i + R; the dims past 2R pass through."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, 12)).astype(np.float32)
    angle = rng.uniform(0, 6, (2, 5, 4))
    out = rope.rotate(x, jnp.float32(np.cos(angle)), jnp.float32(np.sin(angle)))
    for i in range(4):
        turned = (x[..., i] + 1j * x[..., i + 4]) * np.exp(1j * angle[..., None, i])
        assert np.allclose(out[..., i], turned.real, atol=1e-5)
        assert np.allclose(out[..., i + 4], turned.imag, atol=1e-5)
    assert np.array_equal(out[..., 8:], x[..., 8:])
    assert rope.rotate(x.astype(jnp.bfloat16), jnp.cos(angle), jnp.sin(angle)).dtype == jnp.bfloat16


def test_gradient_against_finite_differences():
    """d cos_sin / d factors and / d attention factor, in float64 numpy, start tokens included."""
    factors, theta, start, scale = np.linspace(1.5, 4, 8), 10_000.0, 3, 1.25
    positions = np.array([[0, 2, 3, 7, 40, 90]])
    weights = np.random.default_rng(2).normal(size=(2, 1, 6, 8))

    def by_numpy(factors, scale):
        plain = theta ** (-np.arange(8) / 8)
        inv = np.where(positions[..., None] < start, plain, plain / factors)
        by = np.where(positions[..., None] < start, 1.0, scale)
        angle = positions[..., None] * inv
        return np.sum(by * (weights[0] * np.cos(angle) + weights[1] * np.sin(angle)))

    r = rope.build(factors, theta=theta, start_tokens=start, attention_factor=scale)

    def by_jax(factors_R, attention_factor):
        import dataclasses

        changed = dataclasses.replace(r, factors_R=factors_R, attention_factor=attention_factor)
        cos, sin = rope.cos_sin(changed, positions)
        return jnp.sum(weights[0] * cos + weights[1] * sin)

    args = (jnp.asarray(r.factors_R), jnp.asarray(r.attention_factor))
    by_factor, by_scale = jax.jit(jax.grad(by_jax, argnums=(0, 1)))(*args)
    for i in range(8):
        step = np.eye(8)[i] * 1e-6
        slope = (by_numpy(factors + step, scale) - by_numpy(factors - step, scale)) / 2e-6
        assert by_factor[i] == pytest.approx(slope, rel=2e-4, abs=2e-4)
    slope = (by_numpy(factors, scale + 1e-6) - by_numpy(factors, scale - 1e-6)) / 2e-6
    assert by_scale == pytest.approx(slope, rel=1e-4)


def test_with_factors_makes_the_words_anew():
    old, new = np.linspace(1, 3, 16), np.linspace(2, 40, 16)
    r = rope.with_factors(
        rope.build(old, theta=10_000.0, start_tokens=2, attention_factor=1.1), new
    )
    fresh = rope.build(new, theta=10_000.0, start_tokens=2, attention_factor=1.1)
    jax.tree.map(np.testing.assert_array_equal, r, fresh)
    assert np.allclose(rope.inv_freq(r), 10_000.0 ** (-np.arange(16) / 16) / new, rtol=1e-6)


def test_leading_axis_chooses_per_sequence():
    ropes = [rope.build(np.full(8, f), theta=10_000.0, start_tokens=s) for f, s in ((1, 0), (4, 9))]
    positions = np.arange(40).reshape(2, 20)
    cos, sin = rope.cos_sin(rope.stack(ropes), positions)
    for row, r in enumerate(ropes):
        one = rope.cos_sin(r, positions[row : row + 1])
        assert np.array_equal(cos[row], one[0][0]) and np.array_equal(sin[row], one[1][0])


def test_turn_words_bits():
    """An eighth of a turn is 2^61 of 2^64; the low word holds what the high one lacks."""
    assert rope.turn_words(2 * np.pi / 8).tolist() == [1 << 29, 0]
    assert rope.turn_words(2 * np.pi * (2.0**-33)).tolist() == [0, 1 << 31]


def test_positions_must_be_integers():
    with pytest.raises(TypeError, match="positions must be integers, got bfloat16"):
        rope.cos_sin(rope.build(np.ones(4), theta=1e4), jnp.zeros((1, 4), jnp.bfloat16))


PLAIN = np.ones(4)


@pytest.mark.parametrize(
    "call, message",
    [
        (dict(factors=[1.0, 0.0]), "factors must all be finite and above 0, got 0.0 at"),
        (dict(factors=[1.0, -2.0]), "factors must all be finite .* got -2.0 at index 1"),
        (dict(factors=[np.nan, 1.0]), "factors must all be finite .* got nan at index 0"),
        (dict(factors=[np.inf, 1.0]), "factors must all be finite .* got inf at index 0"),
        (dict(factors=np.array([1.0, 1e300])), "factors must all be finite .* got 1e.300 at"),
        (dict(factors=[]), "factors must be a list of numbers, got"),
        (dict(factors=2.0), "factors must be a list of numbers, got 2.0"),
        (dict(factors="11"), "factors must be a list of numbers, got '11'"),
        (dict(factors=[[1.0, 1.0], [1.0]]), r"factors\[1\] must hold 2 numbers .* got 1"),
        (dict(factors=[[[1.0], [1.0, 2.0]]]), r"factors\[0\] must be a list of numbers"),
        (dict(factors=PLAIN, theta=1.0), "theta must be a number above 1, got 1.0"),
        (dict(factors=PLAIN, theta=np.nan), "theta must be a number above 1, got nan"),
        (dict(factors=PLAIN, start_tokens=-1), "start_tokens must be a whole number of tokens"),
        (dict(factors=PLAIN, start_tokens=2**31), "start_tokens must be a whole number of tokens"),
        (dict(factors=PLAIN, attention_factor=0), "attention_factor must be a positive number"),
        (dict(factors=PLAIN, attention_factor=1e-60), "attention_factor must be a positive"),
    ],
)
def test_what_is_no_rope_is_refused(call, message):
    call = dict(theta=1e4) | call
    with pytest.raises(InputError, match=message):
        rope.build(call.pop("factors"), **call)


def test_factors_below_one_stretch():
    """They are legal numbers; that rope.json may not have them is a rule of its own."""
    assert rope.build([0.9978, 1.0], theta=1e4).factors_R[0] == np.float32(0.9978)


def test_factors_are_of_as_many_pairs():
    r = rope.build(np.ones(32), theta=1e4)
    with pytest.raises(InputError, match=r"factors must have the shape \(32,\), got \(16,\)"):
        rope.with_factors(r, np.ones(16))
    with pytest.raises(InputError, match="ropes must have one theta and as many factors, got"):
        rope.stack([r, rope.build(np.ones(16), theta=1e4)])
    with pytest.raises(InputError, match="ropes must have one theta"):
        rope.stack([r, rope.build(np.ones(32), theta=5e5)])

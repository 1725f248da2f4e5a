"""Rope as data: a frozen pytree of factors, and the rotation it stands for, with phases that are
exact at any position.

A float32 product `position * inv_freq` is off by 0.125 at position 2^21. Here each frequency is
carried as turns per token, a fixed-point fraction of 64 bits in two unsigned words made in float64
on the host. The phase of a position is an integer product whose overflow is the modulo, so that
only an angle in [-pi/4, pi/4] is ever handed to `cos` and `sin`: the error stays below 3e-7 at
every position below 2^22, in float32, inside `jit` and under `vmap`.

Letters: B batch, T length, N heads, H head dim, R rotary pairs (rotary_dim // 2), P candidates.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxrope.rope import checks
from jaxrope.rope.checks import require

_WORD = 2.0**32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rope:
    """Rescaled rotary frequencies, one length's choice. Leaves may carry the same leading axes
    (candidates, layers, sequences).

    Attributes:
      factors_R: the rescale factors, float32; pair i turns by theta^(-2i/rotary_dim) / factor_i
        radians a token. Source of gradients.
      turns_R2: the same as turns a token, uint32: the high and the low word of a 64-bit fraction.
        `with_factors` makes them anew.
      start_tokens: int32; positions below it keep the original angle and no attention factor
        (LongRoPE, Eq. 3).
      attention_factor: float32; multiplies cos and sin.
      theta: base of the plain frequencies.
      per_layer: the first axis of the leaves is the model's layers.
    """

    factors_R: jax.Array
    turns_R2: jax.Array
    start_tokens: jax.Array
    attention_factor: jax.Array
    theta: float = dataclasses.field(metadata={"static": True})
    per_layer: bool = dataclasses.field(default=False, metadata={"static": True})


def base_inv_freq(theta: float, rotary_dim: int) -> np.ndarray:
    """Returns theta^(-2i/rotary_dim), float64 [R], radians a token (RoPE, Eq. 15; LongRoPE, Eq.
    1).
    """
    return theta ** (-np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)


def build(factors, *, theta: float, start_tokens: int = 0, attention_factor: float = 1.0) -> Rope:
    """Returns a Rope on the host from float64 `factors` as they stand in the file; cheap, so that
    candidates may be made by the thousand.

    Args:
      factors: [R]; or [layers, R], which makes a Rope that is `per_layer`.
      theta: base of the plain frequencies.
      start_tokens, attention_factor: see Rope; of every layer.

    Raises:
      InputError: a number is not finite, or out of range.
    """
    factors = checks.factors("factors", factors)
    require(checks.finite(theta) and theta > 1, "theta", "be a number above 1", theta)
    is_start = checks.whole(start_tokens, 0)
    require(is_start, "start_tokens", "be a whole number of tokens, 0 or more", start_tokens)
    is_scale = checks.positive(attention_factor)
    require(is_scale, "attention_factor", "be a positive number", attention_factor)
    lead = factors.shape[:-1]
    return Rope(
        factors_R=factors.astype(np.float32),
        turns_R2=turn_words(base_inv_freq(theta, 2 * factors.shape[-1]) / factors),
        start_tokens=np.full(lead, start_tokens, np.int32),
        attention_factor=np.full(lead, attention_factor, np.float32),
        theta=float(theta),
        per_layer=bool(lead),
    )


def with_factors(r: Rope, factors) -> Rope:
    """Returns `r` with other factors and the phase words that belong to them.

    Host only: the words need float64, which no TPU has. A gradient step on `factors_R` must end
    here; the words do not follow by themselves.

    Raises:
      InputError: they are no factors for as many pairs and layers.
    """
    factors = checks.factors("factors", factors)
    shape = np.shape(r.factors_R)
    require(factors.shape == shape, "factors", f"have the shape {shape}", factors.shape)
    turns = turn_words(base_inv_freq(r.theta, 2 * factors.shape[-1]) / factors)
    return dataclasses.replace(r, factors_R=factors.astype(np.float32), turns_R2=turns)


def stack(ropes: Sequence[Rope], *, per_layer: bool = False) -> Rope:
    """Returns one Rope whose leaves have a leading axis: candidates for `vmap`, sequences of a
    batch, or (`per_layer`) the layers of a model.

    Candidates that are `per_layer` themselves stay it: their layers follow the new axis, and lead
    again inside the `vmap`.

    Raises:
      InputError: they differ in their shapes or in theta.
    """
    alike = {(r.theta, r.per_layer, np.shape(r.factors_R)) for r in ropes}
    require(len(alike) == 1, "ropes", "have one theta and as many factors", sorted(alike))
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *ropes)
    return dataclasses.replace(stacked, per_layer=per_layer or stacked.per_layer)


def turn_words(inv_freq) -> np.ndarray:
    """Returns frequencies [..., R] in radians a token as turns a token, uint32 [..., R, 2] (high
    word, low word).
    """
    turns = np.asarray(inv_freq, np.float64) / (2 * np.pi) % 1.0
    high = np.floor(turns * _WORD)
    low = np.floor(
        (turns * _WORD - high) * _WORD
    )  # exact: a power of two, and the fraction of a float64
    return np.stack([high, low], axis=-1).astype(np.uint32)


def inv_freq(r: Rope) -> jax.Array:
    """Returns the effective frequencies [..., R], radians a token, float32; differentiable in the
    factors.
    """
    base = jnp.asarray(base_inv_freq(r.theta, 2 * r.factors_R.shape[-1]), jnp.float32)
    return jnp.broadcast_to(base, r.factors_R.shape) / r.factors_R


def cos_sin(r: Rope, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the rotation of each position, times the attention factor.

    LongRoPE, Eq. 3: angle n / (factor_i * theta^(2i/d)) for n >= start_tokens; below, n /
    theta^(2i/d) and no attention factor. Leading axes of the leaves of `r` are matched with the
    first axes of `positions_BT` (a choice per sequence). Differentiable in `factors_R` and in
    `attention_factor`; the gradient goes through the frequencies, since integers carry none.

    Args:
      r: without layers; see `Rope.per_layer`.
      positions_BT: integers from 0 to 2^31 - 1, any number of axes.

    Returns:
      (cos_BTR, sin_BTR), float32.

    Raises:
      TypeError: positions are not integers (bfloat16 positions collide above 256).
    """
    if not jnp.issubdtype(positions_BT.dtype, jnp.integer):
        raise TypeError(
            f"rope.cos_sin: positions must be integers, got {positions_BT.dtype}. Cast them to "
            "int32."
        )
    lead = jnp.ndim(r.start_tokens)
    spread = tuple(range(lead, jnp.ndim(positions_BT)))
    plain_inv_freq = base_inv_freq(r.theta, 2 * r.factors_R.shape[-1])
    pairs = (1,) * jnp.ndim(positions_BT) + plain_inv_freq.shape
    is_start = (positions_BT < jnp.expand_dims(jnp.asarray(r.start_tokens), spread))[..., None]
    freq = jnp.where(
        is_start,
        jnp.asarray(plain_inv_freq, jnp.float32).reshape(pairs),
        jnp.expand_dims(inv_freq(r), spread),
    )
    plain_turns = turn_words(plain_inv_freq).reshape(*pairs, 2)
    turns = jnp.where(
        is_start[..., None], plain_turns, jnp.expand_dims(jnp.asarray(r.turns_R2), spread)
    )
    cos, sin = _exact_cos_sin(freq, turns, positions_BT[..., None])
    scale = jnp.where(
        is_start,
        1.0,
        jnp.expand_dims(jnp.asarray(r.attention_factor), (*spread, jnp.ndim(positions_BT))),
    )
    return cos * scale, sin * scale


def rotate(x_BTNH: jax.Array, cos_BTR: jax.Array, sin_BTR: jax.Array) -> jax.Array:
    """Rotates the first 2R dims of every head, in the half-split layout of Hugging Face: pair i is
    dims i and i + R. The rest passes through.
    """
    num_pairs = cos_BTR.shape[-1]
    dtype = jnp.promote_types(x_BTNH.dtype, jnp.float32)
    cos, sin = cos_BTR[..., None, :].astype(dtype), sin_BTR[..., None, :].astype(dtype)
    first, second, rest = jnp.split(x_BTNH, (num_pairs, 2 * num_pairs), axis=-1)
    first, second = first.astype(dtype), second.astype(dtype)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([part.astype(x_BTNH.dtype) for part in turned] + [rest], axis=-1)


@jax.custom_jvp
def _exact_cos_sin(freq, turns, positions):
    """cos and sin of `positions` turned by `turns` (uint32 [..., 2]); `freq` (radians a token)
    serves the derivative alone.
    """
    del freq
    phase = _phase(turns, positions)
    quadrant = (phase + jnp.uint32(1 << 29)) >> 30
    rest = jax.lax.bitcast_convert_type(phase - (quadrant << 30), jnp.int32)
    angle = rest.astype(jnp.float32) * np.float32(2 * np.pi / _WORD)  # in [-pi/4, pi/4]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    is_odd, cos_negative, sin_negative = (
        quadrant & 1 == 1,
        (quadrant + 1) & 2 == 2,
        quadrant & 2 == 2,
    )
    turned_cos, turned_sin = jnp.where(is_odd, sin, cos), jnp.where(is_odd, cos, sin)
    return jnp.where(cos_negative, -turned_cos, turned_cos), jnp.where(
        sin_negative, -turned_sin, turned_sin
    )


@_exact_cos_sin.defjvp
def _exact_cos_sin_jvp(primals, tangents):
    freq, turns, positions = primals
    cos, sin = _exact_cos_sin(freq, turns, positions)
    angle_dot = tangents[0] * positions.astype(freq.dtype)
    return (cos, sin), (-sin * angle_dot, cos * angle_dot)


def _phase(turns, positions):
    """The fraction of a turn, in units of 2^-32: the top word of the 64-bit product of `positions`
    and `turns`, modulo 2^64.
    """
    high, low = turns[..., 0], turns[..., 1]
    n = positions.astype(jnp.uint32)
    n1, n0, low1, low0 = n >> 16, n & 0xFFFF, low >> 16, low & 0xFFFF
    carry = n1 * low0 + ((n0 * low0) >> 16)
    middle = n0 * low1 + (carry & 0xFFFF)
    return n * high + (n1 * low1 + (carry >> 16) + (middle >> 16))

"""Rope methods: each a factory of a schedule over length, from constants that the schema checked.

`make(method, **constants) -> RopeFn`, `RopeFn(seq_len) -> Rope`: static methods ignore the length,
dynamic NTK and LongRoPE use it, and nothing downstream knows which it was. All arithmetic is
float64 on the host. Every method is expressed as rescale factors of theta's plain frequencies:
factor_i = theta^(-2i/d) / inv_freq_i, R = d / 2 of them.
"""

import math
from collections.abc import Callable

import numpy as np

from jaxrope import schema
from jaxrope.rope import rotary
from jaxrope.rope.checks import positive, require, whole
from jaxrope.rope.schedule import (
    Bucket,
    Geometry,
    RopeFn,
    ascending,
    check_bucket,
    table,
    yarn_mscale,
)


def make(
    method: str,
    *,
    head_dim: int,
    theta: float,
    original_len: int,
    rotary_dim: int | None = None,
    **constants,
) -> RopeFn:
    """Returns the schedule of `method`.

    Args:
      method: a name in METHODS; its constants are those of schema.model.CONSTANTS.
      head_dim: dims of a head.
      theta: base of the plain frequencies.
      original_len: tokens the rope was trained on.
      rotary_dim: dims that turn, head_dim by default.
      **constants: the method's own; those with a default there may be left out.

    Raises:
      InputError: an unknown method, a missing, unknown or illegal constant.
    """
    constants = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in constants.items()}
    section = schema.model.METHOD.read({"method": method, **constants}, "rope")
    geometry = Geometry(
        head_dim, head_dim if rotary_dim is None else rotary_dim, theta, original_len
    )
    schedule_or_buckets = METHODS[method](geometry, section)
    if callable(schedule_or_buckets):
        return RopeFn(method, constants, geometry, schedule_or_buckets, ())
    return RopeFn(method, constants, geometry, table(schedule_or_buckets), schedule_or_buckets)


def register(name: str, factors_fn: Callable[..., tuple[np.ndarray, float]]) -> None:
    """Adds a method, for `make` and config.rope; an experiment file may do it.

    Args:
      name: of the method.
      factors_fn: (geometry, *, constants) -> (factors_R, attention factor). Its other arguments
        are the method's constants: annotated with float, int, bool or str, with a default or not.
        geometry has rotary_dim (2 R), theta, original_len (tokens) and base_inv_freq (float64 [R],
        radians a token).

    Raises:
      InputError: there is one of that name, or an argument is not annotated so.
    """

    def method(geometry: Geometry, given: schema.Section):
        constants = {key: value for key, value in given.to_dict().items() if key != "method"}
        factors_R, number = factors_fn(geometry, **constants)
        return (geometry.bucket(geometry.base_inv_freq / np.asarray(factors_R), number),)

    schema.registered.method(name, factors_fn)
    METHODS[name] = method


def _none(geometry: Geometry, given: schema.model.Plain):
    return (geometry.bucket(geometry.base_inv_freq),)


def _pi(geometry: Geometry, given: schema.model.Scaled):
    """Position interpolation (arXiv 2306.15595): inv_freq / factor."""
    return (geometry.bucket(geometry.base_inv_freq / given.factor),)


def _ntk(geometry: Geometry, given: schema.model.Scaled):
    """NTK-aware: base theta * factor^(d / (d - 2)), so that the last pair is interpolated by
    `factor`.
    """
    return (geometry.bucket(_ntk_inv_freq(geometry, given.factor)),)


def _ntk_rcd(geometry: Geometry, given: schema.model.NtkRcd):
    """NTK up to the critical pair, `factor` from there on (LongRoPE2, Eq. 8-10; its NTK-rcd).

    The base below is the one that interpolates the critical pair by `factor`: factor^(i / critical)
    for pair i. Pairs count from 0.
    """
    factors_R = ntk_rcd(given.factor, given.critical_pair, geometry.rotary_dim // 2)
    return (geometry.bucket(geometry.base_inv_freq / factors_R),)


def ntk_rcd(factor: float, critical_pair: int, num_pairs: int) -> np.ndarray:
    """Returns factor^(min(i, critical_pair) / critical_pair), float64 [num_pairs].

    Raises:
      InputError: a number is out of range.
    """
    require(positive(factor), "rope.factor", "be a number above 0", factor)
    require(
        whole(critical_pair, 1, num_pairs - 1),
        "rope.critical_pair",
        f"be a whole number from 1 to {num_pairs - 1} (rotary_dim / 2 - 1)",
        critical_pair,
    )
    return factor ** (np.minimum(np.arange(num_pairs), critical_pair) / critical_pair)


def _dynamic_ntk(geometry: Geometry, given: schema.model.Scaled):
    """Dynamic NTK: NTK-aware with (factor * L / original_len - (factor - 1)), L = max(sequence,
    original_len).
    """

    def schedule(seq_len: int) -> Bucket:
        length = max(seq_len, geometry.original_len)
        grown = given.factor * length / geometry.original_len - (given.factor - 1)
        return geometry.bucket(_ntk_inv_freq(geometry, grown))

    return schedule


def _yarn(geometry: Geometry, given: schema.model.Yarn):
    """YaRN (arXiv 2309.00071, Eq. 17-23): pairs with more than beta_fast turns in original_len keep
    their frequency, below beta_slow they are interpolated.

    The attention factor is the number given, else m(mscale) / m(mscale_all_dim) where both are set
    (Hugging Face, for DeepSeek), else m(1); m(k) = 0.1 k ln(factor) + 1. `truncate` rounds the
    borders of the ramp outwards to whole dims, as YaRN's code does; without it they stay fractions
    (gpt-oss).
    """
    dim, pairs = geometry.rotary_dim, geometry.rotary_dim // 2

    def dim_of(turns: float) -> float:
        return (
            dim
            * math.log(geometry.original_len / (turns * 2 * math.pi))
            / (2 * math.log(geometry.theta))
        )

    low, high = dim_of(given.beta_fast), dim_of(given.beta_slow)
    if given.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(pairs) - low) / (high - low or 0.001), 0, 1)
    plain, factor, number = geometry.base_inv_freq, given.factor, given.attention_factor
    if number is None and given.mscale and given.mscale_all_dim:
        number = yarn_mscale(factor, given.mscale) / yarn_mscale(factor, given.mscale_all_dim)
    elif number is None:
        number = yarn_mscale(factor, 1.0)
    return (geometry.bucket(plain / factor * ramp + plain * (1 - ramp), number),)


def _llama3(geometry: Geometry, given: schema.model.Llama3):
    """Llama 3.1: wavelengths above original_len / low_freq_factor are interpolated, below
    original_len / high_freq_factor kept, smooth between.
    """
    turns = geometry.original_len * geometry.base_inv_freq / (2 * np.pi)
    plain, smooth = geometry.base_inv_freq, _smooth(turns, given)
    return (geometry.bucket((1 - smooth) * plain / given.factor + smooth * plain),)


def llama3_factors(turns_R: np.ndarray, given: schema.model.Llama3) -> np.ndarray:
    """Returns the factors of Llama 3.1's scaling for pairs that turn so often in the original
    length.
    """
    smooth_R = _smooth(turns_R, given)
    return 1 / ((1 - smooth_R) / given.factor + smooth_R)


def _smooth(turns_R: np.ndarray, given: schema.model.Llama3) -> np.ndarray:
    """Returns 0 where a pair is interpolated and 1 where it is kept."""
    low = given.low_freq_factor
    return np.clip((turns_R - low) / (given.high_freq_factor - low), 0, 1)


def _abf(geometry: Geometry, given: schema.model.Abf):
    """Adjusted base frequency (arXiv 2309.16039): the plain frequencies of another base."""
    at_least = f"be at least the model's theta, {geometry.theta:g}"
    given.require(given.new_theta >= geometry.theta, "new_theta", at_least)
    return (geometry.bucket(rotary.base_inv_freq(given.new_theta, geometry.rotary_dim)),)


def _longrope(geometry: Geometry, given: schema.model.LongRope):
    """LongRoPE (arXiv 2402.13753, Eq. 3): searched factors, for one length or for any number of
    length buckets.

    Either `buckets`, dicts with max_len (tokens, inclusive), factors, start_tokens and
    attention_factor; or the four for a single bucket. An attention factor is a number or a law
    ("su", "yarn", "none") with the bucket's own max_len / original_len; the authors' code takes the
    current length there, which no table can hold.
    """
    fields = ("max_len", "factors", "start_tokens", "attention_factor")
    buckets = given.buckets or [{name: getattr(given, name) for name in fields}]
    return tuple(
        check_bucket(geometry, f"rope.buckets[{i}]", b) for i, b in enumerate(ascending(buckets))
    )


METHODS: dict[str, Callable] = {
    "none": _none,
    "pi": _pi,
    "ntk": _ntk,
    "ntk_rcd": _ntk_rcd,
    "dynamic_ntk": _dynamic_ntk,
    "yarn": _yarn,
    "llama3": _llama3,
    "abf": _abf,
    "longrope": _longrope,
}


def _ntk_inv_freq(geometry: Geometry, factor: float) -> np.ndarray:
    dim = geometry.rotary_dim
    require(dim > 2, "rotary_dim", "exceed 2 for NTK scaling", dim)
    return rotary.base_inv_freq(geometry.theta * factor ** (dim / (dim - 2)), dim)

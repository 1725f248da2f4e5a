"""Rope methods: each a factory that checks its constants and returns a schedule over length.

`make(method, **constants) -> RopeFn`, `RopeFn(seq_len) -> Rope`: static methods ignore the length,
dynamic NTK and LongRoPE use it, and nothing downstream knows which it was. All arithmetic is
float64 on the host. Every method is expressed as rescale factors of theta's plain frequencies:
factor_i = theta^(-2i/d) / inv_freq_i, R = d / 2 of them.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxrope.errors import InputError, choose, nearest
from jaxrope.rope import rotary
from jaxrope.rope.schedule import (
    Bucket,
    Geometry,
    RopeFn,
    ascending,
    check_bucket,
    is_number,
    require,
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
      method: a name in METHODS; its constants are the keyword arguments of the function there.
      head_dim: dims of a head.
      theta: base of the plain frequencies.
      original_len: tokens the rope was trained on.
      rotary_dim: dims that turn, head_dim by default.
      **constants: exactly the method's own.

    Raises:
      InputError: an unknown method, a missing, unknown or illegal constant.
    """
    factory = choose("rope.method", method, METHODS)
    _check_names(method, factory, constants)
    geometry = Geometry(int(head_dim), int(rotary_dim or head_dim), float(theta), int(original_len))
    schedule_or_buckets = factory(geometry, **constants)
    if callable(schedule_or_buckets):
        return RopeFn(method, constants, geometry, schedule_or_buckets, ())
    return RopeFn(method, constants, geometry, table(schedule_or_buckets), schedule_or_buckets)


def _none(geometry: Geometry):
    return (geometry.bucket(geometry.base_inv_freq),)


def _pi(geometry: Geometry, *, factor: float):
    """Position interpolation (arXiv 2306.15595): inv_freq / factor."""
    _check_factor("pi", factor)
    return (geometry.bucket(geometry.base_inv_freq / factor),)


def _ntk(geometry: Geometry, *, factor: float):
    """NTK-aware: base theta * factor^(d / (d - 2)), so that the last pair is interpolated by
    `factor`.
    """
    _check_factor("ntk", factor)
    return (
        geometry.bucket(rotary.base_inv_freq(_ntk_theta(geometry, factor), geometry.rotary_dim)),
    )


def _ntk_rcd(geometry: Geometry, *, factor: float, critical_pair: int):
    """NTK up to the critical pair, `factor` from there on (LongRoPE2, Eq. 8-10; its NTK-rcd).

    The base below is the one that interpolates the critical pair by `factor`: factor^(i / critical)
    for pair i. Pairs count from 0.
    """
    _check_factor("ntk_rcd", factor)
    num_pairs = geometry.rotary_dim // 2
    require(
        isinstance(critical_pair, int | np.integer) and 1 <= critical_pair < num_pairs,
        "rope.critical_pair",
        f"be a whole number from 1 to {num_pairs - 1} (rotary_dim / 2 - 1)",
        critical_pair,
    )
    return (geometry.bucket(geometry.base_inv_freq / ntk_rcd(factor, critical_pair, num_pairs)),)


def ntk_rcd(factor: float, critical_pair: int, num_pairs: int) -> np.ndarray:
    """Returns factor^(min(i, critical_pair) / critical_pair), float64 [num_pairs]."""
    return factor ** (np.minimum(np.arange(num_pairs), critical_pair) / critical_pair)


def _dynamic_ntk(geometry: Geometry, *, factor: float):
    """Dynamic NTK: NTK-aware with (factor * L / original_len - (factor - 1)), L = max(sequence,
    original_len).
    """
    _check_factor("dynamic_ntk", factor)

    def schedule(seq_len: int) -> Bucket:
        length = max(seq_len, geometry.original_len)
        grown = factor * length / geometry.original_len - (factor - 1)
        return geometry.bucket(
            rotary.base_inv_freq(_ntk_theta(geometry, grown), geometry.rotary_dim)
        )

    return schedule


def _yarn(
    geometry: Geometry,
    *,
    factor: float,
    beta_fast: float,
    beta_slow: float,
    attention_factor: float | None = None,
    mscale: float | None = None,
    mscale_all_dim: float | None = None,
    truncate: bool = True,
):
    """YaRN (arXiv 2309.00071, Eq. 17-23): pairs with more than beta_fast turns in original_len keep
    their frequency, below beta_slow they are interpolated.

    The attention factor is the number given, else m(mscale) / m(mscale_all_dim) where both are set
    (Hugging Face, for DeepSeek), else m(1); m(k) = 0.1 k ln(factor) + 1. `truncate` rounds the
    borders of the ramp outwards to whole dims, as YaRN's code does; without it they stay fractions
    (gpt-oss).
    """
    _check_factor("yarn", factor)
    require(
        beta_fast > beta_slow > 0,
        "rope.beta_fast",
        "be above rope.beta_slow, and that above 0",
        f"{beta_fast}, {beta_slow}",
    )
    dim, pairs = geometry.rotary_dim, geometry.rotary_dim // 2

    def dim_of(turns: float) -> float:
        return (
            dim
            * math.log(geometry.original_len / (turns * 2 * math.pi))
            / (2 * math.log(geometry.theta))
        )

    low, high = dim_of(beta_fast), dim_of(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(pairs) - low) / (high - low or 0.001), 0, 1)
    plain = geometry.base_inv_freq
    if attention_factor is None and mscale and mscale_all_dim:
        attention_factor = yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim)
    elif attention_factor is None:
        attention_factor = yarn_mscale(factor, 1.0)
    return (geometry.bucket(plain / factor * ramp + plain * (1 - ramp), attention_factor),)


def _llama3(geometry: Geometry, *, factor: float, low_freq_factor: float, high_freq_factor: float):
    """Llama 3.1: wavelengths above original_len / low_freq_factor are interpolated, below
    original_len / high_freq_factor kept, smooth between.
    """
    _check_factor("llama3", factor)
    require(
        high_freq_factor > low_freq_factor > 0,
        "rope.high_freq_factor",
        "be above rope.low_freq_factor, and that above 0",
        f"{high_freq_factor}, {low_freq_factor}",
    )
    plain = geometry.base_inv_freq
    turns = geometry.original_len * plain / (2 * np.pi)
    smooth = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return (geometry.bucket((1 - smooth) * plain / factor + smooth * plain),)


def _abf(geometry: Geometry, *, new_theta: float):
    """Adjusted base frequency (arXiv 2309.16039): the plain frequencies of another base."""
    require(
        math.isfinite(new_theta) and new_theta >= geometry.theta,
        "rope.new_theta",
        f"be at least the model's theta, {geometry.theta:g}",
        new_theta,
    )
    return (geometry.bucket(rotary.base_inv_freq(new_theta, geometry.rotary_dim)),)


def _longrope(
    geometry: Geometry,
    *,
    buckets: Sequence[Mapping[str, Any]] = (),
    factors: Sequence[float] = (),
    start_tokens: int = 0,
    attention_factor: float | str | None = None,
    max_len: int | None = None,
):
    """LongRoPE (arXiv 2402.13753, Eq. 3): searched factors, for one length or for any number of
    length buckets.

    Either `buckets`, dicts with max_len (tokens, inclusive), factors, start_tokens and
    attention_factor; or the four for a single bucket. An attention factor is a number or a law
    ("su", "yarn", "none") with the bucket's own max_len / original_len; the authors' code takes the
    current length there, which no table can hold.
    """
    if bool(buckets) == bool(factors):
        raise InputError(
            "rope.longrope needs either buckets or factors, got "
            + ("both." if buckets else "neither.")
        )
    if not buckets:
        buckets = [
            dict(
                max_len=max_len,
                factors=factors,
                start_tokens=start_tokens,
                attention_factor=attention_factor,
            )
        ]
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


def _check_names(method: str, factory: Callable, constants: Mapping[str, Any]) -> None:
    parameters = [
        p for p in inspect.signature(factory).parameters.values() if p.kind is p.KEYWORD_ONLY
    ]
    names = [p.name for p in parameters]
    for name in constants:
        if name not in names:
            raise InputError(
                f"Unknown constant rope.{name} of method '{method}'. "
                f"{nearest(name, names) if names else 'It has none.'}"
            )
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in constants]
    if missing:
        raise InputError(
            f"rope.method '{method}' needs rope.{missing[0]}, which is not given. Its constants: "
            f"{', '.join(names)}."
        )
    for name, value in constants.items():
        numeric = (
            name not in ("buckets", "factors", "attention_factor", "truncate") and value is not None
        )
        require(not numeric or is_number(value), f"rope.{name}", "be a number", repr(value))


def _check_factor(method: str, factor: float) -> None:
    require(
        math.isfinite(factor) and factor >= 1,
        f"rope.factor of method '{method}'",
        "be a number of at least 1 (target length / original length)",
        factor,
    )


def _ntk_theta(geometry: Geometry, factor: float) -> float:
    dim = geometry.rotary_dim
    require(dim > 2, "rotary_dim", "exceed 2 for NTK scaling", dim)
    return geometry.theta * factor ** (dim / (dim - 2))


# method -> its constants for a factor: YaRN's betas are those of its paper, section 3.2
USUAL_CONSTANTS: dict[str, Callable[[float], dict]] = {
    "pi": lambda factor: dict(factor=factor),
    "ntk": lambda factor: dict(factor=factor),
    "dynamic_ntk": lambda factor: dict(factor=factor),
    "yarn": lambda factor: dict(factor=factor, beta_fast=32.0, beta_slow=1.0),
}

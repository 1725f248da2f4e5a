"""Methods on top of what a model has already: the base that an extension starts from.

A checkpoint may carry a scaling (linear, YaRN, llama3, longrope). Its weights know those
frequencies, so a further extension starts from them, by one rule: the frequencies of the model's
own scaling at the longest length that it reaches are taken for the plain ones of a model trained
on that length. A method for s times as many tokens is computed from them, and what comes out is
base * method, factor by factor; attention factors multiply too. PI to 2x on a linear scaling by 4
so divides every frequency by 8, and YaRN ramps where the *scaled* frequencies make 32 turns to 1
in the length that the model reaches.

Which base a scaling is:

  none, dynamic_ntk    the plain frequencies at original_len. Dynamic NTK changes nothing within
                       that length, and that is where such weights were trained.
  pi, ntk, ntk_rcd,    the scaled frequencies at factor * original_len. So is YaRN as a model card
  yarn                 proposes it for weights that were trained plain (Qwen2.5): config.json does
                       not tell the two apart, and who serves the model serves it scaled.
  llama3, abf          the scaled frequencies at the longest length of the checkpoint: neither
                       constant says how far they reach (Llama 3.1: 8 * 8,192 is half of it).
  longrope             the factors of the last bucket, at its length.

Factors are always of theta's plain frequencies, whatever they were made on top of. Letters: R
rotary pairs, L layers.
"""

import dataclasses
import math

import numpy as np

from jaxrope import schema
from jaxrope.errors import choose
from jaxrope.rope import methods, rotary
from jaxrope.rope.schedule import Bucket, RopeFn, as_factors, table

_PLAIN = ("none", "dynamic_ntk")  # trained at plain frequencies
_BY_FACTOR = ("pi", "ntk", "ntk_rcd", "yarn")  # reach factor * original_len
_STACKED = ("pi", "ntk", "ntk_rcd", "dynamic_ntk", "yarn", "llama3", "abf")  # what `extend` makes


@dataclasses.dataclass(frozen=True)
class Base:
    """What an extension starts from.

    Attributes:
      factors: of theta's plain frequencies, R numbers or L rows of them.
      length: tokens that they serve.
      start_tokens, attention_factor: as in Bucket.
    """

    factors: tuple[float, ...] | tuple[tuple[float, ...], ...]
    length: int
    start_tokens: int = 0
    attention_factor: float = 1.0

    @property
    def is_plain(self) -> bool:
        """Whether nothing is scaled: methods on top are those of a plain model."""
        return self.attention_factor == 1.0 and bool(np.all(np.array(self.factors) == 1.0))


def base_of(rope_fn: RopeFn, max_len: int) -> Base:
    """Returns the base that a model's own scaling is; the module says which.

    Args:
      rope_fn: the model's own scaling.
      max_len: tokens that the checkpoint claims to serve.
    """
    if rope_fn.method in _PLAIN:
        return Base((1.0,) * (rope_fn.rotary_dim // 2), rope_fn.original_len)
    length = reach(rope_fn, max_len)
    bucket = rope_fn.bucket(length)
    return Base(bucket.factors, length, bucket.start_tokens, bucket.attention_factor)


def reach(rope_fn: RopeFn, max_len: int) -> int:
    """Returns the tokens that a scaling serves; `max_len` where it does not say."""
    if rope_fn.max_len is not None:
        return rope_fn.max_len
    if rope_fn.method in _BY_FACTOR:
        return round(rope_fn.constants["factor"] * rope_fn.original_len)
    return rope_fn.constants.get("max_len") or max_len


def extend(
    base: Base,
    method: str,
    *,
    head_dim: int,
    theta: float,
    original_len: int,
    rotary_dim: int | None = None,
    **constants,
) -> RopeFn:
    """Returns a method on top of a base: `make` itself where the base is plain.

    Args:
      base: what the model has.
      method: a formula; not none, nor a table of factors.
      head_dim, theta, rotary_dim: as in `make`.
      original_len: tokens of the plain frequencies, as the result is to state them.
      **constants: the method's own; factor is how much further than `base.length`.

    Returns:
      A table of factors, as if they had been searched ("longrope"); of dynamic NTK a formula,
      which nothing but this program could write down.

    Raises:
      InputError: another method; see `make`.
    """
    choose("rope.method", method, dict.fromkeys(_STACKED))
    shape = dict(head_dim=head_dim, theta=theta, rotary_dim=rotary_dim)
    further = methods.make(method, **shape, original_len=base.length, **constants)
    if base.is_plain:
        return further
    geometry = dataclasses.replace(further.geometry, original_len=original_len)
    if not further.buckets:
        stated = further.constants | {"base": dataclasses.asdict(base)}
        return RopeFn(method, stated, geometry, lambda n: _stacked(base, further.bucket(n)), ())
    (alone,) = further.buckets
    alone = dataclasses.replace(alone, factors=_factors(base, further))
    buckets = (_stacked(base, alone),)
    total = {}
    if "factor" in further.constants:
        total = {"factor": further.constants["factor"] * base.length / original_len}
    return RopeFn("longrope", total, geometry, table(buckets), buckets)


def yarn_on_top(
    factors_R: np.ndarray,
    *,
    theta: float,
    trained: int,
    factor: float,
    beta_fast: float,
    beta_slow: float,
    truncate: bool = True,
) -> np.ndarray:
    """Returns the factors by which YaRN multiplies those of a scaled model, [R] or [L, R].

    YaRN (arXiv 2309.00071, Eq. 17-23) ramps between the pairs that turn beta_fast and beta_slow
    times in the trained window. Its code computes them by a formula for plain frequencies,
    rounded outwards; here log turns are interpolated between pairs, which gives the same borders
    where all factors are equal.

    Args:
      factors_R: of the model.
      theta: base of the plain frequencies.
      trained: tokens that the model serves with them.
      factor: target length / trained.
      beta_fast, beta_slow: turns.
      truncate: round the borders outwards to whole pairs.
    """
    constants = dict(theta=theta, trained=trained, beta_fast=beta_fast, beta_slow=beta_slow)
    constants |= dict(truncate=truncate)
    if factors_R.ndim > 1:
        constants |= dict(factor=factor)
        return np.stack([yarn_on_top(layer_R, **constants) for layer_R in factors_R])
    return ramp_factors(*yarn_borders(factors_R, **constants), len(factors_R), factor)


def yarn_borders(
    factors_R: np.ndarray,
    *,
    theta: float,
    trained: int,
    beta_fast: float,
    beta_slow: float,
    truncate: bool = True,
) -> tuple[float, float]:
    """Returns the pairs between which YaRN ramps on top of factors; arguments as `yarn_on_top`."""
    pairs = np.arange(len(factors_R))
    falling_R = np.minimum.accumulate(np.log(turns_in(trained, factors_R, theta)))
    slope = math.log(theta) / len(pairs)  # of plain frequencies, beyond the ends

    def pair_of(turns: float) -> float:
        log_turns = math.log(turns)
        if log_turns > falling_R[0]:
            return float((falling_R[0] - log_turns) / slope)
        if log_turns < falling_R[-1]:
            return float(pairs[-1] + (falling_R[-1] - log_turns) / slope)
        return float(np.interp(-log_turns, -falling_R, pairs))

    low, high = pair_of(beta_fast), pair_of(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    return max(low, 0), min(high, 2 * len(pairs) - 1)


def turns_in(length: int, factors_R: np.ndarray, theta: float) -> np.ndarray:
    """Returns the turns that each pair makes in `length` tokens, [R] or [L, R]."""
    plain_R = rotary.base_inv_freq(theta, 2 * np.shape(factors_R)[-1])
    return length * (plain_R / np.asarray(factors_R)) / (2 * np.pi)


def ramp_factors(low: float, high: float, num_pairs: int, factor: float) -> np.ndarray:
    """Returns 1 up to pair `low`, `factor` from `high` on, between them frequencies that ramp."""
    ramp_R = np.clip((np.arange(num_pairs) - low) / (high - low or 0.001), 0, 1)
    return 1 / (ramp_R / factor + 1 - ramp_R)


def _factors(base: Base, further: RopeFn) -> tuple:
    """Returns the factors by which a method multiplies those of the base.

    Those of most methods do not depend on the base; YaRN and llama3 ask how often pairs turn.
    """
    base_R, theta = np.array(base.factors), further.theta
    if further.method == "yarn":
        constants = schema.model.Yarn(method="yarn", **further.constants)
        names = ("factor", "beta_fast", "beta_slow", "truncate")
        chosen = {name: getattr(constants, name) for name in names}
        return as_factors(yarn_on_top(base_R, theta=theta, trained=base.length, **chosen))
    if further.method == "llama3":
        constants = schema.model.Llama3(method="llama3", **further.constants)
        return as_factors(methods.llama3_factors(turns_in(base.length, base_R, theta), constants))
    return further.buckets[0].factors


def _stacked(base: Base, further: Bucket) -> Bucket:
    """Returns base * further."""
    factors = np.array(base.factors) * np.array(further.factors)
    number = base.attention_factor * further.attention_factor
    return Bucket(further.max_len, as_factors(factors), base.start_tokens, number)

"""Rope methods: each a factory that checks its constants and returns a schedule over length.

`make(method, **constants) -> RopeFn`, `RopeFn(seq_len) -> Rope`: static methods ignore the length, dynamic NTK and LongRoPE use it, and nothing downstream
knows which it was. All arithmetic is float64 on the host. Every method is told as rescale factors relative to theta's plain frequencies:
factor_i = theta^(-2i/d) / inv_freq_i, R = d / 2 of them.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxrope.errors import InputError, choose, nearest
from jaxrope.rope import rotary


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The choice for sequences of up to `max_len` tokens (inclusive; None: any length)."""

    max_len: int | None
    factors: tuple[float, ...]
    start_tokens: int
    attention_factor: float


Schedule = Callable[[int], Bucket]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What a method needs to know of the model: rotary_dim <= head_dim, the base of the frequencies, and the length they were trained on (tokens)."""

    head_dim: int
    rotary_dim: int
    theta: float
    original_len: int

    def __post_init__(self):
        even = 0 < self.rotary_dim <= self.head_dim and self.rotary_dim % 2 == 0
        _require(even, "rotary_dim", "be even and from 2 to head_dim", f"{self.rotary_dim} with head_dim {self.head_dim}")
        _require(math.isfinite(self.theta) and self.theta > 1, "theta", "be a number above 1", self.theta)
        _require(self.original_len > 0, "original_len", "be a positive number of tokens", self.original_len)

    @property
    def base_inv_freq(self) -> np.ndarray:
        return rotary.base_inv_freq(self.theta, self.rotary_dim)

    def bucket(self, inv_freq: np.ndarray, attention_factor: float = 1.0) -> Bucket:
        """The bucket without a limit whose effective frequencies are `inv_freq`, float64 [R]."""
        return Bucket(None, tuple((self.base_inv_freq / inv_freq).tolist()), 0, float(attention_factor))


@dataclasses.dataclass(frozen=True, eq=False)
class RopeFn:
    """A method with its constants for one model: `rope_fn(seq_len) -> Rope`.

    Attributes:
      method, constants: as given to `make`.
      geometry: the model's side.
      buckets: what the schedule can answer, ascending; empty where it is a formula in the length.
    """

    method: str
    constants: Mapping[str, Any]
    geometry: Geometry
    schedule: Schedule
    buckets: tuple[Bucket, ...]

    def bucket(self, seq_len: int) -> Bucket:
        """Returns the factors for a sequence of `seq_len` tokens, on the host.

        Raises:
          InputError: the sequence is longer than the last bucket.
        """
        _require(seq_len > 0, "seq_len", "be a positive number of tokens", seq_len)
        return self.schedule(int(seq_len))

    def __call__(self, seq_len: int) -> rotary.Rope:
        bucket = self.bucket(seq_len)
        return rotary.build(
            bucket.factors,
            theta=self.geometry.theta,
            start_tokens=bucket.start_tokens,
            attention_factor=bucket.attention_factor,
        )

    @property
    def max_len(self) -> int | None:
        """The longest sequence it serves, tokens; None: any."""
        return self.buckets[-1].max_len if self.buckets else None

    head_dim = property(lambda self: self.geometry.head_dim)
    rotary_dim = property(lambda self: self.geometry.rotary_dim)
    theta = property(lambda self: self.geometry.theta)
    original_len = property(lambda self: self.geometry.original_len)


def make(
    method: str, *, head_dim: int, theta: float, original_len: int, rotary_dim: int | None = None, **constants
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
    made = factory(geometry, **constants)
    if callable(made):
        return RopeFn(method, constants, geometry, made, ())
    return RopeFn(method, constants, geometry, _table(made), made)


def attention_factor(law: str | float, *, factor: float, original_len: int) -> float:
    """Returns the number by which cos and sin are multiplied.

    Args:
      law: "su", sqrt(1 + ln factor / ln original_len) (LongRoPE's code, Hugging Face); "yarn", 0.1 ln factor + 1 (YaRN, Eq. 22); "none", 1; or the number itself.
      factor: target length / original length; at most 1 gives 1.
      original_len: tokens.
    """
    if not isinstance(law, str):
        _require(math.isfinite(law) and law > 0, "attention_factor", "be a positive number", law)
        return float(law)
    laws = {
        "su": lambda: math.sqrt(1 + math.log(factor) / math.log(original_len)),
        "yarn": lambda: _yarn_mscale(factor, 1.0),
        "none": lambda: 1.0,
    }
    chosen = choose("attention_factor", law, laws)
    return chosen() if factor > 1 else 1.0


def remarks(rope_fn: RopeFn) -> list[str]:
    """Returns what is legal but worth saying: factors that fall, or exceed 1.25 times the extension. Published vectors do both."""
    found = []
    for bucket in rope_fn.buckets:
        falls = int(np.sum(np.diff(bucket.factors) < 0))
        name = f"bucket up to {bucket.max_len}" if bucket.max_len else "the only bucket"
        if falls:
            found.append(f"{name}: factors fall at {falls} of {len(bucket.factors) - 1} steps")
        bound = 1.25 * max(1.0, (bucket.max_len or 0) / rope_fn.original_len)
        if bucket.max_len and max(bucket.factors) > bound:
            found.append(f"{name}: the largest factor, {max(bucket.factors):g}, exceeds 1.25 * length / original_len = {bound:g}")
    return found


def _none(geometry: Geometry):
    return (geometry.bucket(geometry.base_inv_freq),)


def _pi(geometry: Geometry, *, factor: float):
    """Position interpolation (arXiv 2306.15595): inv_freq / factor."""
    _check_factor("pi", factor)
    return (geometry.bucket(geometry.base_inv_freq / factor),)


def _ntk(geometry: Geometry, *, factor: float):
    """NTK-aware: base theta * factor^(d / (d - 2)), so that the last pair is interpolated by `factor`."""
    _check_factor("ntk", factor)
    return (geometry.bucket(rotary.base_inv_freq(_ntk_theta(geometry, factor), geometry.rotary_dim)),)


def _dynamic_ntk(geometry: Geometry, *, factor: float):
    """Dynamic NTK: NTK-aware with (factor * L / original_len - (factor - 1)), L = max(sequence, original_len)."""
    _check_factor("dynamic_ntk", factor)

    def schedule(seq_len: int) -> Bucket:
        length = max(seq_len, geometry.original_len)
        grown = factor * length / geometry.original_len - (factor - 1)
        return geometry.bucket(rotary.base_inv_freq(_ntk_theta(geometry, grown), geometry.rotary_dim))

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
    """YaRN (arXiv 2309.00071, Eq. 17-23): pairs with more than beta_fast turns in original_len keep their frequency, below beta_slow they are interpolated.

    The attention factor is the number given, else m(mscale) / m(mscale_all_dim) where both are set (Hugging Face, for DeepSeek), else m(1); m(k) = 0.1 k ln(factor) + 1.
    `truncate` rounds the borders of the ramp outwards to whole dims, as YaRN's code does; without it they stay fractions (gpt-oss).
    """
    _check_factor("yarn", factor)
    _require(
        beta_fast > beta_slow > 0, "rope.beta_fast", "be above rope.beta_slow, and that above 0", f"{beta_fast}, {beta_slow}"
    )
    dim, pairs = geometry.rotary_dim, geometry.rotary_dim // 2

    def dim_of(turns: float) -> float:
        return dim * math.log(geometry.original_len / (turns * 2 * math.pi)) / (2 * math.log(geometry.theta))

    low, high = dim_of(beta_fast), dim_of(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(pairs) - low) / (high - low or 0.001), 0, 1)
    plain = geometry.base_inv_freq
    if attention_factor is None and mscale and mscale_all_dim:
        attention_factor = _yarn_mscale(factor, mscale) / _yarn_mscale(factor, mscale_all_dim)
    elif attention_factor is None:
        attention_factor = _yarn_mscale(factor, 1.0)
    return (geometry.bucket(plain / factor * ramp + plain * (1 - ramp), attention_factor),)


def _llama3(geometry: Geometry, *, factor: float, low_freq_factor: float, high_freq_factor: float):
    """Llama 3.1: wavelengths above original_len / low_freq_factor are interpolated, below original_len / high_freq_factor kept, smooth between."""
    _check_factor("llama3", factor)
    _require(
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
    _require(
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
    """LongRoPE (arXiv 2402.13753, Eq. 3): searched factors, for one length or for any number of length buckets.

    Either `buckets`, dicts with max_len (tokens, inclusive), factors, start_tokens and attention_factor; or the four for a single bucket. An attention factor is a
    number or a law ("su", "yarn", "none") with the bucket's own max_len / original_len; the authors' code takes the current length there, which no table can hold.
    """
    if bool(buckets) == bool(factors):
        raise InputError("rope.longrope needs either buckets or factors, got " + ("both." if buckets else "neither."))
    if not buckets:
        buckets = [
            dict(max_len=max_len, factors=factors, start_tokens=start_tokens, attention_factor=attention_factor)
        ]
    return tuple(_check_bucket(geometry, f"rope.buckets[{i}]", b) for i, b in enumerate(_ascending(buckets)))


METHODS: dict[str, Callable] = {
    "none": _none,
    "pi": _pi,
    "ntk": _ntk,
    "dynamic_ntk": _dynamic_ntk,
    "yarn": _yarn,
    "llama3": _llama3,
    "abf": _abf,
    "longrope": _longrope,
}


def _table(buckets: tuple[Bucket, ...]) -> Schedule:
    def schedule(seq_len: int) -> Bucket:
        for bucket in buckets:
            if bucket.max_len is None or seq_len <= bucket.max_len:
                return bucket
        raise InputError(
            f"A sequence of {seq_len} tokens is longer than the last length bucket, {buckets[-1].max_len}. "
            "Shorten it, or use factors for a longer target."
        )

    return schedule


def _ascending(buckets):
    fields = {field.name for field in dataclasses.fields(Bucket)}
    for i, bucket in enumerate(buckets):
        if not isinstance(bucket, Mapping) or set(bucket) != fields:
            got = sorted(bucket) if isinstance(bucket, Mapping) else type(bucket).__name__
            raise InputError(f"rope.buckets[{i}] must have exactly {sorted(fields)}, got {got}.")
        _require(_is_count(bucket["max_len"]), f"rope.buckets[{i}].max_len", "be a positive whole number of tokens", bucket["max_len"])
        if i and bucket["max_len"] <= buckets[i - 1]["max_len"]:
            raise InputError(
                f"rope.buckets must ascend in max_len, got {buckets[i - 1]['max_len']} before {bucket['max_len']}."
            )
    return buckets


def _check_bucket(geometry: Geometry, path: str, bucket: Mapping[str, Any]) -> Bucket:
    factors, pairs = bucket["factors"], geometry.rotary_dim // 2
    listed = isinstance(factors, Sequence | np.ndarray) and not isinstance(factors, str)
    numbers = listed and all(_is_number(value) for value in factors)
    _require(numbers, f"{path}.factors", "be a list of numbers", repr(factors)[:60])
    _require(len(factors) == pairs, f"{path}.factors", f"hold {pairs} numbers (rotary_dim / 2)", len(factors))
    bad = [(i, value) for i, value in enumerate(factors) if not (math.isfinite(value) and value >= 1)]
    _require(not bad, f"{path}.factors", "all be finite and at least 1", bad and f"{bad[0][1]} at index {bad[0][0]}")
    start = bucket["start_tokens"]
    _require(_is_whole(start) and start >= 0, f"{path}.start_tokens", "be a whole number of tokens, 0 or more", start)
    law, scale = bucket["attention_factor"], bucket["max_len"] / geometry.original_len
    _require(isinstance(law, str) or _is_number(law), f"{path}.attention_factor", "be a number, 'su', 'yarn' or 'none'", law)
    number = attention_factor(law, factor=scale, original_len=geometry.original_len)
    return Bucket(int(bucket["max_len"]), tuple(float(value) for value in factors), int(start), number)


def _check_names(method: str, factory: Callable, constants: Mapping[str, Any]) -> None:
    parameters = [p for p in inspect.signature(factory).parameters.values() if p.kind is p.KEYWORD_ONLY]
    names = [p.name for p in parameters]
    for name in constants:
        if name not in names:
            raise InputError(f"Unknown constant rope.{name} of method '{method}'. {nearest(name, names) if names else 'It has none.'}")
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in constants]
    if missing:
        raise InputError(f"rope.method '{method}' needs rope.{missing[0]}, which is not given. Its constants: {', '.join(names)}.")
    for name, value in constants.items():
        numeric = name not in ("buckets", "factors", "attention_factor", "truncate") and value is not None
        _require(not numeric or _is_number(value), f"rope.{name}", "be a number", repr(value))


def _check_factor(method: str, factor: float) -> None:
    _require(math.isfinite(factor) and factor >= 1, f"rope.factor of method '{method}'", "be a number of at least 1 (target length / original length)", factor)


def _ntk_theta(geometry: Geometry, factor: float) -> float:
    dim = geometry.rotary_dim
    _require(dim > 2, "rotary_dim", "exceed 2 for NTK scaling", dim)
    return geometry.theta * factor ** (dim / (dim - 2))


def _yarn_mscale(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _is_number(value) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _is_whole(value) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_count(value) -> bool:
    return _is_whole(value) and value > 0


def _require(holds, path: str, rule: str, got) -> None:
    if not holds:
        raise InputError(f"{path} must {rule}, got {got}.")

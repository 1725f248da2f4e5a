"""A rope method as a schedule over length: its buckets, its attention factor, and the rules for
factors.

All arithmetic is float64 on the host. Letters: R rotary pairs (rotary_dim // 2), L layers.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxrope.errors import InputError, choose
from jaxrope.rope import rotary


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The choice for sequences of up to `max_len` tokens (inclusive; None: any length).

    `factors` are R numbers, or L rows of them where every layer has its own.
    """

    max_len: int | None
    factors: tuple[float, ...] | tuple[tuple[float, ...], ...]
    start_tokens: int
    attention_factor: float


Schedule = Callable[[int], Bucket]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What a method needs to know of the model: rotary_dim <= head_dim, the base of the
    frequencies, and the length they were trained on (tokens).
    """

    head_dim: int
    rotary_dim: int
    theta: float
    original_len: int

    def __post_init__(self):
        even = 0 < self.rotary_dim <= self.head_dim and self.rotary_dim % 2 == 0
        require(
            even,
            "rotary_dim",
            "be even and from 2 to head_dim",
            f"{self.rotary_dim} with head_dim {self.head_dim}",
        )
        require(
            math.isfinite(self.theta) and self.theta > 1, "theta", "be a number above 1", self.theta
        )
        require(
            self.original_len > 0,
            "original_len",
            "be a positive number of tokens",
            self.original_len,
        )

    @property
    def base_inv_freq(self) -> np.ndarray:
        return rotary.base_inv_freq(self.theta, self.rotary_dim)

    def bucket(self, inv_freq: np.ndarray, attention_factor: float = 1.0) -> Bucket:
        """The bucket without a limit whose effective frequencies are `inv_freq`, float64 [R]."""
        return Bucket(
            None, tuple((self.base_inv_freq / inv_freq).tolist()), 0, float(attention_factor)
        )


@dataclasses.dataclass(frozen=True, eq=False)
class RopeFn:
    """A method with its constants for one model: `rope_fn(seq_len) -> Rope`.

    Attributes:
      method, constants: as given to `make`.
      geometry: the model's side.
      buckets: the possible results of the schedule, ascending; empty where it is a formula in
        the length.
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
        require(seq_len > 0, "seq_len", "be a positive number of tokens", seq_len)
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


def attention_factor(law: str | float, *, factor: float, original_len: int) -> float:
    """Returns the number by which cos and sin are multiplied.

    Args:
      law: "su", sqrt(1 + ln factor / ln original_len) (LongRoPE's code, Hugging Face); "yarn", 0.1
        ln factor + 1 (YaRN, Eq. 22); "none", 1; or the number itself.
      factor: target length / original length; at most 1 gives 1.
      original_len: tokens.
    """
    if not isinstance(law, str):
        require(math.isfinite(law) and law > 0, "attention_factor", "be a positive number", law)
        return float(law)
    laws = {
        "su": lambda: math.sqrt(1 + math.log(factor) / math.log(original_len)),
        "yarn": lambda: yarn_mscale(factor, 1.0),
        "none": lambda: 1.0,
    }
    chosen = choose("attention_factor", law, laws)
    return chosen() if factor > 1 else 1.0


def remarks(rope_fn: RopeFn) -> list[str]:
    """Returns remarks on legal but unusual factors: those that fall, or exceed 1.25 times the
    extension. Published vectors do both.
    """
    sentences = []
    for bucket in rope_fn.buckets:
        falls = int(np.sum(np.diff(bucket.factors) < 0))
        name = f"bucket up to {bucket.max_len}" if bucket.max_len else "the only bucket"
        if falls:
            sentences.append(
                f"{name}: factors fall at {falls} of {np.diff(bucket.factors).size} steps"
            )
        bound = 1.25 * max(1.0, (bucket.max_len or 0) / rope_fn.original_len)
        largest = np.max(bucket.factors)
        if bucket.max_len and largest > bound:
            sentences.append(
                f"{name}: the largest factor, {largest:g}, exceeds 1.25 * length / "
                f"original_len = {bound:g}"
            )
    return sentences


def table(buckets: tuple[Bucket, ...]) -> Schedule:
    """Returns the schedule that takes the first bucket a sequence fits into."""

    def schedule(seq_len: int) -> Bucket:
        for bucket in buckets:
            if bucket.max_len is None or seq_len <= bucket.max_len:
                return bucket
        raise InputError(
            f"A sequence of {seq_len} tokens is longer than the last length bucket, "
            f"{buckets[-1].max_len}. Shorten it, or use factors for a longer target."
        )

    return schedule


def ascending(buckets):
    """Returns the dicts of buckets, their keys and the order of their lengths checked."""
    fields = {field.name for field in dataclasses.fields(Bucket)}
    for i, bucket in enumerate(buckets):
        if not isinstance(bucket, Mapping) or set(bucket) != fields:
            actual = sorted(bucket) if isinstance(bucket, Mapping) else type(bucket).__name__
            raise InputError(f"rope.buckets[{i}] must have exactly {sorted(fields)}, got {actual}.")
        require(
            _is_count(bucket["max_len"]),
            f"rope.buckets[{i}].max_len",
            "be a positive whole number of tokens",
            bucket["max_len"],
        )
        if i and bucket["max_len"] <= buckets[i - 1]["max_len"]:
            raise InputError(
                f"rope.buckets must ascend in max_len, got {buckets[i - 1]['max_len']} before "
                f"{bucket['max_len']}."
            )
    return buckets


def check_bucket(geometry: Geometry, path: str, bucket: Mapping[str, Any]) -> Bucket:
    """Returns the bucket that a dict describes, every value checked; `path` begins its messages."""
    factors = bucket["factors"]
    if _is_list(factors) and any(map(_is_list, factors)):  # of each layer's own
        for layer, row in enumerate(factors):
            _check_factors(geometry, f"{path}.factors[{layer}]", row)
    else:
        _check_factors(geometry, f"{path}.factors", factors)
    start = bucket["start_tokens"]
    require(
        _is_whole(start) and start >= 0,
        f"{path}.start_tokens",
        "be a whole number of tokens, 0 or more",
        start,
    )
    law, scale = bucket["attention_factor"], bucket["max_len"] / geometry.original_len
    require(
        isinstance(law, str) or is_number(law),
        f"{path}.attention_factor",
        "be a number, 'su', 'yarn' or 'none'",
        law,
    )
    number = attention_factor(law, factor=scale, original_len=geometry.original_len)
    return Bucket(int(bucket["max_len"]), as_factors(factors), int(start), number)


def check_layers(rope_fn: RopeFn, num_layers: int) -> None:
    """Refuses factors of each layer's own that are for another number of layers.

    Raises:
      InputError: a bucket has them.
    """
    for i, bucket in enumerate(rope_fn.buckets):
        if np.ndim(bucket.factors) > 1:
            require(
                len(bucket.factors) == num_layers,
                f"rope.buckets[{i}].factors",
                f"hold a row for each of the model's {num_layers} layers",
                f"{len(bucket.factors)} rows. They are for another model",
            )


def _check_factors(geometry: Geometry, path: str, factors) -> None:
    numbers = _is_list(factors) and all(is_number(value) for value in factors)
    require(numbers, path, "be a list of numbers", repr(factors)[:60])
    pairs = geometry.rotary_dim // 2
    require(len(factors) == pairs, path, f"hold {pairs} numbers (rotary_dim / 2)", len(factors))
    bad = [
        (i, value) for i, value in enumerate(factors) if not (math.isfinite(value) and value >= 1)
    ]
    require(
        not bad,
        path,
        "all be finite and at least 1",
        bad and f"{bad[0][1]} at index {bad[0][0]}",
    )


def yarn_mscale(factor: float, scale: float) -> float:
    """Returns 0.1 scale ln(factor) + 1 (YaRN, Eq. 22; the scale is Hugging Face's)."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def is_number(value) -> bool:
    """Returns whether a value is a real number; True and False are none."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _is_list(value) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)


def _is_whole(value) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_count(value) -> bool:
    return _is_whole(value) and value > 0


def as_factors(factors) -> tuple:
    """Returns factors [R] or [L, R] as a bucket holds them: numbers, or rows of numbers."""
    listed = np.asarray(factors, np.float64).tolist()
    return tuple(tuple(row) if isinstance(row, list) else row for row in listed)


def require(holds, path: str, rule: str, actual) -> None:
    """Raises the InputError "path must rule, got actual." unless `holds`."""
    if not holds:
        raise InputError(f"{path} must {rule}, got {actual}.")

"""A rope method as a schedule over length: its buckets, its attention factor, and the rules for
factors.

All arithmetic is float64 on the host. Letters: R rotary pairs (rotary_dim // 2), L layers.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxrope.errors import InputError, choose
from jaxrope.rope import checks, rotary
from jaxrope.rope.checks import require


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
_MOST = checks.MOST_TOKENS
_TWO_TOKENS = f"be a whole number of tokens from 2 to {_MOST}"
_MOST_DIMS = 2**16


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
        head_dim, rotary_dim, original_len = self.head_dim, self.rotary_dim, self.original_len
        even = checks.whole(head_dim, 2, _MOST_DIMS) and checks.whole(rotary_dim, 2, head_dim)
        require(
            even and rotary_dim % 2 == 0,
            "rotary_dim",
            f"be even and from 2 to head_dim, and that at most {_MOST_DIMS}",
            f"{rotary_dim} with head_dim {head_dim}",
        )
        is_theta = checks.finite(self.theta) and self.theta > 1
        require(is_theta, "theta", "be a number above 1", self.theta)
        require(checks.whole(original_len, 2), "original_len", _TWO_TOKENS, original_len)
        for name in ("head_dim", "rotary_dim", "original_len"):
            object.__setattr__(self, name, int(getattr(self, name)))
        object.__setattr__(self, "theta", float(self.theta))

    @property
    def base_inv_freq(self) -> np.ndarray:
        return rotary.base_inv_freq(self.theta, self.rotary_dim)

    def bucket(self, inv_freq: np.ndarray, attention_factor: float = 1.0) -> Bucket:
        """The bucket without a limit whose effective frequencies are `inv_freq`, float64 [R]."""
        with np.errstate(divide="ignore"):  # what is infinite is refused
            factors = checks.factors("the factors of rope.method", self.base_inv_freq / inv_freq)
        is_scale = checks.positive(attention_factor)
        require(is_scale, "rope.attention_factor", "be a positive number", attention_factor)
        return Bucket(None, as_factors(factors), 0, float(attention_factor))


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
        is_length = checks.whole(seq_len, 1)
        require(is_length, "seq_len", f"be a whole number of tokens from 1 to {_MOST}", seq_len)
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

    Raises:
      InputError: an argument is out of range.
    """
    if not isinstance(law, str):
        require(checks.positive(law), "attention_factor", "be a positive number", law)
        return float(law)
    require(checks.positive(factor), "factor", "be a number above 0", factor)
    require(checks.whole(original_len, 2), "original_len", _TWO_TOKENS, original_len)
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
    require(checks.is_list(buckets), "rope.buckets", "be a list of buckets", repr(buckets))
    fields = {field.name for field in dataclasses.fields(Bucket)}
    for i, bucket in enumerate(buckets):
        if not isinstance(bucket, Mapping) or set(bucket) != fields:
            actual = sorted(bucket) if isinstance(bucket, Mapping) else type(bucket).__name__
            raise InputError(f"rope.buckets[{i}] must have exactly {sorted(fields)}, got {actual}.")
        require(
            checks.whole(bucket["max_len"], 1),
            f"rope.buckets[{i}].max_len",
            f"be a positive whole number of tokens up to {_MOST}",
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
    pairs = geometry.rotary_dim // 2
    factors = checks.factors(f"{path}.factors", bucket["factors"], num_pairs=pairs)
    start = bucket["start_tokens"]
    require(
        checks.whole(start, 0),
        f"{path}.start_tokens",
        f"be a whole number of tokens from 0 to {_MOST}",
        start,
    )
    law, scale = bucket["attention_factor"], bucket["max_len"] / geometry.original_len
    require(
        isinstance(law, str) or checks.positive(law),
        f"{path}.attention_factor",
        "be a positive number, 'su', 'yarn' or 'none'",
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


def yarn_mscale(factor: float, scale: float) -> float:
    """Returns 0.1 scale ln(factor) + 1 (YaRN, Eq. 22; the scale is Hugging Face's)."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def as_factors(factors) -> tuple:
    """Returns factors [R] or [L, R] as a bucket holds them: numbers, or rows of numbers."""
    listed = np.asarray(factors, np.float64).tolist()
    return tuple(tuple(row) if isinstance(row, list) else row for row in listed)

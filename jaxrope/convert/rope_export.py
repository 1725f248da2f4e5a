"""A rope as Hugging Face's config expresses it, and exactly what is lost.

What is written suits transformers 4.57 and 5, vLLM and llama.cpp at once, because each reads other
keys: `rope_scaling` and `rope_parameters` with the same content, theta and the original length both
inside and at the top level, factor and attention factor spelled out, max_position_embeddings =
factor * original length.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxrope import decoder, rope, schema
from jaxrope.convert.config_keys import fraction
from jaxrope.convert.families import FAMILIES
from jaxrope.decoder import DecoderConfig
from jaxrope.errors import InputError

_SAME = 1e-8  # relative: a law computed again differs by 1e-15
_STATED = 1e-9  # relative; an attention factor this near to the "su" law is not written out


@dataclasses.dataclass(frozen=True)
class Layout:
    """What `express` needs of a DecoderConfig, for a rope that comes without a model.

    Attributes:
      family: layout it is to be written in.
      head_dim, rotary_dim: dims.
      max_len: tokens that are claimed, where the rope's method does not say more.
      rope: the model's own, if known.
    """

    family: str
    head_dim: int
    rotary_dim: int
    max_len: int
    rope: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class HfRope:
    """A rope as config.json expresses it.

    Attributes:
      section: of rope_parameters and rope_scaling, without theta; {"rope_type": "default"} for
        plain frequencies.
      theta: base of the frequencies.
      max_len: max_position_embeddings, tokens.
      original_len: original_max_position_embeddings; None: not written.
      losses: what this does not express of the rope, a sentence each.
    """

    section: dict
    theta: float
    max_len: int
    original_len: int | None
    losses: tuple[str, ...] = ()

    def keys(self, config: DecoderConfig | Layout) -> dict:
        """Returns the keys of config.json."""
        parameters = self.section | {"rope_theta": self.theta}
        if FAMILIES[config.family].partial_rotary is not None:
            parameters |= {"partial_rotary_factor": fraction(config.rotary_dim, config.head_dim)}
        plain = self.section["rope_type"] == "default"
        keys = {
            "max_position_embeddings": self.max_len,
            "rope_theta": self.theta,
            "rope_parameters": parameters,
            "rope_scaling": None if plain else self._old_section(config, parameters),
        }
        return keys | (
            {"original_max_position_embeddings": self.original_len} if self.original_len else {}
        )

    def _old_section(self, config: DecoderConfig | Layout, parameters: dict) -> dict:
        """Returns rope_scaling. Phi-3 of transformers 4 accepts three keys and no others.

        They are enough if the attention factor follows the law; otherwise all keys are written,
        and it refuses the file.
        """
        law = (
            rope.attention_factor(
                "su", factor=self.max_len / self.original_len, original_len=self.original_len
            )
            if self.original_len
            else 1.0
        )
        by_law = math.isclose(self.section.get("attention_factor", 1.0), law, rel_tol=_STATED)
        is_longrope = self.section["rope_type"] == "longrope"
        if FAMILIES[config.family].longrope_alone and is_longrope and by_law:
            return {"type": "longrope"} | {
                key: self.section[key] for key in ("short_factor", "long_factor")
            }
        return parameters


def express(config: DecoderConfig | Layout, rope_fn: rope.RopeFn) -> HfRope:
    """Returns `rope_fn` for a model of `config`, with what is lost.

    Nothing is lost where `losses` is empty.

    Raises:
      InputError: each layer has factors of its own.
    """
    check_shared(rope_fn)
    if FAMILIES[config.family].longrope_alone and rope_fn.method not in ("none", "ntk", "abf"):
        return as_longrope(config, rope_fn)
    return _express_fn(rope_fn)(config, rope_fn)


def check_shared(rope_fn: rope.RopeFn) -> None:
    """Refuses factors of each layer's own, which no other program knows.

    Raises:
      InputError: a bucket has them.
    """
    if any(np.ndim(bucket.factors) > 1 for bucket in rope_fn.buckets):
        raise InputError(
            "rope: factors of each layer's own cannot be written for another program: all of them"
            " give one set to every layer. Search with search.per_layer = False."
        )


def lost_elsewhere(config: DecoderConfig | Layout, rope_fn: rope.RopeFn) -> tuple[str, ...]:
    """Returns what no other program can express of a rope, whatever is exported, a sentence each;
    () where one can run it.
    """
    if any(np.ndim(bucket.factors) > 1 for bucket in rope_fn.buckets):
        return ("factors of each layer's own: every layer would have one and the same set",)
    if _express_fn(rope_fn) is not as_longrope:
        return ()
    max_len = longest(config, rope_fn)
    return tuple(_losses(rope_fn, rope_fn.bucket(max_len), max_len))


def check(hf_rope: HfRope, *, allow_lossy: bool, reader: str = "Hugging Face") -> None:
    """Refuses a rope that `reader` would apply wrongly.

    Raises:
      InputError: something is lost and that was not allowed, or the rope extends nothing.
    """
    if hf_rope.section["rope_type"] == "longrope" and _extends_nothing(hf_rope):
        raise InputError(
            f"rope: the longest length must exceed the original one, {hf_rope.original_len}, got"
            f" {hf_rope.max_len}. There is nothing to extend."
        )
    if hf_rope.losses and not allow_lossy:
        raise InputError(
            f"{reader} cannot express this rope: {'; '.join(hf_rope.losses)}. Pass --allow_lossy"
            " to export it so."
        )


def check_sliding(config: DecoderConfig, rope_fn: rope.RopeFn) -> None:
    """Refuses a scaled rope where a class of transformers has one rope for all layers, and some
    slide.

    Raises:
      InputError: it is so.
    """
    row = FAMILIES[config.family]
    if "sliding" not in config.layers or row.rope_by_layer:
        return
    if difference(decoder.sliding_rope(config), rope_fn) > _SAME:
        raise InputError(
            f"transformers' {row.architecture} has one rope for all layers: those that slide would"
            " be rescaled too, which no training has met. Serve the model with this program."
        )


def _extends_nothing(hf_rope: HfRope) -> bool:
    """Returns whether a longrope ends before its original length, or scales nothing up to it."""
    ends, original = hf_rope.max_len, hf_rope.original_len
    return ends < original or (ends == original and set(hf_rope.section["long_factor"]) == {1.0})


def longest(config: DecoderConfig | Layout, rope_fn: rope.RopeFn) -> int:
    """Returns the length the exported model claims, tokens.

    The last bucket's, else the model's own, where it has an end, else factor * original length.
    """
    if rope_fn.max_len is not None:
        return rope_fn.max_len
    is_own = rope_fn.buckets and {"method": rope_fn.method, **rope_fn.constants} == dict(
        config.rope
    )
    scaled = rope_fn.constants.get("factor", 1) * rope_fn.original_len
    return config.max_len if is_own else max(config.max_len, math.ceil(scaled))


def _none(config: DecoderConfig | Layout, rope_fn: rope.RopeFn) -> HfRope:
    return _plain(config, rope_fn, rope_fn.theta)


def _ntk(config: DecoderConfig | Layout, rope_fn: rope.RopeFn) -> HfRope:
    dim = rope_fn.rotary_dim
    return _plain(config, rope_fn, rope_fn.theta * rope_fn.constants["factor"] ** (dim / (dim - 2)))


def _abf(config: DecoderConfig | Layout, rope_fn: rope.RopeFn) -> HfRope:
    return _plain(config, rope_fn, float(rope_fn.constants["new_theta"]))


def _plain(config: DecoderConfig, rope_fn: rope.RopeFn, theta: float) -> HfRope:
    max_len = longest(config, rope_fn)
    is_written = rope_fn.original_len != max_len or FAMILIES[config.family].longrope_alone
    original = rope_fn.original_len if is_written else None
    return HfRope({"rope_type": "default"}, theta, max_len, original)


def _pi(config: DecoderConfig | Layout, rope_fn: rope.RopeFn) -> HfRope:
    section = {"rope_type": "linear", "factor": float(rope_fn.constants["factor"])}
    return HfRope(section, rope_fn.theta, longest(config, rope_fn), rope_fn.original_len)


def _dynamic_ntk(config: DecoderConfig | Layout, rope_fn: rope.RopeFn) -> HfRope:
    # transformers grows the base from max_position_embeddings on: it has to be the original length
    section = {"rope_type": "dynamic", "factor": float(rope_fn.constants["factor"])}
    return HfRope(section, rope_fn.theta, rope_fn.original_len, None)


def as_yarn(config: DecoderConfig | Layout, rope_fn: rope.RopeFn) -> HfRope:
    """Returns YaRN by its constants, the attention factor spelled out."""
    yarn = schema.model.Yarn(method="yarn", **rope_fn.constants)
    section = {"rope_type": "yarn", "original_max_position_embeddings": rope_fn.original_len}
    section |= {key: getattr(yarn, key) for key in ("factor", "beta_fast", "beta_slow")}
    mscales = {key: getattr(yarn, key) for key in ("mscale", "mscale_all_dim")}
    section |= {key: number for key, number in mscales.items() if number is not None}
    section["truncate"] = yarn.truncate
    section["attention_factor"] = rope_fn.bucket(1).attention_factor
    return HfRope(section, rope_fn.theta, longest(config, rope_fn), rope_fn.original_len)


def _llama3(config: DecoderConfig | Layout, rope_fn: rope.RopeFn) -> HfRope:
    section = {"rope_type": "llama3", "original_max_position_embeddings": rope_fn.original_len}
    section |= {
        key: float(rope_fn.constants[key])
        for key in ("factor", "low_freq_factor", "high_freq_factor")
    }
    return HfRope(section, rope_fn.theta, longest(config, rope_fn), rope_fn.original_len)


def as_longrope(
    config: DecoderConfig | Layout, rope_fn: rope.RopeFn, *, two_attention_factors: bool = False
) -> HfRope:
    """Returns two sets of factors, chosen at the original length: the whole of longrope.

    Args:
      config: the model, or its layout alone.
      rope_fn: any method.
      two_attention_factors: the reader has one for each set; Hugging Face has one in all.

    Raises:
      InputError: each layer has factors of its own.
    """
    check_shared(rope_fn)
    original, max_len = rope_fn.original_len, longest(config, rope_fn)
    short, long = rope_fn.bucket(min(original, max_len)), rope_fn.bucket(max_len)
    factor = max(1.0, max_len / original)
    section = {
        "rope_type": "longrope",
        "factor": factor,
        "attention_factor": long.attention_factor,
        "original_max_position_embeddings": original,
        "short_factor": list(short.factors),
        "long_factor": list(long.factors),
    }
    law = rope.attention_factor("su", factor=factor, original_len=original)
    if not math.isclose(long.attention_factor, law, rel_tol=_STATED):
        # vLLM computes the law unless these two are there; transformers passes over them
        section |= {"short_mscale": long.attention_factor, "long_mscale": long.attention_factor}
    losses = list(_losses(rope_fn, long, max_len))
    if not two_attention_factors:
        losses += _attention_loss(rope_fn, long)
    return HfRope(section, rope_fn.theta, max_len, original, tuple(losses))


def _losses(rope_fn: rope.RopeFn, long: rope.Bucket, max_len: int):
    """Yields what longrope of Hugging Face cannot express of `rope_fn`."""
    if not rope_fn.buckets:
        yield (
            f"method '{rope_fn.method}' computes factors from the length of each sequence; one"
            f" fixed set, that of {max_len} tokens, would take its place"
        )
        return
    buckets, original = rope_fn.buckets, rope_fn.original_len
    starts = sorted({bucket.start_tokens for bucket in buckets} - {0})
    if starts:
        yield (
            f"start_tokens {', '.join(map(str, starts))}: the first positions would be rescaled"
            " like all others"
        )
    if len(buckets) > 2:
        borders = ", ".join(str(bucket.max_len) for bucket in buckets)
        yield (
            f"{len(buckets)} length buckets (up to {borders}): only the one for {original} tokens"
            " and the last one would be kept"
        )
    elif len(buckets) == 2 and buckets[0].max_len != original:
        yield (
            f"the border between the buckets, {buckets[0].max_len}, would become the original"
            f" length, {original}"
        )


def _attention_loss(rope_fn: rope.RopeFn, long: rope.Bucket):
    """Yields what is lost where there is one attention factor for all lengths."""
    attention = sorted({bucket.attention_factor for bucket in rope_fn.buckets})
    if attention and attention[-1] - attention[0] > _STATED * attention[-1]:
        numbers = ", ".join(f"{value:.6g}" for value in attention)
        yield (
            f"differing attention factors ({numbers}): that of the last bucket,"
            f" {long.attention_factor:.6g}, would hold at every length"
        )


def difference(rope_fn: rope.RopeFn, other_fn: rope.RopeFn) -> float:
    """Returns the largest relative difference of frequencies and attention factors.

    Compared at the lengths where either of them changes, if both serve them.
    """
    limits = [fn.max_len for fn in (rope_fn, other_fn) if fn.max_len is not None]
    probes = {1, rope_fn.original_len, rope_fn.original_len + 1, *limits}
    worst = 0.0
    for length in (probe for probe in probes if all(probe <= limit for limit in limits)):
        (freqs, scale), (other_freqs, other_scale) = (
            _frequencies(fn, length) for fn in (rope_fn, other_fn)
        )
        worst = max(
            worst, float(np.max(np.abs(freqs / other_freqs - 1))), abs(scale / other_scale - 1)
        )
    return worst


def _frequencies(rope_fn: rope.RopeFn, length: int) -> tuple[np.ndarray, float]:
    bucket = rope_fn.bucket(length)
    return rope_fn.geometry.base_inv_freq / np.asarray(bucket.factors), bucket.attention_factor


def _express_fn(rope_fn: rope.RopeFn) -> Callable:
    """Methods that users have added are written as a table of factors."""
    return METHODS.get(rope_fn.method, as_longrope)


METHODS: dict[str, Callable[[DecoderConfig | Layout, rope.RopeFn], HfRope]] = {
    "none": _none,
    "pi": _pi,
    "ntk": _ntk,
    "ntk_rcd": as_longrope,
    "abf": _abf,
    "dynamic_ntk": _dynamic_ntk,
    "yarn": as_yarn,
    "llama3": _llama3,
    "longrope": as_longrope,
}

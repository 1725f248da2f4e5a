"""The rope types of Hugging Face configs: what each means, and how far it reaches.

How far a scaling reaches is not what max_position_embeddings says: some programs write the length
before the extension there, others the one after it.

  yarn      factor * the original length, as vLLM takes it; Qwen2.5's model card leaves the length
            before the extension in max_position_embeddings.
  linear    transformers divides the frequencies and asks no more. With an original length it is
            factor times that; where another key says more than max_position_embeddings (Vicuna-16k:
            max_sequence_length), that one is the length before; else it is the length after
            (deepseek-coder, chinese-alpaca-2-16k, Gemma 3), with a note.
  llama3    max_position_embeddings, which is not factor * the original length (Llama 3.1).
  longrope  max_position_embeddings; where that is the original length, factor * it.
  dynamic   max_position_embeddings is the original length; the scaling has no end.
"""

import dataclasses
import math
from collections.abc import Callable

from jaxrope import rope
from jaxrope.convert.fields import Fields
from jaxrope.errors import InputError

ORIGINAL = "original_max_position_embeddings"
LENGTHS = ("max_sequence_length", "model_max_length", "max_seq_len", "seq_length")  # as vLLM's


@dataclasses.dataclass(frozen=True)
class Context:
    """What the constants of a method may depend on: lengths in tokens.

    `original_len` is None where the config does not say; `max_len` is max_position_embeddings, and
    `longest` the most that any other key claims; `mscales`: see `rope_config.from_hf`.
    """

    original_len: int | None
    max_len: int
    longest: int
    rotary_dim: int
    mscales: bool

    def need_original(self, section: Fields) -> int:
        if self.original_len is None:
            raise InputError(
                f"{section.path(ORIGINAL)} is missing: the length before the extension is part of"
                " this rope type. Add it there, or at the top level."
            )
        return self.original_len


@dataclasses.dataclass(frozen=True)
class Scaling:
    """What a reader makes of its section: the method, lengths in tokens, and notes."""

    original_len: int
    max_len: int
    method: dict
    notes: tuple[str, ...] = ()


def _default(section: Fields, context: Context) -> Scaling:
    original = context.original_len or context.max_len
    return Scaling(original, context.max_len, {"method": "none"})


def _linear(section: Fields, context: Context) -> Scaling:
    factor, max_len, notes = section.number("factor", low=1.0), context.max_len, ()
    original = context.original_len
    if original is None and context.longest > max_len:
        original = max_len
        notes = (
            f"max_position_embeddings, {max_len}, is the length before the linear scaling by"
            f" {factor:g}: another key says {context.longest}",
        )
    if original is None:
        original = max(2, int(max_len / factor))
        notes = (
            f"max_position_embeddings, {max_len}, is taken for the length that the linear scaling"
            f" by {factor:g} reaches; if it is the one before, add {ORIGINAL} = {max_len}",
        )
    method = {"method": "pi", "factor": factor}
    return Scaling(
        original, max(max_len, int(original * factor)), method, notes if factor > 1 else ()
    )


def _dynamic(section: Fields, context: Context) -> Scaling:
    # transformers grows from max_position_embeddings, whatever else the config says
    method = {"method": "dynamic_ntk", "factor": section.number("factor", low=1.0)}
    note = (
        f"dynamic scaling leaves {context.max_len} tokens as they were trained: an extension starts"
        " from the plain frequencies"
    )
    return Scaling(context.max_len, context.max_len, method, (note,))


def _yarn(section: Fields, context: Context) -> Scaling:
    max_len = context.max_len
    original = context.original_len or max_len  # transformers' own rule for a missing value
    factor = section.number("factor", None, low=1.0) or max_len / original
    method = {
        "method": "yarn",
        "factor": factor,
        # transformers takes 0 for unset as well
        "beta_fast": section.number("beta_fast", None) or 32.0,
        "beta_slow": section.number("beta_slow", None) or 1.0,
        "attention_factor": section.number("attention_factor", None),
        "mscale": section.number("mscale", None),
        "mscale_all_dim": section.number("mscale_all_dim", None),
        "truncate": section.flag("truncate", True),
    }
    reach, notes = round(factor * original), _of_vllm(section, method)
    if max_len == original and factor > 1:
        notes += (
            f"max_position_embeddings, {max_len}, is the length before YaRN: the model serves"
            f" {factor:g} * {original} = {reach} tokens, and an extension starts from YaRN's"
            " frequencies at that length",
        )
    elif max_len != reach:
        notes += (
            f"yarn's factor, {factor:g}, is not max_position_embeddings / {ORIGINAL},"
            f" {max_len / original:g}; the factor counts",
        )
    return Scaling(original, max(max_len, reach), method, notes)


def _of_vllm(section: Fields, method: dict) -> tuple[str, ...]:
    """Sets the attention factor that vLLM's keys for YaRN mean, if they are there; returns notes.

    vLLM multiplies `attn_factor` with YaRN's own attention factor, which `apply_yarn_scaling`
    false leaves out; `extrapolation_factor` mixes the ramp.
    """
    multiple = section.number("attn_factor", None)
    applied = section.flag("apply_yarn_scaling", True)
    if section.number("extrapolation_factor", 1.0) != 1:
        raise section.wrong("extrapolation_factor", "be 1: another ramp is not supported")
    if multiple is None and applied:
        return ()
    mscale, all_dim = method["mscale"], method["mscale_all_dim"]
    scales = (mscale, all_dim) if mscale and all_dim else (1.0, 0.0)
    over, under = (1 + 0.1 * scale * math.log(method["factor"]) for scale in scales)
    usual = over / under
    total = (usual if applied else 1.0) * (1.0 if multiple is None else multiple)
    stated = method["attention_factor"]
    if stated is not None and not math.isclose(stated, total, rel_tol=1e-6):
        raise InputError(
            f"{section.path('attn_factor')} and attention_factor disagree: vLLM multiplies the"
            f" first with YaRN's own, {total:.6g} in all, transformers takes the second,"
            f" {stated:.6g}. Remove one of the two."
        )
    method["attention_factor"] = total
    return (
        f"the attention factor is {total:.6g}, as vLLM reads attn_factor and apply_yarn_scaling"
        + (f"; transformers passes over them and takes {usual:.6g}" if stated is None else ""),
    )


def _llama3(section: Fields, context: Context) -> Scaling:
    keys = ("factor", "low_freq_factor", "high_freq_factor")
    original, numbers = context.need_original(section), {key: section.number(key) for key in keys}
    max_len, notes = context.max_len, ()
    if max_len <= original:
        max_len = max(max_len, round(numbers["factor"] * original))
        notes = (
            f"max_position_embeddings, {context.max_len}, is the length before llama3's scaling;"
            f" {max_len} tokens are taken for what it reaches",
        )
    return Scaling(original, max_len, {"method": "llama3"} | numbers | {"max_len": max_len}, notes)


def _longrope(section: Fields, context: Context) -> Scaling:
    original, max_len = context.need_original(section), context.max_len
    if original > max_len:
        raise InputError(
            f"{section.path(ORIGINAL)} must be at most max_position_embeddings, {max_len}, for"
            f" longrope, got {original}."
        )
    factor = section.number("factor", max_len / original)
    if original == max_len:
        max_len = max(max_len, int(factor * original))
    attention = section.number("attention_factor", None)
    if attention is None:
        attention = rope.attention_factor("su", factor=factor, original_len=original)
    pairs, borders = context.rotary_dim // 2, {original: "short"} | {max_len: "long"}
    factors = {name: section.factors(f"{name}_factor", pairs) for name in ("short", "long")}
    notes = ()
    if len(borders) == 1:  # no sequence is longer than what the short ones are for
        borders = {original: "short"}
        notes = () if factors["short"] == factors["long"] else (_NEVER_LONG,)
    rows = [
        dict(
            max_len=length,
            factors=factors[name],
            start_tokens=0,
            attention_factor=_bucket_attention(section, f"{name}_mscale", attention, context),
        )
        for length, name in borders.items()
    ]
    return Scaling(original, max_len, {"method": "longrope", "buckets": rows}, notes)


_NEVER_LONG = (
    "long_factor is passed over: max_position_embeddings is the original length, and nothing says"
    " how far beyond it the model serves (factor would)"
)


def _bucket_attention(section: Fields, key: str, attention: float, context: Context) -> float:
    """Returns the attention factor of one set of factors; `attention` is that of both."""
    mscale = section.number(key, None)
    if context.mscales:
        if mscale is None and section.get("attention_factor") is not None:
            raise InputError(
                f"{section.path(key)} is missing: this reader passes over attention_factor. Give"
                " short_mscale and long_mscale."
            )
        return attention if mscale is None else mscale
    if mscale is not None and abs(mscale - attention) > 1e-6:
        raise InputError(
            f"{section.path(key)} must equal the attention factor, {attention:.6g}, got"
            f" {mscale:.6g}: vLLM reads this key, transformers does not. Set"
            " attention_factor to the one that is meant."
        )
    return attention


_Reader = Callable[[Fields, Context], Scaling]
TYPES: dict[str, tuple[_Reader, tuple[str, ...]]] = {
    "default": (_default, ()),
    "linear": (_linear, ("factor",)),
    "dynamic": (_dynamic, ("factor",)),
    "yarn": (
        _yarn,
        (
            "factor",
            "beta_fast",
            "beta_slow",
            "attention_factor",
            "mscale",
            "mscale_all_dim",
            "truncate",
            "attn_factor",
            "apply_yarn_scaling",
            "extrapolation_factor",
        ),
    ),
    "llama3": (_llama3, ("factor", "low_freq_factor", "high_freq_factor")),
    "longrope": (
        _longrope,
        (
            "short_factor",
            "long_factor",
            "factor",
            "attention_factor",
            "short_mscale",
            "long_mscale",
        ),
    ),
}

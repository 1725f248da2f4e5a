"""The rope of a Hugging Face config, both spellings, as a method of jaxrope.rope.

transformers 4 writes `rope_theta` and `rope_scaling`, transformers 5 writes `rope_parameters` with
the theta inside. Both are read; where both are given they must agree (transformers 5 silently takes
`rope_scaling`).
"""

import dataclasses
import math
from collections.abc import Callable

from jaxrope import rope
from jaxrope.convert.fields import Fields
from jaxrope.errors import InputError, choose, nearest

_THETA = 10_000.0  # the default of transformers (the first Llama's configs have none)
_ORIGINAL = "original_max_position_embeddings"
_COMMON_KEYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor", _ORIGINAL)


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """The rope of a config, in the terms of LlamaConfig.

    `notes` are assumptions worth reporting.
    """

    theta: float
    rotary_dim: int
    original_len: int
    method: dict
    notes: tuple[str, ...]

    @property
    def meaning(self) -> tuple:
        return (self.theta, self.rotary_dim, self.original_len, self.method)


@dataclasses.dataclass(frozen=True)
class _Context:
    """What the constants of a method may depend on: lengths in tokens.

    `original_len` is None where the config does not say; `mscales`: see `from_hf`.
    """

    original_len: int | None
    max_len: int
    rotary_dim: int
    mscales: bool

    def need_original(self, section: Fields) -> int:
        if self.original_len is None:
            raise InputError(
                f"{section.path(_ORIGINAL)} is missing: the length before the extension is part of"
                " this rope type. Add it there, or at the top level."
            )
        return self.original_len


def from_hf(
    config: Fields, *, family: str, head_dim: int, max_len: int, mscales: bool = False
) -> RopeConfig:
    """Returns the rope of a config.json.

    Args:
      config: the whole config.
      family: as in LlamaConfig.
      head_dim: dims of a head.
      max_len: max_position_embeddings, tokens.
      mscales: short_mscale and long_mscale are the attention factors, as vLLM and the Phi-3.5-MoE
        of transformers read them, which pass over attention_factor; False: they must equal it.

    Raises:
      InputError: two spellings disagree, an unknown type or key, a missing or illegal constant.
    """
    names = [
        name for name in ("rope_parameters", "rope_scaling") if config.section(name) is not None
    ]
    sections = [config.section(name) for name in names] or [
        Fields({}, f"{config.where}: rope_parameters.")
    ]
    ropes = [_read(config, section, family, head_dim, (max_len, mscales)) for section in sections]
    if len(ropes) == 2 and not _equal(ropes[0].meaning, ropes[1].meaning):
        parameters, scaling = (section.values for section in sections)
        keys = [key for key in [*parameters, *scaling] if parameters.get(key) != scaling.get(key)]
        keys.sort(key=lambda key: key in _COMMON_KEYS)  # the method's own constants first
        key = keys[0] if keys else "rope_theta"
        raise InputError(
            f"{config.where}: rope_parameters and rope_scaling disagree on {key},"
            f" {_show(parameters.get(key))} and {_show(scaling.get(key))}. Remove one of the two."
        )
    return ropes[0]


def _read(
    config: Fields, section: Fields, family: str, head_dim: int, read_for: tuple[int, bool]
) -> RopeConfig:
    notes, (max_len, mscales) = [], read_for
    theta = _shared(config, section, "rope_theta", Fields.number)
    if theta is None:
        theta = _THETA
        notes.append(
            f"{config.where} gives no rope_theta; {_THETA:g} is taken, as transformers does"
        )
    rotary_dim = _rotary_dim(config, section, family, head_dim)
    original = _shared(config, section, _ORIGINAL, Fields.count, low=2)
    context = _Context(original, max_len, rotary_dim, mscales)
    kind = _kind(section, family)
    read, type_keys = choose(section.path("rope_type"), kind, _TYPES)
    unknown = [key for key in section.values if key not in (*_COMMON_KEYS, *type_keys)]
    if unknown:
        raise InputError(
            f"Unknown key {section.path(unknown[0])} for rope_type '{kind}'."
            f" {nearest(unknown[0], [*_COMMON_KEYS, *type_keys])}"
        )
    original_len, method = read(section, context)
    if kind == "yarn" and max_len not in (method["factor"] * original_len, original_len):
        notes.append(
            f"yarn's factor, {method['factor']:g}, is not max_position_embeddings / {_ORIGINAL},"
            f" {max_len / original_len:g}; the factor counts"
        )
    geometry = dict(
        head_dim=head_dim, rotary_dim=rotary_dim, theta=theta, original_len=original_len
    )
    try:
        rope.make(**method, **geometry)
    except InputError as error:
        raise InputError(f"{section.where.rstrip('.')}: {error}") from None
    return RopeConfig(theta, rotary_dim, original_len, method, tuple(notes))


def _rotary_dim(config: Fields, section: Fields, family: str, head_dim: int) -> int:
    part = _shared(config, section, "partial_rotary_factor", Fields.number, high=1.0)
    rotary_dim = head_dim if part is None else int(head_dim * part)
    if family != "phi3" and rotary_dim != head_dim:
        raise InputError(
            f"{config.path('partial_rotary_factor')} must be 1 for model_type '{family}', got"
            f" {part:g}."
        )
    if not 2 <= rotary_dim <= head_dim or rotary_dim % 2:
        raise InputError(
            f"{config.path('partial_rotary_factor')} must make an even number of dims turn, from 2"
            f" to head_dim ({head_dim}), got {rotary_dim}."
        )
    return rotary_dim


def _equal(first: object, second: object) -> bool:
    """Returns whether two methods are the same.

    Numbers may differ in the last digits, where one spelling gives a value and the other its
    formula.
    """
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(
            _equal(first[key], second[key]) for key in first
        )
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(_equal, first, second))
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=1e-9)
    return first == second


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _type(section: Fields) -> str:
    """Returns the rope_type under either key; "default" for a section that scales nothing."""
    new, old = section.text("rope_type", None), section.text("type", None)
    if new and old and new != old:
        raise InputError(
            f"{section.path('rope_type')} and type disagree, '{new}' and '{old}'. Remove one of the"
            " two."
        )
    if new or old:
        return {"su": "longrope"}.get(new or old, new or old)
    rest = [
        key
        for key, value in section.values.items()
        if key not in ("rope_theta", "partial_rotary_factor") and value is not None
    ]
    if rest and isinstance(section.values[rest[0]], dict):
        raise InputError(f"{section.path(rest[0])}: a rope for each layer type is not supported.")
    if rest:
        raise InputError(
            f"{section.path('rope_type')} is missing, beside {rest[0]}. {nearest('', _TYPES)}"
        )
    return "default"


def _kind(section: Fields, family: str) -> str:
    kind = _type(section)
    if family == "phi3" and kind == "yarn":
        return "longrope"  # transformers' Phi3Config renames it: an early name of longrope
    if family == "phi3" and kind not in ("default", "longrope"):
        raise InputError(
            f"{section.path('rope_type')} must be default or longrope for model_type 'phi3', got"
            f" '{kind}'."
        )
    return kind


def _shared(config: Fields, section: Fields, key: str, read_fn: Callable, **limits):
    """Returns a value of the section or of the top level, which must agree; None if absent."""
    inside, outside = (read_fn(fields, key, None, **limits) for fields in (section, config))
    if inside is not None and outside is not None and inside != outside:
        raise InputError(
            f"{section.path(key)} and the top level's disagree, {inside:g} and {outside:g}. Remove"
            " one of the two."
        )
    return outside if inside is None else inside


def _default(section: Fields, context: _Context):
    return context.original_len or context.max_len, {"method": "none"}


def _linear(section: Fields, context: _Context):
    return context.original_len or context.max_len, {
        "method": "pi",
        "factor": section.number("factor", low=1.0),
    }


def _dynamic(section: Fields, context: _Context):
    # transformers grows from max_position_embeddings, whatever else the config says
    return context.max_len, {"method": "dynamic_ntk", "factor": section.number("factor", low=1.0)}


def _yarn(section: Fields, context: _Context):
    original = context.original_len or context.max_len  # transformers' own rule for a missing value
    factor = section.number("factor", None, low=1.0)
    method = {
        "method": "yarn",
        "factor": context.max_len / original if factor is None else factor,
        # transformers takes 0 for unset as well
        "beta_fast": section.number("beta_fast", None) or 32.0,
        "beta_slow": section.number("beta_slow", None) or 1.0,
        "attention_factor": section.number("attention_factor", None),
        "mscale": section.number("mscale", None),
        "mscale_all_dim": section.number("mscale_all_dim", None),
        "truncate": section.flag("truncate", True),
    }
    return original, method


def _llama3(section: Fields, context: _Context):
    keys = ("factor", "low_freq_factor", "high_freq_factor")
    return context.need_original(section), {"method": "llama3"} | {
        key: section.number(key) for key in keys
    }


def _longrope(section: Fields, context: _Context):
    original = context.need_original(section)
    if original >= context.max_len:
        raise InputError(
            f"{section.path(_ORIGINAL)} must be less than max_position_embeddings,"
            f" {context.max_len}, for longrope, got {original}."
        )
    factor = section.number("factor", context.max_len / original, low=1.0)
    attention = section.number("attention_factor", None)
    if attention is None:
        attention = rope.attention_factor("su", factor=factor, original_len=original)
    pairs = context.rotary_dim // 2
    rows = [
        dict(
            max_len=length,
            factors=section.factors(f"{name}_factor", pairs),
            start_tokens=0,
            attention_factor=_bucket_attention(section, f"{name}_mscale", attention, context),
        )
        for length, name in ((original, "short"), (context.max_len, "long"))
    ]
    return original, {"method": "longrope", "buckets": rows}


def _bucket_attention(section: Fields, key: str, attention: float, context: _Context) -> float:
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


_Reader = Callable[[Fields, _Context], tuple[int, dict]]
_TYPES: dict[str, tuple[_Reader, tuple[str, ...]]] = {
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
            "finetuned",
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

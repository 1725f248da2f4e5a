"""The rope of a Hugging Face config, both spellings, as a method of jaxrope.rope.

transformers 4 writes `rope_theta` and `rope_scaling`, transformers 5 writes `rope_parameters` with
the theta inside. Both are read; where both are given they must agree (transformers 5 silently takes
`rope_scaling`).
"""

import dataclasses
import math
from collections.abc import Callable

from jaxrope import rope
from jaxrope.convert.families import Family
from jaxrope.convert.fields import Fields
from jaxrope.convert.rope_types import LENGTHS, ORIGINAL, TYPES, Context
from jaxrope.errors import InputError, choose, nearest

_THETA = 10_000.0  # the default of transformers (the first Llama's configs have none)
_HARMLESS = ("finetuned", "mrope_section", "mrope_interleaved")  # of text, all sections are equal
_COMMON_KEYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor", ORIGINAL)


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """The rope of a config, in the terms of DecoderConfig.

    `max_len` is how far the scaling reaches, tokens. `notes` are assumptions worth reporting.
    """

    theta: float
    rotary_dim: int
    original_len: int
    max_len: int
    method: dict
    notes: tuple[str, ...]

    @property
    def meaning(self) -> tuple:
        return (self.theta, self.rotary_dim, self.original_len, self.method)


def from_hf(
    config: Fields, *, row: Family, head_dim: int, max_len: int, mscales: bool = False
) -> RopeConfig:
    """Returns the rope of a config.json.

    Args:
      config: the whole config.
      row: of the family.
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
    ropes = [_read(config, section, row, head_dim, (max_len, mscales)) for section in sections]
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
    config: Fields, section: Fields, row: Family, head_dim: int, read_for: tuple[int, bool]
) -> RopeConfig:
    notes, (max_len, mscales) = [], read_for
    theta = _shared(config, section, "rope_theta", Fields.number)
    if theta is None:
        theta = _THETA
        notes.append(
            f"{config.where} gives no rope_theta; {_THETA:g} is taken, as transformers does"
        )
    rotary_dim = _rotary_dim(config, section, row, head_dim, notes)
    original = _shared(config, section, ORIGINAL, Fields.count, low=2)
    longest = max(max_len, *(_claim(config, key) for key in LENGTHS))
    context = Context(original, max_len, longest, rotary_dim, mscales)
    kind = _kind(config, section, row)
    read, type_keys = choose(section.path("rope_type"), kind, TYPES)
    known = (*_COMMON_KEYS, *_HARMLESS, *type_keys)
    unknown = [key for key in section.values if key not in known]
    if unknown:
        raise InputError(
            f"Unknown key {section.path(unknown[0])} for rope_type '{kind}'."
            f" {nearest(unknown[0], [*_COMMON_KEYS, *type_keys])}"
        )
    scaling = read(section, context)
    geometry = dict(
        head_dim=head_dim, rotary_dim=rotary_dim, theta=theta, original_len=scaling.original_len
    )
    try:
        rope.make(**scaling.method, **geometry)
    except InputError as error:
        raise InputError(f"{section.where.rstrip('.')}: {error}") from None
    notes += [f"{config.where}: {note}" for note in scaling.notes]
    return RopeConfig(
        theta, rotary_dim, scaling.original_len, scaling.max_len, scaling.method, tuple(notes)
    )


def _claim(config: Fields, key: str) -> int:
    """Returns the tokens that a key claims; 0 where it holds none, as 1e30 of some tokenizers."""
    value = config.get(key)
    is_count = isinstance(value, int) and not isinstance(value, bool) and value < 2**31
    return value if is_count else 0


def _rotary_dim(
    config: Fields, section: Fields, row: Family, head_dim: int, notes: list[str]
) -> int:
    default = row.partial_rotary
    part = _shared(config, section, "partial_rotary_factor", Fields.number, high=1.0)
    if part is None and default not in (None, 1):
        part = default
        notes.append(
            f"{config.where} gives no partial_rotary_factor; {part:g} is taken, as transformers"
            " does"
        )
    rotary_dim = head_dim if part is None else int(head_dim * part)
    if default is None and rotary_dim != head_dim:
        raise InputError(
            f"{config.path('partial_rotary_factor')} must be 1 for model_type"
            f" '{config.get('model_type')}', got {part:g}."
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
        if key not in ("rope_theta", "partial_rotary_factor", *_HARMLESS) and value is not None
    ]
    if rest and isinstance(section.values[rest[0]], dict):
        raise InputError(f"{section.path(rest[0])}: a rope for each layer type is not supported.")
    if rest:
        raise InputError(
            f"{section.path('rope_type')} is missing, beside {rest[0]}. {nearest('', TYPES)}"
        )
    return "default"


def _kind(config: Fields, section: Fields, row: Family) -> str:
    kind = _type(section)
    if not row.longrope_alone:
        return kind
    if kind == "yarn":
        return "longrope"  # transformers' Phi3Config renames it: an early name of longrope
    if kind not in ("default", "longrope"):
        raise InputError(
            f"{section.path('rope_type')} must be default or longrope for model_type"
            f" '{config.get('model_type')}', got '{kind}'."
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

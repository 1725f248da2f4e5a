"""Rotary position embeddings, rescaled: methods, what they are made on top of, exact phases,
published factors, and the file format of a result.
"""

from jaxrope.rope.base import (
    Base,
    base_of,
    extend,
    ramp_factors,
    reach,
    turns_in,
    yarn_borders,
    yarn_on_top,
)
from jaxrope.rope.file import load, provenance, save, unfinished_notes
from jaxrope.rope.methods import METHODS, make, ntk_rcd, register
from jaxrope.rope.presets import catalogue, preset
from jaxrope.rope.rotary import (
    Rope,
    base_inv_freq,
    build,
    cos_sin,
    inv_freq,
    rotate,
    stack,
    turn_words,
    with_factors,
)
from jaxrope.rope.schedule import (
    Bucket,
    Geometry,
    RopeFn,
    as_factors,
    attention_factor,
    check_layers,
    remarks,
)

__all__ = [
    "METHODS",
    "Base",
    "Bucket",
    "Geometry",
    "Rope",
    "RopeFn",
    "as_factors",
    "attention_factor",
    "base_inv_freq",
    "base_of",
    "build",
    "catalogue",
    "check_layers",
    "cos_sin",
    "extend",
    "inv_freq",
    "load",
    "make",
    "ntk_rcd",
    "preset",
    "provenance",
    "register",
    "ramp_factors",
    "reach",
    "remarks",
    "rotate",
    "save",
    "stack",
    "turn_words",
    "turns_in",
    "unfinished_notes",
    "with_factors",
    "yarn_borders",
    "yarn_on_top",
]

"""The rope of a GGUF file, as a part of a config.json.

llama.cpp turns with theta^(-2i/d) divided by `rope_freqs`, or by the long or the short set of
`rope_factors`, and by `rope.scaling.factor`; YaRN interpolates instead. Numbers are float32 there;
one is read as the shortest decimal that rounds to it, so that factors on a grid of 0.01 are
restored exactly, and an attention factor by LongRoPE's law as that law.

Letters: R rotary pairs.
"""

import math
from pathlib import Path

import numpy as np

from jaxrope import rope
from jaxrope.convert import gguf_header
from jaxrope.convert.config_keys import fraction
from jaxrope.convert.fields import Fields
from jaxrope.errors import InputError, choose

LONG, SHORT, FREQS = "rope_factors_long", "rope_factors_short", "rope_freqs"
TENSORS = tuple(f"{name}.weight" for name in (LONG, SHORT, FREQS))
MOST = 1e30  # of a number, which is float32 there
_KINDS = dict.fromkeys(("none", "linear", "yarn", "longrope"))
ORIGINAL = "rope.scaling.original_context_length"
# Of Llama 3.1 and its successors; a file holds the factors that these make, not the constants.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_SAME = 2e-6  # relative: the factors were computed in float32
_SAME_FLOAT32 = 2e-7  # relative: two float32 apart


def metadata(header: gguf_header.Header) -> dict:
    """Returns the metadata, keys without the architecture."""
    name = str(header.values.get("general.architecture"))
    return {
        key.removeprefix(f"{name}."): gguf_header.decimal(value)
        if isinstance(value, float) and abs(value) < MOST
        else value
        for key, value in header.values.items()
    }


def read(path: Path, header: gguf_header.Header) -> Fields:
    """Returns the part of a config.json that says what the rope is, of any architecture.

    Args:
      path: of the file, for messages.
      header: with the tensors of `TENSORS`.

    Raises:
      InputError: see `section`, or the sizes are missing.
    """
    fields = Fields(metadata(header), str(path))
    head_dim = fields.count("attention.key_length", 0, low=0)
    if not head_dim and fields.get("embedding_length") is not None:
        head_dim = fields.count("embedding_length") // fields.count("attention.head_count")
    config = {
        "head_dim": head_dim or fields.count("rope.dimension_count"),
        "max_position_embeddings": fields.count("context_length"),
    }
    return Fields(config | section(fields, header.tensors, config), fields.where)


def section(fields: Fields, tensors: dict[str, np.ndarray], config: dict) -> dict:
    """Returns {"rope_parameters": ...} of a config.json, and which part of a head turns.

    Args:
      fields: the metadata, keys without the architecture.
      tensors: those of `TENSORS` that there are.
      config: the part of config.json with the sizes.

    Raises:
      InputError: an unknown scaling, or one that llama.cpp would not run as it says.
    """
    factors = {
        name.removesuffix(".weight"): [gguf_header.decimal(value) for value in row]
        for name, row in tensors.items()
    }
    theta = fields.number("rope.freq_base", 10_000.0, high=MOST)
    kind = fields.text("rope.scaling.type", None)
    factor = fields.number("rope.scaling.factor", None, high=MOST)
    factor = factor or fields.number("rope.scale_linear", None, high=MOST) or 1.0
    if kind is not None:
        choose(fields.path("rope.scaling.type"), kind, _KINDS)
    factor = 1.0 if kind == "none" else factor  # llama.cpp then passes over it
    scaling = _scaling(fields, kind or "linear", factor, factors, theta, config)
    turning, head_dim = _rotary_dim(fields, config), config["head_dim"]
    part = {} if turning == head_dim else {"partial_rotary_factor": fraction(turning, head_dim)}
    return {"rope_parameters": {"rope_theta": theta} | scaling} | part


def _rotary_dim(fields: Fields, config: dict) -> int:
    return fields.count("rope.dimension_count", 0, low=0) or config["head_dim"]


def _scaling(fields: Fields, kind: str, factor: float, factors: dict, theta: float, config: dict):
    attention = fields.number("rope.scaling.attn_factor", None, high=MOST) or 1.0
    length = config["max_position_embeddings"]
    original = fields.count(ORIGINAL, length)
    if (LONG in factors) != (SHORT in factors) or (kind == "longrope" and LONG not in factors):
        raise InputError(
            f"{fields.where}: a longrope needs both {LONG} and {SHORT}: llama.cpp runs it with"
            " plain frequencies. Convert the Hugging Face folder again."
        )
    if kind == "yarn":
        return _yarn(fields, factor, factors, attention, original)
    if not factors and attention == 1.0:
        return _linear(factor, fields)
    if FREQS in factors:
        llama3 = _as_llama3(factors[FREQS], theta, config["head_dim"])
        if llama3 and factor == attention == 1.0:
            return llama3
        factors = dict.fromkeys((LONG, SHORT), factors[FREQS])
    law = rope.attention_factor("su", factor=max(length / original, 1), original_len=original)
    pairs = _rotary_dim(fields, config) // 2
    return {
        "rope_type": "longrope",
        "long_factor": [value * factor for value in factors.get(LONG, [1.0] * pairs)],
        "short_factor": [value * factor for value in factors.get(SHORT, [1.0] * pairs)],
        "attention_factor": law if abs(attention / law - 1) < _SAME_FLOAT32 else attention,
        "original_max_position_embeddings": original,
    }


def _linear(factor: float, fields: Fields) -> dict:
    original = fields.count(ORIGINAL, None)
    length = {} if original is None else {"original_max_position_embeddings": original}
    kind = {"rope_type": "default"} if factor == 1 else {"rope_type": "linear", "factor": factor}
    return kind | length


def _yarn(fields: Fields, factor: float, factors: dict, attention: float, original: int) -> dict:
    for key, neutral in (("yarn_ext_factor", 1.0), ("yarn_log_multiplier", 0.0)):
        if fields.number(f"rope.scaling.{key}", neutral, low=-MOST) != neutral:
            raise fields.wrong(f"rope.scaling.{key}", f"be {neutral:g} or absent")
    if factors:
        raise InputError(f"{fields.where}: rope.scaling.type is yarn beside {', '.join(factors)}.")
    scaling = {
        "rope_type": "yarn",
        "factor": factor,
        "beta_fast": fields.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": fields.number("rope.scaling.yarn_beta_slow", 1.0),
        "original_max_position_embeddings": original,
    }
    if attention != 1.0:  # llama.cpp multiplies YaRN's own with it
        scaling["attention_factor"] = attention * (1 + 0.1 * math.log(max(factor, 1.0)))
    return scaling


def _as_llama3(factors_R: list[float], theta: float, head_dim: int) -> dict | None:
    """Returns the constants of Llama 3's rope that make these factors; None: the usual do not."""
    scaling = {"rope_type": "llama3", "factor": round(max(factors_R, default=1.0), 4)} | _LLAMA3
    low, high, original = _LLAMA3.values()
    inv_freq_R = theta ** (-np.arange(len(factors_R)) / max(len(factors_R), 1))
    turns_R = original * inv_freq_R / (2 * math.pi)
    smooth_R = np.clip((turns_R - low) / (high - low), 0, 1)
    expected_R = 1 / ((1 - smooth_R) / scaling["factor"] + smooth_R)
    is_same = np.allclose(factors_R, expected_R, rtol=_SAME, atol=0)
    return scaling if is_same and 2 * len(factors_R) == head_dim else None

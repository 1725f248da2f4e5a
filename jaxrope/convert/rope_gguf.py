"""A rope as metadata and tensors of a GGUF file; the way back is gguf_rope.py.

llama.cpp divides the frequencies by the tensor rope_freqs, or by rope_factors_short or
rope_factors_long, and multiplies cos and sin by rope.scaling.attn_factor. `rope.scaling.factor` is
not written beside them: it would divide every position once more, whatever the scaling type. YaRN
is its constants, where attn_factor multiplies YaRN's own attention factor.

One set of factors is rope_freqs, which every build reads; two sets are read by builds since April
2026 (by those of Phi-3's kinds, ever since), and older ones refuse the file.
"""

import dataclasses

import numpy as np

from jaxrope import rope
from jaxrope.convert import gguf_rope, rope_export
from jaxrope.convert.rope_export import HfRope, Layout
from jaxrope.decoder import DecoderConfig
from jaxrope.errors import InputError

# Architectures whose rope llama.cpp divides by rope_freqs, and by rope_factors_long and _short.
ONE_SET = ("llama", "granite", "minicpm", "mistral3")
TWO_SETS = (*ONE_SET, "minicpm3", "phi3", "phimoe")
_ONE_SCALE = ("gemma3",)  # whose sliding layers the attention factor would scale as well
_FACTORS_ALONE = ("phi3", "phimoe")  # whose config.json knows no other scaling
_BY_THETA = ("none", "abf", "ntk")
_ATTENTION = "rope.scaling.attn_factor"
_USUAL = {"truncate": True, "beta_fast": 32.0, "beta_slow": 1.0}  # of YaRN
_KEYS = ("context_length", "rope.freq_base", "rope.dimension_count", "rope.scale_linear")
_SAME = 2e-7  # relative: two float32 apart


@dataclasses.dataclass(frozen=True)
class GgufRope:
    """A rope as a file holds it.

    Attributes:
      values: metadata, keys without the architecture.
      tensors: float32, by name.
      hf_rope: the same as config.json would express it, with what is lost.
    """

    values: dict[str, str | int | float]
    tensors: dict[str, np.ndarray]
    hf_rope: HfRope


def express(
    config: DecoderConfig | Layout, rope_fn: rope.RopeFn, architecture: str, *, allow_lossy: bool
) -> GgufRope:
    """Returns `rope_fn` as a file of an architecture holds it.

    Args:
      config: the model, or its layout alone.
      rope_fn: any method.
      architecture: llama.cpp's name.
      allow_lossy: also if llama.cpp cannot express all of it.

    Raises:
      InputError: llama.cpp would apply it wrongly, or not at all.
    """
    hf_rope = _as_hf(config, rope_fn, architecture)
    rope_export.check(hf_rope, allow_lossy=allow_lossy, reader="llama.cpp")
    values = {
        "context_length": hf_rope.max_len,
        "rope.freq_base": hf_rope.theta,
        "rope.dimension_count": rope_fn.rotary_dim,
    }
    if hf_rope.original_len:
        values[gguf_rope.ORIGINAL] = hf_rope.original_len
    scaling, factors = _SCALINGS[hf_rope.section["rope_type"]](hf_rope.section, architecture)
    if architecture in _ONE_SCALE and _ATTENTION in scaling:
        raise InputError(
            f"rope: llama.cpp scales the sliding layers of {architecture} by the attention factor"
            " too. Search with the usual one (search.attention_factor), or serve with another"
            " program."
        )
    tensors = {f"{name}.weight": np.asarray(row, np.float32) for name, row in factors.items()}
    return GgufRope(values | scaling, tensors, hf_rope)


def needs_factors(rope_fn: rope.RopeFn, architecture: str) -> bool:
    """Returns whether a rope is written as factors: it is no formula of llama.cpp's, or YaRN with
    borders of its own, which llama.cpp 0.6 reads from its command line alone.
    """
    if rope_fn.method in _BY_THETA:
        return False
    if architecture in _FACTORS_ALONE or rope_fn.method not in ("pi", "yarn"):
        return True
    constants = _USUAL | dict(rope_fn.constants)
    is_usual = {key: constants[key] for key in _USUAL} == _USUAL
    has_factors = architecture in (*TWO_SETS, "qwen2")  # a Qwen2 is then written as a Llama
    return rope_fn.method == "yarn" and not (
        is_usual or (constants["truncate"] and not has_factors)
    )


def is_of_rope(key: str) -> bool:
    """Returns whether a key without the architecture says something of the rope."""
    return key in _KEYS or key.startswith("rope.scaling.")


def _as_hf(config: DecoderConfig | Layout, rope_fn: rope.RopeFn, architecture: str) -> HfRope:
    if needs_factors(rope_fn, architecture):
        return rope_export.as_longrope(config, rope_fn)
    rope_export.check_shared(rope_fn)
    return rope_export.METHODS[rope_fn.method](config, rope_fn)


def _default(section: dict, architecture: str) -> tuple[dict, dict]:
    del section, architecture
    return {}, {}


def _linear(section: dict, architecture: str) -> tuple[dict, dict]:
    del architecture
    return {"rope.scaling.type": "linear", "rope.scaling.factor": float(section["factor"])}, {}


def _yarn(section: dict, architecture: str) -> tuple[dict, dict]:
    del architecture
    factor = float(section["factor"])
    multiple = section["attention_factor"] / rope.attention_factor(
        "yarn", factor=factor, original_len=section["original_max_position_embeddings"]
    )
    values = {"rope.scaling.type": "yarn", "rope.scaling.factor": factor}
    if abs(multiple - 1) >= _SAME:
        values[_ATTENTION] = float(multiple)
    for key in ("beta_fast", "beta_slow"):
        if section[key] != _USUAL[key]:
            values[f"rope.scaling.yarn_{key}"] = float(section[key])
    return values, {}


def _longrope(section: dict, architecture: str) -> tuple[dict, dict]:
    short, long = section["short_factor"], section["long_factor"]
    attention = float(section["attention_factor"])
    values = {} if attention == 1 else {_ATTENTION: attention}
    if short == long and architecture in ONE_SET:
        return values, {gguf_rope.FREQS: long}
    if architecture in TWO_SETS:
        kind = {"rope.scaling.type": "longrope"}
        return kind | values, {gguf_rope.LONG: long, gguf_rope.SHORT: short}
    raise InputError(
        f"rope: llama.cpp has no factors for the architecture {architecture}"
        f" (for {', '.join(TWO_SETS)} it has), only YaRN by its constants. Search with"
        " search.form='yarn', or serve the model with another program."
    )


_SCALINGS = {"default": _default, "linear": _linear, "yarn": _yarn, "longrope": _longrope}

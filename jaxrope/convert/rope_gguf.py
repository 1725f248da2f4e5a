"""A rope as a GGUF file that holds nothing else; the way back is gguf_rope.py.

llama.cpp divides the frequencies by the tensors rope_factors_short or rope_factors_long and
multiplies cos and sin by rope.scaling.attn_factor. `rope.scaling.factor` is not written beside
them: it would divide every position once more, whatever the scaling type. YaRN is its constants,
where attn_factor multiplies YaRN's own attention factor.
"""

import os
import tempfile
from pathlib import Path

import numpy as np

from jaxrope import rope
from jaxrope.convert.rope_export import HfRope
from jaxrope.errors import InputError, choose

ARCHITECTURES = {  # with rope_factors_long and rope_factors_short in llama.cpp
    "phi3": "Phi-3, Phi-3.5, Phi-4-mini",
    "phimoe": "Phi-3.5-MoE",
    "minicpm": "MiniCPM",
    "minicpm3": "MiniCPM3",
}
_SHORT, _LONG = "rope_factors_short", "rope_factors_long"
_SAME = 2e-7  # relative: two float32 apart


def check_architecture(name: str) -> None:
    """Refuses architectures for which llama.cpp has no factors.

    Raises:
      InputError: `name` is none of ARCHITECTURES.
    """
    if name == "llama":
        raise InputError(
            "--arch=llama: llama.cpp has no longrope for it, a GGUF would load and ignore the"
            " factors. Export the model with --arch=phi3, and take that architecture here."
        )
    choose("--arch", name, ARCHITECTURES)


def write(path: Path, hf_rope: HfRope, geometry: rope.Geometry, *, architecture: str) -> None:
    """Writes a GGUF file with the rope's metadata and tensors, atomically.

    Args:
      path: of the file.
      hf_rope: a longrope or a YaRN.
      geometry: the dims of the heads.
      architecture: of ARCHITECTURES.

    Raises:
      InputError: the package gguf is not installed, or another architecture.
    """
    gguf = _package()
    check_architecture(architecture)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.", suffix=".tmp")
    os.close(handle)
    try:
        writer = gguf.GGUFWriter(name, architecture)
        writer.add_context_length(hf_rope.max_len)
        writer.add_key_length(geometry.head_dim)
        writer.add_value_length(geometry.head_dim)
        writer.add_rope_dimension_count(geometry.rotary_dim)
        writer.add_rope_freq_base(hf_rope.theta)
        writer.add_rope_scaling_orig_ctx_len(hf_rope.original_len)
        if hf_rope.section["rope_type"] == "yarn":
            _add_yarn(writer, hf_rope.section)
        else:
            _add_longrope(writer, hf_rope.section)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.chmod(name, 0o644)  # mkstemp makes 0600: a result is for everybody to read
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _add_longrope(writer, section: dict) -> None:
    writer.add_rope_scaling_type(_package().RopeScalingType.LONGROPE)
    writer.add_rope_scaling_attn_factors(section["attention_factor"])
    for tensor, key in ((_LONG, "long_factor"), (_SHORT, "short_factor")):
        writer.add_tensor(f"{tensor}.weight", np.asarray(section[key], np.float32))


def _add_yarn(writer, section: dict) -> None:
    factor, usual = section["factor"], _yarn_attention(section["factor"])
    writer.add_rope_scaling_type(_package().RopeScalingType.YARN)
    writer.add_rope_scaling_factor(factor)
    if abs(section["attention_factor"] / usual - 1) >= _SAME:
        writer.add_rope_scaling_attn_factors(section["attention_factor"] / usual)
    if (section["beta_fast"], section["beta_slow"]) != (32.0, 1.0):  # llama.cpp's own
        writer.add_rope_scaling_yarn_beta_fast(section["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(section["beta_slow"])


def _yarn_attention(factor: float) -> float:
    return rope.attention_factor("yarn", factor=factor, original_len=2)


def _package():
    try:
        import gguf
    except ImportError:
        raise InputError(
            "GGUF needs the package gguf. Install it (pip install jaxrope[gguf])."
        ) from None
    return gguf

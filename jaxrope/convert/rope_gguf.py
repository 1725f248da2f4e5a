"""The rope of a GGUF file: what llama.cpp reads, and a file that holds nothing else.

llama.cpp divides the frequencies by the tensors rope_factors_short or rope_factors_long and
multiplies cos and sin by rope.scaling.attn_factor. `rope.scaling.factor` is not written beside
them: it would divide every position once more, whatever the scaling type. YaRN is its constants,
where attn_factor multiplies YaRN's own attention factor. Numbers are float32 there; a number is
read back as the shortest decimal that rounds to it, so that factors on a grid of 0.01 are restored
exactly.
"""

import os
import tempfile
from pathlib import Path

import numpy as np

from jaxrope import rope
from jaxrope.convert import gguf_header
from jaxrope.convert.fields import Fields
from jaxrope.convert.rope_export import HfRope
from jaxrope.errors import InputError, choose

ARCHITECTURES = {  # with rope_factors_long and rope_factors_short in llama.cpp
    "phi3": "Phi-3, Phi-3.5, Phi-4-mini",
    "phimoe": "Phi-3.5-MoE",
    "minicpm": "MiniCPM",
    "minicpm3": "MiniCPM3",
}
_SHORT, _LONG, _FREQS = "rope_factors_short", "rope_factors_long", "rope_freqs"
_SAME = 2e-7  # relative: two float32 apart
_MOST = 1e30  # of a number, which is float32 there


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
    if (section["beta_fast"], section["beta_slow"]) != tuple(_BETAS.values()):
        writer.add_rope_scaling_yarn_beta_fast(section["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(section["beta_slow"])


def _yarn_attention(factor: float) -> float:
    return rope.attention_factor("yarn", factor=factor, original_len=2)


def read(path: Path) -> rope.RopeFn:
    """Returns the rope of a GGUF file, of a whole model or of `write`.

    Raises:
      InputError: no whole GGUF; factors that llama.cpp would ignore, or apply beside others; a
        scaling that is none of none, linear, yarn and longrope.
    """
    names = (_SHORT, _LONG, _FREQS)
    header = gguf_header.read(path, (*names, *(f"{name}.weight" for name in names)))
    tensors = {name.removesuffix(".weight"): row for name, row in header.tensors.items()}
    architecture = str(header.values.get("general.architecture"))
    metadata = {key.removeprefix(f"{architecture}."): x for key, x in header.values.items()}
    fields = Fields(metadata, str(path))
    values: dict = {key: fields.count(key, None, low=0) for key in _COUNTS}
    numbers = {key: fields.number(key, None, high=_MOST) for key in _NUMBERS}
    values |= {key: x and gguf_header.decimal(x) for key, x in numbers.items()}
    kind = fields.text("rope.scaling.type", None)
    _check_readable(str(path), architecture, kind, values, tensors)
    try:
        return _rope(_geometry(str(path), kind, values), kind, values, tensors)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


_COUNTS = (
    "context_length",
    "embedding_length",
    "attention.head_count",
    "attention.key_length",
    "rope.dimension_count",
    "rope.scaling.original_context_length",
)
_BETAS = {"rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 1.0}
_NUMBERS = ("rope.freq_base", "rope.scaling.factor", "rope.scaling.attn_factor", *_BETAS)


def _rope(geometry: dict, kind: str | None, values: dict, tensors: dict) -> rope.RopeFn:
    factor = values["rope.scaling.factor"] or 1.0
    if kind == "yarn":
        fast, slow = (values[key] or usual for key, usual in _BETAS.items())
        multiple = values["rope.scaling.attn_factor"]
        number = None if multiple in (None, 0, 1) else multiple * _yarn_attention(factor)
        betas = dict(beta_fast=fast, beta_slow=slow, attention_factor=number)
        return rope.make("yarn", **geometry, factor=factor, **betas)
    if _LONG not in tensors:
        method = dict(method="pi", factor=factor) if factor != 1 else dict(method="none")
        return rope.make(**method, **geometry)
    original, max_len = geometry["original_len"], values["context_length"]
    law = rope.attention_factor("su", factor=max(max_len / original, 1), original_len=original)
    attention = values["rope.scaling.attn_factor"] or 1.0
    attention = law if abs(attention / law - 1) < _SAME else attention
    rows = [
        dict(
            max_len=length,
            factors=[gguf_header.decimal(value) for value in tensors[name]],
            start_tokens=0,
            attention_factor=attention,
        )
        for length, name in {max_len: _LONG, original: _SHORT}.items()  # one, if they are equal
    ]
    rows.sort(key=lambda row: row["max_len"])
    return rope.make("longrope", **geometry, buckets=rows)


def _check_readable(where: str, architecture: str, kind, values: dict, tensors: dict) -> None:
    """Refuses files that llama.cpp would not run as their metadata says."""
    has_factors = _LONG in tensors and _SHORT in tensors
    if kind not in (None, "none", "linear", "yarn", "longrope"):
        raise InputError(
            f"{where}: rope.scaling.type must be none, linear, yarn or longrope, got '{kind}'."
            " Convert from the Hugging Face folder instead."
        )
    if (kind == "longrope" or _LONG in tensors or _SHORT in tensors) and not has_factors:
        raise InputError(
            f"{where}: rope.scaling.type is {kind}, without both {_LONG} and {_SHORT}: llama.cpp"
            " runs it with plain frequencies. Convert the Hugging Face folder again."
        )
    if kind == "yarn" and (_LONG in tensors or _SHORT in tensors):
        raise InputError(
            f"{where}: rope.scaling.type yarn stands beside {_LONG}: llama.cpp applies both."
            " Convert from the Hugging Face folder instead."
        )
    if has_factors and architecture not in ARCHITECTURES:
        raise InputError(
            f"{where}: llama.cpp ignores rope factors of the architecture '{architecture}'; it has"
            f" them for {', '.join(ARCHITECTURES)}. Export the model with --arch=phi3."
        )
    if has_factors and values["rope.scaling.factor"] not in (None, 0, 1):
        raise InputError(
            f"{where}: rope.scaling.factor must be absent beside rope factors, got"
            f" {values['rope.scaling.factor']:g}: llama.cpp divides every position by it as well."
        )
    if _FREQS in tensors:
        raise InputError(
            f"{where}: holds {_FREQS}, which llama.cpp takes at every length, whatever else there"
            " is. Convert from the Hugging Face folder instead."
        )


def _geometry(where: str, kind: str | None, values: dict) -> dict:
    if not values["context_length"]:
        raise InputError(
            f"{where}: context_length is missing. Convert the Hugging Face folder again."
        )
    head_dim = values["attention.key_length"]
    if not head_dim and values["embedding_length"] and values["attention.head_count"]:
        head_dim = values["embedding_length"] // values["attention.head_count"]
    rotary_dim = values["rope.dimension_count"] or head_dim
    if not rotary_dim:
        raise InputError(
            f"{where}: rope.dimension_count is missing. Convert the Hugging Face folder again."
        )
    original = values["context_length"]
    if kind != "yarn":  # as of config.json: linear scaling reaches the context length
        original = max(2, int(original / (values["rope.scaling.factor"] or 1)))
    return dict(
        head_dim=head_dim or rotary_dim,
        rotary_dim=rotary_dim,
        theta=values["rope.freq_base"] or 10_000.0,  # llama.cpp's own default
        original_len=values["rope.scaling.original_context_length"] or original,
    )


def _package():
    try:
        import gguf
    except ImportError:
        raise InputError(
            "GGUF needs the package gguf. Install it (pip install jaxrope[gguf])."
        ) from None
    return gguf

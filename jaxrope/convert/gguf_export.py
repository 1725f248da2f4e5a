"""Exports a model to a GGUF file that runs in llama.cpp: weights, tokenizer and rope.

Everything that can be refused is refused before a weight is written: the metadata are read back as
those of any file, and have to be the model's.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxrope.convert import (
    card,
    config_keys,
    consumers,
    exporting,
    gguf_config,
    gguf_header,
    gguf_vocabulary,
    gguf_weights,
    gguf_writer,
    layout,
    rope_export,
    rope_formats,
    rope_gguf,
    safetensors_io,
)
from jaxrope.convert import config as hf_config
from jaxrope.convert.fields import Fields
from jaxrope.convert.gguf_config import Origin
from jaxrope.decoder import DecoderConfig
from jaxrope.errors import InputError, choose

_FAMILIES = {"mistral": "llama", "gemma3_text": "gemma3"}  # others are called alike
_FILE_TYPES = {0: 0, 1: 1, 30: 32, 8: 7}  # ggml's type of the matrices -> general.file_type
_NO_OUT_BIAS = ("qwen2", "qwen3", "gemma3")  # has none in llama.cpp
_SQUARE = ("qwen2", "phi3")  # where all heads together are as wide as the model


@dataclasses.dataclass(frozen=True)
class Content:
    """A file that is to be written.

    Attributes:
      config: of the model, in the layout that is written.
      values: metadata by key.
      rope: of the model.
      origins: of the model's tensors, by Hugging Face's names.
      tensors: all of the file's, those of the rope first.
      notes: what differs from the model as it came.
    """

    config: DecoderConfig
    values: dict
    rope: rope_gguf.GgufRope
    origins: dict[str, Origin]
    tensors: list[gguf_writer.Tensor]
    notes: list[str]


def plan(model: exporting.Model, settings: exporting.Settings, name: str) -> Content:
    """Returns what the file of a model holds; nothing is written.

    Args:
      model: of `pretrained.load(path, dtype=None)`, with weights or without.
      settings: dtype, allow_lossy and arch are used.
      name: of the model, for the file's metadata.

    Raises:
      InputError: llama.cpp cannot run it as it is, or would run something else.
    """
    gguf_writer.package()
    config, notes = _served(model.config, model)
    if settings.arch is not None:
        config = exporting.check_arch(settings.arch, config)
    model = dataclasses.replace(model, config=config)
    architecture = _architecture(config, model)
    dtype, more = (settings.dtype, []) if settings.dtype else _dtype(model)
    kind = choose("--dtype", dtype, gguf_weights.KINDS)
    rope = rope_gguf.express(config, model.rope_fn, architecture, allow_lossy=settings.allow_lossy)
    hf = config_keys.to_hf(config, dtype="float32")
    hf |= config_keys.rope_keys(config, rope.hf_rope.keys(config))
    keys = gguf_config.metadata(architecture, hf) | rope.values
    tokens, remarks = gguf_vocabulary.metadata(model.tokenizer_dir, config)
    values = {"general.architecture": architecture, "general.name": _named(name)}
    values |= {"general.file_type": _FILE_TYPES[kind], "general.quantization_version": 2}
    values |= {f"{architecture}.{key}": value for key, value in keys.items()} | tokens
    if model.rope_provenance:
        values["jaxrope.provenance"] = json.dumps(dict(card.scalars(model.rope_provenance)))
    origins = gguf_config.origins(architecture, hf)
    tensors = _tensors(config, architecture, origins, kind)
    more += _odd_rows(tensors, kind)
    of_rope = [gguf_writer.Tensor(key, row.shape, 0) for key, row in rope.tensors.items()]
    content = Content(config, values, rope, origins, of_rope + tensors, notes + more + remarks)
    _check(content, model)
    return content


def export(
    model: exporting.Model, target: Path | str, settings: exporting.Settings | None = None
) -> list[str]:
    """Writes a GGUF file.

    Args:
      model: of `pretrained.load(path, dtype=None)`.
      target: the file.
      settings: dtype (those of `gguf_weights.KINDS`), allow_lossy, arch and overwrite are used.

    Returns:
      What llama.cpp does with the rope, then what is lost and what differs from what came in
      ("note: ...").

    Raises:
      InputError: a target in use, see `plan`, or weights that are not finite or do not fit the
        dtype.
    """
    settings = settings or exporting.Settings()
    path = check_target(target, settings.overwrite)
    content = plan(model, settings, path.stem)
    gguf_writer.write(path, content.values, content.tensors, _arrays(content, model))
    hf_rope = content.rope.hf_rope
    said = consumers.lines(hf_rope, content.config.family, form="gguf")
    return [*said, *(f"note: {note}" for note in exporting.remarks(model, hf_rope) + content.notes)]


def check_target(target: Path | str, overwrite: bool) -> Path:
    """Returns the absolute path of a GGUF file that may be written.

    Raises:
      InputError: it has another suffix, or see `rope_formats.check_target`.
    """
    path = rope_formats.check_target(target, overwrite)
    if path.suffix != ".gguf":
        raise InputError(f"{path} must end in .gguf. Name the file so.")
    return path


def _served(config: DecoderConfig, model: exporting.Model) -> tuple[DecoderConfig, list[str]]:
    """Returns the config without a window that no sequence reaches the end of, and notes."""
    reach = rope_export.longest(config, model.rope_fn)
    if config.layers or config.sliding_window is None or config.sliding_window < reach:
        return config, []
    note = f"the sliding window of {config.sliding_window} tokens is left out: it is never full"
    return dataclasses.replace(config, sliding_window=None), [note]


def _architecture(config: DecoderConfig, model: exporting.Model) -> str:
    """Returns llama.cpp's name; a Qwen2 is a Llama with biases, which has factors there."""
    family = _FAMILIES.get(config.family, config.family)
    if family not in gguf_config.ARCHITECTURES:
        known = ", ".join(gguf_config.ARCHITECTURES)
        raise InputError(
            f"--to=gguf: {config.family} is not written as GGUF ({known} are). Export a Hugging"
            " Face folder, and convert it with llama.cpp's own program."
        )
    is_square = config.num_heads * config.head_dim == config.embed_dim
    if family == "qwen2" and (rope_gguf.needs_factors(model.rope_fn, family) or not is_square):
        family = "llama"
    if family in _SQUARE and not is_square:
        raise InputError(
            f"--to=gguf: llama.cpp's {family} needs heads * head_dim = {config.embed_dim}, the"
            f" model's width, got {config.num_heads} * {config.head_dim}. Pass --arch=llama."
        )
    if family in _NO_OUT_BIAS and config.out_bias:
        raise InputError(
            f"--to=gguf: llama.cpp's {family} has no bias behind attention, this model has. Serve"
            " it with another program."
        )
    return family


def _dtype(model: exporting.Model) -> tuple[str, list[str]]:
    """Returns the dtype that the weights came in, else that they have, and notes."""
    stored = exporting.main_dtype(model.params).name if model.params else None
    came = model.config.stored_dtype or stored
    came = came if came in gguf_weights.KINDS else "float32"
    if stored in (None, came):
        return came, []
    note = f"the weights are {stored}, and written as {came}, as they came in; --dtype={stored}"
    return came, [f"{note} keeps them"]


def _odd_rows(tensors: list[gguf_writer.Tensor], kind: int) -> list[str]:
    odd = [tensor for tensor in tensors if len(tensor.shape) > 1 and tensor.kind != kind]
    if not odd:
        return []
    return [
        f"{len(odd)} matrices, {odd[0].name} first, are float16: their rows are no multiple of a"
        " block of the quantisation"
    ]


def _named(name: str) -> str:
    """Returns a name that llama.cpp draws no conclusions from: it has other special tokens for what
    is called Phi-3 or ModernBERT.
    """
    for word in ("phi-3", "phi3", "modern-bert"):
        start = name.lower().find(word)
        while start >= 0:
            name = name[: start + 3] + "_" + name[start + 3 :]
            start = name.lower().find(word)
    return name


def _tensors(
    config: DecoderConfig, architecture: str, origins: dict[str, Origin], kind: int
) -> list[gguf_writer.Tensor]:
    tensors = layout.tensors(config)
    strange = [tensor.name for tensor in tensors if tensor.name not in origins]
    if strange:
        raise InputError(
            f"--to=gguf: llama.cpp's {architecture} has no {strange[0]}, this model has. Serve it"
            " with another program."
        )
    return [
        gguf_writer.Tensor(
            origins[tensor.name].name, tensor.shape, gguf_weights.kind_of(tensor.shape, kind)
        )
        for tensor in tensors
    ]


def _arrays(content: Content, model: exporting.Model) -> Iterator[np.ndarray]:
    yield from content.rope.tensors.values()
    kinds = {tensor.name: tensor.kind for tensor in content.tensors}
    for tensor in layout.tensors(content.config):
        values = layout.write_tensor(tensor, model.params)
        safetensors_io.check_finite("export", tensor.name, values)
        origin = content.origins[tensor.name]
        yield gguf_weights.stored(tensor.name, values, origin, kinds[origin.name])


def _check(content: Content, model: exporting.Model) -> None:
    """Reads the metadata back, as those of a file, and compares.

    Raises:
      InputError: the architecture cannot say something of the model.
    """
    arrays = {key: value for key, value in content.values.items() if isinstance(value, list)}
    firsts = {key: value[0] for key, value in arrays.items()}
    places = {t.name: gguf_header.Place(t.shape, t.kind, 0) for t in content.tensors}
    header = gguf_header.Header(content.values | firsts, arrays, content.rope.tensors, places)
    read = gguf_config.translate(Path("GGUF"), header).config
    config, _ = hf_config.from_hf(Fields(read, "GGUF"))
    losses = content.rope.hf_rope.losses
    unlike = exporting.unlike(config, model, tolerance=_SAME_FLOAT32, lossless=not losses)
    unlike -= {"family", "bos_id", "eos_id", "pad_id"}  # one computes as the other; the tokenizer's
    if unlike:
        architecture = content.values["general.architecture"]
        raise InputError(
            f"--to=gguf: llama.cpp's {architecture} cannot express {min(unlike)} of this model."
            " Serve it with another program."
        )


_SAME_FLOAT32 = 3e-7  # relative

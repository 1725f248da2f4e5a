"""Puts a rope into a GGUF file that somebody else made and quantised.

Tensors are copied as they are; only those of the rope and the metadata about it change. A Qwen2,
for which llama.cpp has no factors, becomes the same model as a Llama with biases: its keys have
another name, and rows of q and k another order.
"""

import itertools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrope import rope
from jaxrope.convert import (
    card,
    consumers,
    gguf_export,
    gguf_folder,
    gguf_header,
    gguf_rope,
    gguf_weights,
    gguf_writer,
    rope_export,
    rope_formats,
    rope_gguf,
)
from jaxrope.convert.fields import Fields
from jaxrope.errors import InputError
from jaxrope.store import files

_SAME_FLOAT32 = 3e-7  # relative


def patch(
    source: Path | str,
    target: Path | str,
    rope_file: Path | str,
    *,
    allow_lossy: bool = False,
    overwrite: bool = False,
) -> list[str]:
    """Writes a GGUF file with the factors of a rope.json.

    Args:
      source: a GGUF file.
      target: the file to make.
      rope_file: a rope.json for this model.
      allow_lossy: write although llama.cpp cannot express all of the rope.
      overwrite: replace a file that is there.

    Returns:
      What llama.cpp does with it, then what was assumed or is lost ("note: ...").

    Raises:
      InputError: no whole GGUF in one file, a rope for another model, or one that llama.cpp does
        not apply to this architecture.
    """
    path, source = gguf_export.check_target(target, overwrite), files.as_path(source)
    change, lines = plan(source, rope_file, allow_lossy=allow_lossy)
    _copy(source, path, change)
    again = rope_formats.read(path).rope_fn
    is_lossless = not change.written.hf_rope.losses
    if is_lossless and rope_export.difference(again, change.rope_fn) > _SAME_FLOAT32:
        path.unlink()
        raise RuntimeError(f"{path}: does not mean the rope it was written for")
    return lines


class Change(NamedTuple):
    """What is put into a file.

    Attributes:
      rope_fn: the rope.
      written: the same as the file holds it.
      architecture: of the model; `becomes`: of what is written.
      heads: of q and k, by the stem of the tensor, where rows change their order.
      provenance: of the rope.
    """

    rope_fn: rope.RopeFn
    written: rope_gguf.GgufRope
    architecture: str
    becomes: str
    heads: dict[str, int]
    provenance: dict


def plan(
    source: Path | str, rope_file: Path | str, *, allow_lossy: bool = False
) -> tuple[Change, list[str]]:
    """Returns what `patch` does, and what it says; the arguments and errors are its."""
    source = files.as_path(source)
    header = _header(source)
    before = rope_formats.read(source)
    rope_fn, provenance = _load(rope_file, before.rope_fn), rope.provenance(rope_file)
    geometry, architecture = rope_fn.geometry, str(header.values["general.architecture"])
    is_renamed = architecture == "qwen2" and rope_gguf.needs_factors(rope_fn, architecture)
    becomes, heads = ("llama", _heads(header, source)) if is_renamed else (architecture, {})
    layout = rope_export.Layout(
        "llama", geometry.head_dim, geometry.rotary_dim, rope_fn.max_len or before.longest
    )
    written = rope_gguf.express(layout, rope_fn, becomes, allow_lossy=allow_lossy)
    notes = [f"lost: {loss}" for loss in written.hf_rope.losses]
    notes += rope.unfinished_notes(rope_file, provenance)
    if before.rope_fn.method != "none":
        notes.append(f"the rope that the file had, {before.rope_fn.method}, is replaced")
    if is_renamed:
        notes.append("llama.cpp has no factors for qwen2: it is written as a llama with biases")
    lines = consumers.lines(written.hf_rope, "llama", form="gguf")
    lines += [f"note: {note}" for note in notes]
    return Change(rope_fn, written, architecture, becomes, heads, provenance), lines


def _heads(header: gguf_header.Header, source: Path) -> dict[str, int]:
    if any(_stem(name) == "attn_qkv" for name in header.places):
        raise InputError(
            f"{source}: q, k and v are one tensor, whose rows cannot be put in the order of a"
            " llama: llama.cpp has no factors for a qwen2. Take a file with three."
        )
    fields = Fields(gguf_rope.metadata(header), str(source))
    count = fields.count("attention.head_count")
    return {"attn_q": count, "attn_k": fields.count("attention.head_count_kv", count)}


def _header(source: Path) -> gguf_header.Header:
    if not source.is_file() or not gguf_folder.is_gguf(source):
        raise InputError(f"{source}: is no GGUF file. Name one.")
    header = gguf_header.read(source, gguf_rope.TENSORS)
    if header.values.get("split.count", 1) > 1:
        raise InputError(
            f"{source}: is one of {header.values['split.count']} parts of a model. Join them first:"
            " llama-gguf-split --merge FIRST_PART WHOLE.gguf, of llama.cpp."
        )
    return header


def _load(rope_file: Path | str, of_model: rope.RopeFn) -> rope.RopeFn:
    """Returns the rope of a file; theta is compared as float32, which a GGUF holds."""
    theta = rope.load(rope_file).theta
    same = math.isclose(theta, of_model.theta, rel_tol=_SAME_FLOAT32)
    geometry = dict(head_dim=of_model.head_dim, rotary_dim=of_model.rotary_dim)
    return rope.load(rope_file, **geometry, theta=theta if same else of_model.theta)


def _copy(source: Path, target: Path, change: Change) -> None:
    """Writes the file with another rope."""
    gguf, written = gguf_writer.package(), change.written
    try:
        reader = gguf.GGUFReader(source)
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(
            f"{source}: the package gguf cannot read it ({str(error)[:120]}). Install a newer one."
        ) from None
    values: dict[str, Any] = {
        _renamed(key, change): _value(gguf, field)
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.") and not _is_replaced(key, change.architecture)
    }
    values = {key: value for key, value in values.items() if value.value != []}
    values["general.architecture"] = change.becomes
    values |= {f"{change.becomes}.{key}": value for key, value in written.values.items()}
    values["jaxrope.provenance"] = json.dumps(dict(card.scalars(change.provenance)))
    others = [tensor for tensor in reader.tensors if tensor.name not in gguf_rope.TENSORS]
    tensors = [gguf_writer.Tensor(key, row.shape, 0) for key, row in written.tensors.items()]
    tensors += [
        gguf_writer.Tensor(t.name, tuple(map(int, reversed(t.shape))), int(t.tensor_type))
        for t in others
    ]
    arrays = (_array(tensor, change) for tensor in others)
    gguf_writer.write(target, values, tensors, itertools.chain(written.tensors.values(), arrays))


def _array(tensor, change: Change) -> np.ndarray:
    heads = change.heads.get(_stem(tensor.name))
    return gguf_weights.in_pairs(tensor.data, heads) if heads else tensor.data


def _stem(name: str) -> str:
    return name.rpartition(".")[0].rpartition(".")[2]


def _renamed(key: str, change: Change) -> str:
    prefix, _, rest = key.partition(".")
    return f"{change.becomes}.{rest}" if prefix == change.architecture else key


def _is_replaced(key: str, architecture: str) -> bool:
    prefix, _, rest = key.partition(".")
    return prefix == architecture and rope_gguf.is_of_rope(rest)


def _value(gguf, field) -> gguf_writer.Typed:
    """Returns a value as the file has it; texts as bytes, which need not be UTF-8."""
    kinds = gguf.GGUFValueType
    is_array = field.types[0] == kinds.ARRAY
    types = (field.types[0], field.types[-1]) if is_array else (field.types[0],)
    if types[-1] != kinds.STRING:
        return gguf_writer.Typed(field.contents(), types)
    texts = [bytes(field.parts[place]) for place in field.data]
    return gguf_writer.Typed(texts if is_array else texts[0], types)

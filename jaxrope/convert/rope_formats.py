"""Converts a rope between file formats: rope.json, config.json, vLLM; GGUF is read. With a model,
its config.json is written with the rope in it, or a line for vLLM that fits it.

Each file is read again and compared before the conversion is reported.
"""

import dataclasses
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

from jaxrope import rope
from jaxrope.convert import config as hf_config
from jaxrope.convert import (
    config_keys,
    consumers,
    folders,
    gguf_folder,
    gguf_rope,
    lookup,
    rope_config,
    rope_export,
    rope_types,
)
from jaxrope.convert.families import FAMILIES, Family
from jaxrope.convert.fields import Fields
from jaxrope.convert.rope_export import HfRope
from jaxrope.decoder import DecoderConfig
from jaxrope.errors import InputError, choose
from jaxrope.store import files, strict_json

_FLAG = "--hf-overrides"  # of vLLM
_TEXT = "text_config"  # of a model with a vision part
_MROPE = ("mrope_section", "mrope_interleaved")  # positions in a picture: not the rope's to change
_VLLM_FAMILY = "phimoe"  # its config.json has short_mscale and long_mscale, as vLLM reads them
_ANY = Family("", partial_rotary=1.0)  # of a rope that comes without a model
_SAME = 1e-8  # relative


@dataclasses.dataclass(frozen=True)
class Source:
    """A rope read from a file.

    Attributes:
      rope_fn: the rope.
      max_len: tokens the file claims; None: those of its buckets.
      provenance: how it was made, if the file says.
      notes: what was assumed in reading it.
    """

    rope_fn: rope.RopeFn
    max_len: int | None = None
    provenance: dict = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def longest(self) -> int:
        return self.max_len or rope.reach(self.rope_fn, self.rope_fn.original_len)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to write.

    Attributes:
      form: a name in FORMATS, or "hf", the config.json of `model`.
      allow_lossy: write although the format cannot express all of the rope.
      overwrite: replace a file that is there.
      model: Hugging Face folder that the rope is for, of which config.json alone is read; None: not
        named.
    """

    form: str
    allow_lossy: bool = False
    overwrite: bool = False
    model: Path | str | None = None


def convert(source: Path | str, target: Path | str, settings: Settings) -> list[str]:
    """Writes the rope of `source` to `target`.

    Args:
      source: rope.json, config.json or a part of it, GGUF, a line for vLLM; or a folder with
        rope.json, config.json or GGUF.
      target: the file to make.
      settings: see Settings.

    Returns:
      What each program will do with it, then what was assumed or is lost ("note: ...").

    Raises:
      InputError: a broken source, a target in use, or a rope that `form` cannot express.
    """
    if settings.form == "gguf":
        raise InputError(
            "--format=gguf: no program loads a GGUF of a rope alone. Put it into a model's file:"
            " python -m jaxrope.convert gguf MODEL.gguf OUT.gguf --rope=rope.json; or write the"
            " model: export MODEL OUT.gguf --to=gguf --rope=rope.json."
        )
    writer = choose("--format", settings.form, FORMATS | {"hf": _write_config})
    if settings.form == "hf" and settings.model is None:
        raise InputError(
            "--format=hf is the config.json of a model with the rope in it: name its folder,"
            " --model=HF_DIR. Without a model: hf-llama, hf-phi3."
        )
    if settings.form not in ("hf", "vllm") and settings.model is not None:
        raise InputError(f"--model is for --format=hf and vllm, got {settings.form}. Leave it out.")
    path = check_target(target, settings.overwrite)
    rope_source = read(source)
    lines, lossless = writer(rope_source, path, settings)
    _verify(path, rope_source, lossless=lossless)
    return [*lines, *(f"note: {note}" for note in rope_source.notes)]


def read(path: Path | str) -> Source:
    """Returns the rope of a file or folder, whatever it is written in.

    Raises:
      InputError: there is none, or it is broken.
    """
    path = files.as_path(path)
    if path.is_dir():
        inside = [lookup.find(path, name) for name in _IN_FOLDER] + gguf_folder.models_in(path)
        path = next(filter(None, inside), path)
    elif not path.exists():
        raise InputError(f"{path}: there is no such file. Name a rope.json, or a file with a rope.")
    if not path.is_file():
        raise InputError(
            f"{path}: holds no rope. Name a rope.json, a config.json, a GGUF, a vLLM line, or a"
            " folder with one of the first three."
        )
    if gguf_folder.is_gguf(path):
        return _read_hf(gguf_rope.read(path, gguf_folder.read_header(path)))
    raw = files.read_bytes(path, max_bytes=strict_json.MAX_CONFIG_BYTES)
    if raw.lstrip().startswith(_FLAG.encode()):
        return _read_vllm(raw.decode("utf-8", "replace"), str(path))
    content = strict_json.parse(raw, where=str(path))
    if str(content.get("format")).startswith("jaxrope.rope/"):
        rope_fn, provenance = rope.load(path), rope.provenance(path)
        notes = rope.unfinished_notes(path, provenance)
        return Source(rope_fn, rope_fn.max_len, provenance, tuple(notes))
    return _read_hf(Fields(content, str(path)))


_IN_FOLDER = ("rope.json", "config.json")


def _read_vllm(text: str, where: str) -> Source:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"{where}: is not a command line: {error}.") from None
    value = words[0].partition("=")[2] if "=" in words[0] else "".join(words[1:2])
    content = strict_json.parse(value.encode(), where=f"{where}, {_FLAG}")
    content = content.get(_TEXT, content)
    return _read_hf(Fields({"model_type": _VLLM_FAMILY} | content, where))


def _read_hf(config: Fields) -> Source:
    """Returns the rope of a config.json, or of a part of it that names no model."""
    family, row, notes = config.text("model_type", None), _ANY, []
    mscales = family == _VLLM_FAMILY
    if family is not None and not mscales:
        config, row, notes = hf_config.for_rope(config)
    head_dim, of_head = _head_dim(config)
    max_len = config.count("max_position_embeddings")
    parsed = rope_config.from_hf(
        config, row=row, head_dim=head_dim, max_len=max_len, mscales=mscales
    )
    geometry = dict(head_dim=head_dim, rotary_dim=parsed.rotary_dim, theta=parsed.theta)
    rope_fn = rope.make(**parsed.method, **geometry, original_len=parsed.original_len)
    return Source(rope_fn, parsed.max_len, notes=(*notes, *of_head, *parsed.notes))


def _head_dim(config: Fields) -> tuple[int, list[str]]:
    if config.get("head_dim") is not None:
        return config.count("head_dim"), []
    if config.get("hidden_size") is not None:
        return config.count("hidden_size") // config.count("num_attention_heads"), []
    section = config.section("rope_parameters") or config.section("rope_scaling")
    factors = section.get("long_factor") if section else None
    if not isinstance(factors, list) or not factors:
        raise InputError(f"{config.path('head_dim')} is missing. Name the whole config.json.")
    parts = (fields.number("partial_rotary_factor", 1.0, low=1e-3) for fields in (section, config))
    head_dim = round(2 * len(factors) / min(parts))
    note = f"{config.where} gives no head_dim; {head_dim} is taken, from the number of factors"
    return head_dim, [note]


def _write_jaxrope(source: Source, path: Path, settings: Settings) -> tuple[list[str], bool]:
    rope.save(path, source.rope_fn, source.provenance, max_len=source.max_len)
    return consumers.of_buckets(rope.load(path)), True


def _write_hf(source: Source, path: Path, settings: Settings) -> tuple[list[str], bool]:
    family = settings.form.removeprefix("hf-")
    geometry = source.rope_fn.geometry
    if FAMILIES[family].partial_rotary is None and geometry.rotary_dim != geometry.head_dim:
        raise InputError(
            f"--format={settings.form}: a Llama turns all {geometry.head_dim} dims of a head, this"
            f" rope {geometry.rotary_dim} of them. Use --format=hf-phi3."
        )
    layout = _layout(source, family)
    hf_rope = rope_export.express(layout, source.rope_fn)
    rope_export.check(hf_rope, allow_lossy=settings.allow_lossy)
    keys = {"model_type": family, "head_dim": geometry.head_dim} | hf_rope.keys(layout)
    files.write_json_atomic(path, keys)
    return _lines(hf_rope, family, settings), not hf_rope.losses


def _write_config(source: Source, path: Path, settings: Settings) -> tuple[list[str], bool]:
    config, values = _open_model(settings.model, source)
    rope_export.check_sliding(config, source.rope_fn)
    hf_rope = rope_export.express(config, source.rope_fn)
    rope_export.check(hf_rope, allow_lossy=settings.allow_lossy)
    keys = config_keys.rope_keys(config, hf_rope.keys(config))
    text = values.get(_TEXT, values)
    for name in ("rope_parameters", "rope_scaling"):
        if keys[name] and _MROPE[0] not in keys[name]:
            keys[name] |= _mrope(text)
    text = {key: value for key, value in text.items() if key != rope_types.ORIGINAL} | keys
    files.write_json_atomic(path, values | {_TEXT: text} if _TEXT in values else text)
    how = f"Put it in the place of {files.as_path(settings.model) / 'config.json'}"
    return [*_lines(hf_rope, config.family, settings), how], not hf_rope.losses


def _open_model(place: Path | str, source: Source) -> tuple[DecoderConfig, dict]:
    """Returns the config of a Hugging Face folder, and its config.json.

    Raises:
      InputError: there is none, or the rope is for heads of other dims or another theta.
    """
    folder = folders.open_folder(place)
    if gguf_folder.is_view(folder):
        raise InputError(
            f"--model: {place} is GGUF. Put factors into it so: python -m jaxrope.convert gguf"
            " MODEL.gguf OUT.gguf --rope=rope.json."
        )
    described = hf_config.read_json(folder)
    described.pop(hf_config.QUANTISED, None)  # weights are not read
    config, _ = hf_config.from_hf(Fields(described, str(folder / "config.json")))
    for name in ("head_dim", "rotary_dim", "theta"):
        own, other = getattr(config, name), getattr(source.rope_fn, name)
        if own != other:
            raise InputError(
                f"--model: {folder} has {name} {own}, the rope {other}. Name the model that it was"
                " searched for."
            )
    path = lookup.find(folder, "config.json")
    return config, strict_json.read(path, max_bytes=strict_json.MAX_CONFIG_BYTES)


def _mrope(text: dict) -> dict:
    """Returns the keys of a config's rope that say how positions in a picture turn it."""
    section = text.get("rope_parameters") or text.get("rope_scaling") or {}
    return {key: section[key] for key in _MROPE if key in section}


def _write_vllm(source: Source, path: Path, settings: Settings) -> tuple[list[str], bool]:
    nested = False
    if settings.model is not None:
        _, values = _open_model(settings.model, source)
        nested = _TEXT in values
        if nested and _mrope(values[_TEXT]) and source.rope_fn.method != "yarn":
            raise InputError(
                f"--format=vllm: of a model with a vision part ({settings.model}) vLLM scales the"
                f" rope as YaRN alone, got {source.rope_fn.method}. Search in its form"
                " (search.form='yarn'), or serve the text part: python -m jaxrope.convert export"
                " MODEL OUT --rope=rope.json."
            )
    rope_fn, layout = source.rope_fn, _layout(source, "phi3")
    is_yarn = rope_fn.method == "yarn"  # which vLLM has too
    if is_yarn:
        hf_rope = rope_export.as_yarn(layout, rope_fn)
    else:
        hf_rope = rope_export.as_longrope(layout, rope_fn, two_attention_factors=True)
    rope_export.check(hf_rope, allow_lossy=settings.allow_lossy, reader="vLLM")
    keys = hf_rope.keys(layout)
    section = dict(keys["rope_parameters"])
    if is_yarn:
        keys["head_dim"] = rope_fn.head_dim  # without factors, nothing else says it
    else:
        del section["attention_factor"]  # vLLM passes over it
        section |= {
            f"{name}_mscale": rope_fn.bucket(length).attention_factor
            for name, length in (("short", hf_rope.original_len), ("long", hf_rope.max_len))
        }
    keys |= {"rope_parameters": section, "rope_scaling": section}
    if nested:  # vLLM adds them to the model's own, key by key
        names = ("max_position_embeddings", "head_dim", "rope_parameters")
        keys = {_TEXT: {name: keys[name] for name in names if name in keys}}
    value = json.dumps(keys, allow_nan=False)
    length = f"--max-model-len={hf_rope.max_len}"
    files.write_text_atomic(path, f"{_FLAG} {shlex.quote(value)} {length}\n")
    # $(cat FILE) would be split at its spaces
    how = f"Serve the model so: xargs -a {shlex.quote(str(path))} vllm serve MODEL"
    return [*_lines(hf_rope, "phi3", settings), how], not hf_rope.losses


_Writer = Callable[[Source, Path, Settings], tuple[list[str], bool]]
FORMATS: dict[str, _Writer] = {
    "jaxrope": _write_jaxrope,
    "hf-llama": _write_hf,
    "hf-phi3": _write_hf,
    "vllm": _write_vllm,
}


def _layout(source: Source, family: str) -> rope_export.Layout:
    geometry = source.rope_fn.geometry
    model_rope = (
        {"method": source.rope_fn.method, **source.rope_fn.constants} if source.max_len else {}
    )
    return rope_export.Layout(
        family, geometry.head_dim, geometry.rotary_dim, source.longest, rope=model_rope
    )


def _lines(hf_rope: HfRope, family: str, settings: Settings) -> list[str]:
    losses = [f"note: lost: {loss}" for loss in hf_rope.losses]
    return [*consumers.lines(hf_rope, family, form=settings.form), *losses]


def check_target(target: Path | str, overwrite: bool) -> Path:
    """Returns the absolute path of a file that may be written.

    Raises:
      InputError: it is a folder, exists (without `overwrite`), or its folder does not.
    """
    path = Path(os.path.abspath(files.as_path(target)))
    if path.is_dir():
        raise InputError(f"{path} is a folder. Name a file in it.")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists. Name another, or pass --overwrite.")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: there is no such folder. Make it, or name another file.")
    return path


def _verify(path: Path, source: Source, *, lossless: bool) -> None:
    """Reads what was written, and compares."""
    again = read(path)
    difference = rope_export.difference(again.rope_fn, source.rope_fn)
    if lossless and difference > _SAME:
        path.unlink()
        raise RuntimeError(
            f"{path}: does not mean the rope it was written for (relative difference"
            f" {difference:.2g})"
        )

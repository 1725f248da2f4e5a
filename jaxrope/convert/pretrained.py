"""Loads a model from a Hugging Face folder, a workdir, or one checkpoint of a workdir."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxrope import decoder, rope
from jaxrope.convert import (
    folders,
    gguf_folder,
    hub,
    importing,
    lookup,
    peft,
    safetensors_io,
    tensor_files,
)
from jaxrope.decoder import DecoderConfig
from jaxrope.errors import InputError, choose
from jaxrope.store import checkpoint, files, leaves, sealed, steps


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with its tokenizer and its rope.

    Attributes:
      config: its shape.
      params: nested dict of host arrays; the caller puts them on devices.
      tokenizer_dir: where tokenizer.json lies; None: nowhere.
      rope_fn: rope.json's where there is one, else the model's own.
      source: the folder, for messages.
      rope_provenance: how rope.json was made; empty for the model's own rope.
      notes: what was assumed in reading it.
      stopped: where its training stopped before its end, "" if it did not.
    """

    config: DecoderConfig
    params: dict
    tokenizer_dir: Path | None
    rope_fn: rope.RopeFn
    source: str
    rope_provenance: dict = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    stopped: str = ""

    @property
    def unfinished(self) -> tuple[str, ...]:
        """What of it is not final, a sentence each."""
        factors = rope.unfinished_notes("rope.json", self.rope_provenance)
        return tuple(filter(None, (*factors, self.stopped)))


def load(
    path: Path | str,
    *,
    dtype: str | None = "float32",
    step: int | None = None,
    weights: bool = True,
    merge: bool = True,
) -> Pretrained:
    """Reads a model.

    Args:
      path: a Hugging Face folder, a workdir, or workdir/checkpoints/STEP; a GGUF file, or a model
        of the hub (see `folders.open_folder`).
      dtype: of the parameters, "float32", "bfloat16" or "float16"; None: as they are stored.
      step: which checkpoint of a workdir; None: the newest whole one.
      weights: False leaves `params` empty: everything but the arrays is read and checked.
      merge: False leaves the adapters of a workdir beside what they adapt.

    Raises:
      InputError: there is no such model, or it is not whole.
    """
    folder = folders.open_folder(path)
    workdir = _workdir(folder)
    if workdir is not None:
        return _load_workdir(folder, workdir, dtype, step, weights, merge)
    if step is not None:
        raise InputError(
            f"{folder} is not a workdir (it has no model.json), so it has no step {step}. Leave the"
            " step out."
        )
    if not ((folder / "config.json").is_file() or peft.is_adapter(folder)):
        raise InputError(
            f"{folder} holds no model: neither config.json (Hugging Face) nor model.json (a"
            " workdir). Name the folder that has one."
        )
    return _load_hf(folder, dtype, weights)


def with_rope(model: Pretrained, path: Path | str) -> Pretrained:
    """Returns the model with the factors of a rope.json in place of its rope.

    Raises:
      InputError: the file is broken, or for another model.
    """
    rope_fn, provenance = _read_rope(files.as_path(path), model.config)
    before = tuple(rope.unfinished_notes("", model.rope_provenance))  # of whatever it came from
    notes = [note for note in model.notes if not note.endswith(before)]
    notes += rope.unfinished_notes(path, provenance)
    return dataclasses.replace(
        model, rope_fn=rope_fn, rope_provenance=provenance, notes=tuple(notes)
    )


def read_config(path: Path | str) -> DecoderConfig:
    """Returns the config of what `load` would read, without its weights.

    Raises:
      InputError: there is no such model.
    """
    folder = folders.open_folder(path)
    workdir = _workdir(folder)
    return _model_json(workdir) if workdir is not None else importing.open_model(folder).config


def open_tokenizer(place: Path | str) -> Path | str:
    """Returns where a tokenizer lies, for `data.load_tokenizer`: a file or a folder as it is, of a
    GGUF file or a model of the hub (without its weights) the folder of its texts.

    Args:
      place: any of these, or "bytes".

    Raises:
      InputError: see `folders.open_folder`.
    """
    text = os.fspath(place)
    if text == "bytes":
        return text
    if hub.is_marked(text):
        return folders.open_folder(hub.fetch(text, weights=False))
    path = files.as_path(text)
    if files.is_remote(path):
        return path
    if path.exists():
        return folders.open_folder(path) if _holds_gguf_alone(path) else path
    if hub.address(text) and hub.is_installed():
        return folders.open_folder(hub.fetch(text, weights=False))
    return path  # whoever reads it says what is missing


def _holds_gguf_alone(path: Path) -> bool:
    if path.is_dir():
        return _tokenizer_dir(path) is None and bool(gguf_folder.models_in(path))
    return gguf_folder.is_gguf(path)


def is_here(path: Path | str) -> bool:
    """Returns whether there is something at a path, so that nothing need be downloaded."""
    return not hub.is_marked(os.fspath(path)) and files.as_path(path or ".").exists()


def trained_from(path: Path | str) -> str:
    """Returns the Hugging Face folder that a workdir's training began with, "" for none."""
    workdir = _workdir(folders.open_folder(path))
    if workdir is None or not (workdir / "config.json").is_file():
        return ""
    model = sealed.read_json(workdir / "config.json", sealed=False).get("model")
    place = model.get("path") if isinstance(model, dict) else None
    if not place or not (files.as_path(place) / "config.json").is_file():
        return ""
    folder = folders.open_folder(place)
    return str(files.absolute(folder)) if _workdir(folder) is None else ""


def fingerprint(path: Path | str) -> str:
    """Returns a digest of the weights of a model and of its shape, without loading them: of the
    files of a Hugging Face folder; of a workdir, of what its newest whole step says of each array.

    Raises:
      InputError: there is no such model.
    """
    folder = folders.open_folder(path)
    workdir = _workdir(folder)
    if workdir is None:
        opened = importing.open_model(folder) if peft.is_adapter(folder) else None
        base = opened.folder if opened else folder
        entries = tensor_files.catalogue(base).values()
        described = [base / "config.json", *sorted({entry.file for entry in entries})]
        if opened:
            own = (folder / name for name in ("config.json", peft.CONFIG, peft.WEIGHTS))
            described += [file for file in own if file.is_file()]
        is_view = gguf_folder.is_view(base)  # its files have names of their user's
        parts = [["" if is_view else file.name, files.sha256_file(file)] for file in described]
        return sealed.digest_of(parts)
    leaves = checkpoint.describe(folder)["leaves"]["params"]
    return sealed.digest_of([_model_json(workdir).to_json_dict(), leaves])


def _workdir(folder: Path) -> Path | None:
    """Returns the workdir that `folder` is or is a checkpoint of; None for a Hugging Face folder,
    which may lie inside a workdir.
    """
    if (folder / "model.json").is_file():
        return folder
    if (folder / "config.json").is_file() or peft.is_adapter(folder):
        return None
    return next(
        (place for place in files.absolute(folder).parents[:2] if (place / "model.json").is_file()),
        None,
    )


def _load_hf(folder: Path, dtype: str | None, weights: bool) -> Pretrained:
    opened = importing.open_model(folder)
    config = opened.config
    params = importing.load_params(opened, dtype=dtype) if weights else {}
    rope_fn, provenance = _rope_of(folder, config)
    tokenizer_dir = _tokenizer_dir(folder) or _tokenizer_dir(opened.folder)
    source = folders.label(folder)
    notes = (*opened.notes, *rope.unfinished_notes(source, provenance))
    return Pretrained(config, params, tokenizer_dir, rope_fn, source, provenance, notes)


def _load_workdir(
    folder: Path, workdir: Path, dtype: str | None, step: int | None, weights: bool, merge: bool
) -> Pretrained:
    config = _model_json(workdir)
    rope_fn, provenance = _rope_of(workdir, config)
    described = checkpoint.describe(folder, step)
    stored = described["leaves"]["params"]
    target_dtype = None if dtype is None else np.dtype(choose("dtype", dtype, decoder.DTYPES))
    params, abstract = {}, _as_stored(config, stored)
    leaves.compare(checkpoint.find_step(folder, step), "params", stored, abstract)
    if weights:
        params, _ = checkpoint.restore_params(folder, abstract, step)
        for name, leaf in leaves.named(params).items():
            safetensors_io.check_finite(str(folder), name, leaf)
        params = decoder.adapters.merged(params) if merge else params
        params = jax.tree.map(lambda leaf: np.asarray(leaf, target_dtype), params)
    notes = steps.passed_over(workdir) if step is None and folder == workdir else ()
    notes = (*notes, *rope.unfinished_notes(str(folder), provenance))
    place = _tokenizer_dir(workdir)
    stopped = _stopped(workdir, described)
    return Pretrained(config, params, place, rope_fn, str(folder), provenance, notes, stopped)


def _stopped(workdir: Path, described: dict) -> str:
    """Returns where a training stopped; "" at its end, and for what no training made."""
    path = workdir / "config.json"
    if "opt_state" not in described["leaves"] or not path.is_file():
        return ""
    section = sealed.read_json(path, sealed=False).get("train")
    steps = section.get("steps") if isinstance(section, dict) else None
    if not isinstance(steps, int) or described["step"] >= steps:
        return ""
    return f"the training is at step {described['step']} of {steps}. Start it again to end it"


def _as_stored(config: DecoderConfig, stored: dict) -> dict:
    """Returns the model's parameters by model.json, each in the dtype it is stored in, and the
    adapters that are stored beside them.

    What differs otherwise is an error of `restore_params`.
    """

    def leaf(path, shape):
        name = "/".join(key.key for key in path)
        return jax.ShapeDtypeStruct(
            shape.shape, jnp.dtype(stored.get(name, {}).get("dtype", "float32"))
        )

    abstract = jax.tree_util.tree_map_with_path(leaf, decoder.abstract_params(config))
    for name, description in stored.items():
        place, _, leaf_name = name.rpartition("/")
        if decoder.adapters.is_adapter(leaf_name):
            tree = abstract["layers"] if place else abstract
            tree[leaf_name] = jax.ShapeDtypeStruct(
                tuple(description["shape"]), jnp.dtype(description["dtype"])
            )
    return abstract


_LATER = {"pad_id", "stored_dtype"}  # fields that an older model.json does not have


def _model_json(workdir: Path) -> DecoderConfig:
    path = workdir / "model.json"
    values = sealed.read_json(path)
    fields = {field.name for field in dataclasses.fields(DecoderConfig)}
    unlike = {*values} - fields | (fields - {*values, *decoder.DIFFERENCES, *_LATER})
    if unlike:
        raise InputError(
            f"{path}: missing or unknown keys: {', '.join(sorted(unlike))}. It must be as train.py"
            " wrote it."
        )
    try:
        config = DecoderConfig(**values)
        decoder.own_rope(config)
        return config
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: {error}") from None


def _rope_of(folder: Path, config: DecoderConfig) -> tuple[rope.RopeFn, dict]:
    path = lookup.find(folder, "rope.json")
    return _read_rope(path, config) if path else (decoder.own_rope(config), {})


def _read_rope(path: Path, config: DecoderConfig) -> tuple[rope.RopeFn, dict]:
    of_model = dict(head_dim=config.head_dim, rotary_dim=config.rotary_dim, theta=config.theta)
    rope_fn = rope.load(path, **of_model, num_layers=config.num_layers)
    return rope_fn, rope.provenance(path)


def _tokenizer_dir(folder: Path) -> Path | None:
    has_one = any(lookup.find(folder, name) for name in ("tokenizer.json", "tokenizer.model"))
    return folder if has_one else None

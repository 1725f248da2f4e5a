"""Builds the model, the rope and the tokenizer that a config describes."""

import dataclasses
import functools
from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxrope import attention, data, llama, rope
from jaxrope.convert import pretrained
from jaxrope.convert.pretrained import Pretrained
from jaxrope.errors import InputError, choose, nearest
from jaxrope.llama import LlamaConfig
from jaxrope.store import files


def model_config(config) -> LlamaConfig:
    """Returns the shape of the model of `config.model`, without its weights; see load_model."""
    section = _model_section(config)
    if config.model.source == "scratch":
        return _with_original_len(config, _scratch_config(section))
    return _shaped(config, section, pretrained.read_config(_path(section)))


def model_shape(config) -> LlamaConfig:
    """Returns the shape of the model of `config.model`, from `config.model.shape` where that is
    set: no checkpoint need be there.

    Raises:
      InputError: no such shape, or no such model.
    """
    section = _model_section(config)
    if config.model.source == "scratch" or not section.get("shape"):
        return model_config(config)
    return _with_original_len(config, choose("model.shape", section["shape"], llama.SHAPES))


def forward_settings(
    config, mesh: Mesh, model: LlamaConfig, *, seq_len: int = 0
) -> tuple[llama.ForwardSettings, tuple[str, ...]]:
    """Returns (how `config.forward` runs the model on the mesh, remarks: what `auto` resolved to).

    Args:
      config: of the program.
      mesh: of sharding.make_mesh.
      model: its shape.
      seq_len: tokens in a row; 0: rows of any length, which are filled up (llama.lay_out).

    Raises:
      InputError: a setting is unknown or out of range, or heads or tokens do not divide.
    """
    section = dict(config.forward)
    requested = section["attention"], section["attention_kernel"]
    platform = mesh.devices.flat[0].platform
    resolved = attention.resolve(*requested, mesh, platform=platform, window=model.sliding_window)
    section |= dict(zip(("attention", "attention_kernel"), resolved, strict=True))
    settings = llama.ForwardSettings(**section, mesh=mesh if mesh.size > 1 else None)
    attention.check(
        settings.attention,
        dataclasses.replace(settings.of_attention, mesh=mesh),
        platform=platform,
        heads=(model.num_heads, model.num_kv_heads),
        window=model.sliding_window,
        seq_len=seq_len,
    )
    names = ("forward.attention", "forward.attention_kernel")
    chosen = [
        f"{n}: auto is {f}" for n, a, f in zip(names, requested, resolved, strict=True) if a != f
    ]
    return settings, tuple(chosen)


def load_model(config, *, weights: bool = True) -> Pretrained:
    """Returns the model that `config.model` names, with `config.original_len` applied.

    `config.model` is {"source": "checkpoint", "path", "shape"} or {"source": "scratch", the fields
    of LlamaConfig}; random parameters are drawn with `config.seed`. Parameters have the dtype
    `config.train.param_dtype`; without `weights` there are none.

    Raises:
      InputError: there is no such model, or a field is unknown, missing or out of range.
    """
    section = _model_section(config)
    dtype = config.train.param_dtype
    choose("train.param_dtype", dtype, llama.DTYPES)
    if config.model.source == "scratch":
        shape = _with_original_len(config, _scratch_config(section))
        init = jax.jit(functools.partial(llama.init_params, shape, dtype=dtype))
        params = init(jax.random.key(config.seed)) if weights else {}
        return Pretrained(shape, params, None, llama.own_rope(shape), "scratch")
    loaded = pretrained.load(_path(section), dtype=dtype, weights=weights)
    shape = _shaped(config, section, loaded.config)
    has_own_rope = is_own_rope(loaded.rope_fn, loaded.config)
    rope_fn = llama.own_rope(shape) if has_own_rope else loaded.rope_fn
    return dataclasses.replace(loaded, config=shape, rope_fn=rope_fn)


def rope_fn(config, model: LlamaConfig, base_rope: rope.RopeFn) -> rope.RopeFn:
    """Returns the rope that `config.rope` describes.

    `config.rope` is {"method": "model"}, which is `base_rope`; {"method": "file", "path"};
    {"method": "preset", "name"}; or a method of rope.make with its constants.

    Args:
      config: of the program.
      model: the shape of the model.
      base_rope: the rope that came with the model.

    Raises:
      InputError: see rope.make, rope.load and rope.preset; or a preset is for another model.
    """
    constants = dict(config.rope)
    method = constants.pop("method", None)
    geometry = dict(head_dim=model.head_dim, rotary_dim=model.rotary_dim, theta=model.theta)
    if method == "model":
        _exactly("rope", method, constants, ())
        return base_rope
    if method == "file":
        _exactly("rope", method, constants, ("path",))
        return rope.load(files.as_path(constants["path"]), **geometry, num_layers=model.num_layers)
    if method == "preset":
        _exactly("rope", method, constants, ("name",))
        return _preset(constants["name"], geometry)
    choose("rope.method", method, dict.fromkeys(("model", "file", "preset", *rope.METHODS)))
    scaled_rope = rope.make(method, **geometry, original_len=model.original_len, **constants)
    rope.check_layers(scaled_rope, model.num_layers)
    return scaled_rope


def rope_file(path: Path | str) -> Path:
    """Returns the rope.json that a path is, or has in it."""
    path = files.as_path(path)
    return path / "rope.json" if path.is_dir() else path


def _preset(name: str, geometry: dict) -> rope.RopeFn:
    preset = rope.preset(name)
    for key, expected in geometry.items():
        actual = getattr(preset, key)
        if actual != expected:
            raise InputError(
                f"rope.name '{name}': {key} must equal the model's, {expected}, got {actual}. "
                "The preset is for another model."
            )
    return preset


def is_own_rope(rope_fn: rope.RopeFn, model: LlamaConfig) -> bool:
    """Returns whether a rope is the model's own scaling, so that no rope.json is needed."""
    base_rope = llama.own_rope(model)
    return (
        rope_fn.method == base_rope.method
        and dict(rope_fn.constants) == dict(base_rope.constants)
        and rope_fn.buckets == base_rope.buckets
    )


def longest(config, model: LlamaConfig, fn: rope.RopeFn) -> int:
    """Returns the tokens the model is to serve with this rope: `config.target_len` if given."""
    if config.target_len < 0:
        raise InputError(f"target_len must be 0 or a number of tokens, got {config.target_len}.")
    if config.target_len and fn.max_len and config.target_len > fn.max_len:
        raise InputError(
            f"target_len is {config.target_len} tokens, but the rope ends at {fn.max_len}. "
            "Use a rope with a longer last bucket, or a smaller target_len."
        )
    return config.target_len or fn.max_len or model.max_len


def tokenizer(config, tokenizer_dir: Path | None, vocab_size: int):
    """Returns (tokenizer, where it came from): config.data.tokenizer, else the checkpoint's.

    Raises:
      InputError: there is neither, or it has more tokens than the model.
    """
    place = config.data.tokenizer or tokenizer_dir
    if not place:
        raise InputError(
            "data.tokenizer is not set, and the model comes without one. Give a folder with a "
            'tokenizer.json, or "bytes".'
        )
    place = place if place == "bytes" else files.as_path(place)
    return data.load_tokenizer(place, vocab_size=vocab_size), place


def documents(config, patterns, tokenizer, *, setting: str, exclude=()) -> data.TokenDocuments:
    """Returns the text of files or globs, except those that match a glob of `exclude`, read as
    config.data says; `setting` is their config key.
    """
    return data.load_documents(
        patterns,
        tokenizer,
        cache_dir=config.data.cache_dir,
        text_field=config.data.text_field,
        exclude=exclude,
        skip_bad_lines=config.data.skip_bad_lines,
        setting=setting,
    )


def _model_section(config) -> dict:
    section = dict(config.model)
    choose("model.source", section.pop("source", None), dict.fromkeys(("checkpoint", "scratch")))
    return section


def _path(section: dict) -> Path:
    _exactly("model", "checkpoint", section | {"shape": ""}, ("path", "shape"))
    if not section["path"]:
        raise InputError("model.path is not set. Give a Hugging Face folder or a workdir.")
    return files.as_path(section["path"])


# Fields that training, or whoever prepares the folder (a wider sliding window), may change.
_NOT_OF_THE_SHAPE = ("family", "max_len", "rope", "bos_id", "eos_id", "sliding_window")


def _shaped(config, section: dict, model: LlamaConfig) -> LlamaConfig:
    """Returns the shape of a checkpoint, if it is the one that model.shape names."""
    model = _with_original_len(config, model)
    name = section.get("shape")
    if not name:
        return model
    shape = _with_original_len(config, choose("model.shape", name, llama.SHAPES))
    for field in dataclasses.fields(LlamaConfig):
        actual, expected = getattr(model, field.name), getattr(shape, field.name)
        if field.name not in _NOT_OF_THE_SHAPE and actual != expected:
            raise InputError(
                f"model.shape '{name}' has {field.name} {expected}, the checkpoint "
                f"{section['path']} has {actual}. Name the checkpoint's own shape "
                '("" = any), or another model.path.'
            )
    return model


def _scratch_config(section: dict) -> LlamaConfig:
    fields = {field.name: field for field in dataclasses.fields(LlamaConfig)}
    missing = dataclasses.MISSING
    needed = [n for n, f in fields.items() if f.default is missing and f.default_factory is missing]
    for key in section:
        if key not in fields:
            raise InputError(f"Unknown model.{key} of source 'scratch'. {nearest(key, fields)}")
    for key in needed:
        if key not in section:
            raise InputError(
                f"model.{key} is missing: a model from scratch needs {', '.join(needed)}."
            )
    plain = {
        key: value.to_dict() if hasattr(value, "to_dict") else value
        for key, value in section.items()
    }
    return LlamaConfig(**plain)


def _with_original_len(config, model: LlamaConfig) -> LlamaConfig:
    if config.original_len < 0:
        raise InputError(
            f"original_len must be 0 or a number of tokens, got {config.original_len}."
        )
    if config.original_len in (0, model.original_len):
        return model
    if model.rope["method"] != "none":
        raise InputError(
            f"original_len must be 0 or {model.original_len} for a model whose own rope is "
            f"'{model.rope['method']}', which is defined by it, got {config.original_len}. For the "
            "bound of a search set search.training_len."
        )
    return dataclasses.replace(model, original_len=config.original_len)


def _exactly(section: str, chosen: str, entries: dict, needed: tuple[str, ...]) -> None:
    for key in entries:
        if key not in needed:
            takes = ", ".join(needed) or "nothing more"
            raise InputError(f"Unknown {section}.{key}: '{chosen}' takes {takes}.")
    for key in needed:
        if key not in entries:
            raise InputError(f"{section}.{key} is missing: '{chosen}' needs {', '.join(needed)}.")

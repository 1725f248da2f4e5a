"""Builds the model, the rope and the tokenizer that a config describes."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import jax
from jax.sharding import AbstractMesh, Mesh

from jaxrope import attention, data, decoder, rope, schema
from jaxrope.convert import Pretrained, lost_elsewhere, pretrained
from jaxrope.decoder import DecoderConfig
from jaxrope.errors import InputError
from jaxrope.mesh import sharding
from jaxrope.schema import Config
from jaxrope.store import files, sealed


@dataclasses.dataclass(frozen=True)
class Expected:
    """What is not there yet: what earlier stages of a recipe will leave.

    Attributes:
      models: the models, without weights, by the path that names them.
      ropes: the ropes, by the path of their rope.json.
    """

    models: Mapping[str, Pretrained] = dataclasses.field(default_factory=dict)
    ropes: Mapping[str, rope.RopeFn] = dataclasses.field(default_factory=dict)


NOTHING = Expected()


def model_config(config: Config, expected: Expected = NOTHING) -> DecoderConfig:
    """Returns the shape of the model of `config.model`, without its weights; see load_model."""
    config = schema.read(config)
    if config.model.source == "scratch":
        return _with_original_len(config, DecoderConfig(**config.model.shape()))
    if config.model.path in expected.models:
        return _shaped(config, expected.models[config.model.path].config)
    return _shaped(config, pretrained.read_config(_path(config)))


def outlined(config: Config, expected: Expected = NOTHING) -> Pretrained:
    """Returns the model that `config.model` names, without weights: where `config.model.shape` is
    set a plain one of that shape, so that no checkpoint need be there.

    Raises:
      InputError: no such model.
    """
    config = schema.read(config)
    section = config.model
    if section.source == "scratch" or not section.shape or section.path in expected.models:
        return load_model(config, weights=False, expected=expected)
    shape = _with_window(config, _with_original_len(config, decoder.SHAPES[section.shape]))
    return Pretrained(shape, {}, None, decoder.own_rope(shape), section.path)


def forward_settings(
    config: Config, mesh: Mesh | AbstractMesh, model: DecoderConfig, *, seq_len: int = 0
) -> tuple[decoder.ForwardSettings, tuple[str, ...]]:
    """Returns (how `config.forward` runs the model on the mesh, remarks: what `auto` resolved to).

    Args:
      config: of the program.
      mesh: of sharding.make_mesh.
      model: its shape.
      seq_len: tokens in a row; 0: rows of any length, which are filled up (decoder.lay_out).

    Raises:
      InputError: a setting is unknown or out of range, or heads or tokens do not divide.
    """
    section = schema.read(config).forward.to_dict()
    requested = section["attention"], section["attention_kernel"]
    platform = sharding.platform(mesh)
    lack = None
    if platform == "gpu" and requested[0] != "blockwise":
        lack = attention.lacks(
            section["compute_dtype"],
            model.head_dim,
            (model.num_heads, model.num_kv_heads),
            window=model.sliding_window,
            capped=model.attention_cap is not None,
            capability=sharding.capability(mesh),
        )
    resolved = attention.resolve(*requested, mesh, platform=platform, lack=lack)
    section |= dict(zip(("attention", "attention_kernel"), resolved, strict=True))
    settings = decoder.ForwardSettings(**section, mesh=mesh if mesh.size > 1 else None)
    attention.check(
        settings.attention,
        dataclasses.replace(settings.of_attention, mesh=mesh),
        platform=platform,
        heads=(model.num_heads, model.num_kv_heads),
        lack=lack,
        seq_len=seq_len,
    )
    names = ("forward.attention", "forward.attention_kernel")
    chosen = [
        f"{n}: auto is {f}" for n, a, f in zip(names, requested, resolved, strict=True) if a != f
    ]
    if lack and "auto" in requested:
        chosen.append(f"{attention.LACK} {lack}")
    return settings, tuple(chosen)


def load_model(config: Config, *, weights: bool = True, expected: Expected = NOTHING) -> Pretrained:
    """Returns the model that `config.model` names, with `config.original_len` applied.

    Random parameters are drawn with `config.seed`. Parameters have the dtype
    `config.train.param_dtype`; without `weights` there are none.

    Raises:
      InputError: there is no such model, or it is not whole.
    """
    config = schema.read(config)
    dtype = config.train.param_dtype
    if config.model.source == "scratch":
        shape = model_config(config)
        init = jax.jit(functools.partial(decoder.init_params, shape, dtype=dtype))
        params = init(jax.random.key(config.seed)) if weights else {}
        return Pretrained(shape, params, None, decoder.own_rope(shape), "scratch")
    if config.model.path in expected.models:
        loaded = expected.models[config.model.path]
    else:
        loaded = pretrained.load(_path(config), dtype=dtype, weights=weights)
    shape = _shaped(config, loaded.config)
    has_own_rope = is_own_rope(loaded.rope_fn, loaded.config)
    rope_fn = decoder.own_rope(shape) if has_own_rope else loaded.rope_fn
    return dataclasses.replace(loaded, config=shape, rope_fn=rope_fn)


def rope_fn(
    config: Config,
    model: DecoderConfig,
    base_rope: rope.RopeFn,
    expected: Expected = NOTHING,
) -> rope.RopeFn:
    """Returns the rope that `config.rope` describes.

    Each method states the whole rope, from theta's plain frequencies and original_len, as the
    scaling in a config.json does; what stands on top of the model's own scaling are the baselines
    of a search and the rows of an evaluation (see restated_notes).

    Args:
      config: of the program.
      model: the shape of the model.
      base_rope: the rope that came with the model.
      expected: ropes that are not there yet.

    Raises:
      InputError: see rope.make, rope.load and rope.preset; or a preset is for another model.
    """
    section = schema.read(config).rope
    geometry = dict(head_dim=model.head_dim, rotary_dim=model.rotary_dim, theta=model.theta)
    if section.method == "model":
        return base_rope
    if section.method == "file" and section.path in expected.ropes:
        return expected.ropes[section.path]
    if section.method == "file":
        return rope.load(files.as_path(section.path), **geometry, num_layers=model.num_layers)
    if section.method == "preset":
        return _preset(section.name, geometry)
    scaled_rope = rope.make(**section.to_dict(), **geometry, original_len=model.original_len)
    rope.check_layers(scaled_rope, model.num_layers)
    return scaled_rope


def fingerprint(config: Config) -> str:
    """Returns a digest of the weights that `config.model` names and of their shape; of random ones,
    of what they are drawn from.
    """
    config = schema.read(config)
    if config.model.source == "checkpoint":
        return pretrained.fingerprint(_path(config))
    return sealed.digest_of([config.model.to_dict(), config.seed, config.train.param_dtype])


def rope_digest(rope_fn: rope.RopeFn) -> str:
    """Returns a digest of the factors by length, or of the formula, and of the geometry."""
    buckets = [dataclasses.asdict(bucket) for bucket in rope_fn.buckets]
    formula = [] if buckets else [rope_fn.method, dict(rope_fn.constants)]
    return sealed.digest_of([buckets, formula, dataclasses.asdict(rope_fn.geometry)])


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


def is_own_rope(rope_fn: rope.RopeFn, model: DecoderConfig) -> bool:
    """Returns whether a rope is the model's own scaling, so that no rope.json is needed."""
    base_rope = decoder.own_rope(model)
    return (
        rope_fn.method == base_rope.method
        and dict(rope_fn.constants) == dict(base_rope.constants)
        and rope_fn.buckets == base_rope.buckets
    )


def restated_notes(config: Config, model: DecoderConfig) -> list[str]:
    """Returns what a config.rope that is a formula means for a model that is scaled already."""
    section, own = config.rope, decoder.own_base(model)
    if own.is_plain or section.method in ("model", "file", "preset", "longrope"):
        return []
    return [
        f"config.rope '{section.method}' states the whole rope: it takes the place of the model's "
        f"own scaling, {model.rope['method']}, which serves {own.length:,} tokens; a factor in it "
        f"counts from original_len, {model.original_len:,}"
    ]


def rope_notes(
    config: Config, model: DecoderConfig, rope_fn: rope.RopeFn, expected: Expected = NOTHING
) -> list[str]:
    """Returns what the rope of a run means for its result: the file that it is from is unfinished,
    or only jaxrope can run it.
    """
    section, notes = config.rope, []
    if section.method == "file" and section.path not in expected.ropes:
        provenance = rope.provenance(files.as_path(section.path))
        notes += rope.unfinished_notes(f"config.rope, {section.path}", provenance)
    return notes + elsewhere_notes(model, rope_fn)


def elsewhere_notes(model: DecoderConfig, rope_fn: rope.RopeFn) -> list[str]:
    """Returns what other programs cannot express of a rope; nothing where they can run it."""
    lost = lost_elsewhere(model, rope_fn)
    if not lost:
        return []
    return [
        "only jaxrope can run this rope; what Hugging Face, llama.cpp and vLLM cannot express: "
        + "; ".join(lost)
    ]


def window_notes(config: Config, model: DecoderConfig, length: int = 0) -> list[str]:
    """Returns what a sliding window of all layers means for a target length; nothing if it is none.

    Args:
      config: of the program.
      model: its shape.
      length: tokens; 0: config.target_len.
    """
    length = length or config.target_len
    window = model.full_window
    if window is None or window >= length:
        return []
    return [
        f"a sliding window of {window:,} tokens in all layers: no query sees beyond "
        f"it, so factors for {length:,} tokens do nothing for longer distances. "
        "model.sliding_window='none' switches it off, as LongRoPE did for Mistral"
    ]


def longest(config, model: DecoderConfig, fn: rope.RopeFn) -> int:
    """Returns the tokens the model is to serve with this rope: `config.target_len` if given."""
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
            'tokenizer.json, a GGUF file, a model of the hub, or "bytes".'
        )
    place = pretrained.open_tokenizer(place)
    return data.load_tokenizer(place, vocab_size=vocab_size), place


def train_documents(config, tokenizer, place) -> data.TokenDocuments:
    """Returns the text that is trained on, or searched with; `place` is that of `tokenizer`."""
    section, setting = config.data, "data.sources" if config.data.sources else "data.train_files"
    patterns = [pattern for pattern, _ in section.sources] or section.train_files
    read = dict(setting=setting, exclude=section.exclude)
    whole = documents(config, patterns, tokenizer, place, **read)
    return data.split(whole, section.held_out)[0] if section.held_out else whole


def held_out_documents(config, tokenizer, place) -> data.TokenDocuments:
    """Returns the text that is evaluated on; `place` is that of `tokenizer`.

    Raises:
      InputError: there is none.
    """
    section = config.data
    if section.held_out:
        read = dict(setting="data.train_files", exclude=section.exclude)
        whole = documents(config, section.train_files, tokenizer, place, **read)
        return data.split(whole, section.held_out)[1]
    return documents(config, section.eval_files, tokenizer, place, setting="data.eval_files")


def documents(
    config, patterns, tokenizer, place, *, setting: str, exclude=()
) -> data.TokenDocuments:
    """Returns the text of files or globs, read as config.data says.

    Args:
      config: of the program.
      patterns: files or globs.
      tokenizer, place: what makes the tokens, and where it came from, with its chat template.
      setting: the config key of `patterns`.
      exclude: globs of files to leave out.
    """
    section = config.data
    is_file = place != "bytes" and files.as_path(place).is_file()
    return data.load_documents(
        patterns,
        tokenizer,
        cache_dir=section.cache_dir,
        exclude=exclude,
        template_at=files.as_path(place).parent if is_file else place,
        settings=data.ReadSettings(
            setting=setting,
            text_field=section.text_field,
            skip_bad_lines=section.skip_bad_lines,
            format=section.format,
        ),
    )


def _path(config: Config) -> str:
    if not config.model.path:
        raise InputError("model.path is not set. Give a Hugging Face folder or a workdir.")
    return config.model.path


# Fields that training, or whoever prepares the folder (a wider sliding window), may change.
_NOT_OF_THE_SHAPE = ("family", "max_len", "rope", "sliding_window")
_NOT_OF_THE_SHAPE += ("bos_id", "eos_id", "pad_id", "stored_dtype")


def _shaped(config: Config, model: DecoderConfig) -> DecoderConfig:
    """Returns the shape of a checkpoint, if it is the one that model.shape names, with the window
    of model.sliding_window.
    """
    model = _with_window(config, _with_original_len(config, model))
    name = config.model.shape
    if not name:
        return model
    shape = _with_original_len(config, decoder.SHAPES[name])
    for field in dataclasses.fields(DecoderConfig):
        actual, expected = getattr(model, field.name), getattr(shape, field.name)
        if field.name not in _NOT_OF_THE_SHAPE and actual != expected:
            raise InputError(
                f"model.shape '{name}' has {field.name} {expected}, the checkpoint "
                f"{config.model.path} has {actual}. Name the checkpoint's own shape "
                '("" = any), or another model.path.'
            )
    return model


def _with_original_len(config, model: DecoderConfig) -> DecoderConfig:
    if config.original_len in (0, model.original_len):
        return model
    if model.rope["method"] != "none":
        raise InputError(
            f"original_len must be 0 or {model.original_len} for a model whose own rope is "
            f"'{model.rope['method']}', which is defined by it, got {config.original_len}. For the "
            "bound of a search set search.training_len."
        )
    return dataclasses.replace(model, original_len=config.original_len)


def _with_window(config, model: DecoderConfig) -> DecoderConfig:
    window = config.model.sliding_window
    if window == "model":
        return model
    if window != "none" and model.sliding_window is None:
        raise InputError(
            "model.sliding_window must be 'model' or 'none' for a model that has no window, got "
            f"{window}. Leave it out."
        )
    return dataclasses.replace(model, sliding_window=None if window == "none" else int(window))

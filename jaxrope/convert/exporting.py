"""Exports to a Hugging Face folder that transformers 4.57 and 5 open without custom code.

vLLM and llama.cpp open it as well, with the limits that the model card states.

Everything is written in a folder beside the target, read again, compared, and only then renamed.
"""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from safetensors import SafetensorError

from jaxrope import decoder, rope
from jaxrope.convert import (
    card,
    config_keys,
    consumers,
    folders,
    importing,
    layout,
    peft,
    rope_export,
    safetensors_io,
)
from jaxrope.convert import config as hf_config
from jaxrope.convert.rope_export import HfRope
from jaxrope.decoder import DecoderConfig
from jaxrope.errors import InputError, choose
from jaxrope.store import files, strict_json

_SAME = 1e-8  # relative: a law computed again differs by 1e-15, a wrong constant by far more


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to export.

    Attributes:
      dtype: of the weights, "float32", "bfloat16" or "float16"; None: as they are stored.
      allow_lossy: export although Hugging Face cannot express all of the rope.
      overwrite: replace a Hugging Face folder that is there.
      shard_bytes: most bytes in one file.
      arch: layout, "llama" or "phi3"; None: the model's own.
      weights: folder of an export of the same weights, which are shared; None: they are written.
    """

    dtype: str | None = None
    allow_lossy: bool = False
    overwrite: bool = False
    shard_bytes: int = safetensors_io.SHARD_BYTES
    arch: str | None = None
    weights: Path | None = None


class Model(Protocol):
    """What is exported: a `pretrained.Pretrained`, which stands above this package."""

    config: DecoderConfig
    params: dict
    tokenizer_dir: Path | None
    rope_fn: rope.RopeFn
    rope_provenance: dict
    source: str
    stopped: str
    unfinished: tuple[str, ...]


def export_folder(model: Model, target: Path | str, settings: Settings | None = None) -> list[str]:
    """Writes a Hugging Face folder.

    Args:
      model: of `pretrained.load(path, dtype=None)`.
      target: must not exist, or be empty.
      settings: see Settings.

    Returns:
      What is lost, and what differs from what came in, a line each.

    Raises:
      InputError: a target in use, weights that are not finite or do not fit the dtype, a rope or a
        model that Hugging Face or the layout cannot express.
    """
    settings = settings or Settings()
    if settings.arch is not None:
        model = dataclasses.replace(model, config=check_arch(settings.arch, model.config))
    dtype, notes = _dtype(model, settings.dtype)
    hf_rope = rope_export.express(model.config, model.rope_fn)
    rope_export.check(hf_rope, allow_lossy=settings.allow_lossy)
    rope_export.check_sliding(model.config, model.rope_fn)
    with folders.staged(target, overwrite=settings.overwrite) as staging:
        try:
            if settings.weights is None:
                digests = _write_weights(staging, model, dtype, settings.shard_bytes)
                safetensors_io.verify(staging, digests)
            else:
                _link_weights(staging, settings.weights)
        except SafetensorError as error:  # also for a full disk
            raise InputError(f"{staging.parent} cannot be written: {str(error)[:120]}.") from None
        notes += _write_texts(staging, model, hf_rope, dtype or main_dtype(model.params))
        name = Path(os.path.abspath(os.path.expanduser(target))).name
        text = card.text(name, model, hf_rope)
        (staging / "README.md").write_text(text, encoding="utf-8")
        _verify_rope(staging, model, hf_rope)
        _flush(staging)
    return [*remarks(model, hf_rope), *notes]


def applied(model: Model, settings: Settings) -> list[str]:
    """Returns how each program applies the rope of an export, a line each; [] for a plain one."""
    config = check_arch(settings.arch, model.config) if settings.arch else model.config
    hf_rope = rope_export.express(config, model.rope_fn)
    is_plain = hf_rope.section["rope_type"] == "default"
    return [] if is_plain else consumers.lines(hf_rope, config.family)


def remarks(model: Model, hf_rope: HfRope) -> list[str]:
    """Returns what is lost of a model, and whether its training has ended, a line each."""
    losses = [f"lost: {loss}" for loss in hf_rope.losses]
    return [*losses, model.stopped] if model.stopped else losses


def export_adapter(
    model: Model, target: Path | str, settings: Settings | None = None, *, base: str = ""
) -> list[str]:
    """Writes a LoRA training as a PEFT folder: adapters, what was trained beside them, config.json
    with the rope, the tokenizer.

    Args:
      model: of `pretrained.load(path, dtype=None, merge=False)`.
      target: must not exist, or be empty.
      settings: dtype, allow_lossy and overwrite are used.
      base: the Hugging Face folder or id that the adapters are for.

    Returns:
      What is lost, and how it is opened, a line each.

    Raises:
      InputError: the model has no adapters, or some that PEFT takes for others; no base is named;
        see `export_folder`.
    """
    settings, layers = settings or Settings(), model.params["layers"]
    if decoder.adapters.SCALE not in layers:
        raise InputError(
            f"--adapter: {model.source} has no adapters (lora.rank was 0). Leave --adapter out."
        )
    if not base:
        raise InputError(
            f"--adapter: {model.source} was not trained from a Hugging Face folder. Name the one"
            " that the adapters are for: --base=FOLDER."
        )
    if model.config.num_experts and any(
        name.startswith(("gate_b_", "up_b_", "down_b_")) for name in layers
    ):
        raise InputError(
            "--adapter: PEFT takes adapters of gate, up and down for those of experts, this model"
            " has them in dense MLPs. Export the whole model: leave --adapter out."
        )
    dtype = settings.dtype and choose("dtype", settings.dtype, safetensors_io.BY_NAME)
    hf_rope = rope_export.express(model.config, model.rope_fn)
    rope_export.check(hf_rope, allow_lossy=settings.allow_lossy)
    with folders.staged(target, overwrite=settings.overwrite) as staging:
        peft.write(staging, model.params, model.config, base=base, dtype=dtype)
        stored = np.dtype(model.config.stored_dtype or main_dtype(model.params).name)
        notes = _write_texts(staging, model, hf_rope, stored)
        _flush(staging)
    return [
        *remarks(model, hf_rope),
        *notes,
        "PEFT opens the base with the base's own rope: give it this folder's config.json,"
        " AutoModelForCausalLM.from_pretrained(BASE, config=AutoConfig.from_pretrained(FOLDER)),"
        " then PeftModel.from_pretrained(model, FOLDER)",
    ]


def check_arch(arch: str, config: DecoderConfig) -> DecoderConfig:
    """Returns the config in the layout `arch`, which computes the same.

    Raises:
      InputError: an unknown layout, or a model that it cannot express.
    """
    obstacle = choose("--arch", arch, _OBSTACLES)(config) or config_keys.obstacle(config, arch)
    if obstacle:
        raise InputError(
            f"--arch={arch}: {obstacle}. Export it without --arch, as {config.family}."
        )
    return config if arch == config.family else dataclasses.replace(config, family=arch)


def _phi3_obstacle(config: DecoderConfig) -> str | None:
    """Returns what a Phi3ForCausalLM cannot express of a model."""
    if config.qkv_bias or config.out_bias or config.mlp_bias:
        return "a Phi-3 of transformers has no biases, this model has"
    if config.num_heads * config.head_dim != config.embed_dim:
        return (
            "a Phi-3 of transformers needs head_dim = hidden_size / num_attention_heads ="
            f" {config.embed_dim / config.num_heads:g}, got {config.head_dim}"
        )
    return None


def _llama_obstacle(config: DecoderConfig) -> str | None:
    """Returns what a LlamaForCausalLM cannot express of a model."""
    if config.sliding_window is not None:
        return f"a Llama has no sliding window, this model has one of {config.sliding_window}"
    if config.rotary_dim != config.head_dim:
        return (
            f"a Llama turns all {config.head_dim} dims of a head, this model {config.rotary_dim}"
            " of them"
        )
    if config.qkv_bias != config.out_bias:
        return "a Llama has a bias on q, k, v and o, or on none of them"
    return None


_OBSTACLES = {"llama": _llama_obstacle, "phi3": _phi3_obstacle}


def _write_weights(
    staging: Path, model: Model, dtype: np.dtype | None, shard_bytes: int
) -> dict[str, str]:
    tensors = layout.tensors(model.config)
    shards = safetensors_io.divide(
        {t.name: t.size * (dtype or _dtype_of(t, model.params)).itemsize for t in tensors},
        shard_bytes,
    )
    return safetensors_io.write(staging, _converted(tensors, model.params, dtype), shards)


def _link_weights(staging: Path, weights: Path) -> None:
    # hard links: a symbolic one would leave the folder, which may be mounted alone
    for file in weights.glob("*.safetensors*"):
        try:
            os.link(file, staging / file.name)
        except OSError as error:
            raise InputError(
                f"{weights}: its weights cannot be shared by hard links ({error.strerror}). Write"
                " to a file system that has them."
            ) from None


def _converted(
    tensors: list[layout.Tensor], params: dict, dtype: np.dtype | None
) -> Iterator[tuple[str, np.ndarray]]:
    for tensor in tensors:
        values = layout.write_tensor(tensor, params)
        safetensors_io.check_finite("export", tensor.name, values)
        yield (
            tensor.name,
            values if dtype is None else safetensors_io.cast(tensor.name, values, dtype),
        )


def _dtype_of(tensor: layout.Tensor, params: dict) -> np.dtype:
    return np.result_type(*{layout.find_leaf(part, params).dtype for part in tensor.parts})


def _dtype(model: Model, name: str | None) -> tuple[np.dtype | None, list[str]]:
    """Returns (the dtype of all weights; None: as they are stored; notes)."""
    if name is not None:
        return choose("dtype", name, safetensors_io.BY_NAME), []
    came, stored = model.config.stored_dtype, main_dtype(model.params).name
    if came in (None, stored):
        return None, []
    note = f"the weights are {stored}, and written as {came}, as they came in; --dtype={stored}"
    return safetensors_io.BY_NAME[came], [f"{note} keeps them"]


def main_dtype(params: dict) -> np.dtype:
    """Returns the dtype of most values."""
    counts = Counter()
    for leaf in jax.tree.leaves(params):
        counts[leaf.dtype] += leaf.size
    return counts.most_common(1)[0][0]


def _write_texts(staging: Path, model: Model, hf_rope: HfRope, dtype: np.dtype) -> list[str]:
    """Writes the configs and the tokenizer; returns notes."""
    config = model.config
    files.write_json_atomic(
        staging / "config.json",
        config_keys.to_hf(config, dtype=dtype.name)
        | config_keys.rope_keys(config, hf_rope.keys(config)),
    )
    importing.copy_tokenizer(model.tokenizer_dir or model.source, staging)
    if not (staging / "generation_config.json").exists():
        content = {
            "_from_model_config": True,
            **{
                key: value
                for key, value in config_keys.token_ids(config).items()
                if value is not None
            },
        }
        files.write_json_atomic(staging / "generation_config.json", content)
    longest = rope_export.longest(config, model.rope_fn)  # dynamic NTK's max_len is the original
    return _lengthen_tokenizer(staging / "tokenizer_config.json", longest)


def _lengthen_tokenizer(path: Path, max_len: int) -> list[str]:
    """Sets the length at which transformers' tokenizer warns and truncates; returns notes."""
    if not path.exists():
        return []
    settings = strict_json.read(path, max_bytes=strict_json.MAX_INDEX_BYTES)
    length = settings.get("model_max_length")
    if isinstance(length, bool) or not isinstance(length, int | float) or length >= max_len:
        return []
    settings["model_max_length"] = max_len
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
    return [f"tokenizer_config.json: model_max_length was {length:g} and is {max_len} now"]


def _verify_rope(staging: Path, model: Model, hf_rope: HfRope) -> None:
    """Reads config.json as an import would, and compares it with the exported model."""
    config, _ = hf_config.read(staging)
    wrong = unlike(config, model, tolerance=_SAME, lossless=not hf_rope.losses)
    if wrong:
        raise RuntimeError(f"{staging}: config.json reads back with another {min(wrong)}")


def unlike(
    config: DecoderConfig, model: Model, *, tolerance: float, lossless: bool = True
) -> set[str]:
    """Returns in what the config of an export differs from the model's, as fields and "rope" and
    "sliding_rope".

    Args:
      config: as it is read back.
      model: what was exported.
      tolerance: of frequencies and attention factors, relative.
      lossless: the rope is compared as well.
    """
    wrong = set()
    if lossless:
        if rope_export.difference(decoder.own_rope(config), model.rope_fn) > tolerance:
            wrong.add("rope")
    of_window = [decoder.sliding_rope(c) for c in (config, model.config) if "sliding" in c.layers]
    if len(of_window) == 2 and rope_export.difference(*of_window) > tolerance:
        wrong.add("sliding_rope")
    # the fields that an extension changes, that of sliding layers, which may be spelled in another
    # way, and one that is not of config.json
    changed = {"theta", "original_len", "max_len", "rope"}
    changed |= {"sliding_rope", "sliding_theta", "stored_dtype"}
    names = {field.name for field in dataclasses.fields(DecoderConfig)} - changed
    return wrong | {name for name in names if getattr(config, name) != getattr(model.config, name)}


def _flush(folder: Path) -> None:
    # before the rename: a power cut must not leave a whole-looking folder of empty files
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

"""PEFT's folders: adapter_config.json beside adapter_model.safetensors, in place of a model.

Reading: the adapters are added to the weights of the folder that they name as their base. Writing:
a LoRA training's adapters, and what was trained beside them, without the base.

Letters: U the rank.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxrope import decoder
from jaxrope.convert import folders, layout, lookup, safetensors_io, tensor_names
from jaxrope.decoder import DecoderConfig
from jaxrope.errors import InputError
from jaxrope.store import files, strict_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_LORA = re.compile(r"(.+)\.lora_(?:embedding_)?([AB])(?:\.\w+)?(?:\.weight)?")
# what a config may not say, since other arithmetic belongs to it: key -> the values that are plain
_PLAIN = {
    "peft_type": ("LORA",),
    "use_dora": (False,),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    "layer_replication": (None,),
}


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What a folder adds to its base.

    Attributes:
      folder: of the adapter.
      base: base_model_name_or_path.
      pairs: (A [U, in], B [out, U]) of a weight, by the weight's plain name; of an embedding
        (A [U, rows], B [dims, U]).
      scales: what B A is multiplied by, by the same names.
      replaced: whole tensors that were trained, by their plain names.
      ties: a head that is the embedding stays it.
    """

    folder: Path
    base: str
    pairs: Mapping[str, tuple[safetensors_io.Entry, safetensors_io.Entry]]
    scales: Mapping[str, float]
    replaced: Mapping[str, safetensors_io.Entry]
    ties: bool

    def added(self, name: str, weight: np.ndarray) -> np.ndarray:
        """Returns a weight with its adapter added, float32; as it is where it has none."""
        if name not in self.pairs:
            return weight
        a_UI, b_OU = (
            array.astype(np.float32) for _, array in safetensors_io.read_in_order(self.pairs[name])
        )
        delta = self.scales[name] * (b_OU @ a_UI)
        return weight.astype(np.float32) + (delta.T if name == layout.EMBED else delta)


def is_adapter(folder: Path) -> bool:
    """Returns whether a folder holds adapters instead of a model."""
    weights = (safetensors_io.SINGLE, safetensors_io.INDEX)
    return (folder / CONFIG).is_file() and not any((folder / name).exists() for name in weights)


def read(folder: Path) -> Adapter:
    """Returns the adapters of a folder; no weights are read yet.

    Raises:
      InputError: a kind of adapter that is not read, or a tensor that belongs to none.
    """
    path = lookup.find(folder, CONFIG)
    settings = strict_json.read(path, max_bytes=strict_json.MAX_CONFIG_BYTES)
    for key, plain in _PLAIN.items():
        if key in settings and settings[key] not in plain:
            raise InputError(
                f"{path}: {key} must be {plain[0]!r}, got {strict_json.kind(settings[key])}. Merge"
                " the adapter with PEFT first: merge_and_unload, then save_pretrained."
            )
    base = settings.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise InputError(f"{path}: base_model_name_or_path is missing. Write the base's folder in.")
    file = lookup.find(folder, WEIGHTS)
    if file is None:
        raise InputError(
            f"{folder} has no {WEIGHTS}; a pickle (adapter_model.bin) is never read. Save the"
            " adapter with safe_serialization=True."
        )
    sides: dict[str, dict[str, safetensors_io.Entry]] = {}
    replaced = {}
    for name, entry in safetensors_io.header(file).items():
        if match := _LORA.fullmatch(name):
            sides.setdefault(tensor_names.plain(match[1] + ".weight"), {})[match[2]] = entry
        else:
            replaced[tensor_names.plain(name)] = entry
    half = next((name for name, pair in sides.items() if set(pair) != {"A", "B"}), None)
    if half is not None:
        raise InputError(f"{file}: the adapter of {half[:80]} has one side only. Save it again.")
    pairs = {name: (pair["A"], pair["B"]) for name, pair in sides.items()}
    scales = {name: _scale(settings, name, pair[0].shape[0], path) for name, pair in pairs.items()}
    ties = settings.get("ensure_weight_tying") is True
    return Adapter(folder, base, pairs, scales, replaced, ties)


def find_base(adapter: Adapter) -> Path:
    """Returns the folder of the base model.

    Raises:
      InputError: it is not here.
    """
    beside = adapter.folder / adapter.base
    try:
        return folders.open_folder(beside if beside.is_dir() else adapter.base)
    except InputError as error:
        raise InputError(
            f"{adapter.folder} holds a PEFT adapter of '{adapter.base}'"
            f" (base_model_name_or_path of {CONFIG}), which is not found: {error} Write the path of"
            " that model's folder there."
        ) from None


def check(adapter: Adapter, entries: Mapping[str, safetensors_io.Entry]) -> None:
    """Refuses adapters that do not fit the base's tensors.

    Raises:
      InputError: a tensor that the base does not have, or of another shape.
    """
    for name in (*adapter.pairs, *adapter.replaced):
        if name not in entries:
            raise InputError(
                f"{adapter.folder}: the adapter's {name[:80]} is no tensor of its base, which has"
                f" {tensor_names.some(entries, 2)}. Name the right base, or merge it with PEFT."
            )
        shape = entries[name].shape
        if name in adapter.replaced:
            given = adapter.replaced[name].shape
        else:
            a, b = adapter.pairs[name]
            given = (b.shape[0], a.shape[1]) if len(a.shape) == len(b.shape) == 2 else ()
            given = given[::-1] if name == layout.EMBED else given
        if given != shape:
            raise InputError(
                f"{adapter.folder}: the adapter of {name[:80]} is for {list(given)}, the base has"
                f" {list(shape)}. Name the right base."
            )


def write(
    folder: Path, params: dict, config: DecoderConfig, *, base: str, dtype: np.dtype | None
) -> None:
    """Writes the adapters of a LoRA training, and what was trained beside them.

    Args:
      folder: there, empty of these files.
      params: with adapters, on the host.
      config: the model's.
      base: what base_model_name_or_path is to say.
      dtype: of the tensors; None: as they are.
    """
    scale = float(params["layers"][decoder.adapters.SCALE][0])
    tensors, ranks, whole = {}, {}, {}
    for tensor in layout.tensors(config):
        parts = [part for part in tensor.parts if _sides(part, params)]
        if parts:
            stem = tensor.name.removesuffix(".weight")
            a_UI, b_OU = _joined(tensor, parts, params)
            tensors[f"base_model.model.{stem}.lora_A.weight"] = a_UI
            tensors[f"base_model.model.{stem}.lora_B.weight"] = b_OU
            ranks[stem.rpartition(".")[2]] = a_UI.shape[0]
        elif "norm" in tensor.parts[0].leaf[-1] or tensor.name == layout.EMBED:
            whole[tensor.name] = layout.write_tensor(tensor, params)
    if config.tie_embeddings:  # PEFT copies a module that is trained, and unties it so
        whole[layout.HEAD] = whole[layout.EMBED]
    tensors |= {f"base_model.model.{name}": values for name, values in whole.items()}
    for name, values in tensors.items():
        safetensors_io.check_finite("export", name, values)
    tensors = {
        n: v if dtype is None else safetensors_io.cast(n, v, dtype) for n, v in tensors.items()
    }
    safetensors_io.write_file(folder / WEIGHTS, tensors)
    least = min(ranks.values())
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": least,
        "lora_alpha": scale * least,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(ranks),
        "modules_to_save": sorted({name.split(".")[-2] for name in whole}),
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != least},
        "alpha_pattern": {name: scale * rank for name, rank in ranks.items() if rank != least},
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_dora": False,
        "use_rslora": False,
    }
    files.write_json_atomic(folder / CONFIG, content)


def _scale(settings: dict, name: str, rank: int, path: Path) -> float:
    """Returns alpha / rank of a weight, as PEFT finds it."""
    module = name.removesuffix(".weight")
    patterns = settings.get("alpha_pattern") or {}
    keys = (key for key in patterns if re.fullmatch(rf"(.*\.)?({key})", module))
    alpha = patterns.get(next(keys, None), settings.get("lora_alpha"))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not rank:
        raise InputError(f"{path}: lora_alpha must be a number, got {strict_json.kind(alpha)}.")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _sides(part: layout.Part, params: dict) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the adapters of a part of a tensor; None: it has none."""
    tree = params["layers"] if part.leaf[0] == "layers" else params
    a, b = (tree.get(name) for name in decoder.adapters.names(part.leaf[-1]))
    if a is None:
        return None
    return a[part.index], b[part.index]


def _joined(
    tensor: layout.Tensor, parts: list[layout.Part], params: dict
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (A, B) of a tensor: those of its parts behind one another, each B in its rows."""
    sides = [_sides(part, params) for part in parts]
    ranks = [a.shape[-1] for a, _ in sides]
    a_UI = np.concatenate([np.asarray(a).reshape(-1, a.shape[-1]).T for a, _ in sides])
    b_OU = np.zeros((tensor.shape[0], sum(ranks)), a_UI.dtype)
    for part, (_, b), rank, end in zip(parts, sides, ranks, np.cumsum(ranks), strict=True):
        b_OU[part.rows, end - rank : end] = np.asarray(b).reshape(rank, -1).T
    return np.ascontiguousarray(a_UI), b_OU

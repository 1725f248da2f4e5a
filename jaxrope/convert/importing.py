"""Import: a Hugging Face folder as parameters, or as a workdir like those of train.py.

Tensors are read one by one into the stacked parameters, so the host holds the model, one tensor,
and the one shard that is mapped.
"""

import collections
import dataclasses
import math
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxrope import data
from jaxrope.convert import config as hf_config
from jaxrope.convert import (
    folders,
    layout,
    lookup,
    peft,
    safetensors_io,
    tensor_files,
    tensor_names,
)
from jaxrope.decoder import DTYPES, DecoderConfig
from jaxrope.errors import InputError, choose
from jaxrope.store import checkpoint, files, sealed, strict_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
_TEMPLATES = "additional_chat_templates"
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_MAX_TOKENIZER_BYTES = 100_000_000  # the largest published one has 35 million


@dataclasses.dataclass(frozen=True)
class Source:
    """A Hugging Face folder whose config and tensors fit each other; no weights are read yet.

    Attributes:
      config: of the model.
      entries: tensors by their plain names.
      notes: what was assumed or passed over.
      folder: where the weights are.
      adapter: what is added to them; None: nothing.
    """

    config: DecoderConfig
    entries: dict[str, safetensors_io.Entry]
    notes: tuple[str, ...]
    folder: Path
    adapter: peft.Adapter | None = None


def open_model(folder: Path) -> Source:
    """Reads the config and the headers of the weights, and compares them.

    A PEFT folder is its base with the adapters added, with a config.json of its own if it has one.

    Raises:
      InputError: see `config.read` and `tensor_files.catalogue`; tensors are missing, unexpected,
        or of a shape unlike the config's.
    """
    if peft.is_adapter(folder):
        return _open_adapter(folder)
    return _open(folder, hf_config.read(folder))


def _open_adapter(folder: Path) -> Source:
    adapter = peft.read(folder)
    base = peft.find_base(adapter)
    described = folder if lookup.find(folder, "config.json") else base
    source = _open(base, hf_config.read(described))
    source, adapter = _untied(source, adapter)
    peft.check(adapter, source.entries)
    note = f"the PEFT adapter of {len(adapter.pairs)} weights is added to its base, {base}"
    entries = source.entries | dict(adapter.replaced)
    notes = (*source.notes, note)
    return dataclasses.replace(source, entries=entries, notes=notes, adapter=adapter)


def _untied(source: Source, adapter: peft.Adapter) -> tuple[Source, peft.Adapter]:
    """Returns both as PEFT applies them: what adapts one of two tied weights leaves the other as it
    was, unless they are trained as one.
    """
    tied = {layout.EMBED, layout.HEAD}
    if not source.config.tie_embeddings or not tied & {*adapter.pairs, *adapter.replaced}:
        return source, adapter
    if tied <= {*adapter.replaced}:
        pairs = safetensors_io.read_in_order(adapter.replaced[name] for name in sorted(tied))
        if adapter.ties or np.array_equal(*(array for _, array in pairs)):
            replaced = {k: v for k, v in adapter.replaced.items() if k != layout.HEAD}
            return source, dataclasses.replace(adapter, replaced=replaced)
    elif adapter.ties:
        return source, adapter
    entries = source.entries | {layout.HEAD: source.entries[layout.EMBED]}
    config = dataclasses.replace(source.config, tie_embeddings=False)
    return dataclasses.replace(source, entries=entries, config=config), adapter


def _open(folder: Path, described: tuple[DecoderConfig, list[str]]) -> Source:
    config, notes = described
    entries, of_names = tensor_names.settle(tensor_files.catalogue(folder), folders.label(folder))
    of_names = [*tensor_files.notes(folder), *of_names]
    config, of_head = _settle_head(folder, config, entries)
    _check_names(folder, entries, config)
    config, of_dtype = _with_dtype(config, entries)
    return Source(config, entries, (*notes, *of_names, *of_head, *of_dtype), folder)


def load_params(source: Source, *, dtype: str | None) -> dict:
    """Returns the parameters as host arrays.

    Args:
      source: of `open_model`.
      dtype: "float32", "bfloat16" or "float16", to convert each tensor as it is read; None: as
        stored.
    """
    target_dtype = None if dtype is None else np.dtype(choose("dtype", dtype, DTYPES))
    tensors = _tensors(source.config, source.entries)
    entries = {name: source.entries[name] for name in tensors}
    params = _allocate(tensors.values(), entries, target_dtype)
    for name, array in tensor_files.read_tensors(entries):
        to_dtype = target_dtype or _readable(array.dtype)
        if source.adapter is not None:
            array = source.adapter.added(name, array)
        array = safetensors_io.cast(name, array, to_dtype)
        for part in tensors[name].parts:
            leaf = layout.find_leaf(part, params)
            leaf[part.index] = layout.read_part(part, array)
    return params


def import_folder(source: Path | str, target: Path | str, *, dtype: str | None = None) -> list[str]:
    """Writes a workdir: model.json, the tokenizer's files, and the weights as checkpoint 0.

    Args:
      source: the Hugging Face folder; see `folders.open_folder` for what else.
      target: the workdir; must not exist, or be empty.
      dtype: of the weights; None: as stored.

    Returns:
      Notes on what was assumed or ignored.

    Raises:
      InputError: anything wrong with the source, or a target in use.
    """
    folder = folders.open_folder(source)
    if dtype is not None:
        choose("dtype", dtype, safetensors_io.BY_NAME)
    folders.check_target(target)
    opened = open_model(folder)
    place = folder if lookup.find(folder, "tokenizer.json") else opened.folder
    notes = [*opened.notes, *check_tokenizer(place, opened.config)]
    with folders.staged(target) as staging:
        params = load_params(opened, dtype=dtype)
        for place in dict.fromkeys((opened.folder, folder)):
            copy_tokenizer(place, staging)
        config = opened.config
        if dtype is not None:
            config = dataclasses.replace(config, stored_dtype=dtype)
        sealed.write_json(staging / "model.json", config.to_json_dict())
        meta = {"source": Path(folders.label(folder)).resolve().name}
        checkpoint.save_params(staging, 0, params, meta)
    return notes


def copy_tokenizer(source: Path | str, target: Path) -> list[str]:
    """Copies a tokenizer's files, its chat templates and generation_config.json, as they are.

    Args:
      source: their folder, a tokenizer.json of any name in it, or "bytes", which has none.
      target: a folder; where it is theirs nothing is copied.

    Returns:
      Their names.
    """
    place = files.as_path(source)
    folder = place if place.is_dir() else place.parent
    if source == "bytes" or files.absolute(folder) == files.absolute(target):
        return []
    templates = [f"{_TEMPLATES}/{path.name}" for path in (folder / _TEMPLATES).glob("*.jinja")]
    sources = {name: lookup.find(folder, name) for name in (*TOKENIZER_FILES, *sorted(templates))}
    if folder != place:
        sources["tokenizer.json"] = place
    sources = {name: path for name, path in sources.items() if path}
    for name, path in sources.items():
        content = files.read_bytes(path, max_bytes=_MAX_TOKENIZER_BYTES)
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(content)
    return list(sources)


def check_tokenizer(folder: Path, config: DecoderConfig) -> list[str]:
    """Returns notes on how the tokenizer's ids go with the vocabulary.

    Raises:
      InputError: an id is none.
    """
    file = lookup.find(folder, "tokenizer.json")
    if file is None and lookup.find(folder, "tokenizer.model"):
        return _check_pieces(folder, config)
    if file is None:
        return [
            f"{folder} holds no tokenizer.json; the tokenizer must be named in the config"
            " (data.tokenizer)"
        ]
    content = strict_json.read(file, max_bytes=_MAX_TOKENIZER_BYTES)
    model, added = content.get("model"), content.get("added_tokens") or []
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict | list) or not isinstance(added, list):
        raise InputError(
            f"{file}: model.vocab must be an object or a list. It is not a tokenizer of the"
            " tokenizers library."
        )
    ids = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
    ids += [row.get("id") if isinstance(row, dict) else None for row in added]
    for number in ids:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**31:
            raise InputError(
                f"{file}: every id must be a whole number from 0 to {2**31 - 1}, got"
                f" {strict_json.kind(number)}."
            )
    beyond = len({number for number in ids if number >= config.vocab_size})
    if beyond:
        return [
            f"{beyond} tokens of {file.name}, the highest {max(ids)}, have no row in the embedding"
            f" (vocab_size {config.vocab_size}); a text that holds one is refused"
        ]
    spare = config.vocab_size - 1 - max(ids, default=-1)
    return (
        [f"the vocabulary has {spare} rows more than the tokenizer has ids (padding)"]
        if spare
        else []
    )


def _check_pieces(folder: Path, config: DecoderConfig) -> list[str]:
    try:
        data.load_tokenizer(folder, vocab_size=config.vocab_size)
        return []
    except InputError as error:  # whoever needs the tokenizer is refused
        return [str(error)]


def _settle_head(
    folder: Path, config: DecoderConfig, entries: dict
) -> tuple[DecoderConfig, list[str]]:
    """Compares the tie of head and embedding in the config with the tensors.

    A file without a head and a config that does not mention the tie: tied. A config that denies
    it: an error, by `_check_names`.
    """
    if config.tie_embeddings and layout.HEAD in entries and layout.EMBED in entries:
        both = {name: entries[name] for name in (layout.HEAD, layout.EMBED)}
        head, embed = dict(tensor_files.read_tensors(both)).values()
        if not np.array_equal(head, embed):
            raise InputError(
                f"{folder}: config.json ties the head to the embedding (tie_word_embeddings), but"
                f" {layout.HEAD} holds other values. Set tie_word_embeddings to false, or remove"
                " the tensor."
            )
        note = f"{layout.HEAD} equals the embedding, as tie_word_embeddings says; one copy is kept"
        return config, [note]
    values = hf_config.read_json(folder)
    if config.tie_embeddings or layout.HEAD in entries or "tie_word_embeddings" in values:
        return config, []
    note = f"there is no {layout.HEAD} and no tie_word_embeddings; the head is the embedding"
    return dataclasses.replace(config, tie_embeddings=True), [note]


def _check_names(folder: Path, entries: dict, config: DecoderConfig) -> None:
    layers = {match[1] for name in entries if (match := _LAYER.match(name))}
    if not layers:
        raise InputError(
            f"{folder}: none of its {len(entries)} tensors is part of a layer of model_type"
            f" {config.family} (model.layers.0. ...); it has {tensor_names.some(entries)}. Name the"
            " folder of the language model, or save it with transformers' save_pretrained."
        )
    if config.num_layers > len(layers):  # before something is made for each of them
        raise InputError(
            f"{folder}: num_hidden_layers of config.json must be {len(layers)}, the layers that the"
            f" tensors have, got {config.num_layers}."
        )
    tensors = _tensors(config, entries)
    tolerated = {layout.HEAD} if config.tie_embeddings else set()
    missing = [name for name in tensors if name not in entries]
    unexpected = sorted(entries.keys() - tensors.keys() - tolerated)
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} tensors are missing that config.json describes (model_type"
            f" {config.family}): {tensor_names.some(missing)}."
            f" {_remedy(missing, unexpected, entries)}"
        )
    if unexpected:
        raise InputError(
            f"{folder}: {len(unexpected)} tensors belong to no part of the model that config.json"
            f" describes (model_type {config.family}): {tensor_names.some(unexpected)}. {_UNKNOWN}"
        )
    for name, tensor in tensors.items():
        if entries[name].shape != tensor.shape:
            raise InputError(
                f"{folder}: {name} must have shape {list(tensor.shape)} by config.json, has"
                f" {list(entries[name].shape)}."
            )


def _tensors(config: DecoderConfig, entries: dict) -> dict[str, layout.Tensor]:
    """Returns the model's tensors by name, experts stacked or not as in the file."""
    stacked = not any(".experts.0." in name for name in entries)
    return {tensor.name: tensor for tensor in layout.tensors(config, stacked=stacked)}


_UNKNOWN = (
    "Check that model_type and the sizes are the model's own; adapters must be merged first (PEFT:"
    " merge_and_unload), or given as a PEFT folder of their own."
)


def _remedy(missing: list[str], unexpected: list[str], entries: dict) -> str:
    if missing == [layout.HEAD]:
        return "Set tie_word_embeddings to true if the head is the embedding."
    others = f"unlike it there are {tensor_names.some(unexpected)}" if unexpected else ""
    return f"The folder has {others or tensor_names.some(entries, 1)}. {_UNKNOWN}"


def _with_dtype(config: DecoderConfig, entries: dict) -> tuple[DecoderConfig, list[str]]:
    """Returns the config with the dtype of most of the weights, and notes on float64."""
    sizes = collections.Counter()
    for entry in entries.values():
        sizes[_readable(entry.dtype).name] += math.prod(entry.shape)
    wide = sum(entry.dtype == np.float64 for entry in entries.values())
    notes = [f"{wide} tensors are float64; they are read as float32"] if wide else []
    return dataclasses.replace(config, stored_dtype=sizes.most_common(1)[0][0]), notes


def _readable(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float32) if dtype == np.float64 else dtype


def _allocate(tensors, entries: dict, target_dtype: np.dtype | None) -> dict:
    """Returns the tree of parameters, unfilled.

    A stacked one takes a dtype that holds each of its layers exactly.
    """
    shapes, dtypes = {}, {}
    for tensor in tensors:
        for part in tensor.parts:
            file_dtype = _readable(entries[tensor.name].dtype)
            dtypes[part.leaf] = np.dtype(
                jnp.promote_types(dtypes.get(part.leaf, file_dtype), file_dtype)
            )
            shapes[part.leaf] = (*(i + 1 for i in part.index), *part.shape)  # the last one stays
    params: dict = {"layers": {}}
    for path, shape in shapes.items():
        node = params["layers"] if path[0] == "layers" else params
        node[path[-1]] = np.empty(shape, target_dtype or dtypes[path])
    return params

"""What a run writes about itself when it begins, and what may change when it goes on."""

import json
from pathlib import Path
from typing import Any

from jaxrope import rope, setup
from jaxrope.convert import pretrained
from jaxrope.convert.pretrained import Pretrained
from jaxrope.errors import InputError
from jaxrope.llama import LlamaConfig
from jaxrope.shell import cli
from jaxrope.store import files

# A run that goes on must have these as it began. What may change: how long it is, how often it
# logs, evaluates and saves, on which mesh it runs, and what only costs memory or time. Which text
# it reads is compared by fingerprint, so that a folder may be moved.
FIXED = (
    "seed",
    "model",
    "rope",
    "target_len",
    "original_len",
    "forward.compute_dtype",
    "data.mode",
    "lora",
    "optimizer",
    "train.seq_len",
    "train.batch_size",
    "train.accumulation",
    "train.param_dtype",
)
FREE = ("model.shape", "optimizer.offload")  # of these sections: a check, and where arrays lie
TEXT = ("data.train_files", "data.exclude", "data.text_field", "data.skip_bad_lines") + (
    "data.needle_share",
    "data.needle_keys",
    "data.needle_weight",
    "data.short_share",
)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def begin(config, workdir: Path, model: LlamaConfig, rope_fn: rope.RopeFn, tokenizer_at) -> None:
    """Writes config.json, model.json, rope.json (if the rope is not the model's own), tokenizer."""
    if not setup.is_own_rope(rope_fn, model):
        origin = {"made_by": "train.py", "rope": plain(config)["rope"], "model": model_name(config)}
        if config.rope.method == "file":
            origin["file"] = rope.provenance(files.as_path(config.rope.path))
        rope.save(workdir / "rope.json", rope_fn, origin, max_len=model.max_len)
    else:
        (workdir / "rope.json").unlink(missing_ok=True)
    files.write_json_atomic(workdir / "model.json", model.to_json_dict())
    copy_tokenizer(tokenizer_at, workdir)
    write_config(config, workdir)


def copy_tokenizer(tokenizer_at: Path | str, workdir: Path) -> None:
    """Copies a tokenizer's files; `tokenizer_at` is its folder, its tokenizer.json or "bytes"."""
    if tokenizer_at == "bytes":
        return
    folder = files.as_path(tokenizer_at)
    folder = folder if folder.is_dir() else folder.parent
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file() and files.absolute(folder) != workdir:
            files.copy(folder / name, workdir / name)


def write_config(config, workdir: Path) -> None:
    """Writes the resolved config, and the command that gave it."""
    files.write_json_atomic(workdir / "config.json", plain(config))
    cli.write_command(workdir)


def check_workdir(workdir: Path) -> None:
    """Refuses a folder that belongs to something else.

    Raises:
      InputError: a search lives there, or a model of Hugging Face.
    """
    if (workdir / "config.json").exists() and "train" not in _read_config(workdir):
        raise InputError(
            f"--workdir={workdir} has a config.json that train.py did not write. Give the training "
            "a folder of its own."
        )
    if (workdir / "journal.jsonl").exists():
        raise InputError(
            f"--workdir={workdir} holds a search (journal.jsonl). Give the training a folder of "
            "its own."
        )


def continued(config, workdir: Path, meta: dict) -> Pretrained:
    """Returns the model of the run in `workdir` without its weights, after checking that the run
    can continue.

    Args:
      config: as it is now.
      workdir: of the run.
      meta: of the checkpoint.

    Raises:
      InputError: a setting that makes the run what it is has changed; it is named, with both
        values.
    """
    if "opt_state" not in meta["leaves"]:
        raise InputError(
            f"--workdir={workdir} holds a model without an optimizer's state (an import), which "
            "cannot be continued. Name it as config.model.path and give another --workdir."
        )
    before, after = _read_config(workdir), plain(config)
    for key in FIXED:
        _compare(key, _at(_normalized(before), key), _at(_normalized(after), key), workdir)
    model = pretrained.load(workdir, dtype=None, weights=False)
    begun_rope = model.rope_fn
    config_rope = (
        begun_rope
        if config.rope.method == "model"
        else setup.rope_fn(config, model.config, begun_rope)
    )
    if [b.factors for b in config_rope.buckets] != [b.factors for b in begun_rope.buckets]:
        raise InputError(
            f"rope: its factors are not those of {workdir}/rope.json, with which the run began. "
            "Restore the file they come from, or give another --workdir."
        )
    return model


def _normalized(values: dict) -> dict:
    """Returns a config whose `lora` is {"rank": 0} if it is missing or adds nothing."""
    section = values.get("lora") or {"rank": 0}
    return values | {"lora": section if section["rank"] else {"rank": 0}}


def check_text(config, workdir: Path, meta: dict, *, data: str, tokenizer: str) -> None:
    """Refuses other text or another tokenizer than the checkpoint's.

    Args:
      config: as it is now.
      workdir: of the run.
      meta: of the checkpoint.
      data: fingerprint of the loader, as it is now.
      tokenizer: fingerprint of the tokenizer, as it is now.

    Raises:
      InputError: it says which of the two differs.
    """
    if meta["tokenizer_fingerprint"] != tokenizer:
        raise InputError(
            f"data.tokenizer: it is not the one the run in {workdir} began with (fingerprint "
            f"{tokenizer[:12]}, was {meta['tokenizer_fingerprint'][:12]}). Restore it, or give "
            "another --workdir."
        )
    if meta["data_fingerprint"] == data:
        return
    before, after = _read_config(workdir), plain(config)
    for key in TEXT:
        _compare(key, _at(before, key), _at(after, key), workdir)
    raise InputError(
        f"data.train_files: the files have changed since the run in {workdir} began (fingerprint "
        f"{data[:12]}, was {meta['data_fingerprint'][:12]}). Restore them, or give another "
        "--workdir."
    )


def plain(config) -> dict[str, Any]:
    """Returns a config as JSON would give it back."""
    return json.loads(json.dumps(config.to_dict()))


def model_name(config) -> str:
    """Returns what the model was made of, for the record."""
    return str(config.model.path) if config.model.source == "checkpoint" else "scratch"


def _read_config(workdir: Path) -> dict:
    path = workdir / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}), and without it the run cannot be continued. Restore "
            "it, or give another --workdir."
        ) from None


def _at(tree: dict, key: str):
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _compare(key: str, before, after, workdir: Path) -> None:
    if key in FREE:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            _compare(f"{key}.{name}", before.get(name), after.get(name), workdir)
    elif before != after and not (key.endswith(".path") and _same_place(before, after)):
        raise InputError(
            f"{key}: the run in {workdir} began with {before!r}, the config has {after!r}. Set it "
            "back, or give another --workdir."
        )


def _same_place(before, after) -> bool:
    if not (isinstance(before, str) and isinstance(after, str)):
        return False
    return files.absolute(before) == files.absolute(after)

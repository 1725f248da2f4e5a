"""stage.json, the record of a stage in its folder: begun, or finished and with what result.

{"format": "jaxrope.stage/1", "name", "kind", "config": {"dotted.key": value, ...},
 "made_from": {stage: digest}, "finished", "seconds", "result": {...}}

"config" has the keys that such a stage depends on, "{name}" standing for the folders of others, so
that a workdir can be moved. "made_from" has a digest of each input: of its config and
of what it was made from in turn. The file is replaced in one piece, after everything else is
written.
"""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxrope.errors import InputError
from jaxrope.recipe.stages import Stage
from jaxrope.shell import experiment
from jaxrope.store import files

FORMAT = "jaxrope.stage/1"
FILE = "stage.json"

_COMMON = ("seed", "model", "rope", "target_len", "original_len", "forward", "data")
DEPENDS_ON = {  # sections and keys that change the output of each kind of stage
    "search": (*_COMMON, "search"),
    "train": (*_COMMON, "train", "optimizer", "lora"),
    "join": ("model", "original_len", "train.param_dtype", "join"),
    "evaluate": _COMMON,
}
MEASURES = ("eval", "data.eval_files")  # change only the evaluation of a stage
TAUGHT = (  # of the section data, which no stage but "train" reads
    "data.mode",
    "data.needle_keys",
    "data.needle_share",
    "data.needle_weight",
    "data.short_share",
)
FREE = (  # change only memory, time and lines of logs
    "data.cache_dir",
    "forward.attention",
    "forward.attention_kernel",
    "forward.attention_block",
    "forward.ulysses",
    "forward.remat",
    "forward.mlp_chunk",
    "model.shape",
    "optimizer.offload",
    "search.batch_size",
    "search.memory_gb",
    "train.chunk_tokens",
    "train.check_every",
    "train.eval_every",
    "train.log_every",
    "train.max_bad_steps",
)


def settings(stage: Stage) -> dict[str, Any]:
    """Returns {dotted key: value}, as JSON has it, of all that the stage depends on."""
    places = DEPENDS_ON[stage.kind] + (MEASURES if stage.config.eval.suites else ())
    values = {
        key: value
        for key, value in experiment.dotted_keys(stage.config).items()
        if not isinstance(value, ConfigDict) and _is_in(key, places) and not _is_in(key, FREE)
        if stage.config.eval.suites or not _is_in(key, MEASURES)
        if _is_read(stage, key)
    }
    return json.loads(json.dumps(values, default=lambda value: value.to_dict()))


def digests(stages: Sequence[Stage], records: Mapping[str, dict | None]) -> dict[str, str]:
    """Returns a digest of each stage, by name: of its settings, evaluation excepted, and of the
    digests of its inputs.

    Args:
      stages: in order.
      records: stage.json by name. Where there is one, it takes the place of the config, so that
        keys that a newer version of the code has added change nothing.
    """
    digest_of: dict[str, str] = {}
    for stage in stages:
        content = records.get(stage.name) or _content(stage, digest_of)
        inputs = {k: v for k, v in content["config"].items() if not _is_in(k, MEASURES)}
        text = json.dumps([content["kind"], inputs, content["made_from"]], sort_keys=True)
        digest_of[stage.name] = hashlib.sha256(text.encode()).hexdigest()
    return digest_of


def read(folder: Path) -> dict | None:
    """Returns what stage.json says; None if there is none.

    Raises:
      InputError: it is not what this program writes.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not what train.py writes ({error}). Delete {folder}, or give another "
            "--workdir."
        ) from None
    return content


def write(stage: Stage, folder: Path, digest_of: dict[str, str], **more: Any) -> dict:
    """Writes stage.json and returns it.

    Args:
      stage: the one that was begun or finished.
      folder: its folder.
      digest_of: of `digests`.
      more: finished, seconds and result.
    """
    content = _content(stage, digest_of) | more
    files.write_json_atomic(folder / FILE, content)
    return content


def check(
    stage: Stage, folder: Path, content: dict, digest_of: dict[str, str], later: list[str]
) -> None:
    """Refuses a folder whose stage was run, or begun, with other settings or from other stages.

    Args:
      stage: as it is now.
      folder: its folder.
      content: what its stage.json says.
      digest_of: of `digests`.
      later: names of the stages that are made from it, for the message.

    Raises:
      InputError: what differs, before and now.
    """
    before = {key: value for key, value in content["config"].items() if _is_read(stage, key)}
    now = settings(stage)
    changed = [
        key
        for key in {**before, **now}
        if before.get(key) != now.get(key) and (key in before or _is_chosen(stage, key))
    ]
    if content["kind"] != stage.kind:
        raise _refuse(stage, folder, "kind", (content["kind"], stage.kind), later)
    changed_inputs = [key for key in changed if not _is_in(key, MEASURES)]
    if content["finished"] and (changed_inputs or changed):
        key = (changed_inputs or changed)[0]
        raise _refuse(stage, folder, key, (before.get(key), now.get(key)), changed_inputs and later)
    for name, digest in content["made_from"].items():
        if digest_of.get(name) != digest:
            raise InputError(
                f"stage '{stage.name}' of recipe: it was made from a '{name}' with other settings "
                f"than now. Set them back, give another --workdir, or delete "
                f"{_listed(folder, [stage.name, *later])}."
            )


def _content(stage: Stage, digest_of: Mapping[str, str]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": stage.name,
        "kind": stage.kind,
        "config": settings(stage),
        "made_from": {name: digest_of[name] for name in stage.uses},
    }


def _is_read(stage: Stage, key: str) -> bool:
    return stage.kind == "train" or key not in TAUGHT


def _is_chosen(stage: Stage, key: str) -> bool:
    """Returns whether a key is an argument of what its section selects: a stage that was run
    without it had none. Any other key was added by a newer version of the code.
    """
    sections = key.split(".")[:-1]
    if sections == ["search"]:  # its `method` is one of many keys
        return False
    section = functools.reduce(lambda node, name: node[name], sections, stage.config)
    return any(name in section for name in experiment.SELECTORS)


def _refuse(stage: Stage, folder: Path, key: str, values: tuple, later) -> InputError:
    before, now = values
    only_measured = _is_in(key, MEASURES) and stage.kind != "evaluate"
    remedy = (
        f"delete {folder / FILE}: then only its evaluation is done anew"
        if only_measured
        else f"delete {_listed(folder, [stage.name, *(later or [])])}"
    )
    return InputError(
        f"stage '{stage.name}' of recipe: it was finished with {key} {before!r}, the config has "
        f"{now!r}. Set it back, give another --workdir, or {remedy}."
    )


def _listed(folder: Path, names: list[str]) -> str:
    return ", ".join(str(folder.parent / name) for name in names)


def _is_in(key: str, places: Sequence[str]) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)

"""Which steps of a run are whole. No arrays are read here.

A step is whole if it was committed and its `meta` is readable, is of that step and agrees with its
own digest; any other folder with a step's name is ignored.
"""

import hashlib
import json
import re
from pathlib import Path

from jaxrope.errors import InputError
from jaxrope.store import files, strict_json

FORMAT = "jaxrope.checkpoint/1"
FOLDER = "checkpoints"
_SIZES = ("int8", "int16", "int32", "int64")
_DTYPES = {"bool", "bfloat16", "float16", "float32", "float64", *_SIZES}
_DTYPES |= {f"u{name}" for name in _SIZES}


class NotWhole(ValueError):
    """A folder with a step's name does not hold a whole step; the message says why."""


def describe(path: Path, step: int | None = None) -> dict:
    """Returns the `meta` of a step (None = the newest whole one) without reading its arrays.

    `meta["leaves"]["params"]["embed_VD"]` is that leaf's shape, dtype and digest.

    Raises:
      InputError: there is no whole step.
    """
    return read_meta(find_step(path, step))


def find_step(path: Path, step: int | None = None) -> Path:
    """Returns the folder of a whole step: of `step`, or of the newest one.

    Raises:
      InputError: there is none, or it was written by a newer version.
    """
    path = files.absolute(path)
    if step is None and path.name.isdigit() and (path / "meta").exists():
        folder = path
    elif step is not None:
        folder = step_folder(path, step)
    else:
        steps = whole_steps(path)
        if not steps:
            reasons = (
                "; ".join(f"{name}: {why}" for name, why in sorted(rejected(path).items()))
                or "no folder with a step's name"
            )
            raise InputError(
                f"{path} holds no whole checkpoint ({reasons}). Give a workdir, its {FOLDER} "
                "folder, or one step's folder."
            )
        folder = step_folder(path, steps[-1])
    try:
        read_meta(folder)
    except NotWhole as error:
        listed = ", ".join(map(str, whole_steps(folder.parent))) or "none"
        raise InputError(
            f"{folder} is not a whole checkpoint: {error}. Whole steps there: {listed}."
        ) from None
    return folder


def whole_steps(path: Path) -> list[int]:
    """Returns the steps of a workdir that can be restored, in ascending order."""
    return sorted(step for step, why in _survey(path).items() if why is None)


def passed_over(path: Path) -> tuple[str, ...]:
    """Returns a line for each folder of a workdir that is named as a step newer than its newest
    whole one: what is read is older than it may seem.
    """
    steps = whole_steps(path)
    return tuple(
        f"{steps_root(path) / name} is not a whole checkpoint ({why}); step {steps[-1]} is read"
        for name, why in sorted(rejected(path).items())
        if steps and int(name) > steps[-1]
    )


def rejected(path: Path) -> dict[str, str]:
    """Returns {name: reason} of every folder with a step's name that is not a whole step."""
    return {f"{step:08d}": why for step, why in _survey(path).items() if why is not None}


def step_folder(path: Path, step: int) -> Path:
    """Returns the folder of a step of a workdir, whether it exists or not."""
    return steps_root(path) / f"{step:08d}"


def read_meta(folder: Path) -> dict:
    """Returns a step's `meta`.

    Raises:
      NotWhole: the step was not committed, or its `meta` or the parameters' folder is missing or
        damaged.
      InputError: the step was written by a newer version.
    """
    if not folder.is_dir():
        raise NotWhole("there is no such folder" if not folder.exists() else "it is not a folder")
    if not (folder / "commit_success.txt").is_file():
        raise NotWhole("it was never committed (no commit_success.txt)")
    path = folder / "meta" / "metadata"
    try:
        meta = strict_json.read(path, max_bytes=strict_json.MAX_INDEX_BYTES)
    except InputError:
        raise NotWhole("its meta is missing or not readable") from None
    if not {"format", "sha256"} <= meta.keys():
        raise NotWhole("its meta is missing or not readable")
    if meta["format"] != FORMAT:
        raise InputError(
            f"{folder} has format '{meta['format']}'; this version reads '{FORMAT}'. Use the "
            "version of jaxrope that wrote it."
        )
    if meta["sha256"] != seal(meta):
        raise NotWhole("its meta is damaged (its digest differs)")
    if not _is_described(meta.get("leaves")):
        raise NotWhole("its meta lacks the shape, dtype or digest of a leaf")
    if meta.get("step") != int(folder.name):
        raise NotWhole(f"its meta is of step {meta.get('step')}")
    missing = [item for item in meta["leaves"] if not (folder / item).is_dir()]
    if missing:
        raise NotWhole(f"the item {missing[0]} is missing")
    return meta


def steps_root(path: Path) -> Path:
    """Returns the folder that holds the steps of a workdir; it may be given itself."""
    path = files.absolute(path)
    return path if path.name == FOLDER else path / FOLDER


def _survey(path: Path) -> dict[int, str | None]:
    root = steps_root(path)
    if not root.is_dir():
        return {}
    reasons: dict[int, str | None] = {}
    for folder in root.iterdir():
        if not re.fullmatch("[0-9]{8}", folder.name):
            continue
        try:
            read_meta(folder)
            reasons[int(folder.name)] = None
        except NotWhole as error:
            reasons[int(folder.name)] = str(error)
    return reasons


def _is_described(leaves) -> bool:
    """Returns whether every leaf of every item has a shape, a dtype and a digest."""

    def is_leaf(leaf) -> bool:
        is_row = isinstance(leaf, dict) and leaf.keys() == {"shape", "dtype", "digest"}
        shape = leaf["shape"] if is_row else None
        return (
            isinstance(shape, list)
            and all(type(size) is int and 0 <= size < 2**31 for size in shape)
            and isinstance(leaf["dtype"], str)
            and leaf["dtype"] in _DTYPES
            and isinstance(leaf["digest"], str)
        )

    items = leaves.values() if isinstance(leaves, dict) else [None]
    return all(isinstance(item, dict) and all(map(is_leaf, item.values())) for item in items)


def seal(meta: dict) -> str:
    """Returns the digest of a `meta`, stored in it as "sha256"."""
    body = {key: value for key, value in meta.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

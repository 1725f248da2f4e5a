"""Parses `config.recipe` into stages: the config of each, and the stages that it starts from.

A stage is ("name", kind, (("dotted.key", value), ...)): the config of the recipe with these keys
changed. "{name}" in a text is the folder of an earlier stage. Mistakes are refused
here, before anything runs.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxrope.errors import InputError, choose, nearest
from jaxrope.shell import experiment

KINDS = ("search", "train", "join", "evaluate")
WITH_MODEL = ("train", "join")  # kinds whose folder is a model
WITH_ROPE = ("search", "train", "join")  # kinds whose folder has a rope.json
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_PLACE = re.compile(r"\{([^{}]*)\}")
_NOT_OF_A_STAGE = ("recipe", "stages", "sweep")


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
      name: also of its folder.
      kind: of KINDS.
      config: what it runs with; "{name}" still stands for the folder of another stage.
      uses: names of the stages whose folders it reads, in their order.
    """

    name: str
    kind: str
    config: ConfigDict
    uses: tuple[str, ...]

    def resolved(self, workdir: Path) -> ConfigDict:
        """Returns its config with the folders of other stages in `workdir`."""
        config = self.config.copy_and_resolve_references()

        def put(text: str) -> str:
            return _PLACE.sub(lambda match: str(workdir / match.group(1)), text)

        for key, value in experiment.dotted_keys(config).items():
            if not isinstance(value, ConfigDict) and any(map(_PLACE.search, texts(value))):
                *sections, leaf = key.split(".")
                section = config
                for name in sections:
                    section = section[name]
                with section.unlocked(), section.ignore_type():
                    section[leaf] = _with_texts(value, put)
        return config.lock()

    def from_stage(self, text: str) -> str:
        """Returns the name of the stage that a path begins with, or ""."""
        match = _PLACE.match(text)
        return match.group(1) if match else ""


def parse(config) -> list[Stage]:
    """Returns the stages of `config.recipe`, in order.

    Raises:
      InputError: an entry is malformed, two have one name, a key or a kind is unknown, a value is
        not of its key's type, or a text names a stage that is not an earlier one.
    """
    if config.sweep:
        raise InputError("config.sweep is of search.py, config.recipe of train.py. Leave one out.")
    names = [_checked_entry(entry)[0] for entry in config.recipe]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"recipe: two stages are named '{name}'. Rename one.")
    stages: list[Stage] = []
    for name, kind, changes in config.recipe:
        if kind not in KINDS:
            raise InputError(
                f"stage '{name}' of recipe: unknown kind '{kind}'. {nearest(kind, KINDS)}"
            )
        stage_config = config.copy_and_resolve_references()
        with stage_config.unlocked():
            stage_config.recipe, stage_config.stages = (), ()
        for key, value in changes:
            _check_key(name, key)
            experiment.assign(stage_config, key, value, setting=f"stage '{name}' of recipe")
        stages.append(Stage(name, kind, stage_config.lock(), _uses(name, stage_config, names)))
    return stages


def chosen(config, stages: list[Stage]) -> list[Stage]:
    """Returns the stages that `config.stages` names, in the order of the recipe; () = all.

    Raises:
      InputError: there is no such stage.
    """
    by_name = {stage.name: stage for stage in stages}
    for name in config.stages:
        choose("config.stages", name, by_name)
    return [stage for stage in stages if not config.stages or stage.name in config.stages]


def texts(value: Any) -> Iterator[str]:
    """Yields every text in a value: itself, or those in its tuples, lists and dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, dict | ConfigDict):
        for item in value.values():
            yield from texts(item)


def _with_texts(value: Any, put: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return put(value)
    if isinstance(value, tuple | list):
        return type(value)(_with_texts(item, put) for item in value)
    if isinstance(value, dict):
        return {key: _with_texts(item, put) for key, item in value.items()}
    return value


def _checked_entry(entry: Any) -> tuple:
    is_entry = isinstance(entry, tuple | list) and len(entry) == 3
    is_entry = is_entry and all(isinstance(part, str) for part in entry[:2])
    is_entry = is_entry and isinstance(entry[2], tuple | list) and all(map(_is_pair, entry[2]))
    if not is_entry:
        raise InputError(
            'recipe must hold stages like ("name", "train", (("train.steps", 400),)), got '
            f"{entry!r}. In a tuple of one pair the comma after it is easily lost."
        )
    if not _NAME.fullmatch(entry[0]):
        raise InputError(
            f"recipe: a stage's name is that of its folder: letters, digits, _, - and ., got "
            f"'{entry[0]}'. Rename it."
        )
    return tuple(entry)


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)


def _check_key(name: str, key: str) -> None:
    top = key.partition(".")[0]
    if top in (*_NOT_OF_A_STAGE, "hosts"):
        raise InputError(
            f"stage '{name}' of recipe: {key} is of the whole recipe, no stage has its own. Set "
            f"config.{top} beside config.recipe."
        )


def _uses(name: str, config: ConfigDict, names: list[str]) -> tuple[str, ...]:
    """Returns the stages that the texts of a stage's config name; all must be earlier ones."""
    earlier, used = names[: names.index(name)], set()
    for key, value in experiment.dotted_keys(config).items():
        if isinstance(value, ConfigDict):
            continue
        for other in (reference for text in texts(value) for reference in _PLACE.findall(text)):
            where = f"stage '{name}' of recipe: {key} names '{{{other}}}'"
            if other == name:
                raise InputError(f"{where}, itself. Name an earlier stage.")
            if other in names and other not in earlier:
                raise InputError(
                    f"{where}, which comes later. Move stage '{other}' before '{name}', or name "
                    "an earlier one."
                )
            if other not in earlier:
                raise InputError(f"{where}, and no stage has that name. {nearest(other, earlier)}")
            used.add(other)
    return tuple(other for other in earlier if other in used)

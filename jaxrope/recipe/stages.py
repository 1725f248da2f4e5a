"""Parses `config.recipe` into stages: the config of each, and the stages that it starts from.

A stage is ("name", kind, (("dotted.key", value), ...)): the config of the recipe with these keys
changed. "{name}" in a text is the folder of an earlier stage. Mistakes are refused
here, before anything runs.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from jaxrope import schema
from jaxrope.errors import InputError, choose, nearest
from jaxrope.schema import Config

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_PLACE = re.compile(r"\{([^{}]*)\}")
_OF_THE_RECIPE = ("recipe", "stages", "sweep", "hosts")
_WITH_MODEL = ("train", "join")  # kinds whose folder is a model
_WITH_ROPE = ("search", "train", "join")  # kinds whose folder has a rope.json


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
      name: also of its folder.
      kind: of schema.KINDS.
      config: what it runs with; "{name}" still stands for the folder of another stage.
      uses: names of the stages whose folders it reads, in their order.
    """

    name: str
    kind: str
    config: Config
    uses: tuple[str, ...]

    def resolved(self, workdir: Path, names: Collection[str] | None = None) -> Config:
        """Returns its config with the folders of other stages in `workdir`; of those that `names`
        has, if it is given.
        """

        def put(match: re.Match) -> str:
            name = match.group(1)
            return str(workdir / name) if names is None or name in names else match.group()

        return schema.read(_with_texts(self.config.to_dict(), lambda text: _PLACE.sub(put, text)))

    def what(self) -> str:
        """Returns what messages call it."""
        return f"stage '{self.name}' of recipe"


def stage_of(text: str) -> str:
    """Returns the name of the stage that a path begins with, or ""."""
    match = _PLACE.match(text)
    return match.group(1) if match else ""


def parse(config: Config) -> list[Stage]:
    """Returns the stages of `config.recipe`, in order.

    Raises:
      InputError: two have one name, a key is unknown, a value breaks its rule, or a text names a
        stage that is not an earlier one.
    """
    names = [name for name, _, _ in config.recipe]
    for name in names:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"recipe: a stage's name is that of its folder: letters, digits, _, - and ., got "
                f"'{name}'. Rename it."
            )
        if names.count(name) > 1:
            raise InputError(f"recipe: two stages are named '{name}'. Rename one.")
    base = dataclasses.replace(config, recipe=(), stages=())
    stages: list[Stage] = []
    for name, kind, changes in config.recipe:
        setting = f"stage '{name}' of recipe"
        for key, _ in changes:
            if key.partition(".")[0] in _OF_THE_RECIPE:
                raise InputError(
                    f"{setting}: {key} is of the whole recipe, no stage has its own. Set "
                    f"config.{key.partition('.')[0]} beside config.recipe."
                )
        stage_config = schema.replace(base, changes, setting=setting)
        stages.append(Stage(name, kind, stage_config, _uses(name, stage_config, names)))
    for stage in stages:
        _check_places(stage, {other.name: other.kind for other in stages})
    return stages


def chosen(config: Config, stages: list[Stage]) -> list[Stage]:
    """Returns the stages that `config.stages` names, in the order of the recipe; () = all.

    Raises:
      InputError: there is no such stage.
    """
    by_name = {stage.name: stage for stage in stages}
    for name in config.stages:
        choose("config.stages", name, by_name)
    return [stage for stage in stages if not config.stages or stage.name in config.stages]


def _texts(value: Any) -> Iterator[str]:
    """Yields every text in a value: itself, or those in its tuples and dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        yield from _texts(tuple(value.values()))


def _with_texts(value: Any, put: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return put(value)
    if isinstance(value, tuple):
        return tuple(_with_texts(item, put) for item in value)
    if isinstance(value, dict):
        return {key: _with_texts(item, put) for key, item in value.items()}
    return value


def _check_places(stage: Stage, kind_of: dict[str, str]) -> None:
    """Refuses a path into another stage that leaves nothing of the kind there."""
    for key, path, kinds in _places(stage.config):
        name = stage_of(path)
        if name and kind_of[name] not in kinds:
            what = "model" if kinds == _WITH_MODEL else "rope.json"
            raise InputError(
                f"{stage.what()}: {key}: '{path}' is of kind '{kind_of[name]}', which leaves no "
                f"{what}. Name a stage of kind {' or '.join(kinds)}."
            )
        if name and key == "rope.path" and not path.endswith("/rope.json"):
            raise InputError(
                f"{stage.what()}: rope.path must be a file, got '{path}'. Write '{path}/rope.json'."
            )


def _places(config: Config) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yields (key, path, kinds of stages that leave what is to be there)."""
    if config.model.source == "checkpoint":
        yield "model.path", config.model.path, _WITH_MODEL
    if config.rope.method == "file":
        yield "rope.path", config.rope.path, _WITH_ROPE
    yield "eval.longppl.evaluator", config.eval.longppl.evaluator, _WITH_MODEL
    for _, path, method in config.eval.checkpoints:
        yield "eval.checkpoints", path, _WITH_MODEL
        yield "eval.checkpoints", method, _WITH_ROPE
    for key in ("eval.methods", "search.seeds", "join.ropes"):
        for path in schema.get(config, key):
            yield key, path, _WITH_ROPE


def _uses(name: str, config: Config, names: list[str]) -> tuple[str, ...]:
    """Returns the stages that the texts of a stage's config name; all must be earlier ones."""
    earlier, used = names[: names.index(name)], set()
    for key, value in schema.leaves(config):
        for other in (reference for text in _texts(value) for reference in _PLACE.findall(text)):
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

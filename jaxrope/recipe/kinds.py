"""The kinds of stages: which program each runs, how its output is evaluated, and what it will leave
for later stages.

A stage has one part or two: its program, and the evaluation of what that made, where `eval.suites`
names any. Each part leaves in the stage's folder what its program leaves in a workdir, and goes on
where it was stopped or killed.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrope import decoder, rope, schema, setup, train
from jaxrope.convert import Pretrained
from jaxrope.evaluate.__main__ import PROGRAM as EVALUATE
from jaxrope.recipe import join
from jaxrope.recipe.stages import Stage
from jaxrope.schema import Config, Identity
from jaxrope.search.__main__ import PROGRAM as SEARCH
from jaxrope.setup import Expected
from jaxrope.shell import Program
from jaxrope.store import steps
from jaxrope.train.__main__ import PROGRAM as TRAIN

_ADDED = ("forward tokens",)  # columns that are added up


@dataclasses.dataclass(frozen=True)
class Part:
    """A program that a stage runs.

    Attributes:
      name: of the program, as schema.identify has it.
      program: the program.
      config: what it runs with.
      folder: the stage's.
    """

    name: str
    program: Program
    config: Config
    folder: Path

    def identity(self, prepared: Any) -> Identity:
        """Returns what its result depends on, the length of a training included; `prepared` is of
        its program's `prepare`, and all its inputs are there.
        """
        return schema.identify(self.name, self.config, prepared.identity.content)

    def settings(self) -> Mapping[str, Any]:
        """Returns the settings that its result depends on."""
        return schema.identify(self.name, self.config, {}).settings


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of stage.

    Attributes:
      program: that it runs; None: nothing but the evaluation.
      what: (config) -> in words, for tables.
      outline: (config, expected) -> as much of `prepared` as `leaves` needs, without text.
      evaluated: (config, folder) -> the config that evaluates its output.
      leaves: (prepared, config, folder, expected) -> what it will leave, with what is expected
        already.
      is_there: (folder) -> whether its output is.
    """

    program: Program | None
    what: Callable[[Config], str]
    outline: Callable[[Config, Expected], Any]
    evaluated: Callable[[Config, Path], Config]
    leaves: Callable[[Any, Config, Path, Expected], Expected]
    is_there: Callable[[Path], bool]


def parts(stage: Stage, workdir: Path) -> list[Part]:
    """Returns what a stage runs, in order.

    Args:
      stage: the stage.
      workdir: of the recipe.
    """
    kind, config, folder = KINDS[stage.kind], stage.resolved(workdir), workdir / stage.name
    both = []
    if kind.program is not None:
        both.append(Part(stage.kind, kind.program, _without_evaluation(stage.kind, config), folder))
    if config.eval.suites or kind.program is None:
        both.append(Part("evaluate", EVALUATE, kind.evaluated(config, folder), folder))
    return both


def columns(parts: list[Part]) -> dict[str, Any]:
    """Returns the columns of all parts, which are finished, by name."""
    merged: dict[str, Any] = {}
    for part in parts:
        for name, value in (part.program.door.finished(part.config, part.folder) or {}).items():
            merged[name] = merged[name] + value if name in _ADDED and name in merged else value
    return merged


def _without_evaluation(kind: str, config: Config) -> Config:
    """Returns the config of a stage's program: a training that evaluates nothing on the way
    evaluates nothing at its end either, for the stage does.
    """
    if kind != "train" or config.train.eval_every:
        return config
    return schema.replace(config, {"eval.suites": ()})


def _of_folder(config: Config, folder: Path) -> Config:
    """Returns the config that evaluates the folder's model with its own rope."""
    shape = config.model.shape if config.model.source == "checkpoint" else ""
    model = dict(source="checkpoint", path=str(folder), shape=shape)
    label = config.eval.label or folder.name
    rope_section = dict(method="model")
    return schema.replace(config, {"model": model, "rope": rope_section, "eval.label": label})


def _with_rope_of_folder(config: Config, folder: Path) -> Config:
    """Returns the config that evaluates the searched model with the folder's factors."""
    section = dict(method="file", path=str(folder / "rope.json"))
    label = config.eval.label or folder.name
    return schema.replace(config, {"rope": section, "eval.label": label})


class _Outline(NamedTuple):
    """Of a search its model, of a training what it leaves."""

    model: decoder.DecoderConfig | None = None
    outcome: Pretrained | None = None


def _search_leaves(prepared: Any, config: Config, folder: Path, expected: Expected) -> Expected:
    """A rope.json: factors that ascend to the extension, in place of those to be found."""
    model = prepared.model
    own = decoder.own_base(model)
    highest = max(1.0, config.target_len / own.length)
    factors = np.array(own.factors) * np.linspace(1.0, highest, model.rotary_dim // 2)
    if config.search.per_layer:
        factors = np.tile(factors, (model.num_layers, 1))
    bucket = dict(max_len=config.target_len, factors=rope.as_factors(factors))
    bucket |= dict(start_tokens=config.search.start_tokens[0], attention_factor=1.0)
    rope_fn = rope.make("longrope", **model.geometry, buckets=[bucket])
    return _with_rope(expected, folder, rope_fn)


def _leaves_outcome(prepared: Any, config: Config, folder: Path, expected: Expected) -> Expected:
    """A model, whose shape and rope are known."""
    outcome = dataclasses.replace(prepared.outcome, source=str(folder))
    with_model = dataclasses.replace(expected, models={**expected.models, str(folder): outcome})
    if setup.is_own_rope(outcome.rope_fn, outcome.config):
        return with_model
    return _with_rope(with_model, folder, outcome.rope_fn)


def _join_leaves(prepared: Any, config: Config, folder: Path, expected: Expected) -> Expected:
    """A model with its rope, or the rope alone."""
    if config.join.weights:
        return _leaves_outcome(prepared, config, folder, expected)
    return _with_rope(expected, folder, prepared.joined)


def _has_model(folder: Path) -> bool:
    return bool(steps.whole_steps(folder))


def _has_join(folder: Path) -> bool:
    has_weights = (folder / "model.json").exists()
    return _has_model(folder) if has_weights else (folder / "rope.json").exists()


def _with_rope(expected: Expected, folder: Path, rope_fn: rope.RopeFn) -> Expected:
    """A rope.json is named by its path, or by that of its workdir."""
    ropes = {**expected.ropes, str(folder / "rope.json"): rope_fn, str(folder): rope_fn}
    return dataclasses.replace(expected, ropes=ropes)


def _train_what(config: Config) -> str:
    section = config.train
    return f"{section.steps:,} steps of {section.batch_size:,} x {section.seq_len:,}"


KINDS = {
    "search": Kind(
        SEARCH,
        what=lambda config: f"search for {config.target_len:,}",
        outline=lambda config, expected: _Outline(model=setup.outlined(config, expected).config),
        evaluated=_with_rope_of_folder,
        leaves=_search_leaves,
        is_there=lambda folder: (folder / "rope.json").exists(),
    ),
    "train": Kind(
        TRAIN,
        what=_train_what,
        outline=lambda config, expected: _Outline(outcome=train.outline(config, expected)),
        evaluated=_of_folder,
        leaves=_leaves_outcome,
        is_there=_has_model,
    ),
    "join": Kind(
        join.PROGRAM,
        what=lambda config: f"join of {len(config.join.ropes)} ropes",
        outline=join.prepare,
        evaluated=_of_folder,
        leaves=_join_leaves,
        is_there=_has_join,
    ),
    "evaluate": Kind(
        None,
        what=lambda config: f"evaluation of {len(config.eval.checkpoints) + 1} models",
        outline=lambda config, expected: None,
        evaluated=lambda config, folder: config,
        leaves=lambda prepared, config, folder, expected: expected,
        is_there=lambda folder: True,
    ),
}

"""A recipe, checked before any of it runs: what is finished, and that all the rest can run.

Every stage that is to run is prepared by its own program, with `setup.Expected` in place of what
earlier ones will leave; every stage that is finished must be the one that the config asks for now,
with the weights and texts that are there now.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxrope import schema, setup
from jaxrope.errors import InputError
from jaxrope.mesh import hosts
from jaxrope.recipe import kinds, record
from jaxrope.recipe.kinds import KINDS, Part
from jaxrope.recipe.stages import Stage, chosen, parse
from jaxrope.schema import Config, Identity
from jaxrope.store import files


@dataclasses.dataclass(frozen=True)
class Plan:
    """A recipe in a workdir.

    Attributes:
      workdir: each stage has a folder in it.
      stages: all of them, in order.
      selected: those that are to be run, or were asked for and are finished.
      parts: of each stage, by its name.
      records: stage.json of those that were begun, by name.
      digests: of the settings of each, by name.
      expected: what is there before each part of a stage that is to run, by the stage's name.
    """

    workdir: Path
    stages: tuple[Stage, ...]
    selected: tuple[Stage, ...]
    parts: Mapping[str, list[Part]]
    records: dict[str, dict]
    digests: dict[str, str]
    expected: Mapping[str, list[setup.Expected]]

    def is_finished(self, name: str) -> bool:
        """Returns whether a stage is."""
        return name in self.records and self.records[name]["finished"]

    def later(self, name: str) -> list[str]:
        """Returns the names of all stages that are made from one, near and far."""
        return [s.name for s in self.stages if name in _ancestors([s.name], self.stages)]

    def check_identity(self, stage: Stage) -> None:
        """Refuses a finished stage that would be another one now, as far as what it was made from
        is still there: a model may have been deleted since.

        Raises:
          InputError: see record.check_identities.
        """
        by_name = {other.name: other for other in self.stages}
        if not all(self._is_there(by_name[name]) for name in stage.uses):
            return
        parts = self.parts[stage.name]
        there = parts if self._is_there(stage) else parts[:1]
        folder, content = self.workdir / stage.name, self.records[stage.name]
        now = identities(stage, there)
        record.check_identities(stage, folder, content, now, self.later(stage.name))

    def _is_there(self, stage: Stage) -> bool:
        folder = self.workdir / stage.name
        return hosts.from_main("output", lambda: KINDS[stage.kind].is_there(folder))


def prepare(config: Config, workdir: Path) -> Plan:
    """Returns the plan of a recipe.

    Args:
      config: with a recipe; `config.stages` names those that are to run, () all.
      workdir: of the recipe.

    Raises:
      InputError: a stage cannot run, even if all earlier ones succeed; or a finished one that is
        needed would be another one now. The message names the stage.
    """
    config = schema.read(config)
    stages, workdir = tuple(parse(config)), files.absolute(workdir)
    selected = tuple(chosen(config, list(stages)))
    parts = {stage.name: kinds.parts(stage, workdir) for stage in stages}
    read = hosts.from_main(
        "recipe", lambda: {s.name: record.read(workdir / s.name) for s in stages}
    )
    records = {name: content for name, content in read.items() if content is not None}
    expected: dict[str, list[setup.Expected]] = {}
    digests = record.digests(stages, parts, records)
    plan = Plan(workdir, stages, selected, parts, records, digests, expected)
    names = [stage.name for stage in selected]
    needed, so_far = {*names, *_ancestors(names, stages)}, setup.NOTHING
    for stage in stages:
        if stage.name in needed and stage.name in records:
            now, later = parts[stage.name], plan.later(stage.name)
            record.check_settings(stage, now, records[stage.name], digests, later)
        runs = stage in selected and not plan.is_finished(stage.name)
        if runs:
            _check_inputs(plan, stage)
            expected[stage.name] = _prepared(stage, parts[stage.name], so_far)
            so_far = expected[stage.name][-1]
        elif stage.name in needed and all(plan.is_finished(name) for name in stage.uses):
            if plan.is_finished(stage.name):
                plan.check_identity(stage)
    return plan


def identities(stage: Stage, parts: list[Part]) -> dict[str, Identity]:
    """Returns what a stage depends on, by program; all that it is made from is there."""
    with naming(stage):
        return {p.name: p.identity(p.program.door.prepare(p.config)) for p in parts}


@contextlib.contextmanager
def naming(stage: Stage) -> Iterator[None]:
    """Names the stage in what is refused."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{stage.what()}: {error}") from None


def _prepared(stage: Stage, parts: list[Part], so_far: setup.Expected) -> list[setup.Expected]:
    """Prepares a stage; returns what is expected before each of its parts, and after the last."""
    expected = [so_far]
    with naming(stage):
        for part in parts:
            prepared = part.program.door.prepare(part.config, expected=expected[-1])
            leaves = KINDS[part.name].leaves
            expected.append(leaves(prepared, part.config, part.folder, expected[-1]))
    return expected


def _check_inputs(plan: Plan, stage: Stage) -> None:
    """Refuses a stage whose inputs are not there and will not be made."""
    names = [selected.name for selected in plan.selected]
    for name in stage.uses:
        if name not in names and not plan.is_finished(name):
            raise InputError(
                f"{stage.what()}: it starts from '{name}', which is not finished in "
                f"{plan.workdir}. Run that first, or both: --config.stages={name},{stage.name}"
            )


def _ancestors(names: list[str], stages: tuple[Stage, ...]) -> set[str]:
    """Returns the names of all stages that some are made from, near and far."""
    by_name, ancestors = {stage.name: stage for stage in stages}, set()
    rest = [other for name in names for other in by_name[name].uses]
    while rest:
        name = rest.pop()
        if name not in ancestors:
            ancestors.add(name)
            rest += by_name[name].uses
    return ancestors

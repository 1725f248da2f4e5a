"""Trains and searches as a recipe, measures, and writes the findings."""

import dataclasses
from pathlib import Path

from jaxrope import recipe, schema
from jaxrope.analyse import claims, measuring, numbers, parts, plan, writing
from jaxrope.analyse.measuring import Material
from jaxrope.analyse.numbers import Measurements
from jaxrope.analyse.plan import BASE, Study
from jaxrope.schema import Config
from jaxrope.shell import cli, exit_at_once
from jaxrope.store import files, run_lock, sealed


@dataclasses.dataclass(frozen=True)
class Prepared:
    """An analysis, checked before any of it runs.

    Attributes:
      studies: of the first model, and of the second if there is one.
      materials: the texts and questions of each, by its name.
      recipe: the config whose stages train and search.
      todo: the measurements.
    """

    studies: list[Study]
    materials: dict[str, Material]
    recipe: Config
    todo: list[parts.Part]


def prepare(config: Config, workdir: Path) -> Prepared:
    """Returns an analysis: texts, questions and every stage are checked, before any weights are
    read.

    Args:
      config: of configs/base.py.
      workdir: where it would run.

    Raises:
      InputError: any mistake that can be detected before a stage runs.
    """
    config = schema.read(config)
    studies = plan.make(config)
    stages = tuple(stage for study in studies for stage in study.stages)
    recipe_config = schema.replace(config, {"recipe": stages})
    materials = {study.name: measuring.prepare(study) for study in studies}
    recipe.prepare(recipe_config, workdir)
    todo = [part for study in studies for part in parts.all_of(study)]
    return Prepared(studies, materials, recipe_config, todo)


def dry_run(config: Config, workdir: Path, *, timing: bool = True) -> str:
    """Returns the stages and the measurements, and what they cost.

    Args:
      config: of configs/base.py.
      workdir: where it would run.
      timing: measures, for about a minute in all.

    Raises:
      InputError: see prepare.
    """
    prepared = prepare(config, workdir)
    stages = recipe.dry_run(prepared.recipe, workdir, timing=timing)
    return f"{stages}\n\n{_costs(prepared.todo)}"


def run(config: Config, workdir: Path) -> int:
    """Runs the experiments of `config.analysis`, or the rest of them.

    Args:
      config: of configs/base.py.
      workdir: gets a folder for each stage, the measurements in measured/, and the results in
        figures/, attention.json, findings.json and findings.md.

    Returns:
      The exit code: 0, or that of a stage that did not end with 0.

    Raises:
      InputError: see prepare.
    """
    workdir = files.absolute(workdir)
    prepared = prepare(config, workdir)
    code = recipe.run(prepared.recipe, workdir)
    if code:
        return code
    rest = f"{workdir} has every measurement that was finished. The same command goes on."
    with run_lock(workdir), exit_at_once(rest):
        if command := cli.command_line():
            for name, _, _ in prepared.recipe.recipe:
                files.write_text_atomic(workdir / name / "command.txt", f"{command}\n")
        parts.run(prepared.todo, prepared.materials, workdir)
        _write(prepared, workdir, command)
    return 0


def _write(prepared: Prepared, workdir: Path, command: str) -> None:
    store = parts.Store(workdir, prepared.materials, cli.print_line)
    studied = [_read_measurements(study, store, workdir) for study in prepared.studies]
    second = studied[1] if len(studied) > 1 else None
    predicted = numbers.predictions(studied[0], _trained(studied[0]))
    findings = claims.all_of(studied[0], second, predicted)
    for measurements in studied:
        writing.write(
            measurements,
            findings if measurements is studied[0] else (),
            workdir,
            predicted=predicted,
            command=command,
        )


def _costs(todo) -> str:
    """Returns the cost of the measurements as text, by kind."""
    total = {kind: sum(p.tokens() for p in todo if p.kind == kind) for kind in parts.KINDS}
    counts = {kind: sum(p.kind == kind for p in todo) for kind in parts.KINDS}
    lines = [f"measured: {sum(total.values()):,} forward tokens at most"]
    return "\n".join(
        lines + [f"  {kind}: {counts[kind]} of {n:,} in all" for kind, n in total.items()]
    )


def _trained(measurements: Measurements) -> list[str]:
    section = measurements.study.config.analysis
    return [name for name in section.settings if name in measurements.answers]


def _read_measurements(study: Study, store: parts.Store, workdir: Path) -> Measurements:
    read = {kind: {} for kind in parts.KINDS}
    for part in parts.all_of(study):
        read[part.kind][part.subject.label] = store.read(part)
    rows = _rows(workdir / f"{study.name}{plan.PERPLEXITY}")
    haystack = None
    if study.config.analysis.haystack:
        haystack_rows = _rows(workdir / f"{study.name}haystack")
        haystack = next(row for row in haystack_rows if row["label"] == BASE)
    heads = {label: record for label, (record, _) in read["heads"].items()}
    return Measurements(study, read["texts"], read["answers"], heads, rows, haystack)


def _rows(folder: Path) -> list[dict]:
    return sealed.read_json(folder / "eval.json")["rows"]

"""Trains and searches as a recipe, measures, and writes the findings."""

from pathlib import Path

from jaxrope import recipe
from jaxrope.analyse import claims, measuring, numbers, parts, plan, writing
from jaxrope.analyse.numbers import Measurements
from jaxrope.analyse.plan import BASE, Study
from jaxrope.shell import cli
from jaxrope.store import files, sealed
from jaxrope.store.lock import run_lock


def run(config, workdir: Path, dry_run: bool) -> int:
    """Runs the experiments of `config.analysis`, or the rest of them.

    Args:
      config: of configs/base.py.
      workdir: gets a folder for each stage, the measurements in measured/, and the results in
        figures/, attention.json, findings.json and findings.md.
      dry_run: only print the cost.

    Returns:
      The exit code: 0, or that of a stage that did not end with 0.

    Raises:
      InputError: any mistake that can be detected before a stage runs.
    """
    workdir = files.absolute(workdir)
    studies = plan.make(config)
    recipe_config = config.copy_and_resolve_references()
    with recipe_config.unlocked():
        recipe_config.recipe = tuple(stage for study in studies for stage in study.stages)
    recipe_config.lock()
    todo = [part for study in studies for part in parts.all_of(study)]
    if dry_run:
        for study in studies:
            measuring.prepare(study)
        code = recipe.run(recipe_config, workdir, True)
        cli.print_line(_costs(todo))
        return code
    # texts and questions first, so that mistakes in them show before anything is trained
    materials = {study.name: measuring.prepare(study) for study in studies}
    code = recipe.run(recipe_config, workdir, False)
    if code:
        return code
    with run_lock(workdir):
        if command := cli.command_line():
            for name, _, _ in recipe_config.recipe:
                files.write_text_atomic(workdir / name / "command.txt", f"{command}\n")
        parts.run(todo, materials, workdir)
        studied = [_read_measurements(study, workdir) for study in studies]
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
    return 0


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


def _read_measurements(study: Study, workdir: Path) -> Measurements:
    read = {kind: {} for kind in parts.KINDS}
    for part in parts.all_of(study):
        read[part.kind][part.subject.label] = parts.read(part, workdir)
    rows = _rows(workdir / f"{study.name}{plan.PERPLEXITY}")
    haystack = None
    if study.config.analysis.haystack:
        haystack_rows = _rows(workdir / f"{study.name}haystack")
        haystack = next(row for row in haystack_rows if row["label"] == BASE)
    heads = {label: record for label, (record, _) in read["heads"].items()}
    return Measurements(study, read["texts"], read["answers"], heads, rows, haystack)


def _rows(folder: Path) -> list[dict]:
    return sealed.read_json(folder / "eval.json")["rows"]

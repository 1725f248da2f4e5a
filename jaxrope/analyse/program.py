"""Trains and searches as a recipe, measures, and says what was found."""

import json
from pathlib import Path

from jaxrope import recipe
from jaxrope.analyse import claims, measuring, numbers, parts, plan, writing
from jaxrope.analyse.numbers import Found
from jaxrope.analyse.plan import BASE, Study
from jaxrope.shell import cli
from jaxrope.store import files
from jaxrope.store.lock import run_lock


def run(config, workdir: Path, dry_run: bool) -> int:
    """Runs the experiments of `config.analysis`, or the rest of them.

    Args:
      config: of configs/base.py.
      workdir: stages have their folders in it; measured/ what was measured; figures/,
        attention.json, findings.json and findings.md what came of it.
      dry_run: only say what it costs.

    Returns:
      The exit code: 0, or that of a stage that did not end with 0.

    Raises:
      InputError: anything that can be known to be wrong before a stage runs.
    """
    workdir = files.absolute(workdir)
    studies = plan.make(config)
    made = config.copy_and_resolve_references()
    with made.unlocked():
        made.recipe = tuple(stage for study in studies for stage in study.stages)
    made.lock()
    todo = [part for study in studies for part in parts.all_of(study)]
    if dry_run:
        for study in studies:
            measuring.prepare(study)
        code = recipe.run(made, workdir, True)
        cli.print_line(_costs(todo))
        return code
    # texts and questions first: what is wrong with them is known before anything is trained
    materials = {study.name: measuring.prepare(study) for study in studies}
    code = recipe.run(made, workdir, False)
    if code:
        return code
    with run_lock(workdir):
        if command := cli.command_line():
            for name, _, _ in made.recipe:
                files.write_text_atomic(workdir / name / "command.txt", f"{command}\n")
        parts.run(todo, materials, workdir)
        found = [_found(study, workdir) for study in studies]
        second = found[1] if len(found) > 1 else None
        predicted = numbers.predictions(found[0], _trained(found[0]))
        told = claims.all_of(found[0], second, predicted)
        for one in found:
            writing.write(
                one, told if one is found[0] else (), workdir, predicted=predicted, command=command
            )
    return 0


def _costs(todo) -> str:
    """Returns what measuring costs, by kind."""
    total = {kind: sum(p.tokens() for p in todo if p.kind == kind) for kind in parts.KINDS}
    counts = {kind: sum(p.kind == kind for p in todo) for kind in parts.KINDS}
    lines = [f"measured: {sum(total.values()):,} forward tokens at most"]
    return "\n".join(
        lines + [f"  {kind}: {counts[kind]} of {n:,} in all" for kind, n in total.items()]
    )


def _trained(found: Found) -> list[str]:
    section = found.study.config.analysis
    return [name for name in section.settings if name in found.answers]


def _found(study: Study, workdir: Path) -> Found:
    read = {kind: {} for kind in parts.KINDS}
    for part in parts.all_of(study):
        read[part.kind][part.subject.label] = parts.read(part, workdir)
    rows = _rows(workdir / f"{study.name}{plan.PERPLEXITY}")
    haystack = None
    if study.config.analysis.haystack:
        asked = _rows(workdir / f"{study.name}haystack")
        haystack = next(row for row in asked if row["label"] == BASE)
    heads = {label: told for label, (told, _) in read["heads"].items()}
    return Found(study, read["texts"], read["answers"], heads, rows, haystack)


def _rows(folder: Path) -> list[dict]:
    return json.loads((folder / "eval.json").read_text(encoding="utf-8"))["rows"]

"""Runs the stages of a recipe one after another, each in a folder of its own, and reports their
results.

A stage that is finished is not run again; one that was stopped or killed goes on. Of several
processes, process 0 alone reads and writes stage.json and recipe.json, and broadcasts their
contents to the others.
"""

import functools
import gc
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxrope import schema, setup, topology
from jaxrope.mesh import hosts
from jaxrope.recipe import kinds, record
from jaxrope.recipe.kinds import KINDS
from jaxrope.recipe.plan import Plan, identities, naming, prepare
from jaxrope.recipe.stages import Stage, chosen, parse
from jaxrope.schema import Config
from jaxrope.shell import cli, duration, sweep
from jaxrope.store import files, run_lock, sealed

FORMAT = "jaxrope.recipe/2"
_TOKENS = ("forward", "trained")
_MEASURING = 60.0  # seconds; a dry run begins no measurement after them


def run(config: Config, workdir: Path) -> int:
    """Runs the stages of `config.recipe` that `config.stages` names, or the rest of them.

    Args:
      config: with a recipe.
      workdir: each stage has a folder in it; recipe.json describes them all.

    Returns:
      The exit code: 0, or that of the stage that did not end with 0.

    Raises:
      InputError: a mistake that shows before any stage runs; or the error of a stage, which the
        message then names.
    """
    workdir = files.absolute(workdir)
    jax.devices()  # on all processes at once: the first call waits for the others
    with run_lock(workdir):
        plan, ran = prepare(config, workdir), set()
        for number, stage in enumerate(plan.stages, start=1):
            if stage not in plan.selected:
                continue
            cli.print_line(f"\nstage {number} of {len(plan.stages)}: {stage.name} ({stage.kind})")
            if plan.is_finished(stage.name):
                if ran & set(stage.uses):  # they were made anew, perhaps not the same
                    plan.check_identity(stage)
                cli.print_line(f"finished before, in {workdir / stage.name}")
                continue
            code = _run_stage(plan, stage)
            if code:
                return code
            ran.add(stage.name)
        hosts.from_main("recipe.json", lambda: _write(plan))
    cli.print_line("\n" + _table(plan))
    cli.print_line(f"wrote recipe.json into {workdir}")
    return 0


def dry_run(config: Config, workdir: Path, *, timing: bool = True) -> str:
    """Returns the stages, what they cost and what is finished.

    Args:
      config: with a recipe.
      workdir: where it would run.
      timing: measures, for about a minute in all.

    Raises:
      InputError: see run.
    """
    jax.devices()
    plan, began = prepare(config, workdir), time.monotonic()
    texts = [_states(plan)]
    for stage in plan.selected:
        if plan.is_finished(stage.name):
            continue
        for part, expected in zip(plan.parts[stage.name], plan.expected[stage.name], strict=False):
            measures = timing and time.monotonic() - began < _MEASURING
            with naming(stage):
                text = part.program.door.dry_run(part.config, timing=measures, expected=expected)
            texts.append(f"{stage.name} ({part.name})\n{text}")
    return "\n\n".join(texts)


def compile_stages(config: Config, topology_name: str, workdir: Path | None) -> None:
    """Compiles the program of each stage that has one, for devices that need not be here.

    Args:
      config: with a recipe; its models need no checkpoint if model.shape names their shape.
      topology_name: such as "v5p:4x4x4"; "" = the devices of this machine.
      workdir: for compile.jsonl of each stage; None: no file.

    Raises:
      InputError: a stage does not fit itself or the slice.
    """
    compile_fns = {"search": topology.compile_search, "train": topology.compile_train}
    config, root, expected = schema.read(config), workdir or Path("."), setup.NOTHING
    stages = parse(config)
    selected = chosen(config, stages)
    for stage in stages[: max(map(stages.index, selected)) + 1]:
        kind, resolved = KINDS[stage.kind], stage.resolved(root)
        folder = root / stage.name
        with naming(stage):
            if stage in selected and stage.kind in compile_fns:
                cli.print_line(f"\n{stage.name} ({stage.kind})")
                if workdir is not None and not files.is_remote(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                where = folder if workdir else None
                compile_fns[stage.kind](resolved, topology_name, where, expected)
            outlined = kind.outline(resolved, expected)
            expected = kind.leaves(outlined, resolved, folder, expected)


def _run_stage(plan: Plan, stage: Stage) -> int:
    """Runs a stage, or its rest, and records it in the plan; returns its exit code."""
    folder, parts, began = plan.workdir / stage.name, plan.parts[stage.name], time.monotonic()
    about = dict(
        identities={name: i.to_json() for name, i in identities(stage, parts[:1]).items()},
        settings=plan.digests[stage.name],
        made_from={name: plan.digests[name] for name in stage.uses},
    )
    write = functools.partial(record.write, stage, folder)
    begun = functools.partial(write, **about, finished=False)
    plan.records[stage.name] = hosts.from_main("stage begins", begun)
    for part in parts:
        try:
            with naming(stage):
                code = part.program.start(part.config, folder)
        finally:
            gc.collect()  # frees the part's arrays before the next one allocates its own
            jax.clear_caches()
        if code:
            cli.print_line(f"stopped in stage {stage.name}; the same command goes on from there")
            return code
    about["identities"] |= {n: i.to_json() for n, i in identities(stage, parts[1:]).items()}
    columns = kinds.columns(parts)
    seconds = round(time.monotonic() - began, 3)
    done = functools.partial(write, **about, finished=True, seconds=seconds, columns=columns)
    plan.records[stage.name] = hosts.from_main("stage ends", done)
    return 0


def _write(plan: Plan) -> None:
    """Writes recipe.json: the stages in order, with the results of those that are finished."""
    rows = []
    for stage in plan.stages:
        row: dict[str, Any] = {"name": stage.name, "kind": stage.kind, "uses": list(stage.uses)}
        row["what"] = KINDS[stage.kind].what(stage.config)
        if plan.is_finished(stage.name):
            content = plan.records[stage.name]
            tokens = {f"{n}_tokens": content["columns"].get(f"{n} tokens", 0) for n in _TOKENS}
            row |= {"seconds": content["seconds"]} | tokens | {"columns": content["columns"]}
        rows.append(row)
    sealed.write_json(plan.workdir / "recipe.json", {"format": FORMAT, "stages": rows})


def _table(plan: Plan) -> str:
    """Returns the stages as text, with the results of those that are finished."""
    rows, total = [["stage", "what", "time", "results"]], 0.0
    for stage in plan.stages:
        row = [stage.name, KINDS[stage.kind].what(stage.config)]
        if plan.is_finished(stage.name):
            content = plan.records[stage.name]
            total += content["seconds"]
            row += [duration(content["seconds"]), _results(content["columns"])]
        rows.append(row if len(row) > 2 else [*row, "not run"])
    rows.append(["all", "", duration(total)])
    return _columns(rows)


def _results(columns: dict[str, Any]) -> str:
    """Returns the columns of a stage in a line."""
    pairs = ((n, value) for n, value in columns.items() if value is not None and n != "seconds")
    return ", ".join(f"{name} {sweep.cell(value)}" for name, value in pairs)


def _states(plan: Plan) -> str:
    """Returns the stages as text: what each is, and its state."""
    rows = [["stage", "what", "state", "evaluated"]]
    for stage in plan.stages:
        state = "to do" if stage.name not in plan.records else "begun"
        if plan.is_finished(stage.name):
            state = "finished"
        elif stage not in plan.selected:
            state = "not asked for"
        section = stage.config.eval
        lengths = ", ".join(f"{length:,}" for length in section.lengths)
        evaluated = f"{', '.join(section.suites)} at {lengths}" if section.suites else ""
        rows.append([stage.name, KINDS[stage.kind].what(stage.config), state, evaluated])
    return _columns(rows)


def _columns(rows: Sequence[list[str]]) -> str:
    """Returns rows as columns of text."""
    number = len(rows[0])
    rows = [[*row, *[""] * (number - len(row))] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(number)]
    pairs = [zip(row, widths, strict=True) for row in rows]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in row).rstrip() for row in pairs)

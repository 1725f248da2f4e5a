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

from jaxrope import topology
from jaxrope.errors import InputError
from jaxrope.mesh import hosts
from jaxrope.recipe import check, record, work
from jaxrope.recipe.stages import Stage, chosen, parse
from jaxrope.shell import cli
from jaxrope.shell.progress import duration
from jaxrope.store import files
from jaxrope.store.lock import run_lock

FORMAT = "jaxrope.recipe/1"
_COLUMNS = ("stage", "what", "time", "forward tokens", "trained tokens", "perplexity")


def run(config, workdir: Path, dry_run: bool) -> int:
    """Runs the stages of `config.recipe` that `config.stages` names, or the rest of them.

    Args:
      config: of configs/base.py, with a recipe.
      workdir: each stage has a folder in it; recipe.json describes them all.
      dry_run: only print the stages, what they cost and what is done.

    Returns:
      The exit code: 0, or that of the stage that did not end with 0.

    Raises:
      InputError: a mistake that shows before any stage runs; or the error of a stage, which the
        message then names.
    """
    stages = parse(config)
    selected = chosen(config, stages)
    workdir = files.absolute(workdir)
    jax.devices()  # on all processes at once: the first call waits for the others
    if dry_run:
        records = hosts.from_main("recipe", lambda: _states(stages, selected, workdir))
        cli.print_line(_plan(stages, selected, records))
        hosts.from_main("inputs", lambda: _check_inputs(stages, selected, workdir, records))
        return 0
    with run_lock(workdir):
        records = hosts.from_main("recipe", lambda: _states(stages, selected, workdir))
        hosts.from_main("inputs", lambda: _check_inputs(stages, selected, workdir, records))
        for number, stage in enumerate(stages, start=1):
            if stage not in selected:
                continue
            cli.print_line(f"\nstage {number} of {len(stages)}: {stage.name} ({stage.kind})")
            if _is_finished(records.get(stage.name)):
                cli.print_line(f"finished before, in {workdir / stage.name}")
                continue
            digest_of = record.digests(stages, records)
            code, records[stage.name] = _run_stage(stage, workdir, digest_of)
            if code:
                return code
        hosts.from_main("recipe.json", lambda: _write(stages, records, workdir))
    cli.print_line("\n" + _table(stages, records))
    return 0


def compile_stages(config, topology_name: str, workdir: Path | None) -> None:
    """Compiles the program of each stage that has one, for devices that need not be here.

    Args:
      config: with a recipe; its models need no checkpoint if model.shape names their shape.
      topology_name: such as "v5p:4x4x4"; "" = the devices of this machine.
      workdir: for compile.jsonl of each stage; None: no file.

    Raises:
      InputError: a stage does not fit itself or the slice.
    """
    compile_fns = {"search": topology.compile_search, "train": topology.compile_train}
    for stage in chosen(config, parse(config)):
        if stage.kind in compile_fns:
            cli.print_line(f"\n{stage.name} ({stage.kind})")
            folder = None if workdir is None else workdir / stage.name
            if folder is not None and not files.is_remote(folder):
                folder.mkdir(parents=True, exist_ok=True)
            resolved = stage.resolved(folder.parent if folder else Path("."))
            compile_fns[stage.kind](resolved, topology_name, folder)


def _states(stages: list[Stage], selected: list[Stage], workdir: Path) -> dict[str, dict]:
    """Returns {name: stage.json} of the stages begun; refuses those of another config."""
    records = {stage.name: record.read(workdir / stage.name) for stage in stages}
    digest_of = record.digests(stages, records)
    needed = _needed(stages, selected)
    for stage in stages:
        content = records[stage.name]
        if content is not None and stage.name in needed:
            later = [other.name for other in stages if stage.name in _ancestors(other, stages)]
            record.check(stage, workdir / stage.name, content, digest_of, later)
    return {name: content for name, content in records.items() if content is not None}


def _check_inputs(
    stages: list[Stage], selected: list[Stage], workdir: Path, records: dict[str, dict]
) -> None:
    """Refuses stages whose inputs do not exist and will not be made."""
    by_name = {stage.name: stage for stage in stages}
    runs = [stage for stage in selected if not _is_finished(records.get(stage.name))]
    for stage in runs:
        for name in stage.uses:
            if by_name[name] not in runs and not _is_finished(records.get(name)):
                raise InputError(
                    f"stage '{stage.name}' of recipe: it starts from '{name}', which is not "
                    f"finished in {workdir}. Run that first, or both: "
                    f"--config.stages={name},{stage.name}"
                )
        check.check(stage, by_name)


def _needed(stages: list[Stage], selected: list[Stage]) -> set[str]:
    names = {stage.name for stage in selected}
    return names.union(*(_ancestors(stage, stages) for stage in selected))


def _ancestors(stage: Stage, stages: list[Stage]) -> set[str]:
    """Returns the names of all stages that a stage is made from, near and far."""
    by_name, ancestors, rest = {s.name: s for s in stages}, set(), list(stage.uses)
    while rest:
        name = rest.pop()
        if name not in ancestors:
            ancestors.add(name)
            rest += by_name[name].uses
    return ancestors


def _run_stage(
    stage: Stage, workdir: Path, digest_of: dict[str, str]
) -> tuple[int, dict[str, Any]]:
    """Returns (exit code, its stage.json)."""
    folder, began = workdir / stage.name, time.monotonic()
    write = functools.partial(record.write, stage, folder, digest_of)
    content = hosts.from_main("stage begins", lambda: write(finished=False))
    try:
        outcome = work.run(stage.kind, stage.resolved(workdir), folder)
    except InputError as error:
        raise InputError(f"stage '{stage.name}' of recipe: {error}") from None
    finally:
        gc.collect()  # frees the stage's arrays before the next stage allocates its own
        jax.clear_caches()
    if outcome.code:
        cli.print_line(f"stopped in stage {stage.name}; the same command goes on from there")
        return outcome.code, content
    seconds = round(time.monotonic() - began, 3)
    done = functools.partial(write, finished=True, seconds=seconds, result=outcome.result)
    return 0, hosts.from_main("stage ends", done)


def _is_finished(content: dict | None) -> bool:
    return content is not None and content["finished"]


def _write(stages: list[Stage], records: dict[str, dict], workdir: Path) -> None:
    """Writes recipe.json: the stages in order, with the results of those that are finished."""
    rows = []
    for stage in stages:
        row = {"name": stage.name, "kind": stage.kind, "uses": list(stage.uses)}
        content = records.get(stage.name)
        done = _is_finished(content)
        rows.append(row | ({"seconds": content["seconds"]} | content["result"] if done else {}))
    files.write_json_atomic(workdir / "recipe.json", {"format": FORMAT, "stages": rows})


def _table(stages: list[Stage], records: dict[str, dict]) -> str:
    """Returns the stages as text, with the results of those that are finished."""
    rows, total = [], [0.0, 0, 0]
    for stage in stages:
        content = records.get(stage.name)
        if not _is_finished(content):
            rows.append([stage.name, work.KINDS[stage.kind].what(stage.config), "not run"])
            continue
        result = content["result"]
        tokens = result["forward_tokens"], result["trained_tokens"]
        total = [a + b for a, b in zip(total, (content["seconds"], *tokens), strict=True)]
        cells = [duration(content["seconds"]), *map(_count, tokens), result["perplexity"]]
        rows.append([stage.name, result["what"], *cells])
    rows.append(["all", "", duration(total[0]), *map(_count, total[1:])])
    return _columns([list(_COLUMNS), *rows])


def _plan(stages: list[Stage], selected: list[Stage], records: dict[str, dict]) -> str:
    """Returns the stages as text: their cost in tokens and their state."""
    rows, total = [], [0, 0]
    for stage in stages:
        kind, config, content = work.KINDS[stage.kind], stage.config, records.get(stage.name)
        tokens = kind.tokens(config)
        state = "to do" if content is None else "finished" if content["finished"] else "begun"
        if stage not in selected:
            state = "finished" if _is_finished(content) else "not asked for"
        elif not _is_finished(content):
            total = [a + b for a, b in zip(total, tokens, strict=True)]
        rows.append([stage.name, kind.what(config), state, *map(_count, tokens)])
        rows[-1].append(_evaluation(config))
    rows.append(["to do", "", "", *map(_count, total)])
    return _columns([["stage", "what", "state", *_COLUMNS[3:5], "evaluated"], *rows])


def _evaluation(config) -> str:
    """Returns what is evaluated at the end of a stage."""
    lengths = ", ".join(f"{length:,}" for length in config.eval.lengths)
    return f"{', '.join(config.eval.suites)} at {lengths}" if config.eval.suites else ""


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


def _columns(rows: Sequence[list[str]]) -> str:
    """Returns rows as columns of text; counts stand to the right."""
    number = len(rows[0])
    rows = [[*row, *[""] * (number - len(row))] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(number)]
    to_the_right = {i for i, name in enumerate(rows[0]) if name.endswith("tokens")}
    lines = [
        "  ".join(
            cell.rjust(width) if i in to_the_right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)

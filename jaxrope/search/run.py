"""One search: baselines, descents, evolution, the last word, and the files that it writes.

A workdir gets config.json, journal.jsonl, rope.json and result.json. Nothing in them depends on how
often the search was killed and resumed, except the seconds in the journal and in result.json.
rope.json has the best so far from the first candidate on, marked as unfinished until the end.

Several processes evaluate each batch together and all know its losses, so that they hold the same
state. Process 0 alone writes; when a search resumes, it sends the others the rows of the journal.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrope import rope, schema
from jaxrope.errors import InputError
from jaxrope.mesh import hosts, sharding
from jaxrope.search import (
    beside,
    candidates,
    compare,
    cost,
    descent,
    evaluator,
    evolution,
    forms,
    genome,
    journal,
    loop,
    meter,
    race,
    ramp,
    result,
    verdict,
)
from jaxrope.search.candidates import Candidate
from jaxrope.search.evolution import SearchState
from jaxrope.search.preparing import prepare
from jaxrope.search.problem import (
    Problem,
    build_rope,
    first_state,
    header,
    weights,
)
from jaxrope.search.result import FORMAT, Result
from jaxrope.shell import cli
from jaxrope.store import run_lock, sealed, write_json_atomic


def search(config: Any, workdir: Path) -> Result:
    """Runs the search that a config describes, or goes on with it.

    Args:
      config: see configs/base.py.
      workdir: a folder of its own.

    Raises:
      InputError: see `prepare`; the workdir is of another search; every candidate failed.
    """
    config = schema.read(config)
    hosts.from_main("workdir", lambda: _check_workdir(workdir))
    sharding.make_mesh(config.mesh)  # here the devices have to be there
    problem = prepare(config)
    search_header = header(problem)
    hosts.agree("search", search_header)
    with run_lock(workdir):
        hosts.from_main("leftovers", lambda: _remove_leftovers(workdir))
        record = journal.Record(workdir / "journal.jsonl", search_header)
        notes = hosts.from_main("config", lambda: _begin(problem, workdir))
        cli.print_line(problem.task.documents.summary)
        for note in [*problem.notes, *record.notes, *notes]:
            cli.print_line(f"note: {note}")
        if record.rows:
            cli.print_line(f"going on from {record.path}: {journal.described(record.rows)}")
        with meter.Meter(cost.planned(problem)) as told:
            save_fn = functools.partial(_save_so_far, problem, workdir)
            found, state = _phases(problem, _bench(problem, record, told), save_fn)
        save = functools.partial(result.write, problem, workdir, found, state, record.rows)
        return Result(**hosts.from_main("result", save))


def _phases(
    problem: Problem, bench: loop.Bench, save_fn: Callable[[Sequence[Candidate]], None]
) -> tuple[verdict.Verdict, SearchState | None]:
    """Returns the verdict, and the evolution if there was one; save_fn takes the best so far."""
    rows, path = bench.record.rows, bench.record.path
    bench.meter.begin("baselines", _done(problem, rows, "baseline"))
    pool = compare.best(compare.run(problem, bench))
    save_fn(pool)
    if problem.gradient:
        bench.meter.begin("ramp", _done(problem, rows, "ramp"))
        moved = ramp.move(problem, bench, pool)
        pool = sorted([*pool, *([moved] if moved else [])], key=lambda c: c.fitness)
        save_fn(pool)
        spared = descent.spared(problem, rows, pool)
        bench.meter.begin("descent", descent.tokens_in(problem, rows), spared=spared)
        pool += descent.run(problem, bench, pool)
    state = None
    if problem.method.breeds:
        bench.meter.begin("evolution", _done(problem, rows, "genome"))
        state = first_state(problem, [c.bucket for c in pool if np.isnan(c.fitness)])
        state, done = journal.replay(bench.record, state)
        lowest = min((c.fitness for c in pool if np.isfinite(c.fitness)), default=np.inf)
        state = _evolve(problem, state, done, bench, save_fn, lowest)
        pool += _bred(problem, state)
    if not any(np.isfinite(c.fitness) or np.isnan(c.fitness) for c in pool):
        raise _failed(problem, path, state)
    done = sum(_done(problem, rows, kind) for kind in (verdict.FIRST_LOOK, verdict.SECOND_LOOK))
    bench.meter.begin("judging", done)
    judge = verdict.judge_of(problem)
    found = verdict.run(problem, bench, pool, judge)
    if not np.isfinite(found.losses[0][1]):
        raise _failed(problem, path, state)
    bench.meter.begin("beside", sum(row.get("tokens", 0) for row in rows))
    beside.run(problem, bench, judge, found.result)
    return found, state


def _failed(problem: Problem, path: Path, state: SearchState | None) -> InputError:
    reason = evolution.stop_reason(state) if state else "all candidates failed"
    return InputError(
        f"search: {reason}; {path} says why. Check the model at target_len "
        f"{problem.config.target_len:,}, or give the search more memory."
    )


def _done(problem: Problem, rows: Sequence[dict], kind: str) -> int:
    """Returns the forward tokens of the rows of a kind."""
    count = sum(row.get("raced", len(row["losses"])) for row in rows if kind in row)
    return count * problem.objective.sample_tokens


def _bred(problem: Problem, state: SearchState) -> list[Candidate]:
    """Returns the best of an evolution, exact members of their form, best first."""
    order, found = np.argsort(state.seen_fitness_E, kind="stable"), []
    for place in order[: problem.config.search.judge.finalists]:
        fitness = float(state.seen_fitness_E[place])
        if np.isfinite(fitness):
            bucket = _bucket(problem, evolution.decode(state, state.seen_EG[place]))
            name = f"evolution {len(found) + 1}" if found else "evolution"
            found.append(Candidate(name, bucket, fitness))
    return found


def _bucket(problem: Problem, choice: genome.Choice) -> rope.Bucket:
    """Returns the bucket of a genome; of a form with a formula by that, not rounded to the grid."""
    factors, form = choice.factors, problem.config.search.form
    if form in forms.BY_FORMULA:
        multiplier = np.array(problem.space.multiplier or 1.0)
        factors = multiplier * forms.nearest(form, problem.limits, factors / multiplier)
    length = problem.config.target_len
    return rope.Bucket(
        length, rope.as_factors(factors), choice.start_tokens, choice.attention_factor
    )


def _save_so_far(problem: Problem, workdir: Path, pool: Sequence[Candidate]) -> None:
    """Writes the best of `pool` to rope.json, marked as unfinished, where there is no result."""
    best = min((c for c in pool if np.isfinite(c.fitness)), key=lambda c: c.fitness, default=None)
    if best is not None and _result(workdir)[0] is None:
        save = functools.partial(result.save_unfinished, problem, workdir, best)
        hosts.from_main("so far", save)


def finished(config: Any, workdir: Path) -> dict[str, Any] | None:
    """Returns the columns of a finished search of this very model, text and config, by name; None
    if it is not finished, or another.

    Raises:
      InputError: see `prepare`.
    """
    content, notes = hosts.from_main("finished", lambda: _result(workdir))
    for note in notes:
        cli.print_line(f"note: {note}")
    if content is None:
        return None
    if schema.Identity.from_json(content["identity"]).changes(prepare(config).identity):
        return None
    known = [row["fitness"] for row in content["judged"] if row["is_baseline"]]  # of the same text
    fitness = [number for number in known if number is not None]
    return {
        "unit": content["unit"],
        "fitness": content[content["unit"]],
        "best baseline": min(fitness, default=None),
        "start tokens": content["best"]["start_tokens"],
        "evaluations": content["evaluations"],
        "forward tokens": content["forward_tokens"],
        "seconds": content["seconds"],
    }


def _result(workdir: Path) -> tuple[dict | None, list[str]]:
    """Returns the content of result.json, where it and rope.json are whole, and what is damaged."""
    path = workdir / "result.json"
    if not path.exists():
        return None, []
    try:
        content = sealed.read_json(path, form=FORMAT)
        rope.load(workdir / "rope.json")
    except InputError as error:
        return None, [f"{error} The search writes it again from its journal."]
    return content, []


def _check_workdir(workdir: Path) -> None:
    if (workdir / "model.json").exists():
        raise InputError(
            f"--workdir={workdir} holds a model, whose files a search would overwrite. Give a "
            "folder of its own."
        )


def _begin(problem: Problem, workdir: Path) -> list[str]:
    """Writes config.json and command.txt; returns what is damaged of a result."""
    write_json_atomic(workdir / "config.json", problem.config.to_dict())
    cli.write_command(workdir)
    return _result(workdir)[1]


def _remove_leftovers(workdir: Path) -> None:
    """Removes what a killed process was writing: `files` names it .NAME.XXXX.tmp."""
    for path in workdir.glob(".*.tmp"):
        path.unlink()


def _bench(problem: Problem, record: journal.Record, told: meter.Meter) -> loop.Bench:
    """Returns the bench, with the batch size that an interrupted search had been reduced to."""
    per_device = problem.per_device
    failed = [row["batch_size"] for row in record.rows if row.get("event") == "out_of_memory"]
    if failed and not problem.config.search.batch_size:
        per_device = max(1, min(per_device, failed[-1] // 2 // problem.num_groups))
    batch_evaluator = evaluator.make(
        problem.objective,
        problem.model,
        weights(problem),
        per_device=per_device,
        mesh=problem.mesh,
    )
    return loop.Bench(batch_evaluator, problem.objective, record, told)


def _evolve(
    problem: Problem, state, done: dict, bench: loop.Bench, save_fn, lowest: float
) -> SearchState:
    """Returns the evolution at its end; `lowest`: the best fitness before it."""
    best = [min([lowest, *state.seen_fitness_E, *map(journal.fitness_of, done.values())])]

    def report_fn(now: SearchState, rows: list[dict]) -> None:
        leader = min(rows, key=journal.fitness_of, default=None)
        if leader and journal.fitness_of(leader) < best[0]:
            best[0] = journal.fitness_of(leader)
            row = leader | {"max_len": problem.config.target_len}
            save_fn([candidates.of_row(row, "evolution")])
        generation = f"{now.generation + 1}/{now.settings.iterations}"
        bench.meter.tell(generation=generation, best=best[0])

    return loop.evolve(
        state,
        done,
        bench,
        rope_fn=functools.partial(build_rope, problem),
        report_fn=report_fn,
        race=_race(problem, bench.record.rows),
    )


def _race(problem: Problem, rows: list[dict]) -> race.Race | None:
    """Returns the race, with what the journal has of earlier generations."""
    racing = problem.config.search.racing
    if not racing.first:
        return None
    search_race = race.make(
        racing,
        candidates=problem.settings.num_evaluations(),
        weights_W=np.resize(problem.objective.weights, problem.objective.num_samples),
    )
    search_race.remember(journal.candidates(rows))
    return search_race

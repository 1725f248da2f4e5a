"""One search: baselines, evolution, and the files that it writes.

A workdir gets config.json, journal.jsonl, rope.json and result.json. Nothing in them depends on how
often the search was killed and resumed, except the seconds in the journal and in result.json.

Several processes evaluate each batch together and all know its losses, so that they hold the same
state. Process 0 alone writes; when a search resumes, it sends the others the rows of the journal.
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import numpy as np

from jaxrope import rope, schema
from jaxrope.errors import InputError
from jaxrope.mesh import hosts, sharding
from jaxrope.search import baselines, critical, descent, evaluator, evolution, journal, loop, race
from jaxrope.search.evolution import SearchState
from jaxrope.search.problem import (
    Problem,
    build_rope,
    first_state,
    header,
    multiplied,
    prepare,
    versions,
    weights,
)
from jaxrope.shell import Progress, cli
from jaxrope.store import run_lock, sealed, write_json_atomic

FORMAT = "jaxrope.search/2"


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a search.

    Attributes:
      content: of result.json.
      generations: "generation", "best" (of all so far) and "mean" (of it) of each.
      baselines: name -> {"fitness", "factors"}, with the attention factor of the search.
      factors: the best candidate's, [R], or [L, R] where every layer has its own.
      table: every baseline beside the best found, as text.
    """

    content: dict[str, Any]
    generations: list[dict]
    baselines: dict[str, dict]
    factors: list
    table: str


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
        bench = _bench(problem, record)
        compared = _measure_baselines(problem, bench)
        ends = descent.run(problem, bench, compared)
        state = first_state(problem, [end.choice for end in ends])
        state, done = journal.replay(record, state)
        state = _evolve(problem, state, done, bench)
        if not np.isfinite(evolution.best(state)[1]):
            raise InputError(
                f"search: {evolution.stop_reason(state)}; {record.path} says why. Check the model "
                f"at target_len {config.target_len:,}, or give the search more memory."
            )
        fields = hosts.from_main(
            "result", lambda: _write(problem, workdir, state, compared, record)
        )
        return Result(**fields)


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
    fitness = [row["fitness"] for row in content["baselines"] if row["fitness"] is not None]
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


def _bench(problem: Problem, record: journal.Record) -> loop.Bench:
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
    return loop.Bench(batch_evaluator, problem.objective, record)


def _measure_baselines(problem: Problem, bench: loop.Bench) -> list[dict]:
    """Returns a row for every baseline with its own and with the search's attention factor."""
    if not problem.config.search.compare:
        return []
    done = [row for row in bench.record.rows if "baseline" in row]
    comparisons = baselines.comparisons(problem.baselines, problem.attention_factor)
    ropes = [
        build_rope(problem, bucket.factors, bucket.start_tokens, bucket.attention_factor)
        for _, bucket in comparisons
    ]
    for batch in bench.measure(ropes, done=set(range(len(done))), generation=0):
        new = []
        for i, index in enumerate(batch.indices):
            if index >= len(done):
                name, bucket = comparisons[index]
                row = {"baseline": name} | _plain(bucket)
                row["losses"] = [journal.number(loss) for loss in batch.losses_PW[i]]
                new.append(row | {"fitness": journal.number(batch.fitness_P[i])})
        bench.record.append(new)
        done += new
    return done


def _evolve(problem: Problem, state, done: dict, bench: loop.Bench) -> SearchState:
    total, tokens = state.settings.num_evaluations(), problem.objective.candidate_tokens
    before = len(state.seen_EG) + len(done)
    fitness = [*state.seen_fitness_E.tolist(), *map(journal.fitness_of, done.values())]
    clock = time.monotonic()

    def report_fn(now: SearchState, rows: list[dict]) -> None:
        fitness.extend(map(journal.fitness_of, rows))
        seconds = time.monotonic() - clock
        progress.update(
            len(fitness),
            generation=f"{now.generation + 1}/{now.settings.iterations}",
            best=min(fitness),
            **{"tokens/s": (len(fitness) - before) * tokens / max(seconds, 1e-9)},
        )

    with Progress(total, unit="candidates", start=before) as progress:
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
        weights_W=problem.objective.weights_W,
        num_samples=problem.objective.num_samples,
    )
    search_race.remember(journal.candidates(rows))
    return search_race


def _write(
    problem: Problem,
    workdir: Path,
    state: SearchState,
    compared: list[dict],
    record: journal.Record,
) -> dict:
    """Writes rope.json and result.json; returns the fields of Result."""
    unit = problem.objective.unit
    genome_G, fitness = evolution.best(state)
    choice = evolution.decode(state, genome_G)
    bucket = rope.Bucket(
        problem.config.target_len,
        rope.as_factors(choice.factors),
        choice.start_tokens,
        choice.attention_factor,
    )
    rows = record.rows
    provenance = _provenance(problem, state, compared, rows) | {unit: fitness}
    provenance |= multiplied(problem, genome_G)
    rope.save(workdir / "rope.json", _rope_fn(problem, bucket), provenance)
    generations = _generations(rows)
    content = {"format": FORMAT, "config": problem.config.to_dict(), "unit": unit} | provenance
    content |= {"best": _plain(bucket), "generations": generations}
    content |= critical.report(
        state,
        theta=problem.model.theta,
        trained_len=problem.trained_len,
        attention_factor=problem.attention_factor,
    )
    content |= {"failed": int(np.sum(~np.isfinite(state.seen_fitness_E)))}
    content |= {"baselines": compared, "seconds": round(_batch_seconds(rows), 3)}
    sealed.write_json(workdir / "result.json", content)
    return dict(
        content=content,
        generations=generations,
        baselines={row["baseline"]: row for row in compared if row["fitness"] is not None},
        factors=np.array(bucket.factors).tolist(),
        table=_table(problem, compared, bucket, fitness),
    )


def _rope_fn(problem: Problem, bucket: rope.Bucket) -> rope.RopeFn:
    model = problem.model
    return rope.make(
        "longrope",
        head_dim=model.head_dim,
        rotary_dim=model.rotary_dim,
        theta=model.theta,
        original_len=model.original_len,
        buckets=[_plain(bucket)],
    )


def _plain(bucket: rope.Bucket) -> dict[str, Any]:
    """Returns a bucket as JSON reads it back."""
    return dataclasses.asdict(bucket) | {"factors": np.array(bucket.factors).tolist()}


def _provenance(
    problem: Problem, state: SearchState, compared: list[dict], rows: list[dict]
) -> dict[str, Any]:
    """Returns how the factors came about; nothing in it differs between two runs of one search."""
    judge, section = problem.objective, problem.config.search
    evaluations = len(state.seen_EG) + len(compared) + sum("ramp" in row for row in rows)
    brief = ("baseline", "attention_factor", "fitness")
    return {
        "made_by": "jaxrope search",
        "versions": versions(),
        "model": {"source": problem.loaded.source, "digest": problem.identity.content["weights"]},
        "seed": problem.config.seed,
        "search": {
            "method": section.method,
            **({"gradient": problem.gradient.to_dict()} if problem.gradient else {}),
            "algorithm": state.settings.to_dict(),
            "objective": section.objective.to_dict(),
            "attention_factor": section.attention_factor,
            "samples": judge.fingerprint,
        },
        "stop_reason": evolution.stop_reason(state),
        "evaluations": evaluations,
        "forward_tokens": evaluations * judge.candidate_tokens
        + descent.tokens(problem, descent.steps_in(rows))
        - journal.spared(rows, judge.num_samples) * judge.sample_tokens,
        "baselines": [{name: row[name] for name in brief} for row in compared],
        "identity": problem.identity.to_json(),
    }


def _generations(rows: list[dict]) -> list[dict]:
    """Returns best so far and mean of each generation; candidates that failed are not counted."""
    generations, lowest = [], np.inf
    candidates = journal.candidates(rows)
    for generation in sorted({row["generation"] for row in candidates}):
        members = [row for row in candidates if row["generation"] == generation]
        fitness = [row["fitness"] for row in members if row["fitness"] is not None]
        lowest = min([lowest, *fitness])
        mean = float(np.mean(fitness)) if fitness else None
        generations.append({"generation": generation, "best": lowest, "mean": mean})
    return generations


def _batch_seconds(rows: list[dict]) -> float:
    """The seconds of all batches; the rows of a batch are consecutive and have the same seconds."""
    stamps = [(row["generation"], row["seconds"]) for row in journal.candidates(rows)]
    batches = [stamp for i, stamp in enumerate(stamps) if i == 0 or stamp != stamps[i - 1]]
    return sum(seconds for _, seconds in batches)


def _table(problem: Problem, compared: list[dict], best: rope.Bucket, fitness: float) -> str:
    """Returns the baselines by name, with both attention factors, and the best found."""
    number = problem.attention_factor
    unit = problem.objective.unit
    lines = [f"{'method':<12}{'own factor':>12}{unit:>14}{f'with {number:.4f}':>16}"]
    for baseline in problem.baselines if compared else ():
        rows = [row for row in compared if row["baseline"] == baseline.name]
        own_row, search_row = rows[0], rows[-1]
        lines.append(
            f"{baseline.name:<12}{own_row['attention_factor']:>12.4f}"
            f"{_fitness_text(own_row):>14}{_fitness_text(search_row):>16}"
        )
    own_text, search_text = f"{fitness:.4f}", ""
    if best.attention_factor == number:
        own_text, search_text = search_text, own_text
    lines.append(f"{'searched':<12}{best.attention_factor:>12.4f}{own_text:>14}{search_text:>16}")
    lines.append(
        f"start tokens {best.start_tokens}, factors {np.min(best.factors):g} to "
        f"{np.max(best.factors):g}"
    )
    return "\n".join(lines)


def _fitness_text(row: dict) -> str:
    return "failed" if row["fitness"] is None else f"{row['fitness']:.4f}"

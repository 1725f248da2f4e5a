"""What a search leaves: rope.json, result.json, and the table that it prints."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrope import rope, setup
from jaxrope.search import beside, candidates, critical, descent, evolution, forms, journal
from jaxrope.search.candidates import Candidate
from jaxrope.search.evolution import SearchState
from jaxrope.search.problem import Problem, multiplied, versions
from jaxrope.search.verdict import Verdict
from jaxrope.store import sealed

FORMAT = "jaxrope.search/3"


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a search.

    Attributes:
      content: of result.json.
      generations: "generation", "best" (of all so far) and "mean" (of it) of each.
      baselines: name -> the row with its best attention factor.
      descents: name of the start -> rows of its steps.
      factors: of the result, [R], or [L, R] where every layer has its own.
      table: the baselines, the result and the verdict, as text.
    """

    content: dict[str, Any]
    generations: list[dict]
    baselines: dict[str, dict]
    descents: dict[str, list[dict]]
    factors: list
    table: str


def save_unfinished(problem: Problem, workdir: Path, best: Candidate) -> None:
    """Writes the best so far to rope.json, marked as unfinished."""
    told = {"unfinished": "the best so far of a search that has not ended", "result": best.name}
    told |= _origin(problem) | {problem.objective.unit: best.fitness}
    rope.save(workdir / "rope.json", rope_fn(problem, best), told)


def write(
    problem: Problem,
    workdir: Path,
    found: Verdict,
    state: SearchState | None,
    rows: Sequence[dict],
) -> dict[str, Any]:
    """Writes rope.json and result.json; returns the fields of Result.

    Args:
      problem: of the search.
      workdir: where to.
      found: the verdict.
      state: of the evolution; None: there was none.
      rows: of the journal.
    """
    best, judged = found.result, dict((c.name, loss) for c, loss in reversed(found.losses))
    compared = [row for row in rows if "baseline" in row]
    fitness = float(problem.objective.fitness_fn(np.float64(judged[best.name])))
    told = _origin(problem) | _counts(problem, state, compared, rows)
    told |= {problem.objective.unit: fitness, "verdict": found.to_json()}
    told |= multiplied(problem, best.bucket)
    rope.save(workdir / "rope.json", rope_fn(problem, best), told)
    generations = _generations(rows)
    content = {"format": FORMAT, "config": problem.config.to_dict(), "unit": problem.objective.unit}
    content |= told | {"best": candidates.plain(best.bucket), "generations": generations}
    if state is not None:
        content |= critical.report(
            state,
            theta=problem.model.theta,
            trained_len=problem.trained_len,
            attention_factor=problem.attention_factor,
        )
        content |= {"failed": int(np.sum(~np.isfinite(state.seen_fitness_E)))}
    compared = [_timeless(row) for row in compared]
    other = [_timeless(row) for row in rows if "sliding" in row or "short" in row]
    content |= {"judged": _judged(problem, found), "beside": other, "baselines": compared}
    content |= {"seconds": round(_seconds(rows), 3)}
    sealed.write_json(workdir / "result.json", content)
    by_name = {row["baseline"]: row for row in _best_rows(compared)}
    return dict(
        content=content,
        generations=generations,
        baselines={name: row for name, row in by_name.items() if row["fitness"] is not None},
        descents=_descents(rows),
        factors=np.array(best.bucket.factors).tolist(),
        table="\n".join([_table(problem, by_name, found), *beside.sentences(other)]),
    )


def rope_fn(problem: Problem, found: Candidate) -> rope.RopeFn:
    """Returns the schedule of a candidate: a table of factors; of the form "yarn" YaRN with its
    constants, which every program reads, where nothing was multiplied.
    """
    model, bucket = problem.model, found.bucket
    factors = np.array(bucket.factors)
    own = problem.config.search.form == "yarn" and not problem.space.multiplier
    if own and not bucket.start_tokens and factors.ndim == 1:
        shape = forms.of("yarn", problem.limits, factors)
        factor = float(np.exp(shape.numbers_fn(np.log(factors))[0]))
        number = bucket.attention_factor
        yarn = forms.of_rope(
            shape.constants["borders"], factor, attention_factor=number, **model.geometry
        )
        if np.allclose(yarn.bucket(bucket.max_len).factors, factors, rtol=1e-6):
            return yarn
    return rope.make("longrope", **model.geometry, buckets=[candidates.plain(bucket)])


def _origin(problem: Problem) -> dict[str, Any]:
    """Returns how a search was made; nothing in it differs between two runs of one search."""
    section = problem.config.search
    return {
        "made_by": "jaxrope search",
        "versions": versions(),
        "model": {"source": problem.loaded.source, "digest": problem.identity.content["weights"]},
        "seed": problem.config.seed,
        "search": {
            "method": section.method,
            "form": section.form,
            **({"gradient": problem.gradient.to_dict()} if problem.gradient else {}),
            **({"algorithm": problem.settings.to_dict()} if problem.method.breeds else {}),
            "objective": section.objective.to_dict(),
            "attention_factor": section.attention_factor,
            "samples": problem.objective.fingerprint,
        },
        "identity": problem.identity.to_json(),
    }


def _counts(
    problem: Problem, state: SearchState | None, compared: list[dict], rows: Sequence[dict]
) -> dict[str, Any]:
    judge = problem.objective
    other = {"descent", "sliding", "short"}
    measured = [row for row in rows if "losses" in row and not other & row.keys()]
    reported = sum(row.get("tokens", 0) for row in rows)
    samples = sum(len(row["losses"]) for row in measured)
    samples -= journal.spared(rows, judge.num_samples)
    brief = ("baseline", "attention_factor", "fitness")
    told = {
        "evaluations": len(measured),
        "forward_tokens": samples * judge.sample_tokens
        + descent.tokens_in(problem, rows)
        + reported,
        "baselines": [{name: row[name] for name in brief} for row in compared],
    }
    return told | ({"stop_reason": evolution.stop_reason(state)} if state is not None else {})


def _judged(problem: Problem, found: Verdict) -> list[dict]:
    """Returns the finalists, best first; null: it failed."""
    fitness_fn = problem.objective.fitness_fn
    return [
        {"name": candidate.name, "is_baseline": candidate.is_baseline}
        | candidates.plain(candidate.bucket)
        | {"loss": journal.number(loss), "fitness": journal.number(fitness_fn(np.float64(loss)))}
        for candidate, loss in found.losses
    ]


def _timeless(row: dict) -> dict:
    return {name: value for name, value in row.items() if name != "seconds"}


def _best_rows(compared: Sequence[dict]) -> list[dict]:
    names = dict.fromkeys(row["baseline"] for row in compared)
    of = {name: [row for row in compared if row["baseline"] == name] for name in names}
    return [min(rows, key=journal.fitness_of) for rows in of.values()]


def _descents(rows: Sequence[dict]) -> dict[str, list[dict]]:
    steps: dict[str, list[dict]] = {}
    for row in rows:
        if "descent" in row:
            steps.setdefault(row["descent"], []).append(row)
    return steps


def _generations(rows: Sequence[dict]) -> list[dict]:
    """Returns best so far and mean of each generation; candidates that failed are not counted."""
    generations, lowest = [], np.inf
    bred = journal.candidates(rows)
    for generation in sorted({row["generation"] for row in bred}):
        members = [row for row in bred if row["generation"] == generation]
        fitness = [row["fitness"] for row in members if row["fitness"] is not None]
        lowest = min([lowest, *fitness])
        mean = float(np.mean(fitness)) if fitness else None
        generations.append({"generation": generation, "best": journal.number(lowest), "mean": mean})
    return generations


def _seconds(rows: Sequence[dict]) -> float:
    """The seconds of everything; the rows of a batch are consecutive and have the same seconds."""
    stamps = [row["seconds"] for row in rows if "seconds" in row]
    return sum(stamp for i, stamp in enumerate(stamps) if i == 0 or stamp != stamps[i - 1])


def _table(problem: Problem, by_name: dict[str, dict], found: Verdict) -> str:
    """Returns the baselines on the text of the search, the finalists on fresh text, the verdict."""
    unit, fresh = problem.objective.unit, "fresh text" if found.fresh else "the same text"
    lines = [f"{'':<24}{'attention factor':>18}{unit:>20}{fresh:>14}"]
    judged = {candidate.name: loss for candidate, loss in reversed(found.losses)}
    fitness_fn = problem.objective.fitness_fn

    def line(name: str, number: float, fitness: float | None) -> str:
        first = "" if fitness is None or not np.isfinite(fitness) else f"{fitness:.4f}"
        last = f"{float(fitness_fn(np.float64(judged[name]))):.4f}" if name in judged else ""
        return f"{name:<24}{number:>18.4f}{first or 'failed' * (not last):>20}{last:>14}"

    lines += [line(n, row["attention_factor"], row["fitness"]) for n, row in by_name.items()]
    lines += [
        line(candidate.name, candidate.bucket.attention_factor, candidate.fitness)
        for candidate, _ in found.losses
        if not candidate.is_baseline
    ]
    best = found.result.bucket
    lines.append(
        f"result: {found.result.name}, start tokens {best.start_tokens}, factors "
        f"{np.min(best.factors):g} to {np.max(best.factors):g}"
    )
    elsewhere = setup.elsewhere_notes(problem.model, rope_fn(problem, found.result))
    return "\n".join([*lines, found.sentence(), *(f"note: {note}" for note in elsewhere)])

"""Descents from the best known methods, on the devices and in the journal (see gradient.py).

A step is a line of the journal, on disk before the next one starts:

    {"descent": its start, "step", "loss", "factors", "attention_factor", "factors_grad",
     "attention_grad", "seconds"}

They may begin where YaRN's ramp is moved, pair by pair, to where the loss is lower. YaRN leaves the
pairs up to `low` as they are, divides the frequencies from `high` on by the whole factor, and ramps
between; the two borders are a guess from turns in the trained window. The best borders are often a
pair or two elsewhere: on books-6m at 8x one step at both ends gains two thirds of what the paper's
whole evolution does. A gradient does not find that by itself, for moving a border changes several
factors far. A move looks at all eight neighbours and takes the best, while one is better; each is a
line of the journal:

    {"ramp": [low, high], "factors", "attention_factor", "losses", "fitness"}

Letters: R rotary pairs.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxrope import rope
from jaxrope.errors import InputError
from jaxrope.mesh import sharding
from jaxrope.search import baselines, evaluator, gradient, journal
from jaxrope.search.baselines import Baseline
from jaxrope.search.genome import Choice
from jaxrope.search.loop import Bench
from jaxrope.search.objective import Objective
from jaxrope.search.problem import Problem, build_rope
from jaxrope.shell import Progress

COST = 3  # forward passes that a gradient costs: its own, and a backward pass that counts as two
_POLL_SECONDS = 0.002
Ramp = tuple[int, int]  # (low, high), pairs


class End(NamedTuple):
    """The end of a descent; `name` is that of its start."""

    name: str
    choice: Choice


def tokens(problem: Problem, steps: int) -> int:
    """Returns the forward tokens that steps of descents cost."""
    if problem.gradient is None:
        return 0
    return COST * steps * problem.gradient.batch * problem.objective.sample_tokens


def planned_steps(problem: Problem) -> int:
    """Returns the steps of all descents, where YaRN's ramp stays as it is."""
    settings = problem.gradient
    return min(settings.starts, len(_seeds(problem))) * settings.steps if settings else 0


def steps_in(rows: list[dict]) -> int:
    """Returns how many steps of descents the journal has."""
    return sum("descent" in row for row in rows)


def run(problem: Problem, bench: Bench, compared: list[dict]) -> list[End]:
    """Returns the ends of the descents, and YaRN with its ramp moved where that is better and no
    descent began there; an empty list where the method has no descents.

    The end of a descent is not judged against a moved ramp that it began at: the ramp is the best
    of a dozen on the very texts that judge, so their noise makes it win too often.

    Args:
      problem: of the search.
      bench: has the parameters on the devices, and the journal.
      compared: the baselines, measured; the best of them are the starts.

    Raises:
      InputError: the journal is of other descents, a gradient is not a number, or memory does not
        suffice for one.
    """
    settings = problem.gradient
    if settings is None:
        return []
    moved = move_ramp(problem, bench, compared)
    starts = _starts(problem, moved, compared)[: settings.starts]
    gradient_fn = evaluator.gradient_fn(problem.objective, problem.model, problem.mesh)
    ends = []
    total, before = len(starts) * settings.steps, steps_in(bench.record.rows)
    with Progress(total, unit="steps", start=before) as progress:
        for i, start in enumerate(starts):
            report_fn = functools.partial(_tell_progress, progress, start.name, i * settings.steps)
            step_fn = functools.partial(_measure, problem, bench, gradient_fn)
            ends.append(_descend(problem, bench, start, (step_fn, report_fn)))
    if moved and moved.baseline not in starts:
        bucket = moved.baseline.bucket
        choice = Choice(np.array(bucket.factors), bucket.start_tokens, bucket.attention_factor)
        ends.append(End(moved.baseline.name, choice))
    return ends


class Moved(NamedTuple):
    """YaRN with another ramp, and its fitness with the attention factor of the search."""

    baseline: Baseline
    fitness: float


def climb(start: Ramp, moves: int, measure_fn: Callable[[list[Ramp]], Sequence[float]]) -> Ramp:
    """Returns the best ramp of those measured on the way.

    Args:
      start: where it begins.
      moves: the most moves.
      measure_fn: ramps, none of them measured before -> fitness of each, lower is better; inf:
        failed. It is called with `start` alone first.
    """
    fitness = {start: measure_fn([start])[0]}
    best = start
    for _ in range(moves):
        low, high = best
        neighbours = [(low + i, high + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        new = [ramp for ramp in neighbours if ramp not in fitness and ramp[0] < ramp[1]]
        fitness |= dict(zip(new, measure_fn(new), strict=True)) if new else {}
        candidate = min(fitness, key=fitness.get)
        if fitness[candidate] >= fitness[best]:
            break
        best = candidate
    return best


def move_ramp(problem: Problem, bench: Bench, compared: list[dict]) -> Moved | None:
    """Returns YaRN with the best ramp; None where that is its own, where
    search.gradient.ramp_moves is 0, or where YaRN is no baseline (a recovery).

    Args:
      problem: of the search.
      bench: measures, and has the journal.
      compared: the baselines, measured.
    """
    start = _yarn_ramp(problem)
    if start is None:
        return None
    done_rows = [row for row in bench.record.rows if "ramp" in row]
    fitness = {tuple(row["ramp"]): journal.fitness_of(row) for row in done_rows}
    fitness[start] = [journal.fitness_of(row) for row in compared if row["baseline"] == "yarn"][-1]

    def measure(ramps: list[Ramp]) -> list[float]:
        buckets = [_ramp_bucket(problem, ramp) for ramp in ramps]
        ropes = [build_rope(problem, b.factors, 0, b.attention_factor) for b in buckets]
        done = {i for i, ramp in enumerate(ramps) if ramp in fitness}
        for batch in bench.measure(ropes, done=done, generation=0):
            new = []
            for i, index in enumerate(batch.indices):
                if index not in done:
                    row = _ramp_row(ramps[index], buckets[index], batch.losses_PW[i])
                    new.append(row | {"fitness": journal.number(batch.fitness_P[i])})
                    fitness[ramps[index]] = float(batch.fitness_P[i])
            bench.record.append(new)
        return [fitness[ramp] for ramp in ramps]

    best = climb(start, problem.gradient.ramp_moves, measure)
    if best == start:
        return None
    return Moved(Baseline("ramp", _ramp_bucket(problem, best), True), fitness[best])


def most_ramps(problem: Problem) -> int:
    """Returns how many ramps `move_ramp` may judge: 8 in the first move, at most 5 in others."""
    if _yarn_ramp(problem) is None:
        return 0
    return 8 + 5 * (problem.gradient.ramp_moves - 1)


def _descend(problem: Problem, bench: Bench, start: Baseline, fns) -> End:
    """Returns the end of the descent from `start`, after a replay of its steps in the journal."""
    (step_fn, report_fn), settings = fns, problem.gradient
    multiplier = np.array(problem.space.multiplier or 1.0)
    bounds = _bounds(problem)
    number = problem.attention_factor  # that the baselines were ranked with
    state = gradient.begin(settings, bounds, _own_factors(problem, start), number)
    done = [row for row in bench.record.rows if row.get("descent") == start.name]
    while True:
        factors, attention_factor = gradient.point(bounds, state)
        choice = Choice(factors * multiplier, start.bucket.start_tokens, attention_factor)
        if state.step == settings.steps:
            return End(start.name, choice)
        if state.step < len(done):
            row = done[state.step]
            _check(bench, row, state.step, choice)
        else:
            row = {"descent": start.name, "step": state.step} | step_fn(choice, state.step)
            bench.record.append([row])
            report_fn(row)
        slope = np.array(row["factors_grad"]) * multiplier
        state = gradient.tell(settings, bounds, state, slope, row["attention_grad"])


def _measure(
    problem: Problem, bench: Bench, gradient_fn, choice: Choice, step: int
) -> dict[str, Any]:
    """Returns the rest of a step's row: loss and gradients of fresh samples."""
    begin = time.perf_counter()
    judge = problem.fresh(step)
    r = sharding.put(build_rope(problem, *choice), sharding.replicated(problem.mesh))
    per_sample = []
    for i in range(judge.num_samples):
        try:
            outputs = gradient_fn(bench.evaluator.params, r, _sample(problem, judge, i))
            while not outputs[0].is_ready():  # a signal is heard between polls
                time.sleep(_POLL_SECONDS)
        except jax.errors.JaxRuntimeError as error:
            raise _out_of_memory(problem, error) from None
        per_sample.append([np.asarray(leaf, np.float64) for leaf in outputs])
    loss, factors_grad, attention_grad = (
        np.average(np.stack(leaves), axis=0, weights=judge.weights_W)
        for leaves in zip(*per_sample, strict=True)
    )
    if not np.all(np.isfinite(factors_grad)) or not np.isfinite(loss):
        raise InputError(
            f"search: the gradient of step {step} is not a number (loss {loss}). Check the model "
            'at target_len, or set search.method to "evolution".'
        )
    return {
        "loss": float(loss),
        "factors": np.asarray(choice.factors).tolist(),
        "attention_factor": choice.attention_factor,
        "factors_grad": factors_grad.tolist(),
        "attention_grad": float(attention_grad),
        "seconds": round(time.perf_counter() - begin, 3),
    }


def _sample(problem: Problem, judge: Objective, index: int) -> Any:
    laid = judge.lay_out(jax.tree.map(lambda leaf: leaf[index : index + 1], judge.samples))
    laid = {name: rows_WT[0] for name, rows_WT in laid.items()}
    return sharding.put(laid, NamedSharding(problem.mesh, PartitionSpec("context")))


def _seeds(problem: Problem) -> list[Baseline]:
    return [baseline for baseline in problem.baselines if baseline.is_seed]


def _starts(problem: Problem, moved: Moved | None, compared: list[dict]) -> list[Baseline]:
    """Returns the seeds and the moved ramp, best first by their fitness with the attention factor
    of the search."""
    fitness = {row["baseline"]: journal.fitness_of(row) for row in compared}  # the last row counts
    starts = _seeds(problem)
    if moved:
        starts, fitness["ramp"] = [*starts, moved.baseline], moved.fitness
    return sorted(starts, key=lambda baseline: fitness[baseline.name])


def _bounds(problem: Problem) -> gradient.Bounds:
    space = problem.space
    allowed = space.attention_factors
    return gradient.Bounds(space.highest / space.units, (min(allowed), max(allowed)))


def _own_factors(problem: Problem, start: Baseline) -> np.ndarray:
    """The start's factors, without what the search multiplies; one row a layer if these differ."""
    factors = np.array(start.bucket.factors) / np.array(problem.space.multiplier or 1.0)
    if problem.space.num_layers == 1:
        return factors
    return np.broadcast_to(factors, (problem.space.num_layers, problem.space.num_pairs))


def _check(bench: Bench, row: dict, step: int, choice: Choice) -> None:
    """Refuses a row that this search would not have written."""
    if row["step"] != step or row["factors"] != np.asarray(choice.factors).tolist():
        raise InputError(
            f"{bench.record.path}: step {row['step']} of the descent from '{row['descent']}' is "
            "not the one that this search would ask for there (another version of numpy or "
            "jaxrope?). Use another --workdir."
        )


def _tell_progress(progress: Progress, name: str, before: int, row: dict) -> None:
    progress.update(before + row["step"] + 1, descent=name, loss=row["loss"])


def _out_of_memory(problem: Problem, error: jax.errors.JaxRuntimeError) -> Exception:
    if "RESOURCE_EXHAUSTED" not in str(error):
        return error
    return InputError(
        f"search: a gradient at target_len {problem.config.target_len:,} does not fit into the "
        "memory of a device. Less is needed with forward.remat='offload', forward.mlp_chunk=4096, "
        'or more devices on mesh.context; search.method="evolution" needs least.'
    )


def _yarn_ramp(problem: Problem) -> Ramp | None:
    """YaRN's own borders."""
    settings, names = problem.gradient, [baseline.name for baseline in problem.baselines]
    tuned = np.array(problem.space.multiplier or np.ones(problem.space.num_pairs))
    if settings is None or not settings.ramp_moves or "yarn" not in names or tuned.ndim > 1:
        return None
    return rope.yarn_borders(
        tuned, theta=problem.model.theta, trained=problem.trained_len, **baselines.BETAS
    )


def _factor(problem: Problem) -> float:
    return problem.config.target_len / problem.trained_len


def _ramp_bucket(problem: Problem, ramp: Ramp) -> rope.Bucket:
    own_R = rope.ramp_factors(*ramp, problem.space.num_pairs, _factor(problem))
    total_R = own_R * np.array(problem.space.multiplier or 1.0)
    length, number = problem.config.target_len, problem.attention_factor
    return rope.Bucket(length, rope.as_factors(total_R), 0, number)


def _ramp_row(ramp: Ramp, bucket: rope.Bucket, losses_W: np.ndarray) -> dict:
    return {
        "ramp": list(ramp),
        "factors": np.array(bucket.factors).tolist(),
        "start_tokens": bucket.start_tokens,
        "attention_factor": bucket.attention_factor,
        "losses": [journal.number(loss) for loss in losses_W],
    }

"""Descents from the best known methods, on the devices and in the journal (see gradient.py).

A step is a line of the journal, on disk before the next one starts:

    {"descent": its start, "step", "loss", "factors", "attention_factor", "factors_grad",
     "attention_grad", "seconds"}
"""

import functools
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxrope.errors import InputError
from jaxrope.mesh import sharding
from jaxrope.search import evaluator, gradient, journal, ramp
from jaxrope.search.baselines import Baseline
from jaxrope.search.genome import Choice
from jaxrope.search.loop import Bench
from jaxrope.search.objective import Objective
from jaxrope.search.problem import Problem, build_rope
from jaxrope.shell.progress import Progress

COST = 3  # forward passes that a gradient costs: its own, and a backward pass that counts as two
_POLL_SECONDS = 0.002


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
    moved = ramp.run(problem, bench, compared)
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


def _starts(problem: Problem, moved: ramp.Moved | None, compared: list[dict]) -> list[Baseline]:
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

"""Descents from the best candidates so far, on the devices and in the journal (see gradient.py).

A step is a line of the journal, on disk before the next one starts:

    {"descent": its start, "step", "loss", "losses", "factors", "attention_factor",
     "factors_grads", "attention_grads", "seconds"}

with a loss and gradients for every draw of the step; "loss" is their mean.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxrope import rope
from jaxrope.errors import InputError
from jaxrope.mesh import sharding
from jaxrope.search import candidates, compare, evaluator, forms, gradient, ramp, verdict
from jaxrope.search.candidates import Candidate
from jaxrope.search.loop import Bench
from jaxrope.search.problem import Problem, build_rope

COST = 3  # forward passes that a gradient costs: its own, and a backward pass that counts as two
_POLL_SECONDS = 0.002


def draws(problem: Problem) -> int:
    """Returns the draws of which all descents take a gradient."""
    settings = problem.gradient
    if settings is None:
        return 0
    starts = min(settings.starts, len(problem.baselines) + bool(ramp.most(problem)))
    return starts * gradient.draws_before(settings, settings.steps + 1)


def planned(problem: Problem) -> int:
    """Returns the forward tokens that all descents cost."""
    return draws(problem) * draw_tokens(problem)


def draw_tokens(problem: Problem) -> int:
    """Returns the forward tokens that a gradient of one draw costs."""
    return COST * problem.objective.cycle * problem.objective.sample_tokens


def tokens_in(problem: Problem, rows: Sequence[dict]) -> int:
    """Returns the forward tokens of the steps in the journal."""
    return sum(len(row["losses"]) for row in rows if "descent" in row) * draw_tokens(problem)


def run(problem: Problem, bench: Bench, compared: Sequence[Candidate]) -> list[Candidate]:
    """Returns the ends of the descents, not measured; none where the method has no descents.

    Args:
      problem: of the search.
      bench: has the parameters on the devices, and the journal.
      compared: the baselines and the moved ramp, best first.

    Raises:
      InputError: the journal is of other descents, a gradient is not a number, or memory does not
        suffice for one.
    """
    settings = problem.gradient
    if settings is None:
        return []
    gradient_fns = evaluator.gradient_fns(problem.objective, problem.model, problem.mesh)
    starts = _starts(problem, compared)[: settings.starts]
    tokens = sum(spared(problem, bench.record.rows, compared).values())
    more = tokens // (settings.batch * draw_tokens(problem))
    steps = settings.steps + more // max(1, len(starts))
    return [_descend(problem, bench, start, gradient_fns, steps) for start in starts]


def spared(problem: Problem, rows: Sequence[dict], compared: Sequence[Candidate]) -> dict[str, int]:
    """Returns by phase the forward tokens that were planned and are not needed. Descents spend
    them: a search costs what its dry run says.
    """
    count = sum("baseline" in row or ramp.NAME in row for row in rows)
    left = compare.most(problem) + ramp.most(problem) - count
    unmeasured = max(0, left) * problem.objective.candidate_tokens
    return {"baselines": unmeasured, "judging": verdict.spared(problem, compared)}


def _starts(problem: Problem, compared: Sequence[Candidate]) -> list[Candidate]:
    """Returns where descents may start: at candidates of the form, or all if there are none."""
    form, limits = problem.config.search.form, problem.limits
    starts = [start for start in compared if np.isfinite(start.fitness)]
    own = [start for start in starts if forms.fits(form, limits, _own_factors(problem, start))]
    return own or starts


def _descend(
    problem: Problem, bench: Bench, start: Candidate, gradient_fns: Sequence[Callable], steps: int
) -> Candidate:
    """Returns the end of the descent from `start`, after a replay of its steps in the journal."""
    settings, multiplier = problem.gradient, np.array(problem.space.multiplier or 1.0)
    own_factors = _own_factors(problem, start)
    shape = forms.of(problem.config.search.form, problem.limits, own_factors)
    state = gradient.begin(
        shape, problem.attention_range, own_factors, start.bucket.attention_factor
    )
    done = [row for row in bench.record.rows if row.get("descent") == start.name]
    while True:
        factors, attention_factor = gradient.point(shape, state)
        bucket = rope.Bucket(
            problem.config.target_len,
            rope.as_factors(factors * multiplier),
            start.bucket.start_tokens,
            attention_factor,
        )
        if state.step > steps:
            return Candidate(f"{start.name}, descended", bucket, np.nan)
        if state.step < len(done):
            row = done[state.step]
            _check(bench, row, state.step, bucket)
        else:
            row = {"descent": start.name, "step": state.step}
            row |= _measure(problem, bench, gradient_fns, bucket, state.step)
            bench.record.append([row])
            bench.meter.tell(step=f"{state.step + 1}/{steps + 1}", loss=row["loss"])
        state = gradient.tell(
            settings,
            shape,
            problem.attention_range,
            state,
            factors_grads=np.array(row["factors_grads"]) * multiplier,
            attention_grads=np.array(row["attention_grads"]),
            tokens=problem.objective.scored_tokens,
        )


def _measure(
    problem: Problem, bench: Bench, gradient_fns: Sequence[Callable], bucket: rope.Bucket, step: int
) -> dict[str, Any]:
    """Returns the rest of a step's row: losses and gradients of fresh draws."""
    begin = time.perf_counter()
    settings = problem.gradient
    first, count = gradient.draws_before(settings, step), gradient.draws(settings, step)
    judge = problem.fresh(first, count)
    r = build_rope(problem, bucket.factors, bucket.start_tokens, bucket.attention_factor)
    r = sharding.put(r, sharding.replicated(problem.mesh))
    per_sample = []
    samples = evaluator.place(judge, problem.mesh)
    for sample, gradient_fn in zip(samples, itertools.cycle(gradient_fns)):
        try:
            outputs = gradient_fn(bench.evaluator.params, r, sample)
            while not outputs[0].is_ready():  # a signal is heard between polls
                time.sleep(_POLL_SECONDS)
        except jax.errors.JaxRuntimeError as error:
            raise _out_of_memory(problem, error) from None
        per_sample.append([np.asarray(leaf, np.float64) for leaf in outputs])
        bench.meter.add(COST * judge.sample_tokens)
    shape = count, judge.cycle
    losses_B, factors_grads, attention_grads = (
        np.average(np.reshape(leaves, shape + leaves[0].shape), axis=1, weights=judge.weights)
        for leaves in zip(*per_sample, strict=True)
    )
    attention_grads = attention_grads.reshape(count, -1).sum(axis=1)  # all layers share it
    if not np.all(np.isfinite(factors_grads)) or not np.all(np.isfinite(losses_B)):
        raise InputError(
            f"search: a gradient of step {step} is not a number (losses {losses_B}). Check the "
            'model at target_len, or set search.method to "evolution".'
        )
    return {
        "loss": float(losses_B.mean()),
        "losses": losses_B.tolist(),
        "factors": np.array(bucket.factors).tolist(),
        "attention_factor": bucket.attention_factor,
        "factors_grads": factors_grads.tolist(),
        "attention_grads": attention_grads.tolist(),
        "seconds": round(time.perf_counter() - begin, 3),
    }


def _own_factors(problem: Problem, start: Candidate) -> np.ndarray:
    """The start's factors, without what the search multiplies; one row a layer if these differ."""
    factors = np.array(start.bucket.factors) / np.array(problem.space.multiplier or 1.0)
    if problem.space.num_layers == 1:
        return factors
    return np.broadcast_to(factors, (problem.space.num_layers, problem.space.num_pairs))


def _check(bench: Bench, row: dict, step: int, bucket: rope.Bucket) -> None:
    """Refuses a row that this search would not have written."""
    if row["step"] != step or row["factors"] != candidates.plain(bucket)["factors"]:
        raise InputError(
            f"{bench.record.path}: step {row['step']} of the descent from '{row['descent']}' is "
            "not the one that this search would ask for there (another version of numpy or "
            "jaxrope?). Use another --workdir."
        )


def _out_of_memory(problem: Problem, error: jax.errors.JaxRuntimeError) -> Exception:
    if "RESOURCE_EXHAUSTED" not in str(error):
        return error
    return InputError(
        f"search: a gradient at target_len {problem.config.target_len:,} does not fit into the "
        "memory of a device. Less is needed with forward.remat='offload', forward.mlp_chunk=4096, "
        'or more devices on mesh.context; search.method="evolution" needs least.'
    )

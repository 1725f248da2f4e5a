"""What a search would cost; nothing is written."""

import dataclasses
import time
from typing import Any

import jax
from jax.sharding import AbstractMesh

from jaxrope import decoder
from jaxrope.mesh import sharding
from jaxrope.search import baselines, descent, evaluator, plan
from jaxrope.search.problem import Problem, build_rope, prepare, seeds, weights
from jaxrope.setup import NOTHING, Expected
from jaxrope.shell import duration

_GIB = 2**30
# Operations of the largest batch that is measured: some 20 s on two cores, some seconds on a chip.
_CPU_OPERATIONS, _ACCELERATOR_OPERATIONS = 2e12, 1e15


def dry_run(config: Any, *, timing: bool = True, expected: Expected = NOTHING) -> str:
    """Returns what a search would do, its tokens, memory and time, as text.

    Args:
      config: see configs/base.py.
      timing: whether it may measure one batch, which takes up to a minute.
      expected: what earlier stages of a recipe will leave.

    Raises:
      InputError: see `problem.prepare`.
    """
    problem = prepare(config, expected)
    judge, model, space = problem.objective, problem.model, problem.space
    documents, names = problem.task.documents, [seed.name for seed in seeds(problem)]
    candidates, total = _candidates(problem)
    sloped = descent.tokens(problem, descent.planned_steps(problem))
    tokens = total * judge.candidate_tokens + sloped
    operations = decoder.forward_operations(model, judge.sample_tokens)
    target_len = problem.config.target_len
    rows = {
        "model": f"{problem.loaded.source}, {decoder.num_params(model):,} parameters, trained on "
        f"{problem.trained_len:,} tokens",
        "target": f"{target_len:,} tokens, {target_len / problem.trained_len:g} times as many; "
        f"factors from 1 to {space.highest / space.units:g}"
        + (" times those that are there" if space.multiplier else ""),
        "method": f"{problem.config.search.method}, from {', '.join(names)}",
        "text": documents.summary,
        "candidates": candidates,
        "forward tokens": f"{tokens:,} ({judge.num_samples} samples of "
        f"{judge.sample_tokens:,} a candidate" + (f"; {sloped:,} by descents)" if sloped else ")"),
        "operations": f"{operations * tokens / judge.sample_tokens:.2e}",
        "batch": f"{_batch(problem)} candidates, {problem.per_device} on each of "
        f"{problem.num_groups} "
        f"{'devices' if problem.num_groups == problem.mesh.size else 'groups of devices'}",
        "memory": _memory(problem.memory),
    }
    if untimed := _untimed(problem, expected, operations):
        rows["time"] = f"not known: {untimed}"
    elif timing:
        rows["time"] = _time(problem, tokens / judge.candidate_tokens)
    lines = [f"{name:<16}{text}" for name, text in rows.items()]
    return "\n".join([*lines, *problem.remarks, *(f"note: {note}" for note in problem.notes)])


def _candidates(problem: Problem) -> tuple[str, int]:
    """Returns the candidates that are judged, in words and their number."""
    seeded = len(seeds(problem)) + (problem.gradient.starts if problem.gradient else 0)
    evolved = problem.settings.num_evaluations() if problem.method.breeds else seeded
    compared = baselines.comparisons(problem.baselines, problem.attention_factor)
    num_compared = len(compared) if problem.config.search.compare else 0
    moved = descent.most_ramps(problem)
    total = evolved + num_compared + moved
    words = f"{total:,} ({evolved:,} by evolution, {num_compared} baselines"
    return words + (f", at most {moved} to move YaRN's ramp)" if moved else ")"), total


def _batch(problem: Problem) -> int:
    return problem.per_device * problem.num_groups


def _memory(memory: plan.Memory) -> str:
    needs = (
        f"about {memory.params / _GIB:.3f} GiB for the model and {memory.candidate / _GIB:.3f} GiB "
        "for each candidate of a batch, on each device; "
    )
    if memory.available is None:
        return f"{needs}what may be used, only its devices can tell"
    return f"{needs}{memory.available / _GIB:.1f} GiB may be used"


def _untimed(problem: Problem, expected: Expected, operations: float) -> str:
    """Returns why a batch cannot be measured here; "" where it can."""
    if isinstance(problem.mesh, AbstractMesh):
        return (
            f"the mesh has {problem.mesh.size} devices, this machine {len(jax.devices())}. Only "
            "they can tell, and whether a batch fits into their memory"
        )
    model = problem.config.model
    if model.source == "checkpoint" and model.path in expected.models:
        return "the model is not there yet"
    is_cpu = sharding.platform(problem.mesh) == "cpu"
    limit = _CPU_OPERATIONS if is_cpu else _ACCELERATOR_OPERATIONS
    is_long = operations * problem.per_device > limit
    return "one batch is too long to be measured here" if is_long else ""


def _time(problem: Problem, total: float) -> str:
    """Measures one sample of one batch; `total`: candidates that the search costs."""
    judge = problem.objective
    samples = jax.tree.map(lambda leaf: leaf[:1], judge.samples)
    sample_evaluator = evaluator.make(
        dataclasses.replace(judge, samples=samples),
        problem.model,
        weights(problem),
        per_device=problem.per_device,
        mesh=problem.mesh,
    )
    bucket = problem.baselines[0].bucket
    candidate = build_rope(problem, bucket.factors, 0, problem.attention_factor)
    evaluator.evaluate(sample_evaluator, [candidate])  # compiles
    start = time.perf_counter()
    evaluator.evaluate(sample_evaluator, [candidate])
    rate = _batch(problem) / (time.perf_counter() - start) / judge.num_samples
    tokens = rate * judge.candidate_tokens
    return f"{duration(total / rate)} ({rate:.3g} candidates/s, {tokens:,.0f} tokens/s, measured)"

"""What a search would cost; nothing is written."""

import dataclasses
import time

import jax

from jaxrope import schema
from jaxrope.search import baselines, descent, evaluator, plan, ramp
from jaxrope.search.objective import OF_ATTENTION
from jaxrope.search.problem import METHODS, Problem, build_rope, prepare, seeds
from jaxrope.shell.progress import duration

_GIB = 2**30
# Operations of the largest batch that is measured: some 20 s on two cores, some seconds on a chip.
_CPU_OPERATIONS, _ACCELERATOR_OPERATIONS = 2e12, 1e15


def estimate(config) -> str:
    """Returns tokens, memory and time of a search, as text.

    Raises:
      InputError: see `problem.prepare`.
    """
    problem = prepare(config)
    judge, memory = problem.objective, problem.memory
    section = problem.config.search
    breeds = METHODS[section.method].breeds
    seeded = len(seeds(problem)) + (problem.gradient.starts if problem.gradient else 0)
    evolved = problem.settings.num_evaluations() if breeds else seeded
    compared = baselines.comparisons(problem.baselines, problem.attention_factor)
    num_compared = len(compared) if section.compare else 0
    moved = ramp.most_candidates(problem)
    total, batch = evolved + num_compared + moved, problem.per_device * problem.num_groups
    sloped = descent.tokens(problem, descent.planned_steps(problem))
    tokens = total * judge.candidate_tokens + sloped
    operations = plan.forward_operations(problem.model, judge.sample_tokens)
    rows = {
        "candidates": f"{total:,} ({evolved:,} by evolution, {num_compared} baselines"
        + (f", at most {moved} to move YaRN's ramp)" if moved else ")"),
        "forward tokens": f"{tokens:,} ({judge.num_samples} samples of "
        f"{judge.sample_tokens:,} a candidate" + (f"; {sloped:,} by descents)" if sloped else ")"),
        "operations": f"{operations * tokens / judge.sample_tokens:.2e}",
        "batch": f"{batch} candidates, {problem.per_device} on each of {problem.num_groups} "
        f"{'devices' if problem.num_groups == problem.mesh.size else 'groups of devices'}",
        "memory": f"about {memory.params / _GIB:.3f} GiB for the model and "
        f"{memory.candidate / _GIB:.3f} GiB for each candidate of a batch, on each device; "
        f"{memory.available / _GIB:.1f} GiB may be used",
        "time": _time(problem, tokens / judge.candidate_tokens, batch, operations),
    }
    lines = [f"{name:<16}{text}" for name, text in rows.items()]
    return "\n".join([*lines, *problem.remarks])


def planned_tokens(config) -> int:
    """Returns the forward tokens of a search from its config alone: of children and
    descents, without baselines and seeds, and with the shorter texts of an objective of attention
    where the config says the trained length.

    Raises:
      InputError: a setting breaks its rule.
    """
    config = schema.read(config)
    section, tokens = config.search, 0
    method = METHODS[section.method]
    if method.breeds:
        evolved = section.algorithm.halved(config.target_len).num_evaluations()
        tokens += evolved * section.objective.num_samples
    if method.descends:
        descents = section.gradient
        tokens += descent.COST * descents.starts * descents.steps * descents.batch
    looks = section.objective.name in OF_ATTENTION
    trained_len = (section.training_len or config.original_len) if looks else 0
    return tokens * (config.target_len + trained_len)


def _time(problem: Problem, total: float, batch: int, operations: float) -> str:
    """Measures one sample of one batch, if that is quick."""
    is_cpu = problem.mesh.devices.flat[0].platform == "cpu"
    limit = _CPU_OPERATIONS if is_cpu else _ACCELERATOR_OPERATIONS
    if operations * problem.per_device > limit:
        return "not known: one batch is too long to be measured here"
    judge = problem.objective
    samples = jax.tree.map(lambda leaf: leaf[:1], judge.samples)
    one_sample = dataclasses.replace(judge, samples=samples)
    sample_evaluator = evaluator.make(
        one_sample, problem.model, problem.params, per_device=problem.per_device, mesh=problem.mesh
    )
    bucket = problem.baselines[0].bucket
    candidate = build_rope(problem, bucket.factors, 0, problem.attention_factor)
    evaluator.evaluate(sample_evaluator, [candidate])  # compiles
    start = time.perf_counter()
    evaluator.evaluate(sample_evaluator, [candidate])
    rate = batch / (time.perf_counter() - start) / judge.num_samples
    tokens = rate * judge.candidate_tokens
    return f"{duration(total / rate)} ({rate:.3g} candidates/s, {tokens:,.0f} tokens/s, measured)"

"""What a search costs, phase by phase, and what the other methods would; nothing is written."""

import dataclasses
import math
import time
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh

from jaxrope import decoder, schema
from jaxrope.mesh import sharding
from jaxrope.search import beside, compare, descent, evaluator, objective, plan, ramp, verdict
from jaxrope.search.preparing import prepare
from jaxrope.search.problem import METHODS, Problem, build_rope, seeds, weights
from jaxrope.setup import NOTHING, Expected
from jaxrope.shell import duration

_GIB = 2**30
_PHASES = ("baselines", "ramp", "descent", "evolution", "judging", "beside")  # as they follow
# Operations of the largest batch that is measured: some 20 s on two cores, some seconds on a chip.
_CPU_OPERATIONS, _ACCELERATOR_OPERATIONS = 2e12, 1e15


def rounds(problem: Problem) -> dict[str, tuple[int, ...]]:
    """Returns for each phase but descents how many candidates are measured together, one round
    after another, at most.
    """
    phases = {"baselines": compare.rounds(problem)}
    if problem.gradient:
        phases["ramp"] = (1,) * ramp.most(problem)
    if problem.method.breeds:
        phases["evolution"] = problem.settings.generations()
    return phases | {"judging": (verdict.most(problem),)}


def planned(problem: Problem) -> dict[str, int]:
    """Returns the forward tokens of each phase of a search, at most; a gradient counts three."""
    tokens = dict.fromkeys(_PHASES, problem.objective.candidate_tokens)
    tokens["judging"] = verdict.tokens(problem)
    phases = {phase: sum(counts) * tokens[phase] for phase, counts in rounds(problem).items()}
    if problem.gradient:
        phases["descent"] = descent.planned(problem)
    phases["beside"] = beside.tokens(problem)
    return {phase: phases[phase] for phase in _PHASES if phase in phases}


def batches(problem: Problem, size: int) -> dict[str, int]:
    """Returns how often each phase that judges candidates runs a batch on one sample, at most.

    Args:
      problem: of the search.
      size: candidates of a batch, which is filled up.
    """
    judge = problem.objective
    samples = dict.fromkeys(_PHASES, judge.num_samples)
    samples["judging"] = verdict.tokens(problem) // judge.sample_tokens
    return {
        phase: samples[phase] * sum(math.ceil(count / size) for count in counts)
        for phase, counts in rounds(problem).items()
    }


def samples_beside(problem: Problem) -> int:
    """Returns how many samples have the tokens of what is reported beside the verdict, which one
    candidate at a time reads.
    """
    return math.ceil(beside.tokens(problem) / problem.objective.sample_tokens)


def by_method(problem: Problem) -> dict[str, Problem]:
    """Returns the same search with each method that its config allows, in batches of the same size
    or, where a method has no population, of the least (see prepare).
    """
    section, problems = problem.config.search, {}
    for name, method in METHODS.items():
        if method.descends and not section.compare:
            continue  # descents start from the best method
        config = schema.replace(problem.config, {"search.method": name})
        least = not (method.breeds or section.batch_size)
        per_device = 1 if least else problem.per_device
        problems[name] = dataclasses.replace(problem, config=config, per_device=per_device)
    return problems


def dry_run(config: Any, *, timing: bool = True, expected: Expected = NOTHING) -> str:
    """Returns what a search would do, its tokens, memory and time, as text.

    Args:
      config: see configs/base.py.
      timing: whether it may measure one batch, which takes up to a minute.
      expected: what earlier stages of a recipe will leave.

    Raises:
      InputError: see `preparing.prepare`.
    """
    problem = prepare(config, expected)
    judge, model, space = problem.objective, problem.model, problem.space
    phases, section = planned(problem), problem.config.search
    target_len, tokens = problem.config.target_len, sum(phases.values())
    operations = decoder.forward_operations(model, judge.sample_tokens)
    lowest, highest = (gene / space.units for gene in (space.lowest, space.highest))
    rows = {
        "model": f"{problem.loaded.source}, {decoder.num_params(model):,} parameters, trained on "
        f"{problem.trained_len:,} tokens",
        "target": f"{target_len:,} tokens, {target_len / problem.trained_len:g} times as many; "
        f"factors from {lowest:g} to {highest:g}"
        + (" times those that are there" if space.multiplier else ""),
        "method": f"{section.method}, form {section.form}, from " + _starts(problem),
        "text": problem.task.documents.summary,
        "forward tokens": f"{tokens:,} at most ("
        + ", ".join(f"{phase} {count:,}" for phase, count in phases.items() if count)
        + f"); a candidate reads {judge.num_samples} samples of {judge.sample_tokens:,}; judging "
        f"up to {verdict.most_beyond(problem):,} more where candidates are as good as baselines",
        "operations": f"{operations * tokens / judge.sample_tokens:.2e}",
        "batch": f"{_batch(problem)} candidates, {problem.per_device} on each of "
        f"{problem.num_groups} "
        f"{'devices' if problem.num_groups == problem.mesh.size else 'groups of devices'}",
        "memory": _memory(problem.memory),
    }
    unknown = _untimed(problem, expected)
    if unknown:
        rows["time"] = f"not known: {unknown}"
    elif timing:
        rows |= _times(problem, tokens)
    lines = [f"{name:<20}{text}" for name, text in rows.items()]
    return "\n".join([*lines, *problem.remarks, *(f"note: {note}" for note in problem.notes)])


def _starts(problem: Problem) -> str:
    if problem.gradient:
        return "the best of " + ", ".join(baseline.name for baseline in problem.baselines)
    return ", ".join(seed.name for seed in seeds(problem))


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


def _untimed(problem: Problem, expected: Expected) -> str:
    """Returns why nothing can be measured here; "" where it can."""
    if isinstance(problem.mesh, AbstractMesh):
        return (
            f"the mesh has {problem.mesh.size} devices, this machine {len(jax.devices())}. Only "
            "they can tell, and whether a batch fits into their memory"
        )
    model = problem.config.model
    if model.source == "checkpoint" and model.path in expected.models:
        return "the model is not there yet"
    return ""


class Rate(NamedTuple):
    """Forward tokens a second; `length`: of the sample that was measured, shorter than those of the
    search where one of these takes too long; 0: as long; `ready`: seconds until the weights were
    there and the forward pass was compiled."""

    tokens: float
    length: int
    ready: float


def _times(problem: Problem, tokens: int) -> dict[str, str]:
    """Returns the rows of the time: of this method and of the others."""
    rate = measured(problem)
    how = f"extrapolated from {rate.length:,} tokens" if rate.length else "measured"
    rows = {"time": f"{duration(tokens / rate.tokens)} ({rate.tokens:,.0f} tokens/s, {how})"}
    for name, changed in by_method(problem).items():
        if name != problem.config.search.method:
            other = sum(planned(changed).values())
            rows[f"{name} instead"] = f"{other:,} forward tokens, {duration(other / rate.tokens)}"
    return rows


def measured(problem: Problem, lasting: float = 0.0) -> Rate:
    """Measures one sample of one batch, again and again for `lasting` seconds: of half the length,
    a quarter, ... where it is long.
    """
    begin = time.perf_counter()
    judge, length = problem.objective, problem.config.target_len
    is_cpu = sharding.platform(problem.mesh) == "cpu"
    limit = _CPU_OPERATIONS if is_cpu else _ACCELERATOR_OPERATIONS
    least = 64 * problem.mesh.shape["context"]
    while _operations(problem, length) > limit and length >= 2 * least:
        length //= 2
    if length < problem.config.target_len:
        judge = _plain(problem, length)
    sample_evaluator = evaluator.make(
        judge,
        problem.model,
        weights(problem),
        per_device=problem.per_device,
        mesh=problem.mesh,
    )
    sample_evaluator = evaluator.part(sample_evaluator, slice(judge.cycle))
    bucket = problem.baselines[0].bucket
    candidate = build_rope(problem, bucket.factors, 0, problem.attention_factor)
    evaluator.evaluate(sample_evaluator, [candidate])  # compiles
    start, count = time.perf_counter(), 0
    while not count or time.perf_counter() < start + lasting:
        evaluator.evaluate(sample_evaluator, [candidate])
        count += 1
    seconds = (time.perf_counter() - start) / count
    ready = start - begin
    if length == problem.config.target_len:
        return Rate(_batch(problem) * judge.cycle * judge.sample_tokens / seconds, 0, ready)
    share = _operations(problem, problem.config.target_len) / _operations(problem, length)
    return Rate(_batch(problem) * problem.config.target_len / (seconds * share), length, ready)


def _operations(problem: Problem, length: int) -> float:
    return decoder.forward_operations(problem.model, length) * problem.per_device


def _plain(problem: Problem, length: int) -> objective.Judge:
    """Returns the perplexity of one sample of another length."""
    task = dataclasses.replace(problem.task, target_len=length)
    section = schema.search.Perplexity(name="perplexity", num_samples=1, offset_tokens=0)
    return objective.perplexity(task, section)

"""What an evaluation would cost: tokens, operations, memory and, where it can be measured, time."""

import time

import jax
import numpy as np
from jax.sharding import AbstractMesh

from jaxrope import decoder, generate
from jaxrope.evaluate import answering, scoring, suites
from jaxrope.evaluate.plan import Plan, load, prepare
from jaxrope.evaluate.scoring import EvalModel
from jaxrope.mesh import sharding
from jaxrope.setup import NOTHING, Expected
from jaxrope.shell import duration

_MIB = 2**20
# Operations of the largest batch that is measured: some 20 s on two cores, some seconds on a chip.
_CPU_OPERATIONS, _ACCELERATOR_OPERATIONS = 2e12, 1e15
_ROWS, _STEPS = 16, 4  # rows that are read and tokens that are written for it, at most


def dry_run(config, *, timing: bool = True, expected: Expected = NOTHING) -> str:
    """Returns what an evaluation would do and cost, as text.

    Args:
      config: of the program.
      timing: whether to measure one short batch, which takes up to a minute.
      expected: models and ropes that are not there yet.

    Raises:
      InputError: see `prepare`.
    """
    plan = prepare(config, expected)
    tokens: dict[str, int] = {}
    for cost in plan.costs:
        tokens[cost.suite] = tokens.get(cost.suite, 0) + cost.tokens
    lines = [outline(plan), f"rows: {', '.join(spec.label for spec in plan.specs)}"]
    lines += [f"  {name}: {count:,} forward tokens at most" for name, count in tokens.items()]
    lines.append(f"memory: {_memory(plan)}")
    lines.append(f"time: {_time(plan) if timing else 'not measured'}")
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])


def outline(plan: Plan) -> str:
    """Returns what was read, and the size of an evaluation."""
    operations = sum(cost.tokens * cost.operations for cost in plan.costs)
    documents = plan.bench.documents
    text = f"{documents.summary}\n" if documents is not None else ""
    filled = [sum(counts) for counts in zip(*(cost.filled for cost in plan.costs), strict=True)]
    padding = "".join(f"\n{line}" for line in decoder.lengths.describe(*filled))
    return (
        f"{text}{len(plan.specs)} rows x {len(plan.bench.options.lengths)} lengths: "
        f"{forward_tokens(plan):,} forward tokens, {operations:.1e} floating point operations"
        f"{padding}"
    )


def forward_tokens(plan: Plan) -> int:
    """Returns the tokens that all rows read and write, at most."""
    return sum(cost.tokens for cost in plan.costs)


def _memory(plan: Plan) -> str:
    shape, mesh = plan.base.config, plan.mesh
    dtype = plan.config.train.param_dtype
    leaves = jax.tree.leaves(decoder.abstract_params(shape, dtype))
    places = jax.tree.leaves(decoder.param_shardings(shape, mesh))
    size = sum(
        int(np.prod(place.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf, place in zip(leaves, places, strict=True)
    )
    return f"{size / _MIB:,.1f} MiB of parameters on each of {mesh.size} devices"


def _time(plan: Plan) -> str:
    """Returns how long it takes by what a short batch takes, if that is quick."""
    if isinstance(plan.mesh, AbstractMesh):
        return (
            f"only the {plan.mesh.size} devices of the mesh can tell it, and whether what is "
            "computed fits beside the parameters"
        )
    spec = plan.specs[0]
    if spec.path in plan.expected.models:
        return "not known: the model is not there yet"
    part = min((c for c in plan.costs if c.spec == spec and c.tokens), key=lambda c: c.length)
    rows = max(1, min(_ROWS, plan.config.eval.batch_tokens // part.length))
    is_cpu = sharding.platform(plan.mesh) == "cpu"
    most = _CPU_OPERATIONS if is_cpu else _ACCELERATOR_OPERATIONS
    if part.operations * rows * part.length > most:
        return "not known: one batch is too long to be measured here"
    model = plan.model(spec, load(plan, spec.path))
    rate = rows * part.length / _reading_seconds(model, rows, part.length)
    operations = sum(cost.tokens * cost.operations for cost in plan.costs)
    seconds, written = operations / (rate * part.operations), ""
    if steps := sum(cost.steps for cost in plan.costs):
        step = _step_seconds(plan, model)
        seconds, written = seconds + steps * step, f", {step:.2g} s a token that is written"
    return (
        f"about {duration(seconds)} ({rate:,.0f} tokens/s at {part.length:,} tokens{written}, "
        "measured), and compiling"
    )


def _reading_seconds(model: EvalModel, rows: int, length: int) -> float:
    tokens_WT = np.zeros((rows, length + 1), np.int32)
    scoring.score(model, tokens_WT, batch_tokens=rows * length)  # compiles
    start = time.perf_counter()
    scoring.score(model, tokens_WT, batch_tokens=rows * length)
    return time.perf_counter() - start


def _step_seconds(plan: Plan, model: EvalModel) -> float:
    """Returns the seconds in which each row of a batch gets a token."""
    names = [name for name in suites.chosen(plan.bench.options) if name in suites.TASKS]
    bench = suites.bench_of(names[0], plan.bench)
    chunk, length = bench.options.chunk_tokens, min(bench.options.lengths)
    asked = answering.questions(suites.TASKS[names[0]], model, bench, length)
    rows = answering.batch_size(model, [q.prompt for q in asked], bench.options.batch_tokens)
    prompts = [answering.Prompt(q.prompt.tokens[:chunk], _STEPS) for q in asked[:rows]]
    how = answering.Writing(length, (), rows, chunk, max(length, chunk + _STEPS))
    for _ in range(2):  # the first time compiles
        timing = generate.Timing()
        for _ in answering.write(model, prompts, how, timing=timing):
            pass
    return timing.decode_seconds * len(prompts) / timing.decode_tokens

"""The device programs of train.py and search.py, built from a config alone: without data, tokenizer
or weights."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from jaxrope import decoder, schema, setup
from jaxrope.search import Objective, Problem, build_rope, cost, descent, evaluator
from jaxrope.topology import roofline
from jaxrope.topology.memory import Footprint
from jaxrope.train import program as program_lib


@dataclasses.dataclass(frozen=True)
class Job:
    """A program to compile.

    Attributes:
      what: its name for the user, such as "training step".
      lower: returns it lowered.
      work: of one run.
      footprint: the settings that its memory depends on; None: not estimated.
      remarks: lines for the user.
      runs: in the whole training or search.
      remedy: what makes its memory less, where that is not estimated.
    """

    what: str
    lower: Callable[[], jax.stages.Lowered]
    work: roofline.Work
    footprint: Footprint | None
    remarks: tuple[str, ...]
    runs: int
    remedy: str = ""


def train_job(config, mesh: Mesh, expected: setup.Expected = setup.NOTHING) -> Job:
    """Returns the training step of a config.

    Args:
      config: of the program.
      mesh: of sharding.make_mesh.
      expected: what earlier stages of a recipe will leave.

    Raises:
      InputError: the config does not fit itself or the mesh.
    """
    config = schema.read(config)
    program = program_lib.make_program(config, mesh, setup.outlined(config, expected).config)
    parts, rows, seq_len = program.batch_shape
    sizes, settings = dict(mesh.shape), program.settings

    def lower():
        state, shardings = program_lib.abstract_state(program)
        plain = decoder.own_rope(program.model)(
            seq_len
        )  # its numbers do not matter, only its shape
        r = program_lib.rope_argument(program, plain)
        return program_lib.lower_step(program, state, shardings, r)

    footprint = Footprint(
        model=program.model,
        sizes=sizes,
        rows=rows,
        seq_len=seq_len,
        accumulates=parts > 1,
        remat=settings.remat,
        mlp_chunk=settings.mlp_chunk,
        chunk_tokens=program.chunk_tokens,
        offload=program.optimizer.offload,
    )
    batch = (
        f"batch         {parts * rows:,} row{'s' * (parts * rows > 1)} of {seq_len:,} tokens, in "
        f"{parts:,} part{'s' * (parts > 1)}; of a part {footprint.tokens:,} tokens on each device"
    )
    return Job(
        what="training step",
        lower=lower,
        work=roofline.train_work(
            program.model, settings, sizes, rows=parts * rows, seq_len=seq_len, parts=parts
        ),
        footprint=footprint,
        remarks=(_model_line(program.model), batch, *program.remarks),
        runs=config.train.steps,
    )


def batch_jobs(problem: Problem, per_device: int) -> list[Job]:
    """Returns the evaluation of a batch of candidates on one sample, for each kind of sample.

    Args:
      problem: of search.outline.
      per_device: candidates evaluated together in each group of devices.
    """
    sizes, candidates = dict(problem.mesh.shape), per_device * problem.num_groups
    counts = cost.batches(problem, candidates)
    listed = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
    job = Job(
        what="batch of a search on one sample",
        lower=functools.partial(_lower, problem, per_device),
        work=roofline.NOTHING,
        footprint=None,
        remarks=(
            f"batch         {candidates:,} candidate{'s' * (candidates > 1)}",
            f"its runs      about {listed}",
        ),
        runs=math.ceil(sum(counts.values()) / problem.objective.cycle),
        remedy="fewer candidates at a time (search.batch_size)",
    )

    def work(length: int) -> roofline.Work:
        return roofline.forward_work(problem.model, sizes, rows=candidates, seq_len=length)

    return _of_each_kind(problem, job, work)


def gradient_jobs(problem: Problem) -> list[Job]:
    """Returns the gradient in one rope on one sample, for each kind of sample.

    Args:
      problem: of search.outline, of a method with descents.
    """
    settings, sizes = problem.task.settings, dict(problem.mesh.shape)
    draws, groups = descent.draws(problem), problem.num_groups
    how = f"gradient      in one rope, forward.remat={settings.remat}"
    if groups > 1:
        how += (
            f"; {groups} groups of devices compute the same one: mesh.data=1, mesh.fsdp=1 and "
            f"mesh.context={groups * sizes['context']} would share it"
        )
    job = Job(
        what="gradient of a search on one sample",
        lower=functools.partial(_lower, problem, 0),
        work=roofline.NOTHING,
        footprint=None,
        remarks=(how, f"its runs      {draws * problem.objective.cycle:,}"),
        runs=draws,
        remedy="forward.remat='offload', forward.mlp_chunk=4096, or more devices on mesh.context",
    )

    def work(length: int) -> roofline.Work:
        return roofline.gradient_work(problem.model, settings, sizes, seq_len=length)

    return _of_each_kind(problem, job, work)


def _lower(problem: Problem, per_device: int, kind: int) -> jax.stages.Lowered:
    model = problem.model
    plain = build_rope(problem, np.ones(model.rotary_dim // 2), 0, 1.0)
    how = dict(dtype=problem.task.settings.compute_dtype, kind=kind, per_device=per_device)
    return evaluator.lower(problem.objective, model, problem.mesh, plain, **how)


def _of_each_kind(problem: Problem, job: Job, work_fn: Callable[[int], roofline.Work]) -> list[Job]:
    """Returns the job of each kind of sample; `job.lower` takes the kind, `work_fn` the tokens of
    a sample that depend on the candidate."""

    def of_kind(kind: int, part: Objective) -> Job:
        work = work_fn(part.sample_tokens - part.shared_tokens)
        if part.shared_tokens:  # in every group of devices
            rows, sizes = problem.num_groups, dict(problem.mesh.shape)
            length = part.shared_tokens
            work += roofline.forward_work(problem.model, sizes, rows=rows, seq_len=length)
        sample = f"sample        {part.unit}, {part.sample_tokens:,} tokens"
        return dataclasses.replace(
            job,
            lower=functools.partial(job.lower, kind),
            work=work,
            remarks=(_model_line(problem.model), *job.remarks, sample, *problem.remarks),
        )

    return [of_kind(kind, part) for kind, part in enumerate(problem.objective.parts)]


def _model_line(model: decoder.DecoderConfig) -> str:
    return f"model         {decoder.num_params(model):,} parameters"

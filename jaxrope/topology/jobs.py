"""The device programs of train.py and search.py, built from a config alone: without data, tokenizer
or weights."""

import dataclasses
import math
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from jaxrope import decoder, schema, setup
from jaxrope.errors import InputError
from jaxrope.mesh import chips, sharding
from jaxrope.search import evaluator, gradient, plan
from jaxrope.topology import roofline
from jaxrope.topology.memory import Footprint
from jaxrope.train import program as program_lib

_GIB = 2**30
_SHARE = 0.9  # of the usable memory that a search takes
_BASELINES = 5  # none, PI, NTK, dynamic NTK, YaRN; two of them are judged in the end
_SCANS = 4  # batches with other attention factors of the best two, where that is searched


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
    """

    what: str
    lower: Callable[[], jax.stages.Lowered]
    work: roofline.Work
    footprint: Footprint | None
    remarks: tuple[str, ...]
    runs: int


def train_job(config, mesh: Mesh) -> Job:
    """Returns the training step of a config.

    Raises:
      InputError: the config does not fit itself or the mesh.
    """
    config = schema.read(config)
    program = program_lib.make_program(config, mesh, setup.model_shape(config))
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


def search_job(config, mesh: Mesh) -> Job:
    """Returns the evaluation of a batch of candidates of a config's search for perplexity.

    Raises:
      InputError: the config does not fit itself or the mesh.
    """
    config = schema.read(config)
    objective = config.search.objective
    if objective.name != "perplexity":
        raise InputError(
            f"search.objective.name '{objective.name}': --compile_only is for perplexity."
        )
    model = setup.model_shape(config)
    decoder.param_shardings(model, mesh)  # raises for axes that do not divide
    algorithm = config.search.algorithm.halved(config.target_len)
    settings, remarks = setup.forward_settings(config, mesh, model)
    length = config.target_len or model.max_len
    chip = chips.chip_of(mesh.devices.flat[0])
    device_gb = _SHARE * chip.usable_bytes / _GIB if chip else 0.0  # 0: the device reports it
    space = plan.memory(
        model,
        settings,
        sample_tokens=length,
        memory_gb=config.search.memory_gb or device_gb,
        mesh=mesh,
    )
    per_device = plan.per_device(
        config.search.batch_size,
        space,
        sample_tokens=length,
        most=algorithm.population,
        mesh=mesh,
    )
    candidates = per_device * sharding.ways(mesh, *sharding.BATCH_AXES)
    counts = _runs(config.search, algorithm, candidates)
    batch = f"batch         {candidates:,} candidates, on one sample of {length:,} tokens"
    parts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return Job(
        what="batch of a search on one sample",
        lower=lambda: evaluator.lower(model, settings, mesh, length=length, per_device=per_device),
        work=roofline.forward_work(model, dict(mesh.shape), rows=candidates, seq_len=length),
        footprint=None,
        remarks=(_model_line(model), batch, f"its runs      about {parts}", *remarks),
        runs=sum(counts.values()),
    )


def _runs(
    section: schema.search.Search, algorithm: schema.search.Algorithm, candidates: int
) -> dict[str, int]:
    """Returns how often each phase of a search runs a batch on one sample, at most; a gradient
    takes as long as three.
    """
    samples, runs = section.objective.num_samples, {}
    judged = section.judge.finalists
    if section.compare:
        judged += 2
        is_free = section.attention_factor == "free"
        rows = _BASELINES if is_free else 2 * _BASELINES  # else with their own and with the stated
        runs["baselines"] = samples * (math.ceil(rows / candidates) + is_free * _SCANS)
    if section.method != "evolution":
        descents = section.gradient
        runs["moved ramps"] = samples * descents.ramps
        draws = gradient.draws_before(descents, descents.steps + 1)
        runs["gradients, three each"] = 3 * descents.starts * draws
    if section.method != "gradient":
        children = algorithm.mutations + algorithm.crossovers
        batches = math.ceil(algorithm.population / candidates)
        batches += (algorithm.iterations - 1) * math.ceil(children / candidates)
        runs["evolution"] = samples * batches
    fresh = section.judge.num_samples or samples
    return runs | {"judging": fresh * math.ceil(judged / candidates)}


def _model_line(model: decoder.DecoderConfig) -> str:
    return f"model         {decoder.num_params(model):,} parameters"

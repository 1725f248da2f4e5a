"""From a config to the problem that it states; whatever can be refused is refused here."""

import dataclasses
import functools
import hashlib
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

import jaxrope
from jaxrope import llama, rope, schema, setup
from jaxrope.errors import InputError
from jaxrope.mesh import digest, sharding
from jaxrope.search import (
    baselines,
    critical,
    encodings,
    evolution,
    genome,
    objective,
    plan,
    prefilter,
)
from jaxrope.search.baselines import Baseline


class Method(NamedTuple):
    """What a search does: descents along the gradient, then an evolution that starts from
    their ends; without children it judges its seeds."""

    descends: bool
    breeds: bool


METHODS = {
    "evolution": Method(descends=False, breeds=True),
    "gradient": Method(descends=True, breeds=False),
    "hybrid": Method(descends=True, breeds=True),
}


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is searched for, and how.

    Attributes:
      config: of the program.
      model: the shape of the model.
      params: its weights, in the compute dtype.
      source: where the model came from.
      forward: how the model is run.
      objective: that judges candidates.
      fresh_fn: (step of a descent) -> the objective with samples that no other step has.
      settings: of the evolution.
      gradient: of the descents; None: the method has none.
      racing: of the races; None: every candidate is judged on all samples.
      space: of the genomes.
      prefilter: of the children that are evaluated.
      baselines: the baselines; most of them are also seeds.
      trained_len: tokens that the methods stretch and that bound the factors.
      attention_factor: of the search; candidates have this one times a multiple.
      mesh: whose devices share the work.
      memory: what a candidate needs, and what is available.
      per_device: candidates evaluated together on each device, or by each group of devices that
        shares a sequence.
      remarks: lines for the user: what `auto` resolved to.
    """

    config: schema.Config
    model: llama.LlamaConfig
    params: Any
    source: str
    forward: llama.ForwardSettings
    objective: objective.Objective
    fresh_fn: Callable[[int], objective.Objective]
    settings: schema.search.Algorithm
    gradient: schema.search.Gradient | None
    racing: schema.search.Racing | None
    space: genome.Space
    prefilter: prefilter.Prefilter
    baselines: list[Baseline]
    trained_len: int
    attention_factor: float
    mesh: Mesh
    memory: plan.Memory
    per_device: int
    remarks: tuple[str, ...]

    @property
    def num_groups(self) -> int:
        """Groups of devices that evaluate candidates of their own."""
        return sharding.ways(self.mesh, *sharding.BATCH_AXES)


def prepare(config) -> Problem:
    """Returns the problem of a config. Nothing is compiled.

    Raises:
      InputError: a setting breaks its rule, there is no such model, or the text is too short.
    """
    config = schema.read(config)
    settings = config.search.algorithm.halved(config.target_len)
    descents = config.search.gradient if METHODS[config.search.method].descends else None
    racing = config.search.racing
    mesh = sharding.make_mesh(config.mesh)
    shape = setup.model_config(config)
    llama.param_shardings(shape, mesh)  # refuses what does not divide
    forward, remarks = setup.forward_settings(config, mesh, shape)
    extended = _extended(config, shape)
    space = _space(config, shape, settings, extended)
    trained = baselines.training_len(config, shape, extended)
    attention_factor = baselines.attention_factor(config, shape, extended)
    loaded = setup.load_model(config)
    all_baselines = baselines.make(config, shape, loaded.rope_fn, trained)
    _check_layers(space, all_baselines)
    task = _task(config, loaded, forward, baselines.reference(config, shape, extended))
    judge = objective.make(config.search.objective, task)
    memory = plan.memory(
        shape,
        forward,
        sample_tokens=judge.sample_tokens,
        memory_gb=config.search.memory_gb,
        mesh=mesh,
    )
    per_device = plan.per_device(
        config.search.batch_size,
        memory,
        sample_tokens=judge.sample_tokens,
        most=settings.population,
        mesh=mesh,
    )
    return Problem(
        config=config,
        model=shape,
        params=_cast(loaded.params, forward),
        source=loaded.source,
        forward=forward,
        objective=judge,
        fresh_fn=functools.partial(_fresh, config.search, task),
        settings=settings,
        gradient=descents,
        racing=racing if racing.first else None,
        space=space,
        prefilter=_prefilter(config, shape, all_baselines, trained),
        baselines=all_baselines,
        trained_len=trained,
        attention_factor=attention_factor,
        mesh=mesh,
        memory=memory,
        per_device=per_device,
        remarks=remarks,
    )


def header(problem: Problem) -> dict[str, Any]:
    """Returns everything that the results of a search depend on, for the journal."""
    config, names = problem.config, ("attention", "attention_block", "compute_dtype")
    return {
        "model": model_digest(problem.params),
        "samples": problem.objective.fingerprint,
        "target_len": config.target_len,
        "original_len": problem.model.original_len,
        "seed": config.seed,
        "forward": {name: getattr(problem.forward, name) for name in names},
        "search": {
            "algorithm": problem.settings.to_dict(),
            "start_tokens": list(problem.space.start_tokens),
            "objective": config.search.objective.to_dict(),
            "attention_factor": problem.attention_factor,
            "attention_multiples": _unless(list(config.search.attention_multiples), [1.0]),
            "compare": config.search.compare,
            "multiplied": problem.space.multiplier or None,
            "highest": config.search.highest or None,
            "per_layer": config.search.per_layer or None,
            **_descents(problem),
            "racing": problem.racing.to_dict() if problem.racing else None,
            "prefilter": _unless(config.search.prefilter.to_dict(), {"name": "none"}),
        },
        "seeds": {
            baseline.name: row.tolist()
            for baseline, row in zip(seeds(problem), seed_genomes(problem), strict=True)
        },
        "versions": versions(),
    }


def _descents(problem: Problem) -> dict[str, Any]:
    if problem.gradient is None:
        return {}
    return {
        "method": problem.config.search.method,
        "gradient": problem.gradient.to_dict(),
    }


def seeds(problem: Problem) -> list[Baseline]:
    """Returns what the evolution starts from: baselines, and one for each critical pair."""
    critical_seeds = critical.seeds(
        problem.space,
        target_len=problem.config.target_len,
        attention_factor=problem.attention_factor,
    )
    return [*(baseline for baseline in problem.baselines if baseline.is_seed), *critical_seeds]


def seed_genomes(problem: Problem) -> np.ndarray:
    """Returns the genomes of the seeds, int32 [S, G]."""
    encoding = encodings.ENCODINGS[problem.settings.name]
    choices = [
        genome.Choice(np.array(b.factors), b.start_tokens, b.attention_factor)
        for b in (baseline.bucket for baseline in seeds(problem))
    ]
    return np.stack([genome.encode(encoding, problem.space, choice) for choice in choices])


def multiplied(problem: Problem, genome_G: np.ndarray) -> dict[str, Any]:
    """Returns, of a second search, which factors were multiplied by which, for the record."""
    if not problem.space.multiplier:
        return {}
    alone = genome.decode(dataclasses.replace(problem.space, multiplier=()), genome_G)
    return {
        "multiplied": {
            "fine_tuned": problem.space.multiplier,
            "fine_tuned_len": problem.trained_len,
            "lambda_2": alone.factors.tolist(),
        }
    }


def first_state(problem: Problem, ends: Sequence[genome.Choice] = ()) -> evolution.SearchState:
    """Returns the evolution before its first generation.

    Args:
      problem: whose seeds it begins with; without children it has no other candidates.
      ends: of the descents: further seeds.
    """
    encoding, settings = encodings.ENCODINGS[problem.settings.name], problem.settings
    end_genomes = [genome.encode(encoding, problem.space, choice) for choice in ends]
    seeds_SG = np.stack([*end_genomes, *seed_genomes(problem)])
    if not METHODS[problem.config.search.method].breeds:
        count = len({genome.key(problem.space, row_G) for row_G in seeds_SG})
        settings = dataclasses.replace(settings, population=count, parents=1, iterations=1)
    return evolution.init(settings, problem.space, seeds_SG, problem.config.seed, problem.prefilter)


def build_rope(
    problem: Problem, factors_R, start_tokens: int, attention_factor: float
) -> rope.Rope:
    """Returns the rope of a candidate; its factors are [L, R] if layers have their own."""
    if problem.space.num_layers > 1:
        factors_R = np.broadcast_to(factors_R, (problem.space.num_layers, problem.space.num_pairs))
    return rope.build(
        factors_R,
        theta=problem.model.theta,
        start_tokens=start_tokens,
        attention_factor=attention_factor,
    )


def _unless(value: Any, default: Any) -> Any:
    """Returns None for a default, as older versions wrote it: their journals stay valid."""
    return None if value == default else value


def model_digest(params: Any) -> str:
    """Returns a digest, in hex, of every bit of the parameters and of their names."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    records = [
        (jax.tree_util.keystr(path), str(leaf.dtype), leaf.shape, digest.digest(leaf))
        for path, leaf in leaves
    ]
    return hashlib.sha256(repr(records).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Returns the versions of the packages that compute."""
    return {
        "jaxrope": jaxrope.__version__,
        "jax": importlib.metadata.version("jax"),
        "numpy": importlib.metadata.version("numpy"),
    }


def _space(config, shape: llama.LlamaConfig, settings, extended) -> genome.Space:
    trained = baselines.training_len(config, shape, extended)
    number = baselines.attention_factor(config, shape, extended)
    space = genome.make_space(
        num_pairs=shape.rotary_dim // 2,
        factor=config.target_len / trained,
        step=settings.step,
        highest=baselines.highest(config, settings.bound, trained),
        start_tokens=config.search.start_tokens,
        attention_factors=tuple(number * m for m in config.search.attention_multiples),
        num_layers=shape.num_layers if config.search.per_layer else 1,
    )
    if config.search.multiply:
        space = dataclasses.replace(space, multiplier=extended.bucket.factors)
    return critical.narrow(
        space, settings, theta=shape.theta, trained_len=trained, target_len=config.target_len
    )


def _extended(config, shape: llama.LlamaConfig) -> baselines.Extension | None:
    base_rope = setup.load_model(config, weights=False).rope_fn
    return baselines.extension(config, shape, base_rope)


def _fresh(section: schema.search.Search, task: objective.Task, step: int) -> objective.Objective:
    """Returns the objective with the samples of a step, behind those that judge."""
    batch = section.gradient.batch
    task = dataclasses.replace(task, skip=section.objective.num_samples + step * batch)
    return objective.make(dataclasses.replace(section.objective, num_samples=batch), task)


def _task(
    config, loaded, forward: llama.ForwardSettings, reference: objective.Reference
) -> objective.Task:
    tokenizer, _ = setup.tokenizer(config, loaded.tokenizer_dir, loaded.config.vocab_size)
    return objective.Task(
        config=loaded.config,
        settings=forward,
        documents=setup.documents(
            config,
            config.data.train_files,
            tokenizer,
            setting="data.train_files",
            exclude=config.data.exclude,
        ),
        tokenizer=tokenizer,
        target_len=config.target_len,
        seed=config.seed,
        reference=reference,
    )


def _check_layers(space: genome.Space, all_baselines: list[Baseline]) -> None:
    for baseline in all_baselines:
        if np.ndim(baseline.bucket.factors) > 1 and space.num_layers == 1:
            raise InputError(
                f"search.per_layer must be True: the factors of '{baseline.name}' are of each "
                "layer's own, which candidates with one set for all layers cannot start from."
            )


def _prefilter(
    config, model: llama.LlamaConfig, all_baselines: list[Baseline], trained: int
) -> prefilter.Prefilter:
    trained_with = next(baseline for baseline in all_baselines if baseline.name == "none")
    return prefilter.Prefilter(
        config.search.prefilter.name,
        config.search.prefilter.oversample,
        theta=model.theta,
        trained_factors=trained_with.bucket.factors,
        trained_len=trained,
        target_len=config.target_len,
    )


def _cast(params: Any, forward: llama.ForwardSettings) -> Any:
    """Parameters in the compute dtype: the forward pass would make them so at every use."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, llama.DTYPES[forward.compute_dtype]), params)

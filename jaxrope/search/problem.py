"""From a config to the problem that it states; whatever can be refused is refused here, before
weights are read or anything is compiled.
"""

import dataclasses
import functools
import importlib.metadata
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

import jaxrope
from jaxrope import decoder, rope, schema, setup
from jaxrope.convert import Pretrained
from jaxrope.errors import InputError
from jaxrope.mesh import sharding
from jaxrope.search import (
    baselines,
    critical,
    evolution,
    genome,
    objective,
    plan,
    prefilter,
)
from jaxrope.search.baselines import Baseline
from jaxrope.setup import NOTHING, Expected
from jaxrope.store import sealed


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
    """What is searched for, and how; without the weights.

    Attributes:
      config: of the program.
      loaded: the model, without weights.
      rope_fn: of config.rope.
      task: what objectives are built from: the text, the tokenizer, how the model is run.
      objective: that judges candidates.
      settings: of the evolution, halved for long targets.
      space: of the genomes.
      prefilter: of the children that are evaluated.
      baselines: the baselines; most of them are also seeds.
      trained_len: tokens that the methods stretch and that bound the factors.
      attention_factor: of the search; candidates have this one times a multiple.
      mesh: whose devices share the work; an abstract one where this machine has too few.
      memory: what a candidate needs, and what is available.
      per_device: candidates evaluated together on each device, or by each group of devices that
        shares a sequence.
      remarks: lines for the user: what `auto` resolved to.
      notes: what the user should know before anything is paid.
    """

    config: schema.Config
    loaded: Pretrained
    rope_fn: rope.RopeFn
    task: objective.Task
    objective: objective.Objective
    settings: schema.search.Algorithm
    space: genome.Space
    prefilter: prefilter.Prefilter
    baselines: list[Baseline]
    trained_len: int
    attention_factor: float
    mesh: Mesh | AbstractMesh
    memory: plan.Memory
    per_device: int
    remarks: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> decoder.DecoderConfig:
        """The shape of the model."""
        return self.loaded.config

    @property
    def method(self) -> Method:
        """What the search does."""
        return METHODS[self.config.search.method]

    @property
    def gradient(self) -> schema.search.Gradient | None:
        """Of the descents; None: the method has none."""
        return self.config.search.gradient if self.method.descends else None

    @property
    def num_groups(self) -> int:
        """Groups of devices that evaluate candidates of their own."""
        return sharding.ways(self.mesh, *sharding.BATCH_AXES)

    @functools.cached_property
    def identity(self) -> schema.Identity:
        """What the result depends on; reads the files of the weights."""
        listed = zip(seeds(self), seed_genomes(self).tolist(), strict=True)
        content = {
            "weights": setup.fingerprint(self.config),
            "rope": setup.rope_digest(self.rope_fn),
            "text": self.task.documents.fingerprint,
            "samples": self.objective.fingerprint,
            "tokenizer": self.task.tokenizer.fingerprint,
            "seeds": sealed.digest_of([[seed.name, genes] for seed, genes in listed]),
        }
        return schema.identify("search", self.config, content)

    def fresh(self, step: int) -> objective.Objective:
        """Returns the objective with the samples of a step of a descent, which no other step has
        and none of those that judge.
        """
        section, batch = self.config.search.objective, self.config.search.gradient.batch
        task = dataclasses.replace(self.task, skip=section.num_samples + step * batch)
        return objective.make(dataclasses.replace(section, num_samples=batch), task)


def prepare(config: Any, expected: Expected = NOTHING) -> Problem:
    """Returns the problem of a config. No weights are read and nothing is compiled.

    Args:
      config: see configs/base.py.
      expected: what earlier stages of a recipe will leave.

    Raises:
      InputError: a setting breaks its rule, there is no such model, or the text is too short.
    """
    config = schema.read(config)
    section, settings = config.search, config.search.algorithm.halved(config.target_len)
    mesh = sharding.make_mesh(config.mesh, planned=True)
    loaded = setup.load_model(config, weights=False, expected=expected)
    shape = loaded.config
    decoder.param_shardings(shape, mesh)  # refuses what does not divide
    _check_kinds(shape, section)
    forward, remarks = setup.forward_settings(config, mesh, shape)
    rope_fn = setup.rope_fn(config, shape, loaded.rope_fn, expected)
    extended = baselines.extension(rope_fn, shape)
    trained = baselines.training_len(config, shape, extended)
    space = _space(config, shape, settings, extended)
    all_baselines = baselines.make(config, shape, rope_fn, trained, expected)
    _check_layers(space, all_baselines)
    task = _task(config, loaded, forward, baselines.reference(config, shape, extended))
    judge = objective.make(section.objective, task)
    needs = dict(sample_tokens=judge.sample_tokens, mesh=mesh)
    memory = plan.memory(shape, forward, memory_gb=section.memory_gb, **needs)
    most = settings.population
    problem = Problem(
        config=config,
        loaded=loaded,
        rope_fn=rope_fn,
        task=task,
        objective=judge,
        settings=settings,
        space=space,
        prefilter=_prefilter(config, shape, all_baselines, trained),
        baselines=all_baselines,
        trained_len=trained,
        attention_factor=baselines.attention_factor(config, shape, extended),
        mesh=mesh,
        memory=memory,
        per_device=plan.per_device(section.batch_size, memory, most=most, **needs),
        remarks=remarks,
        notes=(*loaded.notes, *task.tokenizer.notes, *_notes(config, shape)),
    )
    _check_population(problem)
    return problem


def _check_kinds(shape: decoder.DecoderConfig, section: Any) -> None:
    """Refuses factors for each layer where only some layers are extended."""
    if section.per_layer and len(set(shape.kinds)) > 1:
        raise InputError(
            "search.per_layer must be False for a model with layers of different kinds "
            f"({', '.join(dict.fromkeys(shape.kinds))}): only its full layers are extended."
        )


def weights(problem: Problem) -> Any:
    """Returns the parameters of the model in the compute dtype: the forward pass would make them so
    at every use.
    """
    dtype = decoder.DTYPES[problem.task.settings.compute_dtype]
    params = setup.load_model(problem.config).params
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype), params)


def header(problem: Problem) -> dict[str, Any]:
    """Returns the header of the journal: the identity, and what follows from it for readers."""
    listed = zip(seeds(problem), seed_genomes(problem).tolist(), strict=True)
    return {
        "target_len": problem.config.target_len,
        "original_len": decoder.own_base(problem.model).length,
        "attention_factor": problem.attention_factor,
        "multiplied": problem.space.multiplier or None,
        "seeds": {seed.name: genes for seed, genes in listed},
        "identity": problem.identity.to_json(),
        "versions": versions(),
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
    encoding = genome.ENCODINGS[problem.settings.name]
    choices = [
        genome.Choice(np.array(b.factors), b.start_tokens, b.attention_factor)
        for b in (baseline.bucket for baseline in seeds(problem))
    ]
    return np.stack([genome.encode(encoding, problem.space, choice) for choice in choices])


def multiplied(problem: Problem, genome_G: np.ndarray) -> dict[str, Any]:
    """Returns which factors were multiplied by which, for the record: those of the fine-tuning in a
    second search, else those of the model's own scaling.
    """
    if not problem.space.multiplier:
        return {}
    alone = genome.decode(dataclasses.replace(problem.space, multiplier=()), genome_G)
    if not problem.config.search.multiply:
        own = {
            "rope": dict(problem.model.rope),
            **dataclasses.asdict(decoder.own_base(problem.model)),
        }
        return {"base": own | {"on_top": alone.factors.tolist()}}
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
    encoding, settings = genome.ENCODINGS[problem.settings.name], problem.settings
    end_genomes = [genome.encode(encoding, problem.space, choice) for choice in ends]
    seeds_SG = np.stack([*end_genomes, *seed_genomes(problem)])
    if not problem.method.breeds:
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


def versions() -> dict[str, str]:
    """Returns the versions of the packages that compute."""
    return {
        "jaxrope": jaxrope.__version__,
        "jax": importlib.metadata.version("jax"),
        "numpy": importlib.metadata.version("numpy"),
    }


def _notes(config: schema.Config, shape: decoder.DecoderConfig) -> list[str]:
    own = [*baselines.remark(config, shape), *setup.restated_notes(config, shape)]
    return own + setup.window_notes(config, shape)


def _space(
    config: schema.Config,
    shape: decoder.DecoderConfig,
    settings: schema.search.Algorithm,
    extended: baselines.Extension | None,
) -> genome.Space:
    start = baselines.base(config, shape, extended)
    number, trained = baselines.attention_factor(config, shape, extended), start.length
    space = genome.make_space(
        num_pairs=shape.rotary_dim // 2,
        factor=config.target_len / trained,
        step=settings.step,
        highest=config.search.highest or settings.bound * config.target_len / trained,
        start_tokens=config.search.start_tokens,
        attention_factors=tuple(number * m for m in config.search.attention_multiples),
        num_layers=shape.num_layers if config.search.per_layer else 1,
    )
    if not start.is_plain:
        space = dataclasses.replace(space, multiplier=start.factors)
    return critical.narrow(
        space, settings, theta=shape.theta, trained_len=trained, target_len=config.target_len
    )


def _task(
    config: schema.Config,
    loaded: Pretrained,
    forward: decoder.ForwardSettings,
    reference: objective.Reference,
) -> objective.Task:
    tokenizer, place = setup.tokenizer(config, loaded.tokenizer_dir, loaded.config.vocab_size)
    return objective.Task(
        config=loaded.config,
        settings=forward,
        documents=setup.train_documents(config, tokenizer, place),
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


def _check_population(problem: Problem) -> None:
    """Refuses an evolution that could not hold what it starts from."""
    descents, ends = problem.gradient, 0
    if descents:
        known = sum(baseline.is_seed for baseline in problem.baselines)
        ends = min(descents.starts, known) + bool(descents.ramp_moves)
    if problem.method.breeds:
        distinct = evolution.distinct(problem.space, seed_genomes(problem))
        evolution.check_population(problem.settings, len(distinct), ends)


def _prefilter(
    config, model: decoder.DecoderConfig, all_baselines: list[Baseline], trained: int
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

"""What is searched for, and what follows from it: seeds, samples, the header of the journal."""

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
from jaxrope.mesh import sharding
from jaxrope.search import (
    critical,
    encodings,
    evolution,
    forms,
    genome,
    objective,
    plan,
    prefilter,
)
from jaxrope.search.baselines import Baseline
from jaxrope.store import sealed


class Method(NamedTuple):
    """What a search does: descents along the gradient, then an evolution that starts from their
    ends."""

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
      recovers: factors are searched for a length that config.rope serves already.
      attention_factor: of all candidates; where it is searched, that of the su law.
      attention_range: what it may be.
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
    objective: objective.Judge
    settings: schema.search.Algorithm
    space: genome.Space
    prefilter: prefilter.Prefilter
    baselines: list[Baseline]
    trained_len: int
    recovers: bool
    attention_factor: float
    attention_range: tuple[float, float]
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
    def attention_is_searched(self) -> bool:
        """Whether candidates may have different attention factors."""
        return self.attention_range[0] < self.attention_range[1]

    @property
    def limits(self) -> forms.Limits:
        """What the factors of a candidate may be."""
        return genome.limits(self.space)

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

    def fresh(self, first: int, count: int) -> objective.Judge:
        """Returns the objective with `count` draws of fresh text, which nothing else reads, from
        number `first` on: for descents.
        """
        return self._drawn(self.config.search.objective.num_samples, first, count)

    def unseen(self, first: int, count: int) -> objective.Judge:
        """Returns the objective with `count` draws of text that chose nothing, from number `first`
        on: for the last word.
        """
        num_samples = self.config.search.objective.num_samples
        return self._drawn(num_samples, first, count, last=True)

    def unseen_at(self, length: int, count: int) -> objective.Objective:
        """Returns text of another length for the perplexity of the last word."""
        task = dataclasses.replace(self.task, target_len=length, part="last", skip=count)
        section = schema.search.Perplexity(name="perplexity", num_samples=count, offset_tokens=0)
        return objective.perplexity(task, section)

    def _drawn(self, skipped: int, first: int, count: int, *, last: bool = False):
        """Returns the objective with samples after the first `skipped`; see objective.Task."""
        cycle = self.objective.cycle
        skip = skipped + first * cycle
        task = dataclasses.replace(self.task, skip=skip, part="last" if last else "first")
        section = dataclasses.replace(self.config.search.objective, num_samples=count * cycle)
        return objective.make(section, task)


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
    encoding = encodings.ENCODINGS[problem.config.search.form]
    choices = [
        genome.Choice(np.array(b.factors), b.start_tokens, b.attention_factor)
        for b in (baseline.bucket for baseline in seeds(problem))
    ]
    return np.stack([genome.encode(encoding, problem.space, choice) for choice in choices])


def multiplied(problem: Problem, bucket: rope.Bucket) -> dict[str, Any]:
    """Returns which factors were multiplied by which, for the record: those of the fine-tuning in a
    second search, else those of the model's own scaling.
    """
    if not problem.space.multiplier:
        return {}
    alone = (np.array(bucket.factors) / np.array(problem.space.multiplier)).tolist()
    if not problem.config.search.multiply:
        own = {
            "rope": dict(problem.model.rope),
            **dataclasses.asdict(decoder.own_base(problem.model)),
        }
        return {"base": own | {"on_top": alone}}
    return {
        "multiplied": {
            "fine_tuned": problem.space.multiplier,
            "fine_tuned_len": problem.trained_len,
            "lambda_2": alone,
        }
    }


def first_state(problem: Problem, ends: Sequence[rope.Bucket] = ()) -> evolution.SearchState:
    """Returns the evolution before its first generation.

    Args:
      problem: whose seeds it begins with.
      ends: of the descents: further seeds.
    """
    form, settings = problem.config.search.form, problem.settings
    encoding = encodings.ENCODINGS[form]
    choices = [genome.Choice(np.array(b.factors), b.start_tokens, b.attention_factor) for b in ends]
    end_genomes = [genome.encode(encoding, problem.space, choice) for choice in choices]
    seeds_SG = np.stack([*end_genomes, *seed_genomes(problem)])
    return evolution.init(
        settings, form, problem.space, seeds_SG, problem.config.seed, problem.prefilter
    )


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

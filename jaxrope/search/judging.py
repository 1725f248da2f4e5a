"""What an objective is, and what all objectives are built from.

An objective is the loss of one rope on one sample, so that it can be vmapped over ropes and
differentiated in them. Samples are cut on the host once and are the same for every candidate. On a
mesh each device has its part of the parameters and of a sample, and the loss of the whole.

Letters: P candidates, W samples, T length.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrope import decoder, rope, schema
from jaxrope.data import needles
from jaxrope.decoder import losses
from jaxrope.mesh import collectives

_LAST = 2**20  # number of the first document of the last part, above those of any descent
CHUNK = 512  # positions whose logits exist at one time: 8 MiB with 4,096 words


class Reference(NamedTuple):
    """How the model attends where it was trained.

    Attributes:
      rope: of that length, without layers or with.
      length: tokens the weights were trained on.
    """

    rope: rope.Rope
    length: int


@dataclasses.dataclass(frozen=True)
class Task:
    """What every objective is built from.

    Attributes:
      config: the model's shape.
      settings: how the model is run.
      documents: text to judge by, data.TokenDocuments.
      tokenizer: of the documents.
      target_len: tokens that the factors are searched for.
      seed: of the samples drawn.
      skip: samples to skip: those after them are fresh.
      part: of the text that they are drawn from: "first", for descents, or "last", for judging.
      reference: what a candidate's attention is compared with; None: no comparison.
    """

    config: decoder.DecoderConfig
    settings: decoder.ForwardSettings
    documents: Any
    tokenizer: Any
    target_len: int
    seed: int
    skip: int = 0
    part: str = "first"
    reference: Reference | None = None


class Judge:
    """What candidates are judged by: losses of samples of one kind, or of several in turns.

    Subclasses have the attributes `cycle` (kinds of samples, which take turns; a draw is one of
    each), `weights` (of their losses), `num_samples`, `sample_tokens` (forward tokens of one
    candidate on one sample, the mean over a cycle), `scored_tokens` (that the loss of a sample is
    the mean of, about), `unit` (of the fitness, for tables), `fitness_fn` (mean loss -> fitness,
    ascending; elementwise), `parts` and `loss_fns` of the kinds, and `fingerprint`.
    """

    def mean(self, losses_PW: np.ndarray) -> np.ndarray:
        """Returns mean losses_P of the candidates, which `fitness_fn` takes."""
        weights_W = np.resize(self.weights, losses_PW.shape[1])
        return np.average(losses_PW, axis=1, weights=weights_W)

    def draws(self, losses_PW: np.ndarray) -> np.ndarray:
        """Returns the losses of draws, [P, draws]."""
        cycles = losses_PW.reshape(len(losses_PW), -1, self.cycle)
        return np.average(cycles, axis=2, weights=self.weights)

    @property
    def candidate_tokens(self) -> int:
        """Forward tokens of one candidate."""
        return self.num_samples * self.sample_tokens


@dataclasses.dataclass(frozen=True)
class Objective(Judge):
    """Samples of one kind.

    Attributes:
      loss_fn: (params, rope, sample) -> scalar float32; lower is better. A sample is {name: [T]},
        of what `lay_out` gives; with a mesh in the settings all arguments are this device's.
      samples: pytree of numpy arrays, first axis W.
      lay_out: samples -> {name: [W, T]}, laid out over the mesh.
      fitness_fn, unit, sample_tokens, scored_tokens: see Judge.
      shared_tokens: of sample_tokens those whose pass depends on no candidate: a device reads them
        once for all of its candidates.
    """

    loss_fn: Callable[[Any, rope.Rope, Any], jax.Array]
    samples: Any
    lay_out: Callable[[Any], dict[str, np.ndarray]]
    fitness_fn: Callable[[np.ndarray], np.ndarray]
    unit: str
    sample_tokens: int
    scored_tokens: float
    shared_tokens: int = 0
    cycle = 1
    weights = (1.0,)

    def first(self, count: int) -> "Objective":
        """Returns the objective of the first `count` samples alone."""
        return dataclasses.replace(self, samples=jax.tree.map(lambda x: x[:count], self.samples))

    def laid(self) -> list[dict[str, np.ndarray]]:
        """Returns the samples laid out over the mesh."""
        rows = self.lay_out(self.samples)
        return [{name: x_WT[i] for name, x_WT in rows.items()} for i in range(self.num_samples)]

    @property
    def parts(self) -> tuple["Objective", ...]:
        return (self,)

    @property
    def loss_fns(self) -> tuple[Callable, ...]:
        return (self.loss_fn,)

    @property
    def num_samples(self) -> int:
        return len(jax.tree.leaves(self.samples)[0])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the samples: only searches with the same one are comparable."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.samples):
            digest.update(repr((leaf.shape, str(leaf.dtype))).encode() + leaf.tobytes())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Combined(Judge):
    """Samples of several kinds, as many of each, in turns; the loss is the weighted mean.

    Attributes:
      parts: the kinds.
      weights: theirs.
      fitness_fn, unit: see Judge.
    """

    parts: tuple[Objective, ...]
    weights: tuple[float, ...]
    fitness_fn: Callable[[np.ndarray], np.ndarray]
    unit: str

    def laid(self) -> list[dict[str, np.ndarray]]:
        """Returns the samples laid out over the mesh."""
        return [
            row for rows in zip(*(part.laid() for part in self.parts), strict=True) for row in rows
        ]

    @property
    def cycle(self) -> int:
        return len(self.parts)

    @property
    def loss_fns(self) -> tuple[Callable, ...]:
        return tuple(part.loss_fn for part in self.parts)

    @property
    def num_samples(self) -> int:
        return self.cycle * self.parts[0].num_samples

    @property
    def sample_tokens(self) -> int:
        return sum(part.sample_tokens for part in self.parts) // self.cycle

    @property
    def scored_tokens(self) -> float:
        """The geometric mean: the loss is one of many tokens and of few."""
        return float(np.exp(np.mean(np.log([part.scored_tokens for part in self.parts]))))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the samples and of their weights."""
        content = [part.fingerprint for part in self.parts], self.weights
        return hashlib.sha256(repr(content).encode()).hexdigest()


def needle_documents(
    task: Task, section: schema.Section, *, length: int, setting: str
) -> list[needles.NeedleDocument]:
    """Returns documents of one token more than `length`, in which a number is hidden and asked for.

    Sample i is document i of those of the seed (`data.needles`), its depth the i-th of a sequence
    that is spread evenly wherever it ends, so that more samples begin with the fewer ones. Words,
    numbers and depths of sample i are the same at every length.

    Args:
      task: the text and the seed.
      section: has num_samples, num_keys and place.
      length: tokens that are read.
      setting: the key that says how long they are, for messages.

    Raises:
      InputError: the text or the length is too short.
    """
    source = needles.Source(task.tokenizer, needles.text(task.documents), "search", setting)
    first = task.skip + (_LAST if task.part == "last" else 0)
    return [
        needles.make_document(
            source,
            length=length + 1,
            num_keys=section.num_keys,
            seed=task.seed,
            index=i,
            depth=PLACES[section.place](i),
        )
        for i in range(first, first + section.num_samples)
    ]


PLACES = {"start": lambda index: None, "spread": needles.spread_depth}


def mean_nll(config: decoder.DecoderConfig, settings: decoder.ForwardSettings) -> Callable:
    """Returns (params, rope, sample of decoder.lay_out) -> weighted mean NLL, nats."""
    cost_fn = nll_of(config, settings)

    def loss_fn(params, r, sample):
        row = {name: x_T[None] for name, x_T in sample.items()}
        x_BTD = decoder.hidden(
            config, params, row["tokens_BT"], r, positions_BT=row["positions_BT"], settings=settings
        )
        return cost_fn(params, x_BTD, row)

    return loss_fn


def nll_of(config: decoder.DecoderConfig, settings: decoder.ForwardSettings) -> Callable:
    """Returns (params, x_BTD of decoder.hidden, row of decoder.lay_out) -> weighted mean NLL in
    nats.
    """

    def cost_fn(params, x_BTD, row):
        total = losses.nll_sum(
            x_BTD,
            decoder.head_DV(config, params),
            losses.Targets(row["targets_BT"], row["weights_BT"]),
            chunk=CHUNK,
            mesh=settings.mesh,
            vocab_size=config.vocab_size,
            cap=config.logit_cap,
        )
        sums = total, jnp.sum(row["weights_BT"])
        total, count = collectives.sum_over(sums, settings.mesh, "context")
        return total / count

    return cost_fn

"""What a candidate is judged by: a function chosen in the config, one line each in OBJECTIVES.

An objective is the loss of one rope on one sample, so that it can be vmapped over ropes and
differentiated in them. Samples are cut on the host once and are the same for every candidate. On a
mesh each device has its part of the parameters and of a sample, and the loss of the whole.

Letters: P candidates, W samples, T length.
"""

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrope import collectives, data, llama, losses, rope
from jaxrope.data import needles
from jaxrope.errors import InputError, choose, nearest

CHUNK = 512  # positions whose logits exist at one time: 8 MiB with 4,096 words


@dataclasses.dataclass(frozen=True)
class Task:
    """What every objective is made from.

    Attributes:
      config: the model's shape.
      settings: how the model is run.
      documents: text to judge by, data.TokenDocuments.
      tokenizer: of the documents.
      target_len: tokens that the factors are searched for.
      seed: of the samples drawn.
      skip: samples that are passed over: those after them are fresh ones, for a gradient.
    """

    config: llama.LlamaConfig
    settings: llama.ForwardSettings
    documents: Any
    tokenizer: Any
    target_len: int
    seed: int
    skip: int = 0


@dataclasses.dataclass(frozen=True)
class Objective:
    """A way to judge candidates.

    Attributes:
      loss_fn: (params, rope, sample) -> scalar float32; lower is better. A sample is {name: [T]},
        of what `lay_out` gives; with a mesh in the settings all arguments are this device's.
      samples: pytree of numpy arrays, first axis W.
      lay_out: samples -> {name: [W, T]}, as they lie over the mesh.
      fitness_fn: mean loss over the samples -> fitness, ascending; elementwise.
      unit: what the fitness is, for tables.
      sample_tokens: forward tokens of one candidate on one sample.
      weights_W: float64, what each sample's loss weighs in a candidate's mean; None: all the same.
    """

    loss_fn: Callable[[Any, rope.Rope, Any], jax.Array]
    samples: Any
    lay_out: Callable[[Any], dict[str, np.ndarray]]
    fitness_fn: Callable[[np.ndarray], np.ndarray]
    unit: str
    sample_tokens: int
    weights_W: np.ndarray | None = None

    def mean(self, losses_PW: np.ndarray) -> np.ndarray:
        """Returns mean losses_P of the candidates, which `fitness_fn` takes."""
        if self.weights_W is None:
            return losses_PW.mean(axis=1)
        return np.average(losses_PW, axis=1, weights=self.weights_W)

    def first(self, count: int) -> "Objective":
        """Returns the objective of the first `count` samples alone."""
        samples = jax.tree.map(lambda leaf: leaf[:count], self.samples)
        weights_W = None if self.weights_W is None else self.weights_W[:count]
        return dataclasses.replace(self, samples=samples, weights_W=weights_W)

    @property
    def num_samples(self) -> int:
        return len(jax.tree.leaves(self.samples)[0])

    @property
    def candidate_tokens(self) -> int:
        """Forward tokens of one candidate."""
        return self.num_samples * self.sample_tokens

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the samples and of unequal weights: only searches with the same one are
        comparable."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves((self.samples, self.weights_W)):
            digest.update(repr((leaf.shape, str(leaf.dtype))).encode() + leaf.tobytes())
        return digest.hexdigest()


def make(section: dict, task: Task) -> Objective:
    """Returns the objective of a config section: its name and exactly its arguments.

    Raises:
      InputError: an unknown name, an unknown, missing or illegal argument, or documents that are
        too short.
    """
    arguments = dict(section)
    objective_fn = choose("search.objective.name", arguments.pop("name", None), OBJECTIVES)
    parameters = inspect.signature(objective_fn).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for name in arguments:
        if name not in known:
            raise InputError(f"Unknown key search.objective.{name}. {nearest(name, known)}")
    for name in known:
        if name not in arguments:
            raise InputError(
                f"search.objective.{name} is missing. Give all of: {', '.join(known)}."
            )
    return objective_fn(task, **arguments)


def perplexity(task: Task, *, num_samples: int, offset_tokens: int) -> Objective:
    """Perplexity of whole windows of the target length, token mean (LongRoPE, section 4.1).

    Args:
      task: the model and the text.
      num_samples: windows, each of another document.
      offset_tokens: tokens of each document that are passed over.
    """
    _check_whole(num_samples=(num_samples, 1), offset_tokens=(offset_tokens, 0))
    text = dict(length=task.target_len, offset_tokens=offset_tokens)
    drawn = dict(seed=task.seed, bos_id=task.tokenizer.bos_id)
    if task.skip:
        numbers = range(task.skip, task.skip + num_samples)
        windows = data.fresh_windows(task.documents, numbers=numbers, **text, **drawn)
    else:
        windows = data.search_windows(task.documents, num_windows=num_samples, **text, **drawn)
    return Objective(
        loss_fn=mean_nll(task.config, task.settings),
        samples=np.asarray(windows.tokens_WT, np.int32),
        lay_out=functools.partial(llama.lay_out, task.settings),
        fitness_fn=np.exp,
        unit="perplexity",
        sample_tokens=task.target_len,
    )


def needle(task: Task, *, num_samples: int, num_keys: int, place: str) -> Objective:
    """Perplexity of answers alone: of the digits of a number that is hidden in a long text and
    asked for at its end (LongRoPE2, section 3.2, "needle-driven").

    Sample i is document i of those of the seed (`data.needles`), its depth the i-th of a sequence
    that is spread evenly wherever it ends, so that more samples begin with the fewer ones.

    Args:
      task: the model and the text.
      num_samples: documents of the target length.
      num_keys: needles in each, one of which is asked for; the paper has 1.
      place: "start": all needles stand before the text, as in the paper; "spread": anywhere in it.
    """
    most = len(needles.NOUNS) // 2
    _check_whole(num_samples=(num_samples, 1), num_keys=(num_keys, 1))
    if num_keys > most:
        raise InputError(f"search.objective.num_keys must be at most {most}, got {num_keys}.")
    depth_fn = choose("search.objective.place", place, PLACES)
    haystack = needles.text(task.documents)
    source = needles.Source(task.tokenizer, haystack, "search", "target_len")
    made = [
        needles.make_document(
            source,
            length=task.target_len + 1,
            num_keys=num_keys,
            seed=task.seed,
            index=i,
            depth=depth_fn(i),
        )
        for i in range(task.skip, task.skip + num_samples)
    ]
    tokens_WT = np.stack([document.tokens for document in made])
    weights_WT = np.zeros((num_samples, task.target_len), np.float32)
    for weights_T, document in zip(weights_WT, made, strict=True):
        weights_T[np.array(document.answers[0]) - 1] = 1.0  # column t predicts token t + 1
    return Objective(
        loss_fn=mean_nll(task.config, task.settings),
        samples={"tokens_WT": tokens_WT, "weights_WT": weights_WT},
        lay_out=functools.partial(_lay_out_weighted, task.settings),
        fitness_fn=np.exp,
        unit="needle perplexity",
        sample_tokens=task.target_len,
    )


PLACES = {"start": lambda index: None, "spread": needles.spread_depth}


def mix(
    task: Task,
    *,
    num_samples: int,
    text_weight: float,
    needle_weight: float,
    offset_tokens: int,
    num_keys: int,
    place: str,
) -> Objective:
    """The exponential of a weighted mean of both losses: of text, and of answers.

    Samples take turns, text first. With weights a and b the mean is (a * mean NLL of text + b *
    mean NLL of answers) / (a + b), in nats a token.

    Args:
      task: the model and the text.
      num_samples: of both kinds together, an even number.
      text_weight, needle_weight: above 0.
      offset_tokens: see perplexity.
      num_keys, place: see needle.
    """
    for name, value in (("text_weight", text_weight), ("needle_weight", needle_weight)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < np.inf:
            raise InputError(f"search.objective.{name} must be a number above 0, got {value}.")
    _check_whole(num_samples=(num_samples, 2))
    if num_samples % 2:
        raise InputError(
            "search.objective.num_samples must be even for 'mix', half of text and half with "
            f"needles, got {num_samples}."
        )
    half = num_samples // 2
    task = dataclasses.replace(task, skip=task.skip // 2)
    text = perplexity(task, num_samples=half, offset_tokens=offset_tokens)
    found = needle(task, num_samples=half, num_keys=num_keys, place=place)
    weights_WT = np.ones_like(found.samples["weights_WT"])
    pairs = {
        "tokens_WT": (text.samples, found.samples["tokens_WT"]),
        "weights_WT": (weights_WT, found.samples["weights_WT"]),
    }
    return dataclasses.replace(
        found,
        samples={k: np.stack(both, axis=1).reshape(num_samples, -1) for k, both in pairs.items()},
        weights_W=np.tile([float(text_weight), float(needle_weight)], half),
        unit="mixed perplexity",
    )


OBJECTIVES = {"perplexity": perplexity, "needle": needle, "mix": mix}


def _check_whole(**values: tuple[int, int]) -> None:
    """Refuses an argument, (value, minimum), that is no whole number or below its minimum."""
    for name, (value, least) in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(
                f"search.objective.{name} must be a whole number from {least} on, got {value}."
            )


def _lay_out_weighted(settings: llama.ForwardSettings, samples: dict) -> dict[str, np.ndarray]:
    return llama.lay_out(settings, samples["tokens_WT"], samples["weights_WT"])


def mean_nll(config: llama.LlamaConfig, settings: llama.ForwardSettings) -> Callable:
    """Returns (params, rope, sample of llama.lay_out) -> mean NLL in nats of what counts."""

    def loss_fn(params, r, sample):
        row = {name: x_T[None] for name, x_T in sample.items()}
        x_BTD = llama.hidden(
            config, params, row["tokens_BT"], r, positions_BT=row["positions_BT"], settings=settings
        )
        nll_BT = losses.token_nll(
            x_BTD,
            llama.head_DV(config, params),
            row["targets_BT"],
            chunk=CHUNK,
            mesh=settings.mesh,
            vocab_size=config.vocab_size,
        )
        sums = jnp.sum(nll_BT * row["weights_BT"]), jnp.sum(row["weights_BT"])
        total, count = collectives.sum_over(sums, settings.mesh, "context")
        return total / count

    return loss_fn

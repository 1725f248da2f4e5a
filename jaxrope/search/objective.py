"""What a candidate is judged by: a function chosen in the config, one line each in OBJECTIVES.

Losses of text are here, objectives of attention in attention_objective.py, the definition of an
objective in judging.py.

Letters: W samples, T length.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from jaxrope import data, decoder, schema
from jaxrope.search import attention_objective, judging
from jaxrope.search.judging import CHUNK, Combined, Judge, Objective, Reference, Task, mean_nll

__all__ = [
    "CHUNK",
    "Combined",
    "Judge",
    "OBJECTIVES",
    "OF_ATTENTION",
    "Objective",
    "Reference",
    "Task",
    "lay_out_weighted",
    "make",
    "mean_nll",
    "mix",
    "needle",
    "perplexity",
    "register",
]


def make(section: schema.Section, task: Task) -> Judge:
    """Returns the objective of config.search.objective.

    Raises:
      InputError: documents that are too short, or what does not fit the model.
    """
    return OBJECTIVES[section.name](task, section)


def register(name: str, objective_fn: Callable[..., Objective]) -> None:
    """Adds an objective, for config.search.objective; an experiment file may do it.

    Args:
      name: of the objective.
      objective_fn: (task, *, num_samples, ...) -> Objective. Its other arguments are keys of the
        config: annotated with float, int, bool or str, with a default or not.

    Raises:
      InputError: there is one of that name, no num_samples, or an argument is not annotated so.
    """

    def make_fn(task: Task, section: schema.Section) -> Objective:
        keys = {key: value for key, value in section.to_dict().items() if key != "name"}
        return objective_fn(task, **keys)

    schema.registered.objective(name, objective_fn)
    OBJECTIVES[name] = make_fn


def perplexity(task: Task, section: schema.search.Perplexity) -> Objective:
    """Perplexity of whole windows of the target length, each of another document, token mean
    (LongRoPE, section 4.1).
    """
    text = dict(length=task.target_len, offset_tokens=section.offset_tokens)
    drawn = dict(seed=task.seed, bos_id=task.tokenizer.bos_id)
    if task.skip:
        numbers = range(task.skip, task.skip + section.num_samples)
        windows = data.fresh_windows(
            task.documents, numbers=numbers, part=task.part, **text, **drawn
        )
    else:
        count = section.num_samples
        windows = data.search_windows(task.documents, num_windows=count, **text, **drawn)
    return Objective(
        loss_fn=mean_nll(task.config, task.settings),
        samples=np.asarray(windows.tokens_WT, np.int32),
        lay_out=functools.partial(decoder.lay_out, task.settings),
        fitness_fn=np.exp,
        unit="perplexity",
        sample_tokens=task.target_len,
        scored_tokens=task.target_len,
    )


def needle(task: Task, section: schema.search.Needle) -> Objective:
    """Perplexity of answers alone: of the digits of a number that is hidden in a long text and
    asked for at its end (LongRoPE2, section 3.2, "needle-driven"). One of several needles is asked
    for; they stand before the text, as in the paper, or anywhere in it.
    """
    documents = judging.needle_documents(
        task, section, length=task.target_len, setting="target_len"
    )
    tokens_WT = np.stack([document.tokens for document in documents])
    weights_WT = np.zeros((len(documents), task.target_len), np.float32)
    for weights_T, document in zip(weights_WT, documents, strict=True):
        weights_T[np.array(document.answers[0]) - 1] = 1.0  # column t predicts token t + 1
    return Objective(
        loss_fn=mean_nll(task.config, task.settings),
        samples={"tokens_WT": tokens_WT, "weights_WT": weights_WT},
        lay_out=functools.partial(lay_out_weighted, task.settings),
        fitness_fn=np.exp,
        unit="needle perplexity",
        sample_tokens=task.target_len,
        scored_tokens=float(weights_WT.sum(axis=1).mean()),
    )


def mix(task: Task, section: schema.search.Mix) -> Combined:
    """The exponential of a weighted mean of losses, nats: of text, of answers, of the needle mass
    of the shift of entropy (which is a share), and of text of the trained length; those with weight
    0 are left out.
    """
    weights = {name: getattr(section, f"{name}_weight") for name in _TERMS}
    chosen = [name for name, weight in weights.items() if weight]
    count = section.num_samples // len(chosen)
    task = dataclasses.replace(task, skip=task.skip // len(chosen))
    return Combined(
        parts=tuple(_TERMS[name](task, section, count) for name in chosen),
        weights=tuple(weights[name] for name in chosen),
        fitness_fn=np.exp,
        unit="mixed perplexity",
    )


def _text(task: Task, section: schema.search.Mix, count: int) -> Objective:
    offset = dict(num_samples=count, offset_tokens=section.offset_tokens)
    return perplexity(task, schema.search.Perplexity(name="perplexity", **offset))


def _short(task: Task, section: schema.search.Mix, count: int) -> Objective:
    """Text of the length that the model serves already."""
    return _text(dataclasses.replace(task, target_len=task.reference.length), section, count)


def _needles(task: Task, section: schema.search.Mix, count: int) -> Objective:
    keys = dict(num_samples=count, num_keys=section.num_keys, place=section.place)
    return needle(task, schema.search.Needle(name="needle", **keys))


def _of_heads(name: str):
    def of_heads(task: Task, section: schema.search.Mix, count: int) -> Objective:
        keys = dict(num_samples=count, num_keys=section.num_keys, place=section.place)
        heads = schema.search.OfHeads(name=name, needle_weight=0.0, heads=(), **keys)
        return OF_ATTENTION[name](task, heads)

    return of_heads


OF_ATTENTION = {
    "entropy_shift": attention_objective.entropy_shift,
    "pattern": attention_objective.pattern,
    "needle_mass": attention_objective.needle_mass,
}
_TERMS = {
    "text": _text,
    "needle": _needles,
    "mass": _of_heads("needle_mass"),
    "shift": _of_heads("entropy_shift"),
    "short": _short,
}
OBJECTIVES = {"perplexity": perplexity, "needle": needle, "mix": mix} | OF_ATTENTION


def lay_out_weighted(settings: decoder.ForwardSettings, samples: dict) -> dict[str, np.ndarray]:
    """Returns samples {"tokens_WT", "weights_WT"} laid out over the mesh."""
    return decoder.lay_out(settings, samples["tokens_WT"], samples["weights_WT"])

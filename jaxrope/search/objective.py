"""What a candidate is judged by: a function chosen in the config, one line each in OBJECTIVES.

Losses of text are here, objectives of attention in attention_objective.py, the definition of an
objective in judging.py.

Letters: W samples, T length.
"""

import dataclasses
import functools
import inspect

import numpy as np

from jaxrope import data, llama
from jaxrope.errors import InputError, choose, nearest
from jaxrope.search import attention_objective, judging
from jaxrope.search.judging import CHUNK, Objective, Reference, Task, check_whole, mean_nll

__all__ = [
    "CHUNK",
    "OBJECTIVES",
    "OF_ATTENTION",
    "Objective",
    "Reference",
    "Task",
    "make",
    "mean_nll",
    "mix",
    "needle",
    "perplexity",
]


def make(section: dict, task: Task) -> Objective:
    """Returns the objective of a config section: its name and exactly its arguments.

    Raises:
      InputError: an unknown name, an unknown, missing or illegal argument, or documents that are
        too short.
    """
    arguments = dict(section)
    objective_fn = choose("search.objective.name", arguments.pop("name", None), OBJECTIVES)
    parameters = inspect.signature(objective_fn).parameters.values()
    names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for name in arguments:
        if name not in names:
            raise InputError(f"Unknown key search.objective.{name}. {nearest(name, names)}")
    for name in names:
        if name not in arguments:
            raise InputError(
                f"search.objective.{name} is missing. Give all of: {', '.join(names)}."
            )
    return objective_fn(task, **arguments)


def perplexity(task: Task, *, num_samples: int, offset_tokens: int) -> Objective:
    """Perplexity of whole windows of the target length, token mean (LongRoPE, section 4.1).

    Args:
      task: the model and the text.
      num_samples: windows, each of another document.
      offset_tokens: tokens to skip at the start of each document.
    """
    check_whole(num_samples=(num_samples, 1), offset_tokens=(offset_tokens, 0))
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

    Args:
      task: the model and the text.
      num_samples: documents of the target length.
      num_keys: needles in each, one of which is asked for; the paper has 1.
      place: "start": all needles stand before the text, as in the paper; "spread": anywhere in it.
    """
    documents = judging.needle_documents(
        task,
        num_samples=num_samples,
        num_keys=num_keys,
        place=place,
        length=task.target_len,
        setting="target_len",
    )
    tokens_WT = np.stack([document.tokens for document in documents])
    weights_WT = np.zeros((num_samples, task.target_len), np.float32)
    for weights_T, document in zip(weights_WT, documents, strict=True):
        weights_T[np.array(document.answers[0]) - 1] = 1.0  # column t predicts token t + 1
    return Objective(
        loss_fn=mean_nll(task.config, task.settings),
        samples={"tokens_WT": tokens_WT, "weights_WT": weights_WT},
        lay_out=functools.partial(_lay_out_weighted, task.settings),
        fitness_fn=np.exp,
        unit="needle perplexity",
        sample_tokens=task.target_len,
    )


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
    check_whole(num_samples=(num_samples, 2))
    if num_samples % 2:
        raise InputError(
            "search.objective.num_samples must be even for 'mix', half of text and half with "
            f"needles, got {num_samples}."
        )
    half = num_samples // 2
    task = dataclasses.replace(task, skip=task.skip // 2)
    text = perplexity(task, num_samples=half, offset_tokens=offset_tokens)
    answers = needle(task, num_samples=half, num_keys=num_keys, place=place)
    weights_WT = np.ones_like(answers.samples["weights_WT"])
    pairs = {
        "tokens_WT": (text.samples, answers.samples["tokens_WT"]),
        "weights_WT": (weights_WT, answers.samples["weights_WT"]),
    }
    return dataclasses.replace(
        answers,
        samples={k: np.stack(both, axis=1).reshape(num_samples, -1) for k, both in pairs.items()},
        weights_W=np.tile([float(text_weight), float(needle_weight)], half),
        unit="mixed perplexity",
    )


OF_ATTENTION = {
    "entropy_shift": attention_objective.entropy_shift,
    "pattern": attention_objective.pattern,
    "needle_mass": attention_objective.needle_mass,
}
OBJECTIVES = {"perplexity": perplexity, "needle": needle, "mix": mix} | OF_ATTENTION


def _lay_out_weighted(settings: llama.ForwardSettings, samples: dict) -> dict[str, np.ndarray]:
    return llama.lay_out(settings, samples["tokens_WT"], samples["weights_WT"])

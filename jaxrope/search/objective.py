"""What a candidate is judged by: a function chosen in the config, one line each in OBJECTIVES.

Losses of text are here, objectives of attention in attention_objective.py, the definition of an
objective in judging.py.

Letters: W samples, T length.
"""

import dataclasses
import functools

import numpy as np

from jaxrope import data, decoder, schema
from jaxrope.search import attention_objective, judging
from jaxrope.search.judging import CHUNK, Objective, Reference, Task, mean_nll

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


def make(section: schema.Section, task: Task) -> Objective:
    """Returns the objective of config.search.objective.

    Raises:
      InputError: documents that are too short, or what does not fit the model.
    """
    return OBJECTIVES[section.name](task, section)


def perplexity(task: Task, section: schema.search.Perplexity) -> Objective:
    """Perplexity of whole windows of the target length, each of another document, token mean
    (LongRoPE, section 4.1).
    """
    text = dict(length=task.target_len, offset_tokens=section.offset_tokens)
    drawn = dict(seed=task.seed, bos_id=task.tokenizer.bos_id)
    if task.skip:
        numbers = range(task.skip, task.skip + section.num_samples)
        windows = data.fresh_windows(task.documents, numbers=numbers, **text, **drawn)
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
        lay_out=functools.partial(_lay_out_weighted, task.settings),
        fitness_fn=np.exp,
        unit="needle perplexity",
        sample_tokens=task.target_len,
    )


def mix(task: Task, section: schema.search.Mix) -> Objective:
    """The exponential of a weighted mean of both losses: of text, and of answers.

    Samples take turns, text first. With weights a and b the mean is (a * mean NLL of text + b *
    mean NLL of answers) / (a + b), in nats a token.
    """
    half = section.num_samples // 2
    task = dataclasses.replace(task, skip=task.skip // 2)
    text = perplexity(
        task,
        schema.search.Perplexity(
            name="perplexity", num_samples=half, offset_tokens=section.offset_tokens
        ),
    )
    answers = needle(
        task,
        schema.search.Needle(
            name="needle", num_samples=half, num_keys=section.num_keys, place=section.place
        ),
    )
    weights_WT = np.ones_like(answers.samples["weights_WT"])
    pairs = {
        "tokens_WT": (text.samples, answers.samples["tokens_WT"]),
        "weights_WT": (weights_WT, answers.samples["weights_WT"]),
    }
    return dataclasses.replace(
        answers,
        samples={k: np.stack(both, axis=1).reshape(2 * half, -1) for k, both in pairs.items()},
        weights_W=np.tile([section.text_weight, section.needle_weight], half),
        unit="mixed perplexity",
    )


OF_ATTENTION = {
    "entropy_shift": attention_objective.entropy_shift,
    "pattern": attention_objective.pattern,
    "needle_mass": attention_objective.needle_mass,
}
OBJECTIVES = {"perplexity": perplexity, "needle": needle, "mix": mix} | OF_ATTENTION


def _lay_out_weighted(settings: decoder.ForwardSettings, samples: dict) -> dict[str, np.ndarray]:
    return decoder.lay_out(settings, samples["tokens_WT"], samples["weights_WT"])

"""Measurements of a subject: texts, answers, heads. Each function returns (record, arrays), from
which attention.json and the findings are made; the caller stores both.

Letters: W texts or trials, L layers, N heads, T tokens.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrope import data, decoder
from jaxrope.analyse import subjects
from jaxrope.analyse.plan import Study
from jaxrope.analyse.subjects import Loaded, Question
from jaxrope.analysis import answers as answering
from jaxrope.analysis import causal, heads, texts
from jaxrope.evaluate import EvalModel, scoring
from jaxrope.store import sealed

SINK_TOKENS = 64  # of a sample in which sinks are sought, as Gu et al. take (arXiv 2410.10781)
FIRST_KEYS = 4

Record = dict[str, Any]
Arrays = dict[str, np.ndarray]
Tick = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Material:
    """The texts and questions that all subjects of a model share.

    Attributes:
      study: the model and its settings.
      texts_WT: tokens of the longest texts, bos first.
      questions: (task, length) -> questions.
      tokenizer: the model's.
    """

    study: Study
    texts_WT: np.ndarray
    questions: dict[tuple[str, int], list[Question]]
    tokenizer: data.Tokenizer

    def digest(self, kind: str) -> str:
        """Returns a digest of what a kind of measurement reads of them: "texts", "answers" or
        "heads", which reads both."""
        parts = []
        if kind != "answers":
            parts.append(hashlib.sha256(np.ascontiguousarray(self.texts_WT).tobytes()).hexdigest())
        if kind != "texts":
            questions = sorted(self.questions.items())
            parts.append([[*key, [q.plain() for q in listed]] for key, listed in questions])
        return sealed.digest_of(parts)


def prepare(study: Study) -> Material:
    """Returns the texts and questions of a model.

    Raises:
      InputError: there is too little text, or no room for a question.
    """
    section = study.config.analysis
    documents, tokenizer = subjects.text_and_tokenizer(study)
    longest = max(study.lengths(section.patterns))
    return Material(
        study,
        subjects.windows(study, documents, tokenizer, longest),
        {
            (task, length): subjects.questions(study, documents, tokenizer, task, length)
            for task in section.tasks
            for length in sorted({*study.lengths(section.needles), *head_lengths(study).values()})
        },
        tokenizer,
    )


def head_lengths(study: Study) -> dict[str, int]:
    """Returns {label: tokens} of the subjects whose heads are measured."""
    section, length = study.config.analysis, study.trained_len
    lengths = {"base": length}
    if section.heads.setting in section.settings and not study.name:
        lengths[section.heads.setting] = round(section.heads.multiple * length)
    return lengths if section.tasks else {}


def read_texts(loaded: Loaded, material: Material, tick: Tick) -> tuple[Record, Arrays]:
    """Statistics and patterns of all texts at each length.

    Returns:
      {"lengths": {length: {statistic: [W, L, N]}}}, and "whole-LENGTH", "rest-LENGTH" [W, L, N, T]
      and "last-LENGTH" [L, N, T], the mean over texts.
    """
    section = material.study.config.analysis
    statistics, arrays = {}, {}
    for length in material.study.lengths(section.patterns):
        readings = []
        for tokens_T in material.texts_WT[:, :length]:
            readings.append(
                texts.read(
                    loaded.config,
                    loaded.params,
                    loaded.rope_fn(length),
                    tokens_T,
                    queries=section.queries,
                    settings=loaded.settings,
                )
            )
            tick(length)
        statistics[str(length)] = {
            name: np.stack([text.statistics[name] for text in readings]).tolist()
            for name in texts.STATISTICS
        }
        for name in ("whole", "rest"):
            arrays[f"{name}-{length}"] = np.stack([getattr(text, name) for text in readings])
        arrays[f"last-{length}"] = np.mean([text.last for text in readings], axis=0)
    return {"lengths": statistics}, {name: x.astype(np.float32) for name, x in arrays.items()}


def read_answers(loaded: Loaded, material: Material, tick: Tick) -> tuple[Record, Arrays]:
    """Answers to all questions, and attention where they were written.

    Returns:
      {"items": a row for each question}, and "curves" [W, L, N, E] in the rows' order.
    """
    config = material.study.config
    rows, curves, entropies = [], [], []
    for task in config.analysis.tasks:
        for length in material.study.lengths(config.analysis.needles):
            questions = material.questions[task, length]
            written = subjects.answers(
                loaded,
                questions,
                batch_tokens=config.eval.batch_tokens,
                chunk=config.eval.chunk_tokens,
            )
            tick(length * len(questions))
            for question, tokens in zip(questions, written, strict=True):
                answer = _written(loaded, question, tokens, length)
                rows.append(_row(task, length, question, tokens, answer))
                curves.append(answer.curve)
                entropies.append(answer.heads["entropy"])
                tick(length)
    arrays = {"curves": np.stack(curves), "entropies": np.stack(entropies)}
    return {"items": rows}, {name: x.astype(np.float32) for name, x in arrays.items()}


def _written(loaded: Loaded, question: Question, tokens, length: int) -> answering.Written:
    whole = np.array(question.tokens)
    whole[list(question.steps)] = tokens
    return answering.read(
        loaded.config,
        loaded.params,
        loaded.rope_fn(length),
        whole,
        steps=question.steps,
        span=question.span,
        settings=loaded.settings,
    )


def _row(task: str, length: int, question: Question, tokens, answer: answering.Written) -> Record:
    right = [a == b for a, b in zip(tokens, question.answer, strict=True)]
    return {
        "task": task,
        "length": length,
        "depth": question.depth,
        "trial": question.trial,
        "found": all(right),
        "digits": float(np.mean(right)),
        "entropy_of_mean": answer.entropy_of_mean,
        "top_in_needle": float(answer.top_in_needle.mean()),
        **{name: answer.mean(name) for name in answering.OF_HEADS},
    }


def read_heads(loaded: Loaded, material: Material, tick: Tick) -> tuple[Record, Arrays]:
    """The scores of each head, and the effect of masking the retrieval heads.

    Returns:
      {"length", "accuracy", "maps": {name: [L, N]}, "retrieval_heads", "sink_heads", "causal": a
      row for each number of heads}, and no arrays.
    """
    section = material.study.config.analysis
    length = head_lengths(material.study)[loaded.subject.label]
    questions = [
        question for task in section.tasks for question in material.questions[task, length]
    ]
    trials = [heads.Trial(question.tokens, question.steps, question.span) for question in questions]
    how = dict(settings=loaded.settings, tick=tick)
    retrieval = heads.retrieval(loaded.config, loaded.params, loaded.rope_fn, trials, **how)
    knows = retrieval.recall_W > 0.5
    scores = retrieval.mean() if knows.any() else np.zeros(retrieval.scores_WLN.shape[1:])
    maps = {"retrieval": scores, "needle_mass": retrieval.mass_WLN.mean(axis=0)}
    maps |= _positions(loaded, material.texts_WT, tick)
    tested = _masked(loaded, material, questions, scores, tick) if knows.any() else []
    return {
        "length": length,
        "trials": len(trials),
        "accuracy": float(np.mean(retrieval.recall_W == 1)),
        "maps": {name: np.asarray(values).tolist() for name, values in maps.items()},
        "retrieval_heads": heads.detect(scores, above=section.heads.above),
        "sink_heads": heads.detect(maps["sink_head"], above=0.5),
        "causal": [effect._asdict() for effect in tested],
    }, {}


def _positions(loaded: Loaded, texts_WT: np.ndarray, tick: Tick) -> dict[str, np.ndarray]:
    """Scores of sinks (share of texts in which the first key is one) and of positional heads."""
    length = min(decoder.own_base(loaded.config).length, texts_WT.shape[1])
    few = min(SINK_TOKENS, length)
    first, sums = [], {}
    for tokens_T in texts_WT:
        first.append(np.asarray(_masses(loaded, tokens_T[:few])[0])[:, 0])
        for name, pair in _masses(loaded, tokens_T[:length])[1].items():
            sums[name] = sums.get(name, 0) + np.asarray(pair, np.float64)[:, :, 0]
        tick(few + length)
    sinks = heads.sink_scores(np.stack(first), few)[..., 0]
    return {"sink_head": sinks} | {name: pair[0] / pair[1] for name, pair in sums.items()}


def _masses(loaded: Loaded, tokens_T):
    """Returns (masses of the first keys [L, 1, N, E], {pattern: its masses and all, [2, L, 1, N]})
    of a text."""
    tokens_BT, r = np.asarray(tokens_T, np.int32)[None], loaded.rope_fn(len(tokens_T))
    how = dict(config=loaded.config, settings=loaded.settings)
    return _probe_masses(loaded.params, r, tokens_BT, **how)


@functools.partial(jax.jit, static_argnames=("config", "settings"))
def _probe_masses(params, r, tokens_BT, *, config, settings):
    block = settings.attention_block

    def probe_fn(layer):
        placed = {
            name: heads.positional_masses(layer, tokens_BT, name, block=block, exclude_first=True)
            for name in heads.PATTERNS
        }
        return heads.first_masses(layer, first=FIRST_KEYS, block=block), placed

    _, (first, placed) = decoder.probe(
        config, params, tokens_BT, r, probe_fn=probe_fn, settings=settings
    )
    return first, {name: jnp.stack(pair) for name, pair in placed.items()}


def _masked(loaded: Loaded, material: Material, questions, scores, tick: Tick):
    config = material.study.config
    section = config.analysis.heads
    rows = np.stack([np.append(question.tokens, question.tokens[:1]) for question in questions])

    def answered_fn(params):
        model = EvalModel(
            loaded.config,
            params,
            loaded.rope_fn,
            material.tokenizer,
            loaded.settings,
            loaded.subject.label,
        )
        _, hit_WT = scoring.score(model, rows, batch_tokens=config.eval.batch_tokens, tick=tick)
        steps = [np.array(question.steps) - 1 for question in questions]
        return [bool(hits[at].all()) for hits, at in zip(hit_WT, steps, strict=True)]

    return causal.mask_best(
        loaded.params,
        heads.ranked(scores),
        answered_fn,
        sizes=section.sizes,
        num_draws=section.draws,
        num_samples=config.eval.bootstrap_samples,
        seed=config.seed,
    )

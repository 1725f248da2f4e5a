"""A subject in memory: the model, its rope, and its questions.

Retrieval uses the documents of the suites "passkey" and "needle", but answers by greedy generation,
as in the paper: the uncertainty of a wrong answer is that of the tokens the model wrote. The
needles' words are held out; documents are the same for all subjects of a model.

Letters: T tokens.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrope import data, decoder, evaluate, generate, rope, schema, setup
from jaxrope.analyse.plan import Study, Subject
from jaxrope.analysis import heads
from jaxrope.convert import pretrained
from jaxrope.errors import InputError
from jaxrope.evaluate import EvalModel, needle, passkey, scoring
from jaxrope.mesh import sharding
from jaxrope.schema import Config


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A subject in memory, on one device.

    Attributes:
      subject: the subject.
      config: its shape, with the length it was pre-trained at.
      params: its parameters.
      rope_fn: its rope by length.
      settings: how it is run.
    """

    subject: Subject
    config: decoder.DecoderConfig
    params: Any
    rope_fn: rope.RopeFn
    settings: decoder.ForwardSettings


class Question(NamedTuple):
    """A prompt and its answer.

    Attributes:
      tokens: int32 [T], prompt and answer, exactly the requested length.
      steps: places of the answer's tokens, the last ones.
      span: (begin, end) of the needle's number.
      depth: share of the text before the needle.
      trial: number of the needle, the same at every length.
    """

    tokens: np.ndarray
    steps: tuple[int, ...]
    span: tuple[int, int]
    depth: float
    trial: int

    def plain(self) -> list:
        """Returns the question as JSON has it."""
        return [self.tokens.tolist(), list(self.steps), list(self.span), self.depth, self.trial]

    @property
    def prompt(self) -> list[int]:
        """The tokens before the answer."""
        return self.tokens[: self.steps[0]].tolist()

    @property
    def answer(self) -> list[int]:
        """The correct tokens."""
        return self.tokens[list(self.steps)].tolist()


def place(path: str, workdir: Path) -> str:
    """Returns a path with the folders of stages in it."""
    return path.replace("{", f"{workdir}/").replace("}", "") if path.startswith("{") else path


def config_of(study: Study, subject: Subject, workdir: Path) -> Config:
    """Returns the config whose model is the subject's."""
    model = dict(source="checkpoint", path=place(subject.model, workdir), shape="")
    return schema.replace(study.config, {"model": model})


def load(study: Study, subject: Subject, workdir: Path) -> Loaded:
    """Returns a subject; its stages have been run.

    Raises:
      InputError: its folder or its rope is not valid.
    """
    model = setup.load_model(config_of(study, subject, workdir))
    return Loaded(
        subject,
        model.config,
        jax.device_put(model.params, jax.devices()[0]),
        rope_of(subject, model, workdir),
        one_device(study.config, model.config),
    )


def rope_of(subject: Subject, model: pretrained.Pretrained, workdir: Path) -> rope.RopeFn:
    """Returns the rope that a subject is measured with.

    Raises:
      InputError: see rope.load.
    """
    if not subject.rope:
        return model.rope_fn
    shape = model.config
    geometry = dict(head_dim=shape.head_dim, rotary_dim=shape.rotary_dim, theta=shape.theta)
    return rope.load(place(subject.rope, workdir), **geometry, num_layers=shape.num_layers)


def one_device(config: Config, shape: decoder.DecoderConfig) -> decoder.ForwardSettings:
    """Returns how a model is run on the first device alone."""
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
    return setup.forward_settings(config, mesh, shape)[0]


def text_and_tokenizer(study: Study) -> tuple[data.TokenDocuments, data.Tokenizer]:
    """Returns the held-out text of a model, and its tokenizer.

    Raises:
      InputError: there is none.
    """
    config = study.config
    model = setup.load_model(config, weights=False)
    tokenizer, place = setup.tokenizer(config, model.tokenizer_dir, study.shape.vocab_size)
    return setup.held_out_documents(config, tokenizer, place), tokenizer


def windows(study: Study, documents: data.TokenDocuments, tokenizer, longest: int) -> np.ndarray:
    """Returns tokens_WT, the texts that all subjects read, bos first; a shorter length is the
    beginning of the same texts.

    Raises:
      InputError: there is too little text.
    """
    section = study.config.analysis
    return data.eval_windows(
        documents,
        length=longest,
        num_windows=section.sequences,
        offset_tokens=study.config.eval.offset_tokens,
        windows_per_doc=1,
        bos_id=tokenizer.bos_id,
    ).tokens_WT[:, :longest]


def questions(study: Study, documents, tokenizer, task: str, length: int) -> list[Question]:
    """Returns the questions of a task at a length, the same for all subjects.

    Raises:
      InputError: there is no room for them, or the needle's number cannot be found in its text.
    """
    section, config = study.config.analysis, study.config
    trials = dict(passkey_trials=section.trials, needle_trials=section.trials)
    options = dataclasses.replace(schema.read(config).eval, **trials)
    bench = evaluate.Bench(options, config.seed, documents)
    model = EvalModel(study.shape, None, None, tokenizer, None, task)
    return ASK[task](model, bench, length)


def _pass_keys(model: EvalModel, bench, length: int) -> list[Question]:
    questions = []
    for i, trial in enumerate(passkey.make_trials(model, bench, length)):
        span = _span(trial.tokens, trial.digits)
        questions.append(Question(trial.tokens, trial.digits, span, trial.about["depth"], i))
    return questions


def _needles(model: EvalModel, bench, length: int) -> list[Question]:
    documents = needle.make_documents(model, bench, length)
    questions = []
    for i, document in enumerate(documents[bench.options.needle_keys[0]]):
        trial = heads.number_trial(model.tokenizer, document)
        questions.append(Question(trial.tokens, trial.steps, trial.span, document.depths[0], i))
    return questions


# task -> (model, bench, length) -> its questions
ASK = {"passkey": _pass_keys, "needle": _needles}


def _span(tokens: np.ndarray, steps: Sequence[int]) -> tuple[int, int]:
    """Returns (begin, end) from the first to the last place of the answer in the prompt: the line
    of the pass key repeats it."""
    answer = tokens[list(steps)]
    views = np.lib.stride_tricks.sliding_window_view(tokens[: steps[0]], len(answer))
    places = np.flatnonzero(np.all(views == answer, axis=1))
    if not len(places):
        raise InputError(
            "analysis.tasks: the pass key has other tokens in its line than in its answer. Leave "
            "'passkey' out with a tokenizer that does not split digits."
        )
    return int(places[0]), int(places[-1]) + len(answer)


def answers(
    loaded: Loaded, questions: Sequence[Question], *, batch_tokens: int, chunk: int
) -> list[list[int]]:
    """Returns the tokens that the model writes, greedily, as many as the right answer has.

    Args:
      loaded: the model.
      questions: questions of one length.
      batch_tokens: tokens in the cache of a batch, at most.
      chunk: tokens of a prompt that are processed at a time.
    """
    model = generate.Model(loaded.config, loaded.params, loaded.rope_fn, loaded.settings)
    rows = scoring.batch_rows(len(questions), len(questions[0].tokens), batch_tokens)
    written: list[list[int]] = []
    for start in range(0, len(questions), rows):
        batch = list(questions[start : start + rows])
        full = batch + batch[-1:] * (rows - len(batch))  # another number of rows compiles again
        options = generate.Options(
            max_new_tokens=max(len(question.steps) for question in full),
            policy="fixed",
            chunk=chunk,
        )
        new = generate.generate(model, [question.prompt for question in full], options)
        pairs = zip(batch, new, strict=False)
        written += [tokens[: len(question.steps)] for question, tokens in pairs]
    return written

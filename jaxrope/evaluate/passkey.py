"""Pass key retrieval, teacher-forced: is each digit of a hidden key the model's first choice?

The prompt is the one of Landmark attention, YaRN and LongRoPE (`longrope.md` §1.6). Theirs is
cut by characters, so that its length in tokens is only roughly known; here it is built from tokens
and has exactly the length asked for, bos and answer counted. Depths are stratified over the
trials where theirs are random, and the digits are read from one forward pass rather than generated.
Under greedy decoding the two agree: the key comes out right if and only if each of its digits is
the first choice after those before it. What their scripts ask for, to the letter and generated, is
in `passkey_compat`.

Legend: W trials, T tokens a row predicts.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from jaxrope.data.needles import GRASS
from jaxrope.data.tokenizer import continuation
from jaxrope.errors import InputError, TooShort
from jaxrope.evaluate import scoring, statistics
from jaxrope.evaluate.scoring import Bench, EvalModel, Result

OPENING = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there.\n"
)
KEY_LINE = "\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
QUESTION = "\nWhat is the pass key? The pass key is"
DIGITS = 5


@dataclasses.dataclass(frozen=True)
class Trial:
    """One prompt with its answer.

    Attributes:
      tokens: int32, exactly the length asked for: bos, prompt, answer.
      answer: the places of the key's digits in the answer, from the end: -1 is the last token.
      key: the five digits.
      depth: share of the filler that stands before the key, 0 to 1.
    """

    tokens: np.ndarray
    answer: tuple[int, ...]
    key: str
    depth: float


def make_trials(model: EvalModel, bench: Bench, length: int) -> list[Trial]:
    """Returns the trials of one length: the same for every model with the same tokenizer.

    Trial i of n has its key at depth (i + 0.5) / n of the filler. What is drawn depends on the
    seed, the length and i only.

    Raises:
      InputError: `length` has no room for the prompt, or the documents are too short to fill it.
    """
    num_trials = bench.passkey_trials
    if num_trials < 1:
        raise InputError(f"eval.passkey_trials is at least 1, got {num_trials}.")
    tokenizer = model.tokenizer
    fill = _filler(tokenizer, bench, length)
    keys = [
        _draw_key(np.random.default_rng([bench.seed, length, i]), bench.passkey_zero_padded)
        for i in range(num_trials)
    ]
    return [
        _make_trial(tokenizer, fill, key=key, depth=(i + 0.5) / num_trials, length=length)
        for i, key in enumerate(keys)
    ]


def evaluate(model: EvalModel, bench: Bench) -> Iterator[Result]:
    """Yields the share of keys found at each length, with Wilson's 95% interval.

    Metrics: `accuracy`, `low`, `high`, and `digit_accuracy` (share of single digits).
    A model whose window slides has none: beyond its window it cannot see the key.
    """
    if model.window:
        return
    for length in bench.lengths:
        watch = scoring.Stopwatch(bench.journal)
        trials = make_trials(model, bench, length)
        rows = np.stack([trial.tokens for trial in trials])
        # the model reads all `length` tokens; what follows the last one is not scored
        rows = np.concatenate([rows, rows[:, :1]], axis=1)
        prints = [scoring.fingerprint(trial.tokens) for trial in trials]
        how = dict(suite="passkey", length=length, items=prints)
        _, hit_WT = scoring.score_with_journal(model, bench, rows, **how)
        # column t of hit_WT is about token t + 1
        digits = [
            hit_WT[i, [length - 1 + place for place in trial.answer]]
            for i, trial in enumerate(trials)
        ]
        correct = [bool(hits.all()) for hits in digits]
        low, high = statistics.wilson_interval(sum(correct), len(correct))
        yield Result(
            suite="passkey",
            label=model.label,
            length=length,
            metrics={
                "accuracy": sum(correct) / len(correct),
                "low": low,
                "high": high,
                "digit_accuracy": float(np.mean(np.concatenate(digits))),
            },
            items={
                "key": [trial.key for trial in trials],
                "depth": [trial.depth for trial in trials],
                "found": correct,
                "item": prints,
            },
            nll_WT=None,
            fingerprint=scoring.fingerprint(rows, [trial.answer for trial in trials]),
            tokens=forward_tokens(model, bench, length),
            seconds=watch.seconds(),
            chance=0.0,
            columns=("depth",),
        )


def forward_tokens(model: EvalModel, bench: Bench, length: int) -> int:
    """Returns the tokens the model reads for one length."""
    return 0 if model.window else bench.passkey_trials * length


def _draw_key(rng: np.random.Generator, zero_padded: bool) -> str:
    first = 0 if zero_padded else 10 ** (DIGITS - 1)
    return f"{rng.integers(first, 10**DIGITS):0{DIGITS}d}"


def _filler(tokenizer, bench: Bench, length: int):
    """Returns a function (depth, before, after) -> the tokens before the key and those after it."""
    if bench.passkey_filler == "grass":
        unit = len(tokenizer.encode(GRASS))
        ids = tokenizer.encode(" ".join([GRASS] * (length // unit + 2)))
        return lambda depth, before, after: (ids[:before], ids[:after])
    if bench.passkey_filler != "text":
        raise InputError(
            f"Unknown eval.passkey_filler '{bench.passkey_filler}'. Known: grass, text."
        )
    if bench.documents is None:
        raise InputError("eval.passkey_filler is 'text', which needs text: set data.eval_files.")
    return lambda depth, before, after: np.split(
        _text(bench.documents, depth, before + after), [before]
    )


def _text(documents, depth: float, count: int) -> np.ndarray:
    """Returns `count` tokens from the middle of a document, another one at each depth."""
    sizes = np.diff(documents.offsets)
    enough = np.flatnonzero(sizes >= count)
    if not len(enough):
        raise InputError(
            f"eval.passkey_filler 'text' needs a document of {count} tokens, the longest of "
            f"data.eval_files has {sizes.max(initial=0)}. Name longer texts, or use 'grass'."
        )
    doc = int(enough[int(depth * len(enough))])
    start = (int(sizes[doc]) - count) // 2
    return np.asarray(documents.doc(doc)[start : start + count])


def _make_trial(tokenizer, fill, *, key: str, depth: float, length: int) -> Trial:
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    opening = [*bos, *tokenizer.encode(OPENING)]
    key_line = tokenizer.encode(KEY_LINE.format(key=key))
    question = tokenizer.encode(QUESTION)
    answer = continuation(tokenizer, QUESTION, f" {key}")
    room = length - sum(map(len, (opening, key_line, question, answer)))
    if room < 0:
        raise TooShort(
            f"eval.lengths: a pass key prompt without filler has {length - room} tokens, "
            f"got length {length}. Leave it out, or leave 'passkey' out of eval.suites.",
            least=length - room,
        )
    before = round(depth * room)
    filler_before, filler_after = fill(depth, before, room - before)
    parts = (opening, filler_before, key_line, filler_after, question, answer)
    tokens = np.concatenate([np.asarray(part, np.int32) for part in parts])
    # a space before the number may be a token of its own, which says nothing about the key
    places = range(-len(answer), 0)
    digits = [place for place in places if tokenizer.decode([answer[place]]).strip()]
    return Trial(tokens=tokens, answer=tuple(digits), key=key, depth=depth)
